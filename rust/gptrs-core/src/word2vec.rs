//! Word2Vec: vectors of words from the words around them (Mikolov et al., 2013).
//!
//! ```text
//! files ─► blocks ─► sentences ─► words ─► vocabulary ─► rows      counted once, read again each epoch
//! store ─► ranges ─► documents ─► ids  ─┘                 │
//!                                                         ▼
//!                      sampled ─► windows ─► steps ─► vectors      all threads, one matrix, no locks
//! ```
//!
//! Skip-gram or CBOW with negative sampling, in word2vec.c's formulas. A line, or a store's document, is
//! a sentence: no window crosses its end. Nothing of the corpus is kept: memory holds the vocabulary,
//! two matrices, and a block a thread.

mod corpus;
mod kernel;
mod learner;
mod negatives;
mod random;
mod rows;
mod run;
mod vocabulary;
mod word_table;
mod words;

pub use corpus::{Corpus, Units};
pub use run::{Progress, train};
pub use vocabulary::Vocabulary;
pub use words::WordSplitter;

use crate::{Error, Result};

/// What predicts what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// Each word around a place predicts the word there.
    SkipGram,
    /// The sum of the words around a place, or their mean, predicts the word there.
    Cbow {
        /// Whether it is the mean.
        mean: bool,
    },
}

/// How to train. Names and meanings are gensim's, where it has them.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Skip-gram or CBOW.
    pub algorithm: Algorithm,
    /// Columns of the matrix.
    pub vector_size: usize,
    /// The most words on each side that a word is predicted from.
    pub window: usize,
    /// Words that each right one is told from.
    pub negative: usize,
    /// How often the corpus is read.
    pub epochs: u64,
    /// The learning rate at the start.
    pub alpha: f32,
    /// The learning rate at the end.
    pub min_alpha: f32,
    /// Words of a larger share of the text are left out now and then; 0 leaves out none.
    pub sample: f64,
    /// Words that occur less often have no vector.
    pub min_count: u64,
    /// The most words that have a vector: the most frequent.
    pub max_vocab: Option<usize>,
    /// What the random numbers come from.
    pub seed: u64,
    /// How many threads.
    pub threads: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            algorithm: Algorithm::SkipGram,
            vector_size: 100,
            window: 5,
            negative: 5,
            epochs: 5,
            alpha: 0.025,
            min_alpha: 0.0001,
            sample: 1e-3,
            min_count: 5,
            max_vocab: None,
            seed: 1,
            threads: 1,
        }
    }
}

impl Settings {
    /// The most columns, and the widest window.
    const MOST: usize = 1 << 16;

    /// # Errors
    /// `Error::Setting`: one of them makes no sense.
    pub fn check(&self) -> Result<()> {
        let refused = |message: String| Err(Error::Setting(message));
        let sizes = [
            ("vector_size", self.vector_size),
            ("window", self.window),
            ("negative", self.negative),
        ];
        for (name, found) in sizes {
            if !(1..=Self::MOST).contains(&found) {
                return refused(format!("{name} is 1 to {}, found {found}", Self::MOST));
            }
        }
        if self.epochs == 0 || self.max_vocab == Some(0) {
            let name = if self.epochs == 0 { "epochs" } else { "max_vocab" };
            return refused(format!("{name} is at least 1, found 0"));
        }
        let (alpha, min_alpha) = (self.alpha, self.min_alpha);
        if !(alpha > 0.0 && alpha.is_finite() && (0.0..=alpha).contains(&min_alpha)) {
            return refused(format!(
                "alpha is above 0, and min_alpha 0 to alpha; found {alpha} and {min_alpha}"
            ));
        }
        if !(0.0..=1.0).contains(&self.sample) {
            return refused(format!("sample is 0 to 1, found {}", self.sample));
        }
        Ok(())
    }
}

/// What was learned.
#[derive(Debug)]
pub struct Vectors {
    /// Whose vectors they are, the most frequent word first.
    pub vocabulary: Vocabulary,
    /// float32 [words, vector_size].
    pub numbers: Vec<f32>,
}

#[cfg(test)]
mod tests;
