//! What is done to the rows of a matrix: `_core.exp_and_sum`, `_core.softmax_and_losses`, `_core.turn`.

use gptrs_core::layers::{self, Kernels, Number};
use half::bf16;
use pyo3::prelude::*;

use super::other_dtype;
use crate::errors::GenerationError;
use crate::native::find_kernels;
use crate::tensor::{DType, TensorView, WritableTensor};

/// Rows become their exponentials, in place, and the sum of each, as they were rounded, is added to `sums`.
///
/// Args:
///     rows: float32 or bfloat16 [N, C], contiguous.
///     sums: float32 [N].
///     threads: how many compute.
///     kernels: for which processor, by name; None: the best that this one is.
#[pyfunction]
#[pyo3(signature = (rows, sums, *, threads, kernels = None))]
pub fn exp_and_sum(
    py: Python<'_>,
    rows: &Bound<'_, PyAny>,
    sums: &Bound<'_, PyAny>,
    threads: usize,
    kernels: Option<&str>,
) -> PyResult<()> {
    let kernels = find_kernels(kernels)?;
    let (mut rows, mut sums) = (WritableTensor::of(rows)?, WritableTensor::of(sums)?);
    let &[count, columns] = rows.shape() else {
        return Err(matrix_needed(rows.shape()));
    };
    if sums.shape() != [count] {
        let message = format!("sums is [{count}], found {:?}", sums.shape());
        return Err(GenerationError::new_err(message));
    }
    py.detach(|| {
        let sums = sums.elements_mut().ok_or_else(other_dtype)?;
        if let Some(rows) = rows.elements_mut::<f32>() {
            layers::exp_and_sum(kernels, threads, columns, rows, sums);
        } else if let Some(rows) = rows.elements_mut::<bf16>() {
            layers::exp_and_sum(kernels, threads, columns, rows, sums);
        } else {
            return Err(other_dtype());
        }
        Ok(())
    })
}

/// Rows of logits become probabilities, in place; `losses` minus the logarithms of their targets'.
///
/// Args:
///     rows: float32 [N, V], contiguous.
///     targets: int64 [N], each in 0..V.
///     losses: float32 [N], filled.
///     threads: how many compute.
///     kernels: for which processor, by name; None: the best that this one is.
#[pyfunction]
#[pyo3(signature = (rows, targets, losses, *, threads, kernels = None))]
pub fn softmax_and_losses(
    py: Python<'_>,
    rows: &Bound<'_, PyAny>,
    targets: &Bound<'_, PyAny>,
    losses: &Bound<'_, PyAny>,
    threads: usize,
    kernels: Option<&str>,
) -> PyResult<()> {
    let kernels = find_kernels(kernels)?;
    let targets = TensorView::of(targets)?;
    let (mut rows, mut losses) = (WritableTensor::of(rows)?, WritableTensor::of(losses)?);
    let &[count, columns] = rows.shape() else {
        return Err(matrix_needed(rows.shape()));
    };
    if targets.shape() != [count] || losses.shape() != [count] {
        let found = (targets.shape(), losses.shape());
        let message = format!("targets and losses are [{count}], found {found:?}");
        return Err(GenerationError::new_err(message));
    }
    py.detach(|| {
        let targets = targets.as_i64().ok_or_else(other_dtype)?;
        if let Some(target) = targets.iter().find(|target| !(0..columns as i64).contains(target)) {
            let message = format!("a target is in 0..{columns}, found {target}");
            return Err(GenerationError::new_err(message));
        }
        let rows = rows.elements_mut().ok_or_else(other_dtype)?;
        let losses = losses.elements_mut().ok_or_else(other_dtype)?;
        layers::softmax_and_losses(kernels, threads, columns, rows, targets, losses);
        Ok(())
    })
}

/// A matrix is written turned.
///
/// Args:
///     source: float32 or bfloat16 [R, C], contiguous.
///     target: float32 or bfloat16 [C, R], contiguous.
///     threads: how many copy.
///     kernels: for which processor, by name; None: the best that this one is.
#[pyfunction]
#[pyo3(signature = (source, target, *, threads, kernels = None))]
pub fn turn(
    py: Python<'_>,
    source: &Bound<'_, PyAny>,
    target: &Bound<'_, PyAny>,
    threads: usize,
    kernels: Option<&str>,
) -> PyResult<()> {
    let kernels = find_kernels(kernels)?;
    let (source, mut target) = (TensorView::of(source)?, WritableTensor::of(target)?);
    let &[rows, columns] = source.shape() else {
        return Err(matrix_needed(source.shape()));
    };
    if target.shape() != [columns, rows] {
        let message = format!("the target is [{columns}, {rows}], found {:?}", target.shape());
        return Err(GenerationError::new_err(message));
    }
    py.detach(|| match source.dtype() {
        DType::F32 => {
            turn_numbers(kernels, threads, columns, source.as_f32().unwrap_or(&[]), &mut target)
        }
        DType::Bf16 => {
            turn_numbers(kernels, threads, columns, source.as_bf16().unwrap_or(&[]), &mut target)
        }
        _ => Err(other_dtype()),
    })
}

fn turn_numbers<N: Number>(
    kernels: Kernels,
    threads: usize,
    columns: usize,
    source: &[N],
    target: &mut WritableTensor,
) -> PyResult<()> {
    if let Some(target) = target.elements_mut::<f32>() {
        layers::turn(kernels, threads, columns, source, target);
    } else if let Some(target) = target.elements_mut::<bf16>() {
        layers::turn(kernels, threads, columns, source, target);
    } else {
        return Err(other_dtype());
    }
    Ok(())
}

fn matrix_needed(found: &[usize]) -> PyErr {
    GenerationError::new_err(format!("a matrix is needed, found the shape {found:?}"))
}
