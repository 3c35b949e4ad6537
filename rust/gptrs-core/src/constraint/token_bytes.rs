//! What a vocabulary's tokens are made of.

/// The bytes of every token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenBytes {
    tokens: Vec<Box<[u8]>>,
}

impl TokenBytes {
    /// The bytes of token 0, 1, 2, ...; a token that is no text, such as end-of-text, has none.
    pub fn new(tokens: Vec<Box<[u8]>>) -> Self {
        Self { tokens }
    }

    /// The bytes of one token; none outside the vocabulary.
    pub fn get(&self, id: u32) -> &[u8] {
        self.tokens.get(id as usize).map_or(&[], |bytes| bytes)
    }

    /// How many tokens there are.
    pub fn vocab_size(&self) -> usize {
        self.tokens.len()
    }
}
