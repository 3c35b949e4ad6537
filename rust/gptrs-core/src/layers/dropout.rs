//! Dropout whose random numbers are a function of seed and place (Philox 4x32-7; Salmon et al., 2011,
//! "Parallel random numbers: as easy as 1, 2, 3"): sixteen bits decide whether a number is kept.

#![allow(clippy::needless_range_loop, reason = "loops over lanes, which iterators hide")]

use super::numbers::{Function, Number, map_lanes};
use super::{CHUNK, for_each};
use crate::native::Kernels;
use crate::native::lanes::{Found, LANES, Simd, Work, dispatch};

/// The fewest rounds that pass all of BigCrush (Salmon et al., table 2).
const ROUNDS: usize = 7;
const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// The golden ratio and sqrt(3) - 1, as 32-bit fractions: added to the key after each round.
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
/// Numbers that one call of the generator, in all lanes, decides about.
pub const DECIDED: usize = 8 * LANES;
/// The last word of a counter where a tensor is dropped by itself; attention has 1.
const ALONE: u32 = 0;

/// What share is dropped, and which.
#[derive(Debug, Clone, Copy)]
pub struct Dropout {
    /// Sixteen random bits below this drop a number: 0 keeps all.
    threshold: u32,
    /// By what is kept is multiplied.
    factor: f32,
    key: [u32; 2],
}

impl Dropout {
    /// Drops each number with probability `p` in 0..=1, rounded to a multiple of 2^-16.
    pub fn new(p: f64, seed: u64) -> Self {
        let threshold = (p.clamp(0.0, 1.0) * 65_536.0).round() as u32;
        let kept = 65_536 - threshold;
        let factor = if kept == 0 { 0.0 } else { (65_536.0 / f64::from(kept)) as f32 };
        Self { threshold, factor, key: [seed as u32, (seed >> 32) as u32] }
    }

    /// Whether all is kept.
    pub fn keeps_all(&self) -> bool {
        self.threshold == 0
    }

    /// 0, or what a kept number is multiplied by, for the `DECIDED` places of block `block` of `row`.
    #[inline(always)]
    pub fn factors<S: Simd>(&self, simd: S, block: u32, row: [u32; 3]) -> [S::F; 8] {
        let mut first = [0; LANES];
        for l in 0..LANES {
            first[l] = block.wrapping_mul(LANES as u32).wrapping_add(l as u32);
        }
        let [a, b, c] = row;
        let first = simd.load_words(&first);
        let counter = [first, simd.splat_words(a), simd.splat_words(b), simd.splat_words(c)];
        let words = philox4x32::<S, ROUNDS>(simd, counter, self.key);
        let mut out = [simd.splat(0.0); 8];
        for w in 0..4 {
            [out[2 * w], out[2 * w + 1]] = simd.choose(words[w], self.threshold, self.factor);
        }
        out
    }
}

/// The four words that belong to each lane's counter.
#[inline(always)]
fn philox4x32<S: Simd, const ROUNDS: usize>(
    simd: S,
    mut counter: [S::W; 4],
    mut key: [u32; 2],
) -> [S::W; 4] {
    for _ in 0..ROUNDS {
        let [high0, low0] = simd.multiply_words(counter[0], MULTIPLIERS[0]);
        let [high1, low1] = simd.multiply_words(counter[2], MULTIPLIERS[1]);
        let keys = [simd.splat_words(key[0]), simd.splat_words(key[1])];
        counter = [
            simd.xor(simd.xor(high1, counter[1]), keys[0]),
            low1,
            simd.xor(simd.xor(high0, counter[3]), keys[1]),
            low0,
        ];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// `x` with some numbers made zero, the others larger by what is missing then.
///
/// # Panics
/// `out` is not as long.
pub fn dropout<N: Number>(
    kernels: Kernels,
    threads: usize,
    which: Dropout,
    x: &[N],
    out: &mut [N],
) {
    assert_eq!(x.len(), out.len());
    let found = kernels.found();
    let chunks = x.chunks(CHUNK).zip(out.chunks_mut(CHUNK)).enumerate();
    for_each(
        threads,
        chunks,
        || (),
        |(), (number, (x, out))| drop_chunk(found, which, number, x, out),
    );
}

fn drop_chunk<N: Number>(found: Found, which: Dropout, number: usize, x: &[N], out: &mut [N]) {
    let first = number * (CHUNK / DECIDED);
    dispatch(found, DropChunk { which, first: first as u64, x, out });
}

struct DropChunk<'a, N> {
    which: Dropout,
    /// The number of the chunk's first block.
    first: u64,
    x: &'a [N],
    out: &'a mut [N],
}

impl<N: Number> Work for DropChunk<'_, N> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let blocks = self.x.chunks(DECIDED).zip(self.out.chunks_mut(DECIDED));
        for (block, (x, out)) in (self.first..).zip(blocks) {
            let factors = self.which.factors(simd, block as u32, [(block >> 32) as u32, 0, ALONE]);
            map_lanes(simd, &Times::<S>(factors), [x], out);
        }
    }
}

/// Each sixteen has its factors.
struct Times<S: Simd>([S::F; 8]);

impl<S: Simd> Function<S, 1> for Times<S> {
    #[inline(always)]
    fn call(&self, simd: S, number: usize, [x]: [S::F; 1]) -> S::F {
        simd.mul(x, self.0[number])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::native::lanes::Portable;

    fn first_lanes<const ROUNDS: usize>(word: u32) -> [u32; 4] {
        philox4x32::<_, ROUNDS>(Portable, [[word; LANES]; 4], [word; 2]).map(|lanes| lanes[0])
    }

    #[test]
    fn the_published_vectors_come_out() {
        // Random123's known-answer file, philox4x32 with 7 and with 10 rounds.
        let seven = [0x5f6f_b709, 0x0d89_3f64, 0x4f12_1f81, 0x4f73_0a48];
        assert_eq!(first_lanes::<7>(0), seven);
        let ten = [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8];
        assert_eq!(first_lanes::<10>(0), ten);
        let of_ones = [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd];
        assert_eq!(first_lanes::<10>(u32::MAX), of_ones);
    }
}
