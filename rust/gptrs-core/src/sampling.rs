//! From a row of logits to a token: what the settings change, what they leave, and one draw by counter.
//!
//! ```text
//! row ─► adjust ─► filter ─► draw(seed, sequence, position) ─► token id
//!          │         │
//!          │         └ top_k, temperature, top_p, min_p, typical_p      weights of what is left
//!          └ bias, penalties, n-grams, bans, constraint, end ids        logits of single tokens
//! ```
//!
//! Each means what transformers' processor of that name does. Nothing is ever fully sorted, and on every
//! processor, on any number of threads and in any batch the same tokens come out. Something that changes
//! single logits goes into `adjust`, something that drops tokens is a file in `filters`.

mod adjust;
mod batch;
mod candidates;
mod config;
mod draw;
mod filters;
mod history;
mod kernels;
mod logprobs;
mod row;
mod select;
#[cfg(test)]
mod tests;

pub use batch::sample_all;
pub use config::SamplingConfig;
pub use history::{History, Seen};
pub use logprobs::{LogProbs, log_probs, top_log_probs};
pub use row::{Draw, Row};

use candidates::{Candidates, Lists, Scratch};

use crate::constraint::TokenMask;
use crate::philox::uniform;
use crate::tokenizer::simd::{Found, Isa};
use crate::{Error, Result};

/// One token to choose: from which row, how, and after what.
#[derive(Debug, Clone, Copy)]
pub struct Choice<'a> {
    /// The model's logits.
    pub row: Row<'a>,
    /// The settings. They have been checked.
    pub config: &'a SamplingConfig,
    /// What the sequence has seen.
    pub history: &'a History,
    /// The tokens that a constraint allows.
    pub allowed: Option<&'a TokenMask>,
    /// The random number.
    pub draw: Draw,
}

/// Chooses tokens; keeps its buffers from row to row.
#[derive(Debug)]
pub struct Sampler {
    simd: Found,
    lists: Lists,
    scratch: Scratch,
}

impl Default for Sampler {
    fn default() -> Self {
        Self::new()
    }
}

impl Sampler {
    /// A sampler with empty buffers.
    pub fn new() -> Self {
        Self::on(Isa::best())
    }

    /// A sampler that uses no more of the processor than this kind has: for tests.
    fn on(isa: Isa) -> Self {
        Self { simd: isa.found(), lists: Lists::default(), scratch: Scratch::default() }
    }

    /// The next token's id.
    ///
    /// # Errors
    /// The row has NaN or +inf, or nothing is left to draw: it is -inf throughout, or the settings
    /// ban all that is not.
    pub fn sample(&mut self, choice: &Choice<'_>) -> Result<u32> {
        let Choice { config, draw, .. } = choice;
        let mut candidates = self.adjusted(choice)?;
        if config.temperature == 0.0 {
            return Ok(candidates.argmax());
        }
        filters::filter(&mut candidates, config);
        let uniform = uniform(draw.seed, draw.sequence, draw.position);
        Ok(draw::draw(&candidates, uniform))
    }

    /// The distribution that [`sample`](Self::sample) draws from: each token's probability, 0 for what
    /// the settings drop. With temperature 0 one token has it all.
    ///
    /// # Errors
    /// As `sample`; `out` is shorter than the row, or ends before the largest candidate's id.
    pub fn probabilities(&mut self, choice: &Choice<'_>, out: &mut [f32]) -> Result<()> {
        let config = choice.config;
        let expected = choice.row.vocab_size();
        if out.len() < expected {
            return Err(Error::WrongLength { what: "out", found: out.len(), expected });
        }
        out.fill(0.0);
        let mut candidates = self.adjusted(choice)?;
        if config.temperature == 0.0 {
            out[candidates.argmax() as usize] = 1.0;
            return Ok(());
        }
        filters::filter(&mut candidates, config);
        let total = candidates.total();
        for (index, &weight) in candidates.lists.weights.iter().enumerate() {
            out[candidates.id(index) as usize] = (f64::from(weight) / total) as f32;
        }
        Ok(())
    }

    /// The row after all that changes single logits.
    fn adjusted<'a>(&'a mut self, choice: &Choice<'a>) -> Result<Candidates<'a>> {
        let Self { simd, lists, scratch } = self;
        let is_changed = adjust::is_needed(choice);
        let mut candidates = Candidates::read(choice.row, is_changed, *simd, lists, scratch);
        candidates.scan()?;
        if candidates.largest == f32::NEG_INFINITY {
            return Err(Error::NothingToDraw);
        }
        if is_changed {
            adjust::adjust(&mut candidates.logits_mut(), choice, *simd);
            candidates.scan()?;
            if candidates.largest == f32::NEG_INFINITY {
                return Err(Error::NothingAllowed);
            }
        }
        Ok(candidates)
    }
}
