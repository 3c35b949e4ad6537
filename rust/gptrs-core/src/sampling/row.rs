//! What a token is drawn from, and which random number draws it.

use half::{bf16, f16};

/// Which random number belongs to a token: the same one alone or in any batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draw {
    /// The caller's seed.
    pub seed: u64,
    /// The sequence's number in the batch.
    pub sequence: u64,
    /// The drawn token's index in prompt and output.
    pub position: u64,
}

/// The logits of one position.
#[derive(Debug, Clone, Copy)]
pub enum Row<'a> {
    /// One value a token of the vocabulary.
    F32(&'a [f32]),
    /// One value a token of the vocabulary.
    Bf16(&'a [bf16]),
    /// One value a token of the vocabulary.
    F16(&'a [f16]),
    /// What a device left over of the vocabulary; other tokens cannot be drawn.
    Candidates {
        /// Token ids, in any order, each once.
        ids: &'a [u32],
        /// Their logits.
        values: &'a [f32],
        /// Natural logarithm of the sum of exp over the whole vocabulary.
        log_sum_exp: f32,
    },
}

impl Row<'_> {
    /// How many tokens it has a logit of.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Bf16(values) => values.len(),
            Self::F16(values) => values.len(),
            Self::Candidates { ids, values, .. } => ids.len().min(values.len()),
        }
    }

    /// The width of the row: above all ids.
    pub(super) fn vocab_size(&self) -> usize {
        match self {
            Self::Candidates { ids, .. } => ids.iter().max().map_or(0, |&id| id as usize + 1),
            _ => self.len(),
        }
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
