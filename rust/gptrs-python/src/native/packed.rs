//! `_core.PackedWeights`: int8 weights, as NumPy arrays over the memory that has them; and back.

#![allow(unsafe_code, reason = "NumPy is handed memory that it does not own")]

use gptrs_core::native::PackedWeights;
use numpy::ndarray::ArrayView1;
use numpy::{Element, PyArray1, PyArrayMethods, PyReadonlyArray1};
use pyo3::prelude::*;

use super::{PyWeights, to_py_err};
use crate::tensor::bytes;

/// The matrices of a model, a byte a weight.
#[pyclass(name = "PackedWeights", module = "gptrs._core", frozen)]
pub struct PyPackedWeights {
    pub packed: PackedWeights,
}

impl From<PackedWeights> for PyPackedWeights {
    fn from(packed: PackedWeights) -> Self {
        Self { packed }
    }
}

/// uint8 and float32.
type Part<'py> = (Bound<'py, PyArray1<u8>>, Bound<'py, PyArray1<f32>>);

#[pymethods]
impl PyPackedWeights {
    /// What `parts` gave, of a model with the shapes of `weights`; the bytes are read where they lie.
    ///
    /// Args:
    ///     weights: a `gptrs.engines.native_weights.Weights`.
    ///     parts: for each matrix, its bytes, which nobody may change, and its scales.
    /// Raises:
    ///     ConfigError: they are of another number, or of another size.
    ///     GenerationError: bytes that do not lie one after the other.
    #[staticmethod]
    fn of_parts(
        weights: PyWeights<'_>,
        parts: Vec<(Bound<'_, PyAny>, PyReadonlyArray1<'_, f32>)>,
    ) -> PyResult<Self> {
        let parts = parts.iter().map(|(of_bytes, scales)| {
            Ok((bytes(of_bytes)?, scales.as_array().iter().copied().collect()))
        });
        let parts = parts.collect::<PyResult<_>>()?;
        let packed = PackedWeights::of_parts(&weights.read()?, parts).map_err(to_py_err)?;
        Ok(packed.into())
    }

    /// Of each matrix its bytes and its scales, as read-only arrays over its memory: of each block Q, K,
    /// V, out_proj, ff.0 and ff.2; at the end the output layer.
    fn parts<'py>(slf: &Bound<'py, Self>) -> PyResult<Vec<Part<'py>>> {
        let parts = slf.get().packed.parts();
        parts.map(|(bytes, scales)| Ok((view(slf, bytes.get())?, view(slf, scales)?))).collect()
    }
}

/// `numbers` are `packed`'s.
fn view<'py, T: Element>(
    packed: &Bound<'py, PyPackedWeights>,
    numbers: &[T],
) -> PyResult<Bound<'py, PyArray1<T>>> {
    let numbers = ArrayView1::from(numbers);
    // SAFETY: packed weights neither move nor change, and the array keeps them alive as its base.
    let array = unsafe { PyArray1::borrow_from_array(&numbers, packed.clone().into_any()) };
    // For good: NumPy makes an array writeable again only if it owns its memory or its base does.
    array.try_readwrite()?.make_nonwriteable();
    Ok(array)
}
