//! A few bits for each key: what it does not know was never added.

/// Four bits for each key within one cache line (a blocked Bloom filter: Putze et al., 2007).
#[derive(Default)]
pub struct Filter {
    blocks: Vec<[u64; 8]>,
}

impl Filter {
    /// One of about `bytes`.
    pub fn new(bytes: usize) -> Self {
        Self { blocks: vec![[0; 8]; (bytes / 64).max(1)] }
    }

    /// Whether it has no room for any key.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    fn block(&self, key: u128) -> usize {
        (((key >> 64) * self.blocks.len() as u128) >> 64) as usize
    }

    /// Which bits of which words are a key's: nine bits of the key say one.
    fn bits(key: u128) -> impl Iterator<Item = (usize, u64)> {
        (0..4).map(move |number| {
            let nine = (key >> (9 * number)) as usize;
            (nine % 8, 1 << (nine / 8 % 64))
        })
    }

    pub fn add(&mut self, key: u128) {
        let block = self.block(key);
        Self::bits(key).for_each(|(word, bit)| self.blocks[block][word] |= bit);
    }

    /// Whether a key may have been added; `false` is certain.
    pub fn may_have(&self, key: u128) -> bool {
        let block = self.blocks.get(self.block(key));
        block.is_some_and(|block| Self::bits(key).all(|(word, bit)| block[word] & bit != 0))
    }
}
