//! A seeded permutation of 0..n that needs no memory: any place of the order is computed alone.
//!
//! ```text
//!   a number of k bits:  n <= 2^k, k >= 6    ┌── left ──┬── right ──┐
//!   left  ^= mix(right + key 0)              │   k/2    │  k - k/2  │   rounds 0, 2, 4
//!   right ^= mix(left  + key 1)              └──────────┴───────────┘   rounds 1, 3, 5
//!   …                                        and again while the result is n or more
//! ```
//!
//! Each round can be undone, so the six rounds (a Feistel network) permute the numbers of k bits. A
//! result outside 0..n is put in again: to follow the cycle until it is back inside permutes 0..n
//! (cycle walking; two steps at most on average, where n has six bits). Each epoch's keys are drawn
//! by Philox from (seed, epoch), so epochs and seeds have nothing in common.

use crate::philox::philox4x64;
use crate::{Error, Result};

/// Which permutation this is. It changes if any place of any order does.
pub const VERSION: u32 = 1;

/// The largest n.
pub const MOST: u64 = 1 << 63;

const ROUNDS: usize = 6;
/// Halves of one or two bits would make some orders of few numbers likelier than others.
const FEWEST_BITS: u32 = 6;
/// The second word of Philox's key, apart from the 0 that drawing tokens uses: "shuffle1" in ASCII.
const KEY: u64 = u64::from_be_bytes(*b"shuffle1");

/// A permutation of 0..n. The same n, seed and epoch give the same on every machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permutation {
    n: u64,
    right_bits: u32,
    left_mask: u64,
    right_mask: u64,
    keys: [u64; ROUNDS],
}

impl Permutation {
    /// The permutation of 0..`n` for an epoch.
    pub fn new(n: u64, seed: u64, epoch: u64) -> Result<Self> {
        if n > MOST {
            return Err(Error::Setting(format!("{n} numbers cannot be shuffled: at most {MOST}")));
        }
        let bits = (u64::BITS - n.saturating_sub(1).leading_zeros()).max(FEWEST_BITS);
        let left_bits = bits / 2;
        let right_bits = bits - left_bits;
        let words = [0, 1].map(|block| philox4x64([epoch, block, 0, 0], [seed, KEY]));
        Ok(Self {
            n,
            right_bits,
            left_mask: (1 << left_bits) - 1,
            right_mask: (1 << right_bits) - 1,
            keys: std::array::from_fn(|round| words[round / 4][round % 4]),
        })
    }

    /// How many numbers there are.
    pub fn len(&self) -> u64 {
        self.n
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.n == 0
    }

    /// The number at `place`, which must be in 0..n.
    pub fn at(&self, place: u64) -> u64 {
        debug_assert!(place < self.n, "place {place} of {}", self.n);
        let mut number = place;
        loop {
            number = self.encrypt(number);
            if number < self.n {
                return number;
            }
        }
    }

    fn encrypt(&self, number: u64) -> u64 {
        let (mut left, mut right) = (number >> self.right_bits, number & self.right_mask);
        for keys in self.keys.as_chunks::<2>().0 {
            left ^= mix(right.wrapping_add(keys[0])) & self.left_mask;
            right ^= mix(left.wrapping_add(keys[1])) & self.right_mask;
        }
        left << self.right_bits | right
    }
}

/// The output function of SplitMix64 (Steele, Lea and Flood, 2014; constants by Stafford): each bit
/// of the result depends on each bit of `word`.
fn mix(mut word: u64) -> u64 {
    word = (word ^ word >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    word = (word ^ word >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ word >> 31
}

#[cfg(test)]
mod tests;
