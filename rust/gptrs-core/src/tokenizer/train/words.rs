//! The distinct words of a text, and how often each one stands in it.
//!
//! ```text
//!   up to 15 bytes   slots      bytes and length in 16 bytes, then the count: one read a word
//!   longer           a hash map rare, and often long
//! ```
//!
//! Words of one byte have no pair in them, so they are not kept. The hashes are seeded at random,
//! so that no text can be written to collide; nothing that is learned depends on their order.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use crate::tokenizer::split;

/// The longest word that lies in a slot.
const SHORT: usize = 15;

/// Where a slot holds the word's length: the byte after its bytes.
const LENGTH_SHIFT: usize = 8 * SHORT;

const FIRST_SLOTS: usize = 1 << 12;

/// How often each distinct word was seen.
#[derive(Debug)]
pub struct WordCounts {
    slots: Vec<Slot>,
    num_short: usize,
    seeds: [u64; 2],
    long: HashMap<Box<[u8]>, u64>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    /// The word, little-endian, and its length in the last byte: never 0.
    key: [u64; 2],
    /// 0 in a slot that is free.
    count: u64,
}

impl Default for WordCounts {
    fn default() -> Self {
        let random = RandomState::new();
        Self {
            slots: vec![Slot::default(); FIRST_SLOTS],
            num_short: 0,
            seeds: [0, 1].map(|number| random.hash_one(number)),
            long: HashMap::new(),
        }
    }
}

impl WordCounts {
    /// Counts the words of a text that has no special tokens in it.
    pub fn add(&mut self, text: &str) {
        let mut start = 0;
        for word in split(text) {
            match word.len() {
                0..2 => {}
                len @ 2..=SHORT => self.add_short(short_key(text.as_bytes(), start, len), 1),
                _ => self.add_long(word.as_bytes(), 1),
            }
            start += word.len();
        }
    }

    /// Adds what `other` has counted.
    pub fn absorb<E>(
        &mut self,
        other: Self,
        check: &mut impl FnMut() -> Result<(), E>,
    ) -> Result<(), E> {
        for slots in other.slots.chunks(1 << 16) {
            check()?;
            for slot in slots.iter().filter(|slot| slot.count > 0) {
                self.add_short(slot.key, slot.count);
            }
        }
        for (number, (word, count)) in other.long.into_iter().enumerate() {
            if number.is_multiple_of(1 << 14) {
                check()?;
            }
            *self.long.entry(word).or_default() += count;
        }
        Ok(())
    }

    /// Calls `each` with every word and its count, in no particular order.
    pub fn visit<E>(
        &self,
        check: &mut impl FnMut() -> Result<(), E>,
        mut each: impl FnMut(&[u8], u64),
    ) -> Result<(), E> {
        for slots in self.slots.chunks(1 << 16) {
            check()?;
            for slot in slots.iter().filter(|slot| slot.count > 0) {
                let key = u128::from(slot.key[1]) << 64 | u128::from(slot.key[0]);
                each(&key.to_le_bytes()[..(key >> LENGTH_SHIFT) as usize], slot.count);
            }
        }
        for (number, (word, count)) in self.long.iter().enumerate() {
            if number.is_multiple_of(1 << 14) {
                check()?;
            }
            each(word, *count);
        }
        Ok(())
    }

    fn add_short(&mut self, key: [u64; 2], count: u64) {
        let last = self.slots.len() - 1;
        let mut at = self.hash(key) as usize & last;
        loop {
            let slot = &mut self.slots[at & last];
            if slot.key == key {
                slot.count += count;
                return;
            }
            if slot.count == 0 {
                *slot = Slot { key, count };
                break;
            }
            at += 1;
        }
        self.num_short += 1;
        if self.num_short * 2 > self.slots.len() {
            self.grow();
        }
    }

    fn add_long(&mut self, word: &[u8], count: u64) {
        match self.long.get_mut(word) {
            Some(found) => *found += count,
            None => drop(self.long.insert(word.into(), count)),
        }
    }

    fn grow(&mut self) {
        let twice = vec![Slot::default(); self.slots.len() * 2];
        let last = twice.len() - 1;
        for slot in std::mem::replace(&mut self.slots, twice) {
            if slot.count > 0 {
                let mut at = self.hash(slot.key) as usize & last;
                while self.slots[at].count > 0 {
                    at = (at + 1) & last;
                }
                self.slots[at] = slot;
            }
        }
    }

    /// Both halves of a product of all the bytes: every bit of the key reaches the low bits.
    fn hash(&self, key: [u64; 2]) -> u64 {
        let product = u128::from(key[0] ^ self.seeds[0]) * u128::from(key[1] ^ self.seeds[1]);
        product as u64 ^ (product >> 64) as u64
    }
}

/// The key of the `len` bytes at `start`: where the text goes on, one load and a mask.
fn short_key(text: &[u8], start: usize, len: usize) -> [u64; 2] {
    let window = text[start..].first_chunk().copied().unwrap_or_else(|| {
        let mut window = [0; SHORT + 1];
        window[..len].copy_from_slice(&text[start..start + len]);
        window
    });
    let bytes = u128::from_le_bytes(window) & !(u128::MAX << (8 * len));
    let key = bytes | (len as u128) << LENGTH_SHIFT;
    [key as u64, (key >> 64) as u64]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn counts(words: &WordCounts) -> HashMap<Vec<u8>, u64> {
        let mut found = Vec::new();
        let mut check = || Ok::<_, ()>(());
        words.visit(&mut check, |word, count| found.push((word.to_vec(), count))).unwrap();
        found.into_iter().collect()
    }

    fn count(texts: &[String]) -> WordCounts {
        let mut words = WordCounts::default();
        for text in texts {
            words.add(text);
        }
        words
    }

    #[test]
    fn words_outgrow_the_first_slots() {
        let texts: Vec<String> = (0..20_000).map(|number| format!("{number:05}")).collect();
        let found = counts(&count(&texts));
        assert_eq!(found.len(), 20_000);
        assert!(found.values().all(|count| *count == 1));
    }

    proptest! {
        #[test]
        fn every_word_of_two_bytes_or_more_is_counted(
            texts in prop::collection::vec(r"([ab]{1,2}|a{1,40}|é| |\s|\PC){0,30}", 0..6),
            middle in 0usize..6,
        ) {
            let mut expected = HashMap::new();
            for word in texts.iter().flat_map(|text| split(text)).filter(|word| word.len() > 1) {
                *expected.entry(word.as_bytes().to_vec()).or_default() += 1;
            }
            prop_assert_eq!(counts(&count(&texts)), expected.clone());

            let (some, others) = texts.split_at(middle.min(texts.len()));
            let mut words = count(some);
            words.absorb(count(others), &mut || Ok::<_, ()>(())).unwrap();
            prop_assert_eq!(counts(&words), expected);
        }
    }
}
