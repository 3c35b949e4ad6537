//! What rows and inputs are stored as, and how many of their numbers are multiplied at once.
//!
//! ```text
//!                  rows       inputs     at once
//! Singles<f32>     float32    float32    sixteen
//! Singles<bf16>    bfloat16   float32    sixteen
//! Pairs            bfloat16   bfloat16   two times sixteen, where the processor has an instruction for it
//! ```

use std::marker::PhantomData;

use bytemuck::Zeroable;
use half::bf16;

use super::lanes::{LANES, Operands, Simd};
use super::math::filled;

/// Numbers that are loaded at once.
pub trait Chunk: Copy {
    type Number: Zeroable + Copy;
    /// How many.
    const LEN: usize;
    /// All whole ones.
    fn whole(numbers: &[Self::Number]) -> &[Self];
    /// What is left, zeros behind it.
    fn last(numbers: &[Self::Number]) -> Self;
}

impl<T: Zeroable + Copy, const N: usize> Chunk for [T; N] {
    type Number = T;
    const LEN: usize = N;

    #[inline(always)]
    fn whole(numbers: &[T]) -> &[Self] {
        numbers.as_chunks::<N>().0
    }

    #[inline(always)]
    fn last(numbers: &[T]) -> Self {
        filled(numbers, T::zeroed())
    }
}

/// How the terms of a sum are made.
pub trait Terms {
    type Row: Chunk;
    type Input: Chunk;
    /// A chunk in a register.
    type Loaded<S: Simd>: Copy;
    const OPERANDS: Operands = Operands::Floats;

    fn row<S: Simd>(simd: S, chunk: &Self::Row) -> Self::Loaded<S>;
    fn input<S: Simd>(simd: S, chunk: &Self::Input) -> Self::Loaded<S>;
    /// Adds the products.
    fn add<S: Simd>(simd: S, sums: S::F, row: Self::Loaded<S>, input: Self::Loaded<S>) -> S::F;
}

/// A row's number.
pub type RowOf<T> = <<T as Terms>::Row as Chunk>::Number;
/// An input's.
pub type InputOf<T> = <<T as Terms>::Input as Chunk>::Number;

/// A number that is widened as it is loaded.
pub trait Stored: Zeroable + Copy {
    fn load<S: Simd>(simd: S, from: &[Self; LANES]) -> S::F;
}

impl Stored for f32 {
    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[Self; LANES]) -> S::F {
        simd.load(from)
    }
}

impl Stored for bf16 {
    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[Self; LANES]) -> S::F {
        simd.load_bf16(from)
    }
}

/// Rows of either kind, inputs of float32.
pub struct Singles<W>(PhantomData<W>);

/// Both of bfloat16.
pub enum Pairs {}

impl<W: Stored> Terms for Singles<W> {
    type Row = [W; LANES];
    type Input = [f32; LANES];
    type Loaded<S: Simd> = S::F;

    #[inline(always)]
    fn row<S: Simd>(simd: S, chunk: &Self::Row) -> S::F {
        W::load(simd, chunk)
    }

    #[inline(always)]
    fn input<S: Simd>(simd: S, chunk: &Self::Input) -> S::F {
        simd.load(chunk)
    }

    #[inline(always)]
    fn add<S: Simd>(simd: S, sums: S::F, row: S::F, input: S::F) -> S::F {
        simd.mul_add(row, input, sums)
    }
}

impl Terms for Pairs {
    type Row = [bf16; 2 * LANES];
    type Input = [bf16; 2 * LANES];
    type Loaded<S: Simd> = S::W;
    const OPERANDS: Operands = Operands::Pairs;

    #[inline(always)]
    fn row<S: Simd>(simd: S, chunk: &Self::Row) -> S::W {
        simd.load_pairs(chunk)
    }

    #[inline(always)]
    fn input<S: Simd>(simd: S, chunk: &Self::Input) -> S::W {
        simd.load_pairs(chunk)
    }

    #[inline(always)]
    fn add<S: Simd>(simd: S, sums: S::F, row: S::W, input: S::W) -> S::F {
        simd.add_pairs(sums, row, input)
    }
}
