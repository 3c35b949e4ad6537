//! What is done number by number: `_core.dropout`, `_core.gelu`, its gradient, and `_core.sum_of_squares`.

use gptrs_core::layers::{self, Dropout, Kernels, Number};
use half::bf16;
use pyo3::prelude::*;

use super::other_dtype;
use crate::errors::GenerationError;
use crate::native::find_kernels;
use crate::tensor::{TensorView, WritableTensor};

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
