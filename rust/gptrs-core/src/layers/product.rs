//! Small products of matrices in words: `out[m][n] (+)= sum over k of left[m][k] right[k][n]`, where a
//! word of bfloat16 is two neighbours of the sum.
//!
//! All sides are multiples of 32 numbers, padded where they are not. Of bfloat16, a word is what AMX's
//! tiles want, and what AVX-512 multiplies at once.

#![allow(clippy::needless_range_loop, reason = "loops over registers, which iterators hide")]

use std::array;

use super::numbers::Number;
use crate::native::lanes::{LANES, Simd};
use crate::native::tiles::{Product, ReadyTiles, Words};

/// What all sides are multiples of, in numbers.
pub const UNIT: usize = 32;
/// Rows and lanes of a block of sums in registers.
const ROWS: usize = 4;
const WIDTH: usize = 2;

/// Does it, on tiles where there are some and the numbers are bfloat16.
#[inline(always)]
pub fn multiply<S: Simd, N: Number>(simd: S, tiles: Option<&ReadyTiles>, product: Product<'_>) {
    match tiles {
        Some(tiles) if N::PER_WORD == 2 => tiles.multiply(product),
        _ => on_lanes::<S, N>(simd, product),
    }
}

#[inline(always)]
fn on_lanes<S: Simd, N: Number>(simd: S, product: Product<'_>) {
    let Product { left, right, out, out_stride, rows, columns, depth, adds } = product;
    for column in (0..columns).step_by(WIDTH * LANES) {
        for row in (0..rows).step_by(ROWS) {
            let lines: [&[u32]; ROWS] =
                array::from_fn(|r| &left.words[(row + r) * left.stride..][..depth]);
            let mut sums = [[simd.splat(0.0); WIDTH]; ROWS];
            for k in 0..depth {
                let words = &right.words[k * right.stride + column..][..WIDTH * LANES];
                let words = words.as_chunks::<LANES>().0;
                for r in 0..ROWS {
                    let factor = simd.splat_words(lines[r][k]);
                    for w in 0..WIDTH {
                        let words = simd.load_words(&words[w]);
                        sums[r][w] = N::add_words(simd, sums[r][w], factor, words);
                    }
                }
            }
            for r in 0..ROWS {
                let out = &mut out[(row + r) * out_stride + column..][..WIDTH * LANES];
                for (out, sums) in out.as_chunks_mut::<LANES>().0.iter_mut().zip(sums[r]) {
                    let sums = if adds { simd.add(simd.load(out), sums) } else { sums };
                    simd.store(sums, out);
                }
            }
        }
    }
}

/// `[rows][columns]` becomes `[columns][rows]`; both come in sixteens.
#[inline(always)]
pub fn transpose<S: Simd>(
    simd: S,
    from: Words<'_>,
    [rows, columns]: [usize; 2],
    to: &mut [u32],
    to_stride: usize,
) {
    for row in (0..rows).step_by(LANES) {
        for column in (0..columns).step_by(LANES) {
            let mut square = [simd.splat_words(0); LANES];
            for r in 0..LANES {
                let words = &from.words[(row + r) * from.stride + column..];
                square[r] = simd.load_words(words.first_chunk().expect("columns come in sixteens"));
            }
            let square = simd.transpose(square);
            for c in 0..LANES {
                let words = &mut to[(column + c) * to_stride + row..];
                let words = words.first_chunk_mut().expect("rows come in sixteens");
                simd.store_words(square[c], words);
            }
        }
    }
}
