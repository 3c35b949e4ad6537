//! Float32 and bfloat16, one by one and in words of 32 bits: a word is one float32, or two bfloat16.

#![allow(clippy::needless_range_loop, reason = "loops over lanes, which iterators hide")]

use bytemuck::Pod;
use half::bf16;

use crate::native::lanes::{LANES, Operands, Simd};
use crate::native::math::{filled, rounded};
use crate::native::terms::Stored;

/// A number of a tensor.
pub trait Number: Stored + Pod + Send + Sync {
    /// How many make a word.
    const PER_WORD: usize;
    /// What products of words are to the processor.
    const OPERANDS: Operands;
    /// Rounded to the nearest, halves to the even one.
    fn store<S: Simd>(simd: S, lanes: S::F, to: &mut [Self; LANES]);
    /// Adds the products of two words' numbers.
    fn add_words<S: Simd>(simd: S, sums: S::F, a: S::W, b: S::W) -> S::F;
    /// One row of the words that hold the numbers of a column, from `PER_WORD` rows, `stride` numbers
    /// apart, that are at least as long.
    fn interleave(rows: &[Self], stride: usize, out: &mut [u32]);
    /// As `store`, of as many.
    fn narrow(from: &[f32], to: &mut [Self]);
}

impl Number for f32 {
    const PER_WORD: usize = 1;
    const OPERANDS: Operands = Operands::Floats;

    #[inline(always)]
    fn store<S: Simd>(simd: S, lanes: S::F, to: &mut [Self; LANES]) {
        simd.store(lanes, to);
    }

    #[inline(always)]
    fn add_words<S: Simd>(simd: S, sums: S::F, a: S::W, b: S::W) -> S::F {
        simd.mul_add(simd.to_floats(a), simd.to_floats(b), sums)
    }

    #[inline(always)]
    fn interleave(rows: &[Self], _: usize, out: &mut [u32]) {
        out.copy_from_slice(bytemuck::cast_slice(&rows[..out.len()]));
    }

    #[inline(always)]
    fn narrow(from: &[f32], to: &mut [Self]) {
        to.copy_from_slice(from);
    }
}

impl Number for bf16 {
    const PER_WORD: usize = 2;
    const OPERANDS: Operands = Operands::Pairs;

    #[inline(always)]
    fn store<S: Simd>(simd: S, lanes: S::F, to: &mut [Self; LANES]) {
        let mut wide = [0.0; LANES];
        simd.store(lanes, &mut wide);
        for l in 0..LANES {
            to[l] = rounded(wide[l]);
        }
    }

    #[inline(always)]
    fn add_words<S: Simd>(simd: S, sums: S::F, a: S::W, b: S::W) -> S::F {
        simd.add_pairs(sums, a, b)
    }

    #[inline(always)]
    fn interleave(rows: &[Self], stride: usize, out: &mut [u32]) {
        let (even, odd) = rows.split_at(stride);
        for ((out, even), odd) in out.iter_mut().zip(even).zip(odd) {
            *out = u32::from(even.to_bits()) | u32::from(odd.to_bits()) << 16;
        }
    }

    #[inline(always)]
    fn narrow(from: &[f32], to: &mut [Self]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = rounded(*from);
        }
    }
}

/// A function of numbers, sixteen at a time. No closure: these are not inlined everywhere, and what is not
/// inlined is compiled for any processor.
pub trait Function<S: Simd, const INPUTS: usize> {
    /// `number` counts the sixteens. To be marked `#[inline(always)]`.
    fn call(&self, simd: S, number: usize, inputs: [S::F; INPUTS]) -> S::F;
}

/// The function of all numbers; behind the last there are zeros.
#[inline(always)]
pub fn map_lanes<S: Simd, N: Number, const INPUTS: usize>(
    simd: S,
    function: &impl Function<S, INPUTS>,
    inputs: [&[N]; INPUTS],
    out: &mut [N],
) {
    let (outs, tail) = out.as_chunks_mut::<LANES>();
    let count = outs.len();
    let chunks = inputs.map(|input| &input.as_chunks::<LANES>().0[..count]);
    for (number, out) in outs.iter_mut().enumerate() {
        let mut lanes = [simd.splat(0.0); INPUTS];
        for i in 0..INPUTS {
            lanes[i] = N::load(simd, &chunks[i][number]);
        }
        N::store(simd, function.call(simd, number, lanes), out);
    }
    if !tail.is_empty() {
        let mut lanes = [simd.splat(0.0); INPUTS];
        for i in 0..INPUTS {
            lanes[i] = N::load(simd, &filled(&inputs[i][count * LANES..], N::zeroed()));
        }
        let mut all = [N::zeroed(); LANES];
        N::store(simd, function.call(simd, count, lanes), &mut all);
        tail.copy_from_slice(&all[..tail.len()]);
    }
}
