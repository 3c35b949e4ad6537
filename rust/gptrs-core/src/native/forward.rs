//! One pass through the model, by all threads together.
//!
//! ```text
//!  every thread, for every block:                                        barriers: |
//!
//!  norm ─► its rows of Q, K, V | its heads: append, look back | its rows of out_proj, added to x |
//!  norm ─► its rows of ff.0, GELU | its rows of ff.2, added to x |
//! ```
//!
//! A thread computes whole sums, for all tokens: which thread has which rows changes no bit. Of one or
//! two tokens every thread takes the norm for itself, which is cheaper than to wait for it.

#![allow(
    unsafe_code,
    reason = "parts of common memory; each says which, and which barrier orders it"
)]

use std::sync::{Mutex, PoisonError};

use super::attention::{Attend, Room, Turn};
use super::cache::{Cache, Extent};
use super::int8::{MatMulI8, Packed, Quantize, Quantized};
use super::lanes::{Found, GROUP, LANES, dispatch};
use super::math::{Gelu, LayerNorm};
use super::numbers::{Floats, Numbers};
use super::pool::Worker;
use super::shared::Shared;
use super::tables::Angles;
use super::tile::MatMul;
use super::weights::{Linear, Norm, Positions, Weights};
use crate::Result;

/// The most tokens that pass together: their numbers take some megabytes.
pub const MOST_ROWS: usize = 256;
/// Up to here every thread prepares all inputs for itself.
const FEW_ROWS: usize = 2;
/// Rows of a matrix go to threads in multiples of this.
const ROW_UNIT: usize = 8;

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

/// What a product is given: normed, and in eight bits where the weights are.
#[derive(Debug)]
struct Inputs {
    normed: Shared<f32>,
    bytes: Shared<i8>,
    starts: Shared<i32>,
    scales: Shared<f32>,
}

impl Inputs {
    fn new(rows: usize, emb_dim: usize, widest: usize, is_int8: bool) -> Result<Self> {
        let what = "activations";
        let padded = if is_int8 { rows * widest.next_multiple_of(GROUP) } else { 0 };
        Ok(Self {
            normed: Shared::new(rows * emb_dim, what)?,
            bytes: Shared::new(padded, what)?,
            starts: Shared::new(padded / 4, what)?,
            scales: Shared::new(padded / GROUP, what)?,
        })
    }
}

impl Arena {
    pub fn new(weights: &Weights, is_int8: bool, threads: usize) -> Result<Self> {
        let (width, hidden) = (weights.emb_dim(), weights.hidden_dim());
        let what = "activations";
        let own = || {
            let inputs = Inputs::new(FEW_ROWS, width, width.max(hidden), is_int8)?;
            let room = Room::default();
            Ok(Mutex::new(Own { inputs, widened: Vec::new(), room, norm: Default::default() }))
        };
        Ok(Self {
            x: Shared::new(MOST_ROWS * width, what)?,
            inputs: Inputs::new(MOST_ROWS, width, width.max(hidden), is_int8)?,
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
    let mut hand = Hand { worker, model, arena, pass, own: &mut own, num_rows, rows: &rows };
    hand.embed();
    for index in 0..model.weights.blocks.len() {
        hand.block(index);
    }
    if !pass.wanted.is_empty() {
        hand.num_rows = pass.wanted.len();
        hand.rows = &pass.wanted;
        hand.head(logits);
    }
    // The next pass begins with writing what others may still read.
    worker.wait();
}

/// One thread's part.
struct Hand<'a> {
    worker: &'a Worker<'a>,
    model: &'a Model<'a>,
    arena: &'a Arena,
    pass: &'a Pass,
    own: &'a mut Own,
    /// Of the current products.
    num_rows: usize,
    /// Which rows of x these are; none: all.
    rows: &'a [usize],
}

/// Where a product's inputs are.
#[derive(Clone, Copy)]
enum From {
    Normed,
    Attended,
    Hidden,
}

/// What a product does to what is there.
#[derive(Clone, Copy, PartialEq)]
enum Write {
    Set,
    Add,
}

/// Where a product goes.
#[derive(Clone, Copy)]
struct To<'a> {
    buffer: &'a Shared<f32>,
    first_row: usize,
    stride: usize,
    first_column: usize,
    write: Write,
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

        self.prepare(From::Normed, width, Some(&block.norm1));
        self.product(&block.query, packed[0], From::Normed, qkv(0));
        self.product(&block.key, packed[1], From::Normed, qkv(1));
        self.product(&block.value, packed[2], From::Normed, qkv(2));
        self.worker.wait();
        self.attend(index);
        self.worker.wait();
        self.prepare(From::Attended, width, None);
        self.product(&block.out, packed[3], From::Attended, to_x);
        self.worker.wait();
        self.prepare(From::Normed, width, Some(&block.norm2));
        let mine = self.product(&block.up, packed[4], From::Normed, to_hidden);
        for row in 0..self.num_rows {
            let start = row * hidden;
            // SAFETY: these columns are this thread's, until the barrier.
            let columns = unsafe { arena.hidden.write(start + mine.start..start + mine.end) };
            dispatch(self.model.found, Gelu(columns));
        }
        self.worker.wait();
        self.prepare(From::Hidden, hidden, None);
        self.product(&block.down, packed[5], From::Hidden, to_x);
        self.worker.wait();
    }

    /// The last norm and the output layer, of the rows that are wanted.
    fn head(&mut self, logits: &Shared<f32>) {
        let weights = self.model.weights;
        let vocab_size = weights.vocab_size();
        self.prepare(From::Normed, self.width(), Some(&weights.norm));
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

    /// Whether every thread has all inputs for itself.
    fn is_few(&self) -> bool {
        self.num_rows <= FEW_ROWS
    }

    /// Makes inputs ready: normed, and in eight bits, where that is to be.
    fn prepare(&mut self, from: From, width: usize, norm: Option<&Norm>) {
        let is_int8 = self.model.packed.is_some();
        if norm.is_none() && !is_int8 {
            return;
        }
        let (is_few, found) = (self.is_few(), self.model.found);
        let rows = if is_few { 0..self.num_rows } else { self.worker.share(self.num_rows, 1) };
        let Own { inputs: own, norm: rooms, .. } = &mut *self.own;
        let inputs = if is_few { &*own } else { &self.arena.inputs };
        let [scale_room, shift_room] = rooms;
        let norm = norm.map(|norm| {
            let scale = norm.scale.floats().widened(scale_room);
            (scale, norm.shift.floats().widened(shift_room), norm.eps)
        });
        for row in rows {
            let span = row * width..(row + 1) * width;
            // SAFETY: this row of the inputs is this thread's, as all of its own are, until the barrier;
            // nobody writes to x, the attended or the hidden numbers before it.
            let x: &[f32] = unsafe {
                match (from, norm) {
                    (From::Attended, _) => self.arena.attended.read(span),
                    (From::Hidden, _) => self.arena.hidden.read(span),
                    (From::Normed, None) => inputs.normed.read(span),
                    (From::Normed, Some((scale, shift, eps))) => {
                        let source = self.rows.get(row).copied().unwrap_or(row);
                        let x = self.arena.x.read(source * width..(source + 1) * width);
                        let out = inputs.normed.write(span);
                        dispatch(found, LayerNorm { x, scale, shift, eps, out: &mut *out });
                        out
                    }
                }
            };
            if is_int8 {
                let padded = width.next_multiple_of(GROUP);
                let start = row * padded;
                // SAFETY: as above.
                let (bytes, starts, scales) = unsafe {
                    (
                        inputs.bytes.write(start..start + padded),
                        inputs.starts.write(start / 4..(start + padded) / 4),
                        inputs.scales.write(start / GROUP..(start + padded) / GROUP),
                    )
                };
                dispatch(found, Quantize { x, bytes, starts, scales });
            }
        }
        if !is_few {
            self.worker.wait();
        }
    }

    /// This thread's rows of a linear layer, of all inputs; which rows these are.
    fn product(
        &mut self,
        linear: &Linear,
        packed: Option<&Packed>,
        from: From,
        to: To<'_>,
    ) -> std::ops::Range<usize> {
        let mine = self.worker.share(linear.weight.rows, ROW_UNIT);
        if mine.is_empty() {
            return mine;
        }
        let (num_inputs, columns) = (self.num_rows, linear.weight.columns);
        let num_rows = to.first_row + num_inputs;
        let place = to.first_column + mine.start..to.first_column + mine.end;
        // SAFETY: these columns are this thread's, until the next barrier.
        let mut out = unsafe { to.buffer.columns(num_rows, to.stride, place) };
        let bias = linear.bias.as_ref().map(Numbers::floats);
        let bias = bias.map(|bias| bias.part(mine.start, mine.len()));
        for row in to.first_row..num_rows {
            begin(out.row(row), bias, to.write);
        }
        let out = out.skip_rows(to.first_row);
        let Own { inputs: own, widened, .. } = &mut *self.own;
        let inputs = if num_inputs <= FEW_ROWS { &*own } else { &self.arena.inputs };
        let found = self.model.found;
        if let Some(packed) = packed {
            let padded = columns.next_multiple_of(GROUP);
            let end = num_inputs * padded;
            // SAFETY: `prepare` has written them, and nobody does before the next barrier.
            let inputs = unsafe {
                Quantized {
                    bytes: inputs.bytes.read(0..end),
                    starts: inputs.starts.read(0..end / 4),
                    scales: inputs.scales.read(0..end / GROUP),
                    padded,
                }
            };
            let rows = packed.rows(mine.clone());
            dispatch(found, MatMulI8 { rows, inputs, num_inputs, out });
            return mine;
        }
        let span = 0..num_inputs * columns;
        // SAFETY: written before the last barrier, or by `prepare`; nobody writes before the next.
        let inputs = unsafe {
            match from {
                From::Normed => inputs.normed.read(span),
                From::Attended => self.arena.attended.read(span),
                From::Hidden => self.arena.hidden.read(span),
            }
        };
        let rows = linear.weight.numbers.floats();
        let rows = rows.part(mine.start * columns, mine.len() * columns);
        let job = MatMul { rows, columns, inputs, num_inputs, out, room: widened };
        dispatch(found, job);
        mine
    }

    /// This thread's heads of all spans.
    fn attend(&mut self, layer: usize) {
        let weights = self.model.weights;
        let (width, head_dim) = (self.width(), weights.head_dim());
        let Extent { heads, width: padded, .. } = self.model.cache.extent();
        let tasks = self.pass.spans.len() * heads;
        for task in (self.worker.index..tasks).step_by(self.worker.count) {
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

/// What a product is added to: what is there, or nothing, and the bias.
fn begin(out: &mut [f32], bias: Option<Floats<'_>>, write: Write) {
    match (bias, write) {
        (None, Write::Set) => out.fill(0.0),
        (None, Write::Add) => {}
        (Some(Floats::F32(bias)), Write::Set) => out.copy_from_slice(bias),
        (Some(Floats::F32(bias)), Write::Add) => {
            out.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
        }
        (Some(Floats::Bf16(bias)), write) => {
            for (x, bias) in out.iter_mut().zip(bias) {
                *x = bias.to_f32() + if write == Write::Add { *x } else { 0.0 };
            }
        }
    }
}

/// A head's width in the cache.
pub fn padded_head(head_dim: usize) -> usize {
    head_dim.next_multiple_of(LANES)
}
