//! One pass through the model, by all threads together.
//!
//! ```text
//!  every thread, for every block:                                        barriers: |
//!
//!  norm ─► its rows of Q, K, V | its heads: append, look back | its rows of out_proj, added to x |
//!  norm ─► its rows of ff.0, GELU | its rows of ff.2, added to x |
//! ```
//!
//! A thread computes whole sums, for all tokens: which thread has which rows changes no bit. Of a few
//! tokens (`inputs`) every thread takes the norm for itself, which is cheaper than to wait for it.

#![allow(
    unsafe_code,
    reason = "parts of common memory; each says which, and which barrier orders it"
)]

mod inputs;
mod products;

use std::sync::{Mutex, PoisonError};

use self::inputs::{FEW_PACKED_ROWS, From, Inputs, Place};
use self::products::{To, Write};
use super::attention::{Attend, Room, Turn};
use super::cache::{Cache, Extent};
use super::int8::Packed;
use super::lanes::{Found, dispatch};
use super::math::Gelu;
use super::pool::Worker;
use super::shared::Shared;
use super::tables::Angles;
use super::tiles::{ReadyTiles, SIDE, Tiles};
use super::weights::{Positions, Weights};
use crate::Result;

/// The most tokens that pass together: their numbers take some megabytes.
pub const MOST_ROWS: usize = 256;
/// Rows of a matrix go to threads in multiples of this.
const ROW_UNIT: usize = SIDE;

/// Neighbouring tokens of one slot.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    pub slot: usize,
    /// How many tokens the slot has already.
    pub start: usize,
    /// How many these are.
    pub count: usize,
    /// Which row of the pass is the first.
    pub first_row: usize,
}

/// Tokens that pass together, at most `MOST_ROWS`.
#[derive(Debug, Default)]
pub struct Pass {
    pub spans: Vec<Span>,
    pub tokens: Vec<u32>,
    pub positions: Vec<usize>,
    /// Rows whose logits are wanted.
    pub wanted: Vec<usize>,
    /// Where in the logits they begin.
    pub first_logits: usize,
}

impl Pass {
    /// For other tokens.
    pub fn clear(&mut self) {
        self.spans.clear();
        self.tokens.clear();
        self.positions.clear();
        self.wanted.clear();
    }
}

/// All that a pass reads.
pub struct Model<'a> {
    pub weights: &'a Weights,
    /// In eight bits: of each block Q, K, V, out_proj, ff.0, ff.2; the output layer's at the end.
    pub packed: Option<&'a [Packed]>,
    pub angles: &'a Angles,
    pub cache: &'a Cache,
    pub found: Found,
}

/// Numbers on their way, a row a token.
#[derive(Debug)]
pub struct Arena {
    x: Shared<f32>,
    inputs: Inputs,
    /// What threads made of their own columns; apart, as others may still read `inputs`.
    handed: Inputs,
    qkv: Shared<f32>,
    attended: Shared<f32>,
    hidden: Shared<f32>,
    /// What each thread has for itself.
    own: Vec<Mutex<Own>>,
}

#[derive(Debug)]
struct Own {
    inputs: Inputs,
    widened: Vec<f32>,
    room: Room,
    norm: [Vec<f32>; 2],
}

impl Arena {
    pub fn new(weights: &Weights, context: usize, is_int8: bool, threads: usize) -> Result<Self> {
        let (width, hidden) = (weights.emb_dim(), weights.hidden_dim());
        let what = "activations";
        let own = || {
            let inputs = Inputs::new(FEW_PACKED_ROWS, width, width.max(hidden), is_int8)?;
            let room = Room::new(context);
            Ok(Mutex::new(Own { inputs, widened: Vec::new(), room, norm: Default::default() }))
        };
        Ok(Self {
            x: Shared::new(MOST_ROWS * width, what)?,
            inputs: Inputs::new(MOST_ROWS, width, width.max(hidden), is_int8)?,
            handed: Inputs::new(MOST_ROWS, 0, width.max(hidden), is_int8)?,
            qkv: Shared::new(MOST_ROWS * 3 * width, what)?,
            attended: Shared::new(MOST_ROWS * width, what)?,
            hidden: Shared::new(MOST_ROWS * hidden, what)?,
            own: (0..threads).map(|_| own()).collect::<Result<_>>()?,
        })
    }
}

/// What one thread does in a pass. Called on all threads of a pool at once, with the same arguments.
pub fn forward(
    worker: &Worker<'_>,
    model: &Model<'_>,
    arena: &Arena,
    pass: &Pass,
    logits: &Shared<f32>,
) {
    let mut own = arena.own[worker.index].lock().unwrap_or_else(PoisonError::into_inner);
    let num_rows = pass.tokens.len();
    let rows = Vec::new();
    let tiles = model.found.tiles().map(Tiles::make_ready);
    let mut hand = Hand {
        worker,
        model,
        arena,
        pass,
        own: &mut own,
        tiles,
        num_rows,
        rows: &rows,
        place: Place::Own,
    };
    hand.embed();
    for index in 0..model.weights.blocks.len() {
        hand.block(index);
    }
    if !pass.wanted.is_empty() {
        hand.num_rows = pass.wanted.len();
        hand.rows = &pass.wanted;
        hand.head(logits);
    }
}

/// One thread's part.
struct Hand<'a> {
    worker: &'a Worker<'a>,
    model: &'a Model<'a>,
    arena: &'a Arena,
    pass: &'a Pass,
    own: &'a mut Own,
    /// This thread's, if the processor has some.
    tiles: Option<ReadyTiles>,
    /// Of the current products.
    num_rows: usize,
    /// Which rows of x these are; none: all.
    rows: &'a [usize],
    /// Where their inputs are.
    place: Place,
}

impl Hand<'_> {
    fn width(&self) -> usize {
        self.model.weights.emb_dim()
    }

    /// This thread's tokens' vectors.
    fn embed(&mut self) {
        let (weights, width) = (self.model.weights, self.width());
        for row in self.worker.share(self.num_rows, 1) {
            // SAFETY: this row is this thread's, until the barrier.
            let x = unsafe { self.arena.x.write(row * width..(row + 1) * width) };
            let token = self.pass.tokens[row] as usize;
            let position = self.pass.positions[row];
            x.copy_from_slice(weights.tokens.row(token).widened(&mut self.own.norm[0]));
            match &weights.positions {
                Positions::Learned(table) => {
                    let added = table.row(position).widened(&mut self.own.norm[0]);
                    x.iter_mut().zip(added).for_each(|(x, added)| *x += added);
                }
                Positions::Sinusoidal => self.model.angles.add_to(x, position),
                Positions::None | Positions::Rope | Positions::Alibi(_) => {}
            }
        }
        self.worker.wait();
    }

    fn block(&mut self, index: usize) {
        let (block, width) = (&self.model.weights.blocks[index], self.width());
        let packed = |part: usize| self.model.packed.map(|all| &all[index * 6 + part]);
        let packed: [_; 6] = std::array::from_fn(packed);
        let arena = self.arena;
        let hidden = block.up.weight.rows;
        let qkv = |part| To {
            buffer: &arena.qkv,
            first_row: 0,
            stride: 3 * width,
            first_column: part * width,
            write: Write::Set,
        };
        let to_x = To {
            buffer: &arena.x,
            first_row: 0,
            stride: width,
            first_column: 0,
            write: Write::Add,
        };
        let to_hidden = To { buffer: &arena.hidden, stride: hidden, write: Write::Set, ..to_x };

        self.prepare(From::Normed, &[&block.query, &block.key, &block.value], Some(&block.norm1));
        self.product(&block.query, packed[0], From::Normed, qkv(0));
        self.product(&block.key, packed[1], From::Normed, qkv(1));
        self.product(&block.value, packed[2], From::Normed, qkv(2));
        // Where every thread has made what its own heads need, none waits for others.
        if !self.has_own_heads() {
            self.worker.wait();
        }
        self.attend(index);
        let heads =
            self.has_own_heads().then(|| self.worker.share(width, width / self.worker.count));
        let is_handed = heads.is_some_and(|mine| self.hand_over(From::Attended, &block.out, mine));
        self.worker.wait();
        if !is_handed {
            self.prepare(From::Attended, &[&block.out], None);
        }
        self.product(&block.out, packed[3], From::Attended, to_x);
        self.worker.wait();
        self.prepare(From::Normed, &[&block.up], Some(&block.norm2));
        let mine = self.product(&block.up, packed[4], From::Normed, to_hidden);
        for row in 0..self.num_rows {
            let start = row * hidden;
            // SAFETY: these columns are this thread's, until the barrier.
            let columns = unsafe { arena.hidden.write(start + mine.start..start + mine.end) };
            dispatch(self.model.found, Gelu(columns));
        }
        let is_handed = self.hand_over(From::Hidden, &block.down, mine);
        self.worker.wait();
        if !is_handed {
            self.prepare(From::Hidden, &[&block.down], None);
        }
        self.product(&block.down, packed[5], From::Hidden, to_x);
        self.worker.wait();
    }

    /// The last norm and the output layer, of the rows that are wanted.
    fn head(&mut self, logits: &Shared<f32>) {
        let weights = self.model.weights;
        let vocab_size = weights.vocab_size();
        self.prepare(From::Normed, &[&weights.head], Some(&weights.norm));
        let packed = self.model.packed.and_then(|all| all.last());
        let to = To {
            buffer: logits,
            first_row: self.pass.first_logits,
            stride: vocab_size,
            first_column: 0,
            write: Write::Set,
        };
        self.product(&weights.head, packed, From::Normed, to);
    }

    /// Whether the rows of Q, K and V that each thread makes are whole heads.
    fn has_own_heads(&self) -> bool {
        let weights = self.model.weights;
        weights.num_heads.is_multiple_of(self.worker.count)
            && (weights.head_dim() * weights.num_heads / self.worker.count).is_multiple_of(ROW_UNIT)
    }

    /// This thread's heads of all spans.
    fn attend(&mut self, layer: usize) {
        let weights = self.model.weights;
        let (width, head_dim) = (self.width(), weights.head_dim());
        let Extent { heads, width: padded, .. } = self.model.cache.extent();
        let tasks = 0..self.pass.spans.len() * heads;
        let (own, has_own) = (self.worker.share(heads, 1), self.has_own_heads());
        let is_mine = |task: &usize| {
            if has_own {
                own.contains(&(task % heads))
            } else {
                task % self.worker.count == self.worker.index
            }
        };
        for task in tasks.filter(is_mine) {
            let (span, head) = (self.pass.spans[task / heads], task % heads);
            let (first, rows) = (span.first_row, self.num_rows);
            let column = head * head_dim;
            // SAFETY: a head of a span is one thread's; Q, K and V were written before the barrier.
            let (cache, qkv, out) = unsafe {
                (
                    self.model.cache.head(layer, span.slot, head),
                    self.arena.qkv.read(first * 3 * width..(first + span.count) * 3 * width),
                    self.arena.attended.columns(rows, width, column..column + head_dim),
                )
            };
            let angles = self.model.angles;
            let turns = matches!(weights.positions, Positions::Rope)
                .then_some(Turn { cos: &angles.cos, sin: &angles.sin });
            let slope = match &weights.positions {
                Positions::Alibi(slopes) => slopes[head],
                _ => 0.0,
            };
            let job = Attend {
                cache,
                width: padded,
                head_dim,
                start: span.start,
                qkv: [0, 1, 2].map(|part| &qkv[part * width + column..]),
                stride: 3 * width,
                count: span.count,
                turns,
                scale: weights.blocks[layer].scale,
                slope,
                out: out.skip_rows(first),
                room: &mut self.own.room,
            };
            dispatch(self.model.found, job);
        }
    }
}
