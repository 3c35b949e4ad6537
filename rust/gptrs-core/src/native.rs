//! The CPU decode engine: a [`NextLogits`] with no Python in it, on weights that lie where PyTorch has
//! them.
//!
//! ```text
//!  extend ─► Pass: at most 256 tokens of any slots ─► forward, on all threads of the Pool ─► logits
//!                                                        │
//!                        products (tile, tiles, int8) ── attention over the Cache ── norms, GELU (math)
//!                                                        │
//!                               lanes: sixteen floats on AVX-512, AVX2 or anything
//! ```
//!
//! Logits depend on a sequence's own tokens alone, to the last bit: not on its neighbours, nor on how many
//! threads there are or how its tokens were cut into calls. Sums are over one row and one input, in one
//! fixed order; threads share out rows, never a sum.

#![cfg_attr(
    not(all(target_arch = "x86_64", target_os = "linux")),
    allow(dead_code, reason = "what tiles and vectors of x86-64 alone ask for")
)]

mod attention;
mod cache;
mod forward;
mod int8;
pub(crate) mod lanes;
pub(crate) mod math;
mod numbers;
mod packed_weights;
mod pool;
pub(crate) mod shared;
mod tables;
pub(crate) mod terms;
mod tile;
pub(crate) mod tiles;
mod weights;

pub use self::lanes::Kernels;
pub use self::numbers::{Bytes, FloatType, Numbers};
pub use self::packed_weights::PackedWeights;
pub use self::weights::{Block, Linear, Matrix, Norm, Positions, Weights};

use self::cache::{Cache, Extent, PAIR};
use self::forward::{Arena, MOST_ROWS, Model, Pass, Span, forward};
use self::lanes::{Found, padded};
use self::pool::Pool;
use self::shared::Shared;
use self::tables::Angles;
use crate::generate::{Extend, Limits, Logits, NextLogits};
use crate::{Error, Result};

/// What the products are computed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// The weights as they are.
    AsStored,
    /// Copies in eight bits, of all but the embedding tables.
    Int8,
}

/// How a model is run.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Sequences at once.
    pub slots: usize,
    /// The most tokens a slot holds.
    pub context_length: usize,
    /// The caller's thread is one of them.
    pub threads: usize,
    /// What the products are computed with.
    pub precision: Precision,
    /// For which processor.
    pub kernels: Kernels,
}

/// A model with what its slots hold.
#[derive(Debug)]
pub struct NativeModel {
    weights: Weights,
    packed: Option<PackedWeights>,
    options: Options,
    found: Found,
    angles: Angles,
    cache: Cache,
    arena: Arena,
    pool: Pool,
    /// How many tokens each slot holds.
    lengths: Vec<usize>,
    passes: Vec<Pass>,
    logits: Shared<f32>,
    num_logits: usize,
}

impl NativeModel {
    /// A model of these weights; its slots are empty.
    ///
    /// # Errors
    /// `Setting`: weights that do not fit each other. `NoMemory`.
    pub fn new(weights: Weights, options: Options) -> Result<Self> {
        Self::with_packed(weights, options, None)
    }

    /// As `new`; `packed` are the copies in eight bits that another model of these very weights has.
    ///
    /// # Errors
    /// As `new`; and copies of other matrices.
    pub fn with_packed(
        weights: Weights,
        options: Options,
        packed: Option<PackedWeights>,
    ) -> Result<Self> {
        let Options { slots, context_length, threads, precision, .. } = options;
        if slots == 0 || context_length == 0 || threads == 0 {
            let message = format!(
                "slots, context_length and threads are at least 1, found {slots}, {context_length} and \
                 {threads}"
            );
            return Err(Error::Setting(message));
        }
        weights.check(context_length)?;
        if packed.as_ref().is_some_and(|packed| !packed.fit(&weights)) {
            return Err(Error::Setting("the packed weights are those of other matrices".into()));
        }
        let is_int8 = precision == Precision::Int8;
        let extent = Extent {
            layers: weights.blocks.len(),
            slots,
            heads: weights.num_heads,
            context: padded(context_length),
            width: weights.head_dim().next_multiple_of(PAIR),
        };
        let dtype = match weights.tokens.numbers.dtype() {
            FloatType::F32 if !is_int8 => FloatType::F32,
            _ => FloatType::Bf16,
        };
        let angles = match weights.positions {
            Positions::Sinusoidal => Angles::new(weights.emb_dim(), context_length),
            Positions::Rope => Angles::new(weights.head_dim(), context_length),
            _ => Angles::default(),
        };
        let found = options.kernels.found();
        let mut pool = Pool::new(threads);
        let packed = match packed {
            None if is_int8 => Some(PackedWeights::pack(&weights, &mut pool, found)?),
            given => given.filter(|_| is_int8),
        };
        Ok(Self {
            packed,
            options,
            found,
            angles,
            cache: Cache::new(extent, dtype)?,
            arena: Arena::new(&weights, context_length, is_int8, threads)?,
            pool,
            lengths: vec![0; slots],
            passes: Vec::new(),
            logits: Shared::new(0, "logits")?,
            num_logits: 0,
            weights,
        })
    }

    /// The copies in eight bits, if there are any.
    pub fn packed(&self) -> Option<PackedWeights> {
        self.packed.clone()
    }

    /// Goes on with other weights of the same shapes; the slots keep what they hold.
    ///
    /// # Errors
    /// `Setting`: they have other shapes. `NoMemory`. The model is as before.
    pub fn set_weights(&mut self, weights: Weights) -> Result<()> {
        weights.check(self.options.context_length)?;
        let facts = |w: &Weights| {
            (w.blocks.len(), w.num_heads, w.emb_dim(), w.vocab_size(), w.hidden_dim())
        };
        if facts(&weights) != facts(&self.weights) {
            return Err(Error::Setting("the weights have other shapes than before".into()));
        }
        if self.packed.is_some() {
            self.packed = Some(PackedWeights::pack(&weights, &mut self.pool, self.found)?);
        }
        self.weights = weights;
        Ok(())
    }

    /// Cuts work into passes.
    fn plan(&mut self, work: &[Extend<'_>]) -> usize {
        let mut used = 0;
        let mut num_logits = 0;
        self.passes.iter_mut().for_each(Pass::clear);
        for item in work {
            let mut start = self.lengths[item.slot];
            let mut tokens = item.tokens;
            let mut unwanted = tokens.len() - item.wanted.min(tokens.len());
            while !tokens.is_empty() {
                if used == 0 || self.passes[used - 1].tokens.len() == MOST_ROWS {
                    used += 1;
                    if self.passes.len() < used {
                        self.passes.push(Pass::default());
                    }
                    self.passes[used - 1].first_logits = num_logits;
                }
                let pass = &mut self.passes[used - 1];
                let count = tokens.len().min(MOST_ROWS - pass.tokens.len());
                let first_row = pass.tokens.len();
                pass.spans.push(Span { slot: item.slot, start, count, first_row });
                pass.tokens.extend(&tokens[..count]);
                pass.positions.extend(start..start + count);
                let skipped = unwanted.min(count);
                pass.wanted.extend(first_row + skipped..first_row + count);
                num_logits += count - skipped;
                unwanted -= skipped;
                start += count;
                tokens = &tokens[count..];
            }
        }
        self.num_logits = num_logits;
        used
    }

    /// # Errors
    /// More tokens than a slot holds, or ids outside the vocabulary.
    fn check(&self, work: &[Extend<'_>]) -> Result<()> {
        let vocab_size = self.weights.tokens.rows;
        for item in work {
            let wanted = self.lengths[item.slot] + item.tokens.len();
            if wanted > self.options.context_length {
                let message =
                    format!("a slot holds {} tokens, found {wanted}", self.options.context_length);
                return Err(Error::Setting(message));
            }
            for (column, &id) in item.tokens.iter().enumerate() {
                if id as usize >= vocab_size {
                    let (id, row) = (i64::from(id), item.slot);
                    return Err(Error::TokenIdInPrompt { id, row, column, vocab_size });
                }
            }
        }
        Ok(())
    }
}

impl NextLogits for NativeModel {
    type Error = Error;

    fn limits(&self) -> Limits {
        Limits {
            vocab_size: self.weights.vocab_size(),
            context_length: self.options.context_length,
            slots: self.options.slots,
        }
    }

    fn extend(&mut self, work: &[Extend<'_>]) -> Result<()> {
        self.check(work)?;
        let used = self.plan(work);
        let vocab_size = self.weights.vocab_size();
        let room = self.num_logits * vocab_size;
        if self.logits.len() < room {
            self.logits = Shared::new(room, "logits")?;
        }
        let end = work.iter().map(|item| self.lengths[item.slot] + item.tokens.len()).max();
        self.angles.reach(end.unwrap_or(0));
        let model = Model {
            weights: &self.weights,
            packed: self.packed.as_ref().map(PackedWeights::matrices),
            angles: &self.angles,
            cache: &self.cache,
            found: self.found,
        };
        for pass in &self.passes[..used] {
            let (arena, logits) = (&self.arena, &self.logits);
            self.pool.run(&|worker| forward(worker, &model, arena, pass, logits));
        }
        for item in work {
            self.lengths[item.slot] += item.tokens.len();
        }
        Ok(())
    }

    fn logits(&self) -> Logits<'_> {
        let vocab_size = self.weights.vocab_size();
        Logits::F32(&self.logits.get()[..self.num_logits * vocab_size], vocab_size)
    }

    fn copy(&mut self, from: usize, to: usize, len: usize) -> Result<()> {
        self.cache.copy(from, to, len);
        self.lengths[to] = len;
        Ok(())
    }

    fn truncate(&mut self, slot: usize, len: usize) -> Result<()> {
        self.lengths[slot] = len;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
