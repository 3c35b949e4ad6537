//! Words as keys.

use super::super::layout::{mix, top_bits};
use super::LONGEST;

/// Words of up to this many bytes are their own key.
pub const KEY_BYTES: usize = 15;

/// A word's first 8 bytes; then its other bytes, and in the last its length. The top four bits are
/// the number of its ids, or `ELSEWHERE`. The zeros of an empty entry are no word's.
#[derive(Debug, Default, Clone, Copy)]
pub struct Word(pub u64, pub u64);

const COUNT_SHIFT: u32 = 60;
const LEN_SHIFT: u32 = 56;
/// The ids are elsewhere: the entry has the number of a place in a list, and how many they are.
pub const ELSEWHERE: u64 = 15;
/// The second half of a longer word's key.
const LONG: u64 = 2;
/// The second half while an entry is written. No key has it.
pub const CLAIMED: u64 = 3;

impl Word {
    #[inline(always)]
    pub fn count(self) -> u64 {
        self.1 >> COUNT_SHIFT
    }

    #[inline(always)]
    pub fn with_count(self, count: u64) -> Self {
        Self(self.0, self.1 | count << COUNT_SHIFT)
    }

    /// Whether both are one word, whatever their counts.
    #[inline(always)]
    pub fn is(self, other: Self) -> bool {
        (self.0 ^ other.0) | (self.1 ^ other.1) << (64 - COUNT_SHIFT) == 0
    }

    /// Whether this stands for a word of more than `KEY_BYTES`.
    #[inline(always)]
    pub fn is_long(self) -> bool {
        self.1 << (64 - COUNT_SHIFT) >> (64 - COUNT_SHIFT) == LONG
    }

    #[inline(always)]
    pub fn bucket(self, num_buckets: usize) -> usize {
        let word = self.1 & !(u64::MAX << COUNT_SHIFT);
        top_bits(mix(self.0, word), num_buckets)
    }
}

/// The bytes that a key is made of.
pub const WINDOW: usize = 16;

#[inline(always)]
pub fn halves(window: [u8; WINDOW]) -> [u64; 2] {
    let window = u128::from_le_bytes(window);
    [window as u64, (window >> 64) as u64]
}

/// A key that stands for a longer word: another word may have it too, but no shorter one.
#[inline(never)]
pub fn long_key(word: &[u8]) -> Word {
    // What is longer is not kept.
    let beginning = &word[..word.len().min(LONGEST)];
    let hash = eights(beginning).fold(word.len() as u64, mix);
    Word(hash, LONG)
}

/// The bytes of a longer word as numbers: each 8, then the last 8.
#[inline(always)]
pub fn eights(word: &[u8]) -> impl Iterator<Item = u64> {
    let (eights, _) = word.as_chunks();
    eights.iter().chain(word.last_chunk()).map(|bytes| u64::from_le_bytes(*bytes))
}

/// The last few bytes of a text as a window.
#[cold]
pub fn window_at_end(bytes: &[u8]) -> [u8; WINDOW] {
    let mut window = [0; WINDOW];
    let len = bytes.len().min(WINDOW);
    window[..len].copy_from_slice(&bytes[..len]);
    window
}

/// What belongs to a word of each length in a window's halves, and what makes a key of the latter.
pub static KEEP_AND_TAG: [[u64; 3]; KEY_BYTES + 1] = {
    let mut table = [[0; 3]; KEY_BYTES + 1];
    let mut len = 0;
    while len <= KEY_BYTES {
        let keep: u128 = (1 << (8 * len)) - 1;
        table[len] = [keep as u64, (keep >> 64) as u64, (len as u64) << LEN_SHIFT];
        len += 1;
    }
    table
};
