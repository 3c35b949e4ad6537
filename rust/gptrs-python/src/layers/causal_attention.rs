//! `_core.attention` and its gradients.

use gptrs_core::layers::{self, Attention, Dropout, Gradients, Heads, Number, Shape};
use half::bf16;
use pyo3::prelude::*;

use super::other_dtype;
use crate::errors::GenerationError;
use crate::native::find_kernels;
use crate::tensor::{DType, Element, StridedView, TensorView, WritableTensor};

/// A tensor [batch, heads, tokens, head_dim].
type HeadsView = StridedView<4>;

/// Causal attention with dropout of its weights.
///
/// Args:
///     query, key, value: float32 or bfloat16 [B, H, T, K], the last dimension contiguous.
///     out: the same dtype, [B, T, H, K]; filled.
///     log_sums: float32 [B, H, T], filled with what `attention_backward` needs.
///     scale: of the scores.
///     dropout: what share of the weights is dropped, in 0..1.
///     seed: which.
///     threads: how many compute.
///     kernels: for which processor, by name; None: the best that this one is.
#[pyfunction]
#[pyo3(signature = (query, key, value, out, log_sums, *, scale, dropout, seed, threads, kernels = None))]
#[allow(clippy::too_many_arguments, reason = "Python's names")]
pub fn attention(
    py: Python<'_>,
    query: &Bound<'_, PyAny>,
    key: &Bound<'_, PyAny>,
    value: &Bound<'_, PyAny>,
    out: &Bound<'_, PyAny>,
    log_sums: &Bound<'_, PyAny>,
    scale: f32,
    dropout: f64,
    seed: u64,
    threads: usize,
    kernels: Option<&str>,
) -> PyResult<()> {
    let kernels = find_kernels(kernels)?;
    let inputs = [heads_of(query)?, heads_of(key)?, heads_of(value)?];
    let (shape, dtype) = common(&inputs)?;
    let attention =
        Attention { shape, scale, dropout: Dropout::new(dropout, seed), kernels, threads };
    let (out, log_sums) = (WritableTensor::of(out)?, WritableTensor::of(log_sums)?);
    check_log_sums(log_sums.shape(), shape)?;
    py.detach(|| match dtype {
        DType::Bf16 => forward::<bf16>(&attention, &inputs, out, log_sums),
        _ => forward::<f32>(&attention, &inputs, out, log_sums),
    })
}

/// The gradients of `attention`.
///
/// Args:
///     query, key, value, log_sums: as there.
///     out: what it gave, as [B, H, T, K].
///     grad: that of `out`, [B, H, T, K], the last dimension contiguous.
///     to_query, to_key, to_value: [B, T, H, K], filled with the gradients.
///     scale, dropout, seed, threads, kernels: as there.
#[pyfunction]
#[pyo3(signature = (
    query, key, value, out, grad, log_sums, to_query, to_key, to_value, *, scale, dropout, seed,
    threads, kernels = None
))]
#[allow(clippy::too_many_arguments, reason = "Python's names")]
pub fn attention_backward(
    py: Python<'_>,
    query: &Bound<'_, PyAny>,
    key: &Bound<'_, PyAny>,
    value: &Bound<'_, PyAny>,
    out: &Bound<'_, PyAny>,
    grad: &Bound<'_, PyAny>,
    log_sums: &Bound<'_, PyAny>,
    to_query: &Bound<'_, PyAny>,
    to_key: &Bound<'_, PyAny>,
    to_value: &Bound<'_, PyAny>,
    scale: f32,
    dropout: f64,
    seed: u64,
    threads: usize,
    kernels: Option<&str>,
) -> PyResult<()> {
    let kernels = find_kernels(kernels)?;
    let mut inputs = Vec::with_capacity(5);
    for tensor in [query, key, value, out, grad] {
        inputs.push(heads_of(tensor)?);
    }
    let (shape, dtype) = common(&inputs)?;
    let attention =
        Attention { shape, scale, dropout: Dropout::new(dropout, seed), kernels, threads };
    let log_sums = TensorView::of(log_sums)?;
    check_log_sums(log_sums.shape(), shape)?;
    let to =
        [WritableTensor::of(to_query)?, WritableTensor::of(to_key)?, WritableTensor::of(to_value)?];
    py.detach(|| match dtype {
        DType::Bf16 => backward::<bf16>(&attention, &inputs, log_sums, to),
        _ => backward::<f32>(&attention, &inputs, log_sums, to),
    })
}

/// What all inputs are.
fn common(inputs: &[HeadsView]) -> PyResult<(Shape, DType)> {
    let first = &inputs[0];
    let are_alike = inputs.iter().all(|x| x.shape() == first.shape() && x.dtype() == first.dtype());
    if !are_alike || !matches!(first.dtype(), DType::F32 | DType::Bf16) {
        let found: Vec<_> = inputs.iter().map(|x| (x.shape(), x.dtype())).collect();
        return Err(GenerationError::new_err(format!(
            "attention takes tensors of one shape, float32 or bfloat16, found {found:?}"
        )));
    }
    let [batch, heads, tokens, head_dim] = first.shape();
    Ok((Shape { batch, heads, tokens, head_dim }, first.dtype()))
}

fn check_log_sums(found: &[usize], shape: Shape) -> PyResult<()> {
    let Shape { batch, heads, tokens, .. } = shape;
    if found == [batch, heads, tokens] {
        return Ok(());
    }
    let message = format!("log_sums is [{batch}, {heads}, {tokens}], found {found:?}");
    Err(GenerationError::new_err(message))
}

/// The numbers of an output, [B, T, H, K].
fn output<T: Element>(tensor: &mut WritableTensor, shape: Shape) -> PyResult<&mut [T]> {
    let Shape { batch, heads, tokens, head_dim } = shape;
    let expected = [batch, tokens, heads, head_dim];
    let found = tensor.shape().to_vec();
    match tensor.elements_mut() {
        Some(numbers) if found == expected => Ok(numbers),
        _ => Err(GenerationError::new_err(format!(
            "an output is {expected:?}, of the inputs' dtype, found {found:?}"
        ))),
    }
}

fn forward<N: Number + Element>(
    attention: &Attention,
    inputs: &[HeadsView; 3],
    mut out: WritableTensor,
    mut log_sums: WritableTensor,
) -> PyResult<()> {
    let [query, key, value] = inputs.each_ref().map(heads);
    let out = output(&mut out, attention.shape)?;
    let log_sums = log_sums.elements_mut().ok_or_else(other_dtype)?;
    layers::forward::<N>(attention, [query?, key?, value?], out, log_sums);
    Ok(())
}

fn backward<N: Number + Element>(
    attention: &Attention,
    inputs: &[HeadsView],
    log_sums: TensorView,
    [mut query, mut key, mut value]: [WritableTensor; 3],
) -> PyResult<()> {
    let inputs: Vec<Heads<'_, N>> = inputs.iter().map(heads).collect::<PyResult<_>>()?;
    let log_sums = log_sums.as_f32().ok_or_else(other_dtype)?;
    let to = Gradients {
        query: output(&mut query, attention.shape)?,
        key: output(&mut key, attention.shape)?,
        value: output(&mut value, attention.shape)?,
    };
    let &[query, key, value, out, grad] = &*inputs else {
        unreachable!("attention_backward hands over five");
    };
    layers::backward(attention, [query, key, value, out, grad], log_sums, to);
    Ok(())
}

/// The last dimension is contiguous.
fn heads_of(object: &Bound<'_, PyAny>) -> PyResult<HeadsView> {
    HeadsView::of(object, &[3], "attention takes [batch, heads, tokens, head_dim]")
}

fn heads<N: Number + Element>(view: &HeadsView) -> PyResult<Heads<'_, N>> {
    let numbers = view.span().ok_or_else(other_dtype)?;
    let [batch, head, token, _] = view.strides();
    Ok(Heads { numbers, strides: [batch, head, token] })
}
