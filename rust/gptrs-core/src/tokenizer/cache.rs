//! Words that were encoded before, with their ids: what makes encoding fast. All threads that use a
//! tokenizer share them.
//!
//! ```text
//!   bucket, 64 bytes   word  n │ ids      word  n │ ids
//!                      15 B  1 │ 8 x 2    15 B  1 │ 8 x 2      n: the word's length, and its ids'
//! ```
//!
//! A word is its own key, so a hit is exact. It is looked for in one bucket alone, that is in one
//! cache line, which can be asked for as soon as the word is known. Ids that are too many for the
//! entry stand in a list; so do words of more than 15 bytes, which are found by a hash.
//!
//! An entry is written once and stays as it is: first it is claimed, then the ids are written, and
//! last what makes the word readable. Nobody waits; a word that finds no place is not kept.

mod lists;
mod word;

use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU64, AtomicUsize};

use bytemuck::Zeroable;

use super::layout::{mix, top_bits};
use super::memory::{Zeros, zeros};
use super::simd::prefetch;
use lists::Lists;
pub use lists::Room;
use word::{
    CLAIMED, ELSEWHERE, KEEP_AND_TAG, KEY_BYTES, WINDOW, Word, halves, long_key, window_at_end,
};

/// Words of up to this many bytes, and so ids, are kept.
pub const LONGEST: usize = 128;

/// A word that is its own key has as many ids at most.
pub const MOST_IDS: usize = 16;

/// An entry holds up to this many ids.
const ENTRY_IDS: usize = 8;

/// A table of words and their ids, of 8 MiB at most, and lists of 2 MiB.
#[derive(Debug)]
pub struct WordCache {
    buckets: Zeros<Bucket>,
    /// With more words than this there should be another table.
    most_words: usize,
    num_words: InALineOfItsOwn<AtomicUsize>,
    /// A larger table takes them over.
    lists: Arc<Lists>,
}

/// What one thread writes does not slow down others that read what stands beside it.
#[repr(align(64))]
#[derive(Debug)]
struct InALineOfItsOwn<T>(T);

#[repr(align(64))]
#[derive(Debug, Default, Zeroable)]
struct Bucket([Entry; 2]);

#[derive(Debug, Default, Zeroable)]
struct Entry {
    /// The word's halves; zeros are no word's. When the second is there, all else is.
    low: AtomicU64,
    high: AtomicU64,
    /// The ids, four to a number; if they are elsewhere, where, and how many.
    ids: [AtomicU64; 2],
}

impl Entry {
    #[inline(always)]
    fn word(&self) -> Word {
        let high = self.high.load(Acquire);
        Word(self.low.load(Relaxed), high)
    }

    #[inline(always)]
    fn ids(&self) -> [u16; ENTRY_IDS] {
        bytemuck::cast(self.ids.each_ref().map(|ids| ids.load(Relaxed)))
    }

    /// A place in the list, the word's length, and how many ids are there.
    #[inline(always)]
    fn place_elsewhere(&self) -> [usize; 3] {
        let place: [u16; 4] = bytemuck::cast(self.ids[0].load(Relaxed));
        let [low, high, len, count] = place.map(usize::from);
        [low | high << 16, len, count]
    }

    /// Writes a word, if nobody has claimed the entry. Else says what is there.
    fn put(&self, word: Word, ids: [u16; ENTRY_IDS]) -> Result<(), Word> {
        let claim = || self.high.compare_exchange(0, CLAIMED, Relaxed, Relaxed);
        if self.high.load(Relaxed) != 0 || claim().is_err() {
            return Err(self.word());
        }
        self.low.store(word.0, Relaxed);
        for (place, ids) in self.ids.iter().zip(bytemuck::cast::<_, [u64; 2]>(ids)) {
            place.store(ids, Relaxed);
        }
        self.high.store(word.1, Release);
        Ok(())
    }
}

/// A word as the cache looks for it.
#[derive(Debug, Default, Clone, Copy)]
pub struct Key {
    word: Word,
    bucket: u32,
}

/// A word whose bucket is full goes to another, if one of this many has room.
const MOST_PLACES: usize = 4;

const FIRST_BUCKETS: usize = 1 << 9;
const MOST_BUCKETS: usize = 1 << 17;
const GROWTH: usize = 8;
const BYTES_A_BUCKET: usize = 128;

impl Default for WordCache {
    fn default() -> Self {
        Self::with_buckets(FIRST_BUCKETS, Arc::default())
    }
}

impl WordCache {
    fn with_buckets(num_buckets: usize, lists: Arc<Lists>) -> Self {
        // The last table may fill up.
        let most_words = if num_buckets < MOST_BUCKETS { num_buckets } else { num_buckets / 4 * 7 };
        let num_words = InALineOfItsOwn(AtomicUsize::new(0));
        Self { buckets: zeros(num_buckets), most_words, num_words, lists }
    }

    /// Makes the keys of the words between neighbouring `starts`, and asks for their buckets.
    #[inline(always)]
    pub fn make_keys(&self, text: &[u8], starts: &[u32], keys: &mut [Key]) {
        match starts {
            [.., last, _] if *last as usize + WINDOW > text.len() => {
                self.make_keys_of(text, starts, keys, |start| window_at_end(&text[start..]));
            }
            _ => self.make_keys_of(text, starts, keys, |start| {
                let window =
                    text.get(start..start + WINDOW).and_then(|window| window.first_chunk());
                *window.unwrap_or(&[0; WINDOW])
            }),
        }
    }

    #[inline(never)]
    fn make_keys_of(
        &self,
        text: &[u8],
        starts: &[u32],
        keys: &mut [Key],
        window: impl Fn(usize) -> [u8; WINDOW],
    ) {
        let buckets = &*self.buckets;
        for (key, bounds) in keys.iter_mut().zip(starts.windows(2)) {
            let len = bounds[1].wrapping_sub(bounds[0]) as usize;
            let word = if len > KEY_BYTES {
                long_key(&text[bounds[0] as usize..bounds[1] as usize])
            } else {
                let [keep_low, keep_high, tag] = KEEP_AND_TAG[len];
                let [low, high] = halves(window(bounds[0] as usize));
                Word(low & keep_low, high & keep_high | tag)
            };
            // The count is not there yet, so this is `word.bucket`.
            let bucket = top_bits(mix(word.0, word.1), buckets.len());
            prefetch(&buckets[bucket]);
            *key = Key { word, bucket: bucket as u32 };
        }
    }

    /// Appends the ids of these words to `ids` at `len`, up to the first word that is not in its
    /// bucket. Returns how many words that are, and the new length. There must be room for
    /// `MOST_IDS` ids a word.
    #[inline(never)]
    pub fn append(&self, keys: &[Key], ids: &mut [u16], mut len: usize) -> (usize, usize) {
        let buckets = &*self.buckets;
        for (number, key) in keys.iter().enumerate() {
            let [first, second] = &buckets[key.bucket as usize].0;
            let (mut entry, mut word) = (first, first.word());
            if !word.is(key.word) {
                (entry, word) = (second, second.word());
                if !word.is(key.word) {
                    return (number, len);
                }
            }
            // All of them: as many as always takes less time than as many as needed.
            if word.count() == ELSEWHERE {
                if word.is_long() {
                    return (number, len); // Another word may have this key.
                }
                let [number, _, count] = entry.place_elsewhere();
                ids[len..len + MOST_IDS].copy_from_slice(&self.lists.many(number));
                len += count;
            } else {
                ids[len..len + ENTRY_IDS].copy_from_slice(&entry.ids());
                len += word.count() as usize;
            }
        }
        (keys.len(), len)
    }

    /// Copies the ids of a word that `append` did not find to `ids`, if they are here, and returns
    /// their number: the word is long, its bucket was full, or it came here since.
    #[inline(always)]
    pub fn get_other(&self, key: Key, word: &[u8], ids: &mut [u16]) -> Option<usize> {
        let buckets = &*self.buckets;
        for place in 0..MOST_PLACES {
            let entries = &buckets[key.bucket as usize ^ place].0;
            if let Some(entry) = entries.iter().find(|entry| entry.word().is(key.word)) {
                return self.copy_ids(entry, word, ids);
            }
            if entries[1].high.load(Relaxed) == 0 {
                break;
            }
        }
        None
    }

    /// Copies the ids of an entry, if it is this word's and not another long one's.
    fn copy_ids(&self, entry: &Entry, word: &[u8], ids: &mut [u16]) -> Option<usize> {
        let count = entry.word().count();
        if count != ELSEWHERE {
            ids[..ENTRY_IDS].copy_from_slice(&entry.ids());
            return Some(count as usize);
        }
        let [number, len, count] = entry.place_elsewhere();
        if word.len() <= KEY_BYTES {
            ids[..MOST_IDS].copy_from_slice(&self.lists.many(number));
        } else {
            let is_it = len == word.len() && self.lists.long(number, word, &mut ids[..count]);
            return is_it.then_some(count);
        }
        Some(count)
    }

    /// Keeps the ids of a word, unless it is here or there is no room. Says whether it does:
    /// `add_words` is to hear of that some time.
    pub fn put(&self, room: &mut Room, key: Key, word: &[u8], ids: &[u16]) -> bool {
        let mut all = [0; ENTRY_IDS];
        let count = if word.len() > KEY_BYTES || ids.len() > ENTRY_IDS {
            if !self.has_place(key) {
                return false; // Nor should it take one in a list.
            }
            let place = if word.len() > KEY_BYTES {
                self.lists.put_long(room, word, ids)
            } else {
                self.lists.put_many(room, ids)
            };
            let Some(number) = place else { return false };
            all[..4].copy_from_slice(
                &[number, number >> 16, word.len(), ids.len()].map(|it| it as u16),
            );
            ELSEWHERE
        } else {
            all[..ids.len()].copy_from_slice(ids);
            ids.len() as u64
        };
        self.put_entry(key.bucket as usize, key.word.with_count(count), all)
    }

    fn has_place(&self, key: Key) -> bool {
        let buckets = &*self.buckets;
        let bucket = |place: usize| &buckets[key.bucket as usize ^ place].0;
        (0..MOST_PLACES).any(|place| bucket(place)[1].high.load(Relaxed) == 0)
    }

    /// Takes the first empty entry of a word's own bucket, or of the next few.
    #[inline(always)]
    fn put_entry(&self, bucket: usize, word: Word, ids: [u16; ENTRY_IDS]) -> bool {
        let buckets = &*self.buckets;
        for place in 0..MOST_PLACES {
            for entry in &buckets[bucket ^ place].0 {
                match entry.put(word, ids) {
                    Ok(()) => return true,
                    // Another thread was faster; or another long word has this key.
                    Err(found) if found.is(word) => return false,
                    Err(_) => {}
                }
            }
        }
        false
    }

    /// Counts words that were put here.
    pub fn add_words(&self, num_words: usize) {
        self.num_words.0.fetch_add(num_words, Relaxed);
    }

    /// Whether so many words are here that new ones soon find no place.
    #[inline(always)]
    pub fn is_full(&self) -> bool {
        self.num_words.0.load(Relaxed) > self.most_words
    }

    /// Whether a text of this size should have a larger table from the start.
    pub fn is_small_for(&self, text_bytes: usize) -> bool {
        buckets_for(text_bytes) > self.buckets.len()
    }

    /// Takes back what a thread did not need.
    pub fn give_back(&self, room: Room) {
        self.lists.give_back(room);
    }

    /// A larger table with these words: when this one is full, or small for a text of this size.
    /// `None` if there is none.
    pub fn larger(&self, text_bytes: usize) -> Option<Self> {
        let least = if self.is_full() { GROWTH * self.buckets.len() } else { 0 };
        let num_buckets = least.max(buckets_for(text_bytes)).min(MOST_BUCKETS);
        if num_buckets <= self.buckets.len() {
            return None;
        }
        let larger = Self::with_buckets(num_buckets, Arc::clone(&self.lists));
        let mut num_words = 0;
        for entry in self.buckets.iter().flat_map(|bucket| &bucket.0) {
            let word = entry.word();
            if word.1 != 0 && word.1 != CLAIMED {
                let kept = larger.put_entry(word.bucket(num_buckets), word, entry.ids());
                num_words += usize::from(kept);
            }
        }
        larger.add_words(num_words);
        Some(larger)
    }

    /// Forgets all words.
    pub fn clear(&mut self) {
        self.buckets.clear();
        self.num_words.0 = AtomicUsize::new(0);
        self.lists = Arc::default();
    }

    /// An empty table of this size.
    pub fn empty(&self) -> Self {
        Self::with_buckets(self.buckets.len(), Arc::default())
    }
}

fn buckets_for(text_bytes: usize) -> usize {
    (text_bytes / BYTES_A_BUCKET).next_power_of_two().min(MOST_BUCKETS)
}
