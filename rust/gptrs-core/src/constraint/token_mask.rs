//! A set of token ids.

/// A set of token ids: one bit an id.
#[derive(Debug, PartialEq, Eq)]
pub struct TokenMask {
    words: Vec<u64>,
}

impl TokenMask {
    /// The empty set, of a vocabulary of `vocab_size` ids.
    pub fn new(vocab_size: usize) -> Self {
        Self { words: vec![0; vocab_size.div_ceil(64)] }
    }

    /// Adds an id. Panics outside the vocabulary, as a slice does.
    pub fn insert(&mut self, id: u32) {
        self.words[id as usize / 64] |= 1 << (id % 64);
    }

    /// Adds every id of a set of the same vocabulary.
    pub fn insert_all(&mut self, other: &Self) {
        for (word, other) in self.words.iter_mut().zip(&other.words) {
            *word |= other;
        }
    }

    /// Whether the id is in the set.
    pub fn contains(&self, id: u32) -> bool {
        self.words.get(id as usize / 64).is_some_and(|word| word >> (id % 64) & 1 == 1)
    }

    /// The bits: id i is bit i % 64 of word i / 64.
    pub fn words(&self) -> &[u64] {
        &self.words
    }
}

impl Clone for TokenMask {
    fn clone(&self) -> Self {
        Self { words: self.words.clone() }
    }

    /// Every step of a sequence copies a mask: into the memory of the one before.
    fn clone_from(&mut self, source: &Self) {
        self.words.clone_from(&source.words);
    }
}
