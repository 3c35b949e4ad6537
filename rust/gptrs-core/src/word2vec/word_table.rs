//! Words and their numbers: the first has 0, and so on.

use xxhash_rust::xxh3::xxh3_64;

/// A slot that nothing is in.
const EMPTY: u32 = u32::MAX;

/// Distinct words, found by open addressing.
#[derive(Debug, Clone, Default)]
pub struct WordTable {
    /// All words, one behind the other, and where each ends.
    text: String,
    ends: Vec<usize>,
    /// Twice as many as words, at least; a power of two.
    slots: Vec<Slot>,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    /// Half of the word's hash: most words that are not looked for differ there.
    tag: u32,
    number: u32,
}

impl WordTable {
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// The word of a number.
    pub fn word(&self, number: usize) -> &str {
        let start = number.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.text[start..self.ends[number]]
    }

    /// All words, in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        (0..self.len()).map(|number| self.word(number))
    }

    /// The number of `word`, if it has one.
    pub fn find(&self, word: &str) -> Option<u32> {
        let number = self.slots.get(self.slot_of(word, xxh3_64(word.as_bytes()))?)?.number;
        (number != EMPTY).then_some(number)
    }

    /// The number of `word`, which has one from now on.
    pub fn insert(&mut self, word: &str) -> u32 {
        if self.slots.len() <= 2 * self.len() {
            self.grow();
        }
        let hash = xxh3_64(word.as_bytes());
        let Some(slot) = self.slot_of(word, hash) else { return EMPTY };
        if self.slots[slot].number == EMPTY {
            let number = self.len() as u32;
            self.slots[slot] = Slot { tag: (hash >> 32) as u32, number };
            self.text.push_str(word);
            self.ends.push(self.text.len());
        }
        self.slots[slot].number
    }

    /// The slot that has `word`, or the empty one where it belongs; `None` in a table of no slots.
    fn slot_of(&self, word: &str, hash: u64) -> Option<usize> {
        let (mask, tag) = (self.slots.len().checked_sub(1)?, (hash >> 32) as u32);
        let mut at = hash as usize & mask;
        loop {
            let slot = self.slots[at];
            let is_word = || slot.tag == tag && self.word(slot.number as usize) == word;
            if slot.number == EMPTY || is_word() {
                return Some(at);
            }
            at = (at + 1) & mask;
        }
    }

    fn grow(&mut self) {
        let len = (4 * self.len()).next_power_of_two().max(1 << 10);
        self.slots = vec![Slot { tag: 0, number: EMPTY }; len];
        for number in 0..self.len() {
            let hash = xxh3_64(self.word(number).as_bytes());
            let mut at = hash as usize & (len - 1);
            while self.slots[at].number != EMPTY {
                at = (at + 1) & (len - 1);
            }
            self.slots[at] = Slot { tag: (hash >> 32) as u32, number: number as u32 };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn words_have_the_numbers_of_their_first_sight(
            words in prop::collection::vec("[ab中]{0,6}", 0..1_500),
        ) {
            let (mut table, mut expected) = (WordTable::default(), HashMap::new());
            prop_assert_eq!(table.find("a"), None);
            for word in &words {
                let next = expected.len() as u32;
                let number = *expected.entry(word).or_insert(next);
                prop_assert_eq!(table.insert(word), number);
            }
            prop_assert_eq!(table.len(), expected.len());
            for (word, number) in expected {
                prop_assert_eq!(table.find(word), Some(number));
                prop_assert_eq!(table.word(number as usize), word);
            }
            prop_assert_eq!(table.find("ab中c"), None);
        }
    }
}
