//! Words that were encoded before, with their ids: what makes encoding fast.
//!
//! ```text
//!   bucket, 64 bytes   word  n │ ids      word  n │ ids
//!                      15 B  1 │ 8 x 2    15 B  1 │ 8 x 2      n: the word's length, and its ids'
//! ```
//!
//! A word is its own key, so a hit is exact. It is looked for in one bucket alone, that is in one
//! cache line, which can be asked for as soon as the word is known. Ids that are too many for the
//! entry stand in a list; so do words of more than 15 bytes, which are found by a hash.

use super::layout::{mix, top_bits};
use super::memory::prefer_huge_pages;
use super::simd::prefetch;

/// Words of up to this many bytes are their own key.
const KEY_BYTES: usize = 15;

/// Words of up to this many bytes, and so ids, are kept.
pub const LONGEST: usize = 128;

/// A word that is its own key has as many ids at most.
pub const MOST_IDS: usize = 16;

/// An entry holds up to this many ids.
const ENTRY_IDS: usize = 8;

/// A table of words and their ids. The table takes 8 MiB at most, and the lists 2 MiB; then new
/// words replace old ones.
#[derive(Debug)]
pub struct WordCache {
    buckets: Vec<Bucket>,
    num_words: usize,
    /// The ids of words that have more than `ENTRY_IDS`.
    many: Vec<[u16; MOST_IDS]>,
    long: Vec<LongWord>,
}

#[repr(align(64))]
#[derive(Debug, Default, Clone, Copy)]
struct Bucket([Entry; 2]);

/// A word and its ids.
#[derive(Debug, Default, Clone, Copy)]
struct Entry {
    /// The word; the zeros of an empty entry are no word's. The top four bits are the number of
    /// ids, or `ELSEWHERE`.
    word: Word,
    /// The ids; if they are elsewhere, the two halves of a number in a list, and their number.
    ids: [u16; ENTRY_IDS],
}

/// A word's first 8 bytes; then its other bytes, and in the last its length.
#[derive(Debug, Default, Clone, Copy)]
struct Word(u64, u64);

const COUNT_SHIFT: u32 = 60;
const LEN_SHIFT: u32 = 56;
const ELSEWHERE: u64 = 15;

impl Word {
    #[inline(always)]
    fn with_count(self, count: u64) -> Self {
        Self(self.0, self.1 | count << COUNT_SHIFT)
    }

    /// Whether both are one word, whatever their counts.
    #[inline(always)]
    fn is(self, other: Self) -> bool {
        (self.0 ^ other.0) | (self.1 ^ other.1) << (64 - COUNT_SHIFT) == 0
    }

    #[inline(always)]
    fn bucket(self, num_buckets: usize) -> usize {
        let word = self.1 & !(u64::MAX << COUNT_SHIFT);
        top_bits(mix(self.0, word), num_buckets)
    }
}

impl Entry {
    fn elsewhere(key: Key, number: usize, count: usize) -> Self {
        let mut ids = [0; ENTRY_IDS];
        (ids[0], ids[1], ids[2]) = (number as u16, (number >> 16) as u16, count as u16);
        Self { word: key.word.with_count(ELSEWHERE), ids }
    }

    #[inline(always)]
    fn number_elsewhere(&self) -> usize {
        usize::from(self.ids[0]) | usize::from(self.ids[1]) << 16
    }
}

#[derive(Debug)]
struct LongWord {
    bytes: Box<[u8]>,
    ids: Box<[u16]>,
}

/// A word as the cache looks for it.
#[derive(Debug, Default, Clone, Copy)]
pub struct Key {
    word: Word,
    bucket: u32,
}

const FIRST_BUCKETS: usize = 1 << 9;
const MOST_BUCKETS: usize = 1 << 17;
const GROWTH: usize = 8;
const BYTES_A_BUCKET: usize = 128;
const MOST_MANY: usize = 1 << 14;
const MOST_LONG: usize = 1 << 13;

impl Default for WordCache {
    fn default() -> Self {
        Self {
            buckets: vec![Bucket::default(); FIRST_BUCKETS],
            num_words: 0,
            many: Vec::new(),
            long: Vec::new(),
        }
    }
}

impl WordCache {
    /// Makes the keys of the words between neighbouring `starts`, and asks for their buckets.
    #[inline(always)]
    pub fn make_keys(&self, text: &[u8], starts: &[u32], keys: &mut [Key]) {
        match starts {
            [.., last, _] if *last as usize + WINDOW > text.len() => {
                self.make_keys_of(starts, keys, |start| window_at_end(&text[start..]));
            }
            _ => self.make_keys_of(starts, keys, |start| {
                let window =
                    text.get(start..start + WINDOW).and_then(|window| window.first_chunk());
                *window.unwrap_or(&[0; WINDOW])
            }),
        }
    }

    #[inline(never)]
    fn make_keys_of(
        &self,
        starts: &[u32],
        keys: &mut [Key],
        window: impl Fn(usize) -> [u8; WINDOW],
    ) {
        let buckets = self.buckets.as_slice();
        for (key, bounds) in keys.iter_mut().zip(starts.windows(2)) {
            let len = bounds[1].wrapping_sub(bounds[0]) as usize;
            let [keep_low, keep_high, tag] = KEEP_AND_TAG[len.min(KEY_BYTES + 1)];
            let [low, high] = halves(window(bounds[0] as usize));
            let word = Word(low & keep_low, high & keep_high | tag);
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
        let (buckets, many) = (self.buckets.as_slice(), self.many.as_slice());
        for (number, key) in keys.iter().enumerate() {
            let [first, second] = &buckets[key.bucket as usize].0;
            let entry = if first.word.is(key.word) {
                first
            } else if second.word.is(key.word) {
                second
            } else {
                return (number, len);
            };
            // All of them: as many as always takes less time than as many as needed.
            let count = entry.word.1 >> COUNT_SHIFT;
            if count == ELSEWHERE {
                ids[len..len + MOST_IDS].copy_from_slice(&many[entry.number_elsewhere()]);
                len += usize::from(entry.ids[2]);
            } else {
                ids[len..len + ENTRY_IDS].copy_from_slice(&entry.ids);
                len += count as usize;
            }
        }
        (keys.len(), len)
    }

    /// The key of any word, if `make_keys` made `key` of it.
    pub fn key(&self, key: Key, word: &[u8]) -> Key {
        if word.len() <= KEY_BYTES {
            return key;
        }
        let word = long_key(word);
        Key { word, bucket: word.bucket(self.buckets.len()) as u32 }
    }

    /// The ids of a word that is too long to be its own key.
    pub fn get_long(&self, key: Key, word: &[u8]) -> Option<&[u16]> {
        if word.len() <= KEY_BYTES {
            return None;
        }
        let entry =
            self.buckets[key.bucket as usize].0.iter().find(|entry| entry.word.is(key.word))?;
        let long = self.long.get(entry.number_elsewhere())?;
        (*long.bytes == *word).then_some(&long.ids)
    }

    /// Keeps the ids of a word that is not here.
    pub fn put(&mut self, key: Key, word: &[u8], ids: &[u16]) {
        let entry = if word.len() > KEY_BYTES {
            if self.long.len() == MOST_LONG {
                return;
            }
            self.long.push(LongWord { bytes: word.into(), ids: ids.into() });
            Entry::elsewhere(key, self.long.len() - 1, ids.len())
        } else if ids.len() > ENTRY_IDS {
            if self.many.len() == MOST_MANY {
                return;
            }
            let mut all = [0; MOST_IDS];
            all[..ids.len()].copy_from_slice(ids);
            self.many.push(all);
            Entry::elsewhere(key, self.many.len() - 1, ids.len())
        } else {
            let mut all = [0; ENTRY_IDS];
            all[..ids.len()].copy_from_slice(ids);
            Entry { word: key.word.with_count(ids.len() as u64), ids: all }
        };
        self.put_entry(key.bucket as usize, entry);
    }

    fn put_entry(&mut self, bucket: usize, entry: Entry) {
        let [first, second] = &mut self.buckets[bucket].0;
        // Frequent words come early, so the first of a bucket stays.
        let place = if first.word.1 == 0 { first } else { second };
        self.num_words += usize::from(place.word.1 == 0);
        *place = entry;
    }

    /// Makes room at once for the words that a text of this size may have.
    pub fn expect(&mut self, text_bytes: usize) {
        let num_buckets = (text_bytes / BYTES_A_BUCKET).next_power_of_two().min(MOST_BUCKETS);
        if num_buckets > self.buckets.len() {
            self.grow(num_buckets);
        }
    }

    /// Grows if there are many words. Keys made before are no longer good.
    #[inline(always)]
    pub fn make_room(&mut self) {
        if self.num_words > self.buckets.len() && self.buckets.len() < MOST_BUCKETS {
            self.grow((GROWTH * self.buckets.len()).min(MOST_BUCKETS));
        }
    }

    #[cold]
    fn grow(&mut self, num_buckets: usize) {
        let mut larger = Vec::with_capacity(num_buckets);
        prefer_huge_pages(larger.spare_capacity_mut());
        larger.resize(num_buckets, Bucket::default());
        let smaller = std::mem::replace(&mut self.buckets, larger);
        self.num_words = 0;
        for entry in smaller.iter().flat_map(|bucket| bucket.0).filter(|entry| entry.word.1 != 0) {
            self.put_entry(entry.word.bucket(num_buckets), entry);
        }
    }
}

/// The bytes that a key is made of.
const WINDOW: usize = 16;

#[inline(always)]
fn halves(window: [u8; WINDOW]) -> [u64; 2] {
    let window = u128::from_le_bytes(window);
    [window as u64, (window >> 64) as u64]
}

/// A key that stands for a longer word: another word may have it too. No shorter word has it, nor
/// what `make_keys` gives longer ones.
#[inline(never)]
fn long_key(word: &[u8]) -> Word {
    let mut hash = word.len() as u64;
    let (chunks, _) = word.as_chunks();
    for chunk in chunks.iter().chain(word.last_chunk()) {
        hash = mix(hash, u64::from_le_bytes(*chunk));
    }
    Word(hash, 2)
}

/// The last few bytes of a text as a window.
#[cold]
fn window_at_end(bytes: &[u8]) -> [u8; WINDOW] {
    let mut window = [0; WINDOW];
    let len = bytes.len().min(WINDOW);
    window[..len].copy_from_slice(&bytes[..len]);
    window
}

/// What belongs to a word of each length in a window's halves, and what makes a key of the latter.
/// All longer words get one key, which no entry has.
static KEEP_AND_TAG: [[u64; 3]; KEY_BYTES + 2] = {
    let mut table = [[0, 0, 1]; KEY_BYTES + 2];
    let mut len = 0;
    while len <= KEY_BYTES {
        let keep: u128 = (1 << (8 * len)) - 1;
        table[len] = [keep as u64, (keep >> 64) as u64, (len as u64) << LEN_SHIFT];
        len += 1;
    }
    table
};
