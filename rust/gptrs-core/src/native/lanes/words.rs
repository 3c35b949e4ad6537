//! Sixteen words of 32 bits at once: random numbers, and turning squares of words.

#![allow(clippy::needless_range_loop, reason = "loops over lanes, which iterators hide")]

use half::bf16;

use super::{LANES, Portable};

/// The upper half of a word.
pub(super) const HIGH: u32 = 0xFFFF_0000;

/// The operations on words; a value exists only where the processor has the instructions.
pub trait Words: Copy {
    /// Sixteen floats.
    type F: Copy;
    /// Sixteen words.
    type W: Copy;

    fn splat_words(self, word: u32) -> Self::W;
    fn load_words(self, from: &[u32; LANES]) -> Self::W;
    /// Two neighbours make a word.
    fn load_pairs(self, from: &[bf16; 2 * LANES]) -> Self::W;
    fn store_words(self, words: Self::W, to: &mut [u32; LANES]);
    fn xor(self, a: Self::W, b: Self::W) -> Self::W;
    /// The upper and the lower halves of the products.
    fn multiply_words(self, a: Self::W, b: u32) -> [Self::W; 2];
    /// For the lower and the upper halves of words: 0 where they are below `threshold`, else `factor`.
    fn choose(self, words: Self::W, threshold: u32, factor: f32) -> [Self::F; 2];
    /// The floats' bits.
    fn to_words(self, floats: Self::F) -> Self::W;
    /// The floats that have these bits.
    fn to_floats(self, words: Self::W) -> Self::F;
    /// The lower and the upper halves, which are bfloat16, as floats.
    fn widen(self, words: Self::W) -> [Self::F; 2];
    /// Adds to each lane the products of two words' halves, which are bfloat16.
    fn add_pairs(self, sums: Self::F, a: Self::W, b: Self::W) -> Self::F;
    /// Rows become columns.
    fn transpose(self, rows: [Self::W; LANES]) -> [Self::W; LANES];
}

impl Words for Portable {
    type F = [f32; LANES];
    type W = [u32; LANES];

    #[inline(always)]
    fn splat_words(self, word: u32) -> Self::W {
        [word; LANES]
    }

    #[inline(always)]
    fn load_words(self, from: &[u32; LANES]) -> Self::W {
        *from
    }

    #[inline(always)]
    fn load_pairs(self, from: &[bf16; 2 * LANES]) -> Self::W {
        let mut words = [0; LANES];
        for l in 0..LANES {
            words[l] =
                u32::from(from[2 * l].to_bits()) | u32::from(from[2 * l + 1].to_bits()) << 16;
        }
        words
    }

    #[inline(always)]
    fn store_words(self, words: Self::W, to: &mut [u32; LANES]) {
        *to = words;
    }

    #[inline(always)]
    fn xor(self, mut a: Self::W, b: Self::W) -> Self::W {
        for l in 0..LANES {
            a[l] ^= b[l];
        }
        a
    }

    #[inline(always)]
    fn multiply_words(self, a: Self::W, b: u32) -> [Self::W; 2] {
        let mut out = [[0; LANES]; 2];
        for l in 0..LANES {
            let product = u64::from(a[l]) * u64::from(b);
            out[0][l] = (product >> 32) as u32;
            out[1][l] = product as u32;
        }
        out
    }

    #[inline(always)]
    fn choose(self, words: Self::W, threshold: u32, factor: f32) -> [Self::F; 2] {
        let mut out = [[0.0; LANES]; 2];
        for l in 0..LANES {
            for (half, bits) in [words[l] & 0xFFFF, words[l] >> 16].into_iter().enumerate() {
                out[half][l] = if bits < threshold { 0.0 } else { factor };
            }
        }
        out
    }

    #[inline(always)]
    fn to_words(self, floats: Self::F) -> Self::W {
        floats.map(f32::to_bits)
    }

    #[inline(always)]
    fn to_floats(self, words: Self::W) -> Self::F {
        words.map(f32::from_bits)
    }

    #[inline(always)]
    fn widen(self, words: Self::W) -> [Self::F; 2] {
        [
            words.map(|word| f32::from_bits(word << 16)),
            words.map(|word| f32::from_bits(word & HIGH)),
        ]
    }

    #[inline(always)]
    fn add_pairs(self, mut sums: Self::F, a: Self::W, b: Self::W) -> Self::F {
        let float = f32::from_bits;
        for l in 0..LANES {
            sums[l] += float(a[l] << 16) * float(b[l] << 16);
            sums[l] += float(a[l] & HIGH) * float(b[l] & HIGH);
        }
        sums
    }

    #[inline(always)]
    fn transpose(self, rows: [Self::W; LANES]) -> [Self::W; LANES] {
        let mut out = [[0; LANES]; LANES];
        for r in 0..LANES {
            for c in 0..LANES {
                out[c][r] = rows[r][c];
            }
        }
        out
    }
}
