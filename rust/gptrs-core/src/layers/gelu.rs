//! The book's GELU and its gradient, number by number.

use super::numbers::{Function, Number, map_lanes};
use super::{CHUNK, for_each};
use crate::native::Kernels;
use crate::native::lanes::{Simd, Work, dispatch};
use crate::native::math::gelu_share;

/// `x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`.
///
/// # Panics
/// `out` is not as long as `x`.
pub fn gelu<N: Number>(kernels: Kernels, threads: usize, x: &[N], out: &mut [N]) {
    assert_eq!(x.len(), out.len());
    let found = kernels.found();
    let chunks = x.chunks(CHUNK).zip(out.chunks_mut(CHUNK));
    for_each(threads, chunks, || (), |(), (x, out)| dispatch(found, Forward { x, out }));
}

/// `grad` times the derivative at `x`.
///
/// # Panics
/// They are not all as long.
pub fn gelu_backward<N: Number>(
    kernels: Kernels,
    threads: usize,
    x: &[N],
    grad: &[N],
    out: &mut [N],
) {
    assert!(x.len() == out.len() && grad.len() == out.len());
    let found = kernels.found();
    let chunks = x.chunks(CHUNK).zip(grad.chunks(CHUNK)).zip(out.chunks_mut(CHUNK));
    for_each(
        threads,
        chunks,
        || (),
        |(), ((x, grad), out)| dispatch(found, Backward { x, grad, out }),
    );
}

struct Forward<'a, N> {
    x: &'a [N],
    out: &'a mut [N],
}

impl<N: Number> Work for Forward<'_, N> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        map_lanes(simd, &Gelu, [self.x], self.out);
    }
}

struct Gelu;

impl<S: Simd> Function<S, 1> for Gelu {
    #[inline(always)]
    fn call(&self, simd: S, _: usize, [x]: [S::F; 1]) -> S::F {
        simd.mul(x, gelu_share(simd, x))
    }
}

struct Backward<'a, N> {
    x: &'a [N],
    grad: &'a [N],
    out: &'a mut [N],
}

impl<N: Number> Work for Backward<'_, N> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        map_lanes(simd, &GeluBackward, [self.x, self.grad], self.out);
    }
}

/// x s(u) has the derivative s + x s (1 - s) u', for the logistic function s of
/// u = 2 sqrt(2 / pi) (x + 0.044715 x^3).
struct GeluBackward;

impl<S: Simd> Function<S, 2> for GeluBackward {
    #[inline(always)]
    fn call(&self, simd: S, _: usize, [x, grad]: [S::F; 2]) -> S::F {
        const TWICE_SQRT_2_BY_PI: f32 = 2.0 * 0.797_884_6;
        let share = gelu_share(simd, x);
        let rest = simd.mul_add(share, simd.splat(-1.0), simd.splat(1.0));
        let cubic = simd.splat(3.0 * 0.044_715 * TWICE_SQRT_2_BY_PI);
        let slope = simd.mul_add(simd.mul(x, x), cubic, simd.splat(TWICE_SQRT_2_BY_PI));
        let by_share = simd.mul(simd.mul(x, slope), rest);
        simd.mul(grad, simd.mul_add(share, by_share, share))
    }
}
