//! `_core.Windows`: windows over a NumPy array of tokens, copied into the caller's arrays.

use gptrs_core::Windows;
use numpy::{Element, PyArray1, PyArrayMethods, PyReadonlyArray1, PyReadwriteArray2};
use pyo3::prelude::*;

use crate::errors::CoreError;

/// The (input, target) windows of a token stream.
///
/// Args:
///     tokens: uint16 or uint32 [N], C-contiguous; kept, not copied.
///     length: tokens a window.
///     stride: tokens from one window's start to the next.
/// Raises:
///     ConfigError: length or stride is below 1.
#[pyclass(name = "Windows", module = "gptrs._core", frozen)]
pub struct PyWindows {
    windows: Windows,
    tokens: Tokens,
}

#[derive(FromPyObject)]
enum Tokens {
    #[pyo3(annotation = "uint16 array")]
    U16(Py<PyArray1<u16>>),
    #[pyo3(annotation = "uint32 array")]
    U32(Py<PyArray1<u32>>),
}

#[pymethods]
impl PyWindows {
    #[new]
    fn new(py: Python<'_>, tokens: Tokens, length: i64, stride: i64) -> Result<Self, CoreError> {
        let num_tokens = match &tokens {
            Tokens::U16(array) => array.bind(py).len().unwrap_or(0),
            Tokens::U32(array) => array.bind(py).len().unwrap_or(0),
        };
        Ok(Self { windows: Windows::new(num_tokens, length, stride)?, tokens })
    }

    fn __len__(&self) -> usize {
        self.windows.len()
    }

    /// Copies windows `indices` into `inputs` and `targets`, in place.
    ///
    /// Args:
    ///     indices: int64 [B], each in -len(self)..len(self); -1 is the last window.
    ///     inputs, targets: int64 [B, length], C-contiguous.
    /// Raises:
    ///     WindowError: an index is out of range; nothing was written.
    fn fill(
        &self,
        py: Python<'_>,
        indices: PyReadonlyArray1<'_, i64>,
        inputs: PyReadwriteArray2<'_, i64>,
        targets: PyReadwriteArray2<'_, i64>,
    ) -> PyResult<()> {
        match &self.tokens {
            Tokens::U16(tokens) => self.fill_from(py, tokens, &indices, inputs, targets),
            Tokens::U32(tokens) => self.fill_from(py, tokens, &indices, inputs, targets),
        }
    }
}

impl PyWindows {
    fn fill_from<T: Element + Copy + Into<i64> + Sync>(
        &self,
        py: Python<'_>,
        tokens: &Py<PyArray1<T>>,
        indices: &PyReadonlyArray1<'_, i64>,
        mut inputs: PyReadwriteArray2<'_, i64>,
        mut targets: PyReadwriteArray2<'_, i64>,
    ) -> PyResult<()> {
        let tokens = tokens.bind(py).try_readonly()?;
        let (tokens, indices) = (tokens.as_slice()?, indices.as_slice()?);
        let (inputs, targets) = (inputs.as_slice_mut()?, targets.as_slice_mut()?);
        py.detach(|| self.windows.fill(tokens, indices, inputs, targets)).map_err(CoreError)?;
        Ok(())
    }
}
