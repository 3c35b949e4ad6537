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
mod pool;
pub(crate) mod shared;
mod tables;
pub(crate) mod terms;
mod tile;
pub(crate) mod tiles;
mod weights;

pub use self::lanes::Kernels;
pub use self::numbers::{Bytes, FloatType, Numbers};
pub use self::weights::{Block, Linear, Matrix, Norm, Positions, Weights};

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use self::cache::{Cache, Extent, PAIR};
use self::forward::{Arena, MOST_ROWS, Model, Pass, Span, forward};
use self::int8::Packed;
use self::lanes::padded;
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

/// The copies in eight bits that one model has made, for others of the same weights.
#[derive(Debug, Clone)]
pub struct PackedWeights(Arc<Vec<Packed>>);

impl PackedWeights {
    /// What `parts` gave, of a model of these shapes.
    ///
    /// # Errors
    /// `Setting`: they are of another number, or of another size.
    pub fn of_parts(weights: &Weights, parts: Vec<(Bytes, Vec<f32>)>) -> Result<Self> {
        let all = matrices(weights);
        if all.len() != parts.len() {
            let message = format!("the model has {} matrices, found {}", all.len(), parts.len());
            return Err(Error::Setting(message));
        }
        let packed = all.into_iter().zip(parts);
        let packed =
            packed.map(|(matrix, (bytes, scales))| Packed::of_parts(matrix, bytes, scales));
        Ok(Self(Arc::new(packed.collect::<Result<_>>()?)))
    }

    /// Of each matrix its bytes and its scales: of each block Q, K, V, out_proj, ff.0, ff.2; at the end
    /// the output layer.
    pub fn parts(&self) -> impl Iterator<Item = (&Bytes, &[f32])> {
        self.0.iter().map(Packed::parts)
    }

    fn fit(&self, weights: &Weights) -> bool {
        let all = matrices(weights);
        self.0.len() == all.len()
            && self.0.iter().zip(all).all(|(packed, matrix)| packed.fits(matrix))
    }
}

/// A model with what its slots hold.
#[derive(Debug)]
pub struct NativeModel {
    weights: Weights,
    packed: Option<PackedWeights>,
    options: Options,
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
            Positions::Sinusoidal => Angles::new(weights.emb_dim()),
            Positions::Rope => Angles::new(weights.head_dim()),
            _ => Angles::default(),
        };
        let mut pool = Pool::new(threads);
        let packed = match packed {
            None if is_int8 => Some(pack(&weights, &mut pool, options.kernels)?),
            given => given.filter(|_| is_int8),
        };
        Ok(Self {
            packed,
            options,
            angles,
            cache: Cache::new(extent, dtype)?,
            arena: Arena::new(&weights, is_int8, threads)?,
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
            self.packed = Some(pack(&weights, &mut self.pool, self.options.kernels)?);
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
            packed: self.packed.as_ref().map(|packed| &**packed.0),
            angles: &self.angles,
            cache: &self.cache,
            found: self.options.kernels.found(),
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

/// Every matrix in eight bits, on all threads.
#[allow(unsafe_code, reason = "each thread writes matrices of its own, and nobody does afterwards")]
fn pack(weights: &Weights, pool: &mut Pool, kernels: Kernels) -> Result<PackedWeights> {
    let found = kernels.found();
    let all = matrices(weights);
    let mut end = 0;
    let places: Vec<_> = all
        .iter()
        .map(|matrix| {
            let start = end;
            end += Packed::num_bytes(matrix);
            start..end
        })
        .collect();
    let bytes = Arc::new(Shared::in_large_pages(end, "weights in eight bits")?);
    let scales: Vec<_> = all.iter().map(|_| OnceLock::new()).collect();
    let next = AtomicUsize::new(0);
    pool.run(&|_| {
        // The largest, which is the last, goes first.
        while let Some(left) = all.len().checked_sub(1 + next.fetch_add(1, Ordering::Relaxed)) {
            // SAFETY: places do not overlap, and each number comes once.
            let place = unsafe { bytes.write(places[left].clone()) };
            scales[left].get_or_init(|| Packed::pack(all[left], place, found));
        }
    });
    let scales = scales.into_iter().filter_map(OnceLock::into_inner);
    let parts = places.into_iter().zip(scales).map(|(place, scales)| {
        // SAFETY: all are written.
        (unsafe { Bytes::part(&bytes, place) }, scales)
    });
    PackedWeights::of_parts(weights, parts.collect())
}

/// Of each block Q, K, V, out_proj, ff.0, ff.2; at the end the output layer.
fn matrices(weights: &Weights) -> Vec<&Matrix> {
    let blocks = weights.blocks.iter().flat_map(|block| {
        [&block.query, &block.key, &block.value, &block.out, &block.up, &block.down]
    });
    blocks.chain([&weights.head]).map(|linear| &linear.weight).collect()
}

#[cfg(test)]
mod tests;
