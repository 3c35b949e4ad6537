//! `_core.matmul`: products of matrices of float32, from tensor to tensor.

use gptrs_core::layers::{self, Matrix, Start};
use pyo3::prelude::*;

use crate::errors::GenerationError;
use crate::native::find_kernels;
use crate::tensor::{StridedView, TensorView, WritableTensor};

/// `out = left @ right`, or what is asked for besides.
///
/// Args:
///     left: float32 [M, K], rows or columns contiguous.
///     right: float32 [K, N], rows or columns contiguous.
///     out: float32 [M, N], contiguous; filled.
///     row: float32 [N], contiguous, added to every row; None: nothing.
///     adds: whether the product is added to what `out` holds; not together with `row`.
///     threads: how many compute.
///     kernels: for which processor, by name; None: the best that this one is.
#[pyfunction]
#[pyo3(signature = (left, right, out, *, row = None, adds = false, threads, kernels = None))]
#[allow(clippy::too_many_arguments, reason = "Python's names")]
pub fn matmul(
    py: Python<'_>,
    left: &Bound<'_, PyAny>,
    right: &Bound<'_, PyAny>,
    out: &Bound<'_, PyAny>,
    row: Option<&Bound<'_, PyAny>>,
    adds: bool,
    threads: usize,
    kernels: Option<&str>,
) -> PyResult<()> {
    let kernels = find_kernels(kernels)?;
    let [left, right] = [matrix_of(left)?, matrix_of(right)?];
    let mut out = WritableTensor::of(out)?;
    let row = row.map(TensorView::of).transpose()?;
    let ([rows, depth], [right_rows, columns]) = (left.shape(), right.shape());
    let row_fits = row.as_ref().is_none_or(|row| row.shape() == [columns]);
    if depth != right_rows || out.shape() != [rows, columns] || !row_fits {
        let row = row.as_ref().map_or(&[][..], TensorView::shape);
        return Err(GenerationError::new_err(format!(
            "shapes do not fit: [{rows}, {depth}] @ [{right_rows}, {columns}], out {:?}, row {row:?}",
            out.shape()
        )));
    }
    py.detach(|| {
        let row = row.as_ref().map(|row| row.as_f32().ok_or_else(other_dtype)).transpose()?;
        let start = match (row, adds) {
            (None, false) => Start::Zero,
            (None, true) => Start::Output,
            (Some(row), false) => Start::Row(row),
            (Some(_), true) => {
                let message = "a product is added to a row or to what out holds, not to both";
                return Err(GenerationError::new_err(message));
            }
        };
        let out = out.elements_mut().ok_or_else(other_dtype)?;
        layers::matmul(kernels, threads, matrix(&left)?, matrix(&right)?, start, out);
        Ok(())
    })
}

/// Whether `matmul` is faster on this processor than Intel's library, which PyTorch has on x86-64.
#[pyfunction]
pub fn matmul_beats_mkl() -> bool {
    layers::matmul_beats_mkl()
}

fn matrix_of(object: &Bound<'_, PyAny>) -> PyResult<StridedView<2>> {
    StridedView::of(object, &[0, 1], "matmul takes matrices")
}

fn matrix(view: &StridedView<2>) -> PyResult<Matrix<'_>> {
    let numbers = view.span().ok_or_else(other_dtype)?;
    Ok(Matrix::new(numbers, view.shape(), view.strides()))
}

fn other_dtype() -> PyErr {
    GenerationError::new_err("matmul takes float32, found another dtype")
}
