//! `_core.attention`, `_core.dropout`, `_core.gelu` and their gradients, from tensor to tensor.

use gptrs_core::layers::{self, Attention, Dropout, Gradients, Heads, Kernels, Number, Shape};
use half::bf16;
use pyo3::prelude::*;

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

/// Dropout: numbers become zero with probability `p`, the others larger by what is missing then.
///
/// Args:
///     x: float32 or bfloat16, contiguous.
///     out: as `x`; filled.
///     p: in 0..1, rounded to a multiple of 2^-16.
///     seed: which numbers.
///     threads: how many compute.
///     kernels: for which processor, by name; None: the best that this one is.
#[pyfunction]
#[pyo3(signature = (x, out, *, p, seed, threads, kernels = None))]
pub fn dropout(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    out: &Bound<'_, PyAny>,
    p: f64,
    seed: u64,
    threads: usize,
    kernels: Option<&str>,
) -> PyResult<()> {
    struct Drop(Dropout);
    impl Elementwise<1> for Drop {
        fn run<N: Number>(self, kernels: Kernels, threads: usize, [x]: [&[N]; 1], out: &mut [N]) {
            layers::dropout(kernels, threads, self.0, x, out);
        }
    }
    each_number(py, Drop(Dropout::new(p, seed)), [x], out, threads, kernels)
}

/// The tanh approximation of GELU.
///
/// Args:
///     x: float32 or bfloat16, contiguous.
///     out: as `x`; filled.
///     threads: how many compute.
///     kernels: for which processor, by name; None: the best that this one is.
#[pyfunction]
#[pyo3(signature = (x, out, *, threads, kernels = None))]
pub fn gelu(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    out: &Bound<'_, PyAny>,
    threads: usize,
    kernels: Option<&str>,
) -> PyResult<()> {
    struct Gelu;
    impl Elementwise<1> for Gelu {
        fn run<N: Number>(self, kernels: Kernels, threads: usize, [x]: [&[N]; 1], out: &mut [N]) {
            layers::gelu(kernels, threads, x, out);
        }
    }
    each_number(py, Gelu, [x], out, threads, kernels)
}

/// The gradient of `gelu`: `grad` times its derivative at `x`, all as `x` there.
#[pyfunction]
#[pyo3(signature = (x, grad, out, *, threads, kernels = None))]
pub fn gelu_backward(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    grad: &Bound<'_, PyAny>,
    out: &Bound<'_, PyAny>,
    threads: usize,
    kernels: Option<&str>,
) -> PyResult<()> {
    struct Backward;
    impl Elementwise<2> for Backward {
        fn run<N: Number>(
            self,
            kernels: Kernels,
            threads: usize,
            [x, grad]: [&[N]; 2],
            out: &mut [N],
        ) {
            layers::gelu_backward(kernels, threads, x, grad, out);
        }
    }
    each_number(py, Backward, [x, grad], out, threads, kernels)
}

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

/// The sum of the squares of all numbers of a tensor, float32 or bfloat16, contiguous.
#[pyfunction]
#[pyo3(signature = (x, *, threads, kernels = None))]
pub fn sum_of_squares(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    threads: usize,
    kernels: Option<&str>,
) -> PyResult<f64> {
    let (kernels, x) = (find_kernels(kernels)?, TensorView::of(x)?);
    py.detach(|| match (x.as_f32(), x.as_bf16()) {
        (Some(x), _) => Ok(layers::sum_of_squares(kernels, threads, x)),
        (_, Some(x)) => Ok(layers::sum_of_squares(kernels, threads, x)),
        _ => Err(other_dtype()),
    })
}

fn matrix_needed(found: &[usize]) -> PyErr {
    GenerationError::new_err(format!("a matrix is needed, found the shape {found:?}"))
}

/// What is done number by number, for either type.
trait Elementwise<const INPUTS: usize>: Send {
    fn run<N: Number>(
        self,
        kernels: Kernels,
        threads: usize,
        inputs: [&[N]; INPUTS],
        out: &mut [N],
    );
}

fn each_number<const INPUTS: usize>(
    py: Python<'_>,
    what: impl Elementwise<INPUTS>,
    inputs: [&Bound<'_, PyAny>; INPUTS],
    out: &Bound<'_, PyAny>,
    threads: usize,
    kernels: Option<&str>,
) -> PyResult<()> {
    let kernels = find_kernels(kernels)?;
    let mut out = WritableTensor::of(out)?;
    let mut views = Vec::with_capacity(INPUTS);
    for input in inputs {
        let view = TensorView::of(input)?;
        if view.shape() != out.shape() {
            let message = format!("shapes differ: {:?} and {:?}", view.shape(), out.shape());
            return Err(GenerationError::new_err(message));
        }
        views.push(view);
    }
    py.detach(|| {
        let wide: Vec<_> = views.iter().filter_map(TensorView::as_f32).collect();
        if let (Ok(inputs), Some(out)) = (<[&[f32]; INPUTS]>::try_from(wide), out.elements_mut()) {
            what.run(kernels, threads, inputs, out);
            return Ok(());
        }
        let narrow: Vec<_> = views.iter().filter_map(TensorView::as_bf16).collect();
        if let (Ok(inputs), Some(out)) = (<[&[bf16]; INPUTS]>::try_from(narrow), out.elements_mut())
        {
            what.run(kernels, threads, inputs, out);
            return Ok(());
        }
        Err(other_dtype())
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

fn other_dtype() -> PyErr {
    GenerationError::new_err("tensors are float32 or bfloat16, found another or a mixture")
}
