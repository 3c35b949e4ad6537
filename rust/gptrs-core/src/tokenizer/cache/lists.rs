//! What does not fit into an entry of the cache: lists that threads append to without waiting.

use std::sync::OnceLock;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU64, AtomicUsize};

use bytemuck::allocation::zeroed_slice_box;

use super::MOST_IDS;

const MOST_MANY: usize = 1 << 14;
const NUMBERS_A_WORD: usize = MOST_IDS / 4;
const LONG_BLOCKS: usize = 1 << 5;
const WORDS_A_BLOCK: usize = 1 << 8;

/// The ids of words that have many, and words that are too long to be their own key.
#[derive(Debug)]
pub struct Lists {
    /// `MOST_IDS` ids a word, four to a number. Memory that nobody wrote to takes no room.
    many: Box<[AtomicU64]>,
    num_many: AtomicUsize,
    long: [OnceLock<Box<Block>>; LONG_BLOCKS],
    num_long: AtomicUsize,
}

type Block = [OnceLock<LongWord>; WORDS_A_BLOCK];

#[derive(Debug)]
struct LongWord {
    bytes: Box<[u8]>,
    ids: Box<[u16]>,
}

impl Default for Lists {
    fn default() -> Self {
        Self {
            many: zeroed_slice_box(MOST_MANY * NUMBERS_A_WORD),
            num_many: AtomicUsize::new(0),
            long: [const { OnceLock::new() }; LONG_BLOCKS],
            num_long: AtomicUsize::new(0),
        }
    }
}

impl Lists {
    /// The ids that `put_many` put there, and what fills the place up.
    #[inline(always)]
    pub fn many(&self, number: usize) -> [u16; MOST_IDS] {
        let numbers = &self.many[number * NUMBERS_A_WORD..][..NUMBERS_A_WORD];
        bytemuck::cast::<[u64; NUMBERS_A_WORD], _>(std::array::from_fn(|i| {
            numbers[i].load(Relaxed)
        }))
    }

    /// Keeps the ids of a word. Returns the number of their place, if there was one; who is to see
    /// them has to learn of it by an acquiring load.
    pub fn put_many(&self, ids: &[u16]) -> Option<usize> {
        let number = next_place(&self.num_many, MOST_MANY)?;
        let mut all = [0; MOST_IDS];
        all[..ids.len()].copy_from_slice(ids);
        let places = &self.many[number * NUMBERS_A_WORD..];
        for (place, four) in places.iter().zip(bytemuck::cast::<_, [u64; NUMBERS_A_WORD]>(all)) {
            place.store(four, Relaxed);
        }
        Some(number)
    }

    /// The ids of a long word, if it is the one at this place.
    pub fn long(&self, number: usize, word: &[u8]) -> Option<&[u16]> {
        let block = self.long.get(number / WORDS_A_BLOCK)?.get()?;
        let long = block[number % WORDS_A_BLOCK].get()?;
        (*long.bytes == *word).then_some(&long.ids)
    }

    /// Keeps a long word and its ids. Returns the number of its place, if there was one.
    pub fn put_long(&self, word: &[u8], ids: &[u16]) -> Option<usize> {
        let number = next_place(&self.num_long, LONG_BLOCKS * WORDS_A_BLOCK)?;
        let block = self.long[number / WORDS_A_BLOCK]
            .get_or_init(|| Box::new([const { OnceLock::new() }; WORDS_A_BLOCK]));
        let long = LongWord { bytes: word.into(), ids: ids.into() };
        block[number % WORDS_A_BLOCK].set(long).ok().map(|()| number)
    }
}

/// A place that nobody else gets.
fn next_place(taken: &AtomicUsize, most: usize) -> Option<usize> {
    // Looked at first, so that the number of those who came too late does not matter.
    (taken.load(Relaxed) < most).then(|| taken.fetch_add(1, Relaxed)).filter(|place| *place < most)
}
