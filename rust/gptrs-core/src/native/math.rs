//! What happens between the products: layer norm, GELU, softmax; each a pass over a row.

use std::f32::consts::LOG2_E;

use half::bf16;

use super::lanes::{LANES, Simd, Work};

/// ln(2) in two parts, of which the first has few digits, 355 / 512: n times it is exact.
const LN_2_HIGH: f32 = 355.0 / 512.0;
const LN_2_HIGH_TOO_MUCH: f32 = 2.121_944_4e-4;

/// e^x to one unit in the last place or so: 2^n times a polynomial for the rest, which is at most
/// ln(2) / 2; the coefficients are Taylor's.
#[inline(always)]
pub fn exp<S: Simd>(simd: S, x: S::F) -> S::F {
    // Beyond these it is 0 or infinite for all that follows here, and 2^n stays a normal number.
    let x = simd.max(simd.splat(-87.0), simd.min(simd.splat(88.0), x));
    let n = simd.round(simd.mul(x, simd.splat(LOG2_E)));
    let rest = simd.mul_add(n, simd.splat(-LN_2_HIGH), x);
    let rest = simd.mul_add(n, simd.splat(LN_2_HIGH_TOO_MUCH), rest);
    let mut sum = simd.splat(1.0 / 5040.0);
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        sum = simd.mul_add(sum, rest, simd.splat(coefficient));
    }
    simd.scale(sum, n)
}

/// The book's layer norm of a row: `(x - mean) / sqrt(variance + eps) * scale + shift`.
pub struct LayerNorm<'a> {
    pub x: &'a [f32],
    pub scale: &'a [f32],
    pub shift: &'a [f32],
    pub eps: f32,
    /// As long as `x`, or longer: what lies behind is left alone.
    pub out: &'a mut [f32],
}

impl Work for LayerNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let len = self.x.len();
        let mean = simd.sum(fold(simd, self.x, |sum, x| simd.add(sum, x))) / len as f32;
        let minus_mean = simd.splat(-mean);
        // A tail by itself: zeros behind it are as far from the mean as anything.
        let (chunks, tail) = self.x.as_chunks::<LANES>();
        let mut squares = simd.splat(0.0);
        for chunk in chunks {
            let x = simd.add(simd.load(chunk), minus_mean);
            squares = simd.mul_add(x, x, squares);
        }
        let mut variance = simd.sum(squares);
        for &x in tail {
            variance += (x - mean) * (x - mean);
        }
        variance /= len as f32;
        let factor = 1.0 / (variance + self.eps).sqrt();
        let (outs, out_tail) = self.out[..len].as_chunks_mut::<LANES>();
        let (scales, scale_tail) = self.scale.as_chunks::<LANES>();
        let (shifts, shift_tail) = self.shift.as_chunks::<LANES>();
        for (((chunk, scale), shift), out) in chunks.iter().zip(scales).zip(shifts).zip(outs) {
            let x = simd.mul(simd.add(simd.load(chunk), minus_mean), simd.splat(factor));
            simd.store(simd.mul_add(x, simd.load(scale), simd.load(shift)), out);
        }
        for (((&x, &scale), &shift), out) in
            tail.iter().zip(scale_tail).zip(shift_tail).zip(out_tail)
        {
            *out = (x - mean) * factor * scale + shift;
        }
    }
}

/// `add(sum, x)` over a row, zeros behind its end.
#[inline(always)]
fn fold<S: Simd>(simd: S, row: &[f32], add: impl Fn(S::F, S::F) -> S::F) -> S::F {
    let (chunks, tail) = row.as_chunks::<LANES>();
    let mut sum = simd.splat(0.0);
    for chunk in chunks {
        sum = add(sum, simd.load(chunk));
    }
    if !tail.is_empty() {
        sum = add(sum, simd.load(&filled(tail, 0.0)));
    }
    sum
}

/// A row's last numbers, at most N, and `filler` behind them.
#[inline(always)]
pub fn filled<T: Copy, const N: usize>(tail: &[T], filler: T) -> [T; N] {
    // Known lengths need no call to copy them.
    if let Some(whole) = tail.first_chunk::<N>() {
        return *whole;
    }
    let mut lanes = [filler; N];
    lanes[..tail.len()].copy_from_slice(tail);
    lanes
}

/// To the nearest, halves to the even one. What is not a number stays so: the payloads that processors
/// make do not reach into the upper half.
#[inline(always)]
pub fn rounded(x: f32) -> bf16 {
    let bits = x.to_bits();
    bf16::from_bits((bits.wrapping_add(0x7FFF + (bits >> 16 & 1)) >> 16) as u16)
}

/// Numbers to bfloat16.
pub struct Round<'a> {
    pub x: &'a [f32],
    pub out: &'a mut [bf16],
}

impl Work for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for (out, &x) in self.out.iter_mut().zip(self.x) {
            *out = rounded(x);
        }
    }
}

/// The book's GELU, in place: `x / (1 + exp(-2 sqrt(2 / pi) (x + 0.044715 x^3)))`, which is
/// `x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`.
pub struct Gelu<'a>(pub &'a mut [f32]);

impl Work for Gelu<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (chunks, tail) = self.0.as_chunks_mut::<LANES>();
        for chunk in chunks {
            let y = gelu(simd, simd.load(chunk));
            simd.store(y, chunk);
        }
        if !tail.is_empty() {
            let mut lanes = filled(tail, 0.0);
            let y = gelu(simd, simd.load(&lanes));
            simd.store(y, &mut lanes);
            tail.copy_from_slice(&lanes[..tail.len()]);
        }
    }
}

#[inline(always)]
fn gelu<S: Simd>(simd: S, x: S::F) -> S::F {
    simd.div(x, gelu_divisor(simd, x))
}

/// What GELU takes of `x`, between 0 and 1.
#[inline(always)]
pub fn gelu_share<S: Simd>(simd: S, x: S::F) -> S::F {
    simd.div(simd.splat(1.0), gelu_divisor(simd, x))
}

#[inline(always)]
fn gelu_divisor<S: Simd>(simd: S, x: S::F) -> S::F {
    const MINUS_TWICE_SQRT_2_BY_PI: f32 = -2.0 * 0.797_884_6;
    let cubic = simd.mul(simd.mul(x, x), simd.splat(0.044_715 * MINUS_TWICE_SQRT_2_BY_PI));
    let inner = simd.mul(x, simd.add(cubic, simd.splat(MINUS_TWICE_SQRT_2_BY_PI)));
    simd.add(exp(simd, inner), simd.splat(1.0))
}

/// Softmax of the first `count` scores, in place and not yet divided by their sum, which is returned. Behind
/// them there is room up to whole lanes, where zeros come to stand, or nearly: e^-87.
#[inline(always)]
pub fn softmax<S: Simd>(simd: S, scores: &mut [f32], count: usize) -> f32 {
    let whole = count.next_multiple_of(LANES);
    scores[count..whole].fill(f32::NEG_INFINITY);
    let (chunks, _) = scores[..whole].as_chunks_mut::<LANES>();
    let mut largest = simd.splat(f32::NEG_INFINITY);
    for chunk in &*chunks {
        largest = simd.max(largest, simd.load(chunk));
    }
    let minus_largest = simd.splat(-simd.largest(largest));
    let mut sum = simd.splat(0.0);
    for chunk in chunks {
        let y = exp(simd, simd.add(simd.load(chunk), minus_largest));
        sum = simd.add(sum, y);
        simd.store(y, chunk);
    }
    simd.sum(sum)
}
