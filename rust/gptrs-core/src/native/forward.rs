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

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use half::bf16;

use super::attention::{Attend, Room, Turn};
use super::cache::{Cache, Extent};
use super::int8::{MatMulI8, Packed, PackedRows, Quantize, Quantized};
use super::lanes::{Found, GROUP, LANES, dispatch};
use super::math::{Gelu, LayerNorm};
use super::numbers::{Floats, Numbers};
use super::pool::Worker;
use super::shared::{Columns, Shared};
use super::tables::Angles;
use super::tile::MatMul;
use super::tiles::{self, MatMulBf16, ReadyTiles, SIDE, Tiles};
use super::weights::{Linear, Norm, Positions, Weights};
use crate::Result;

/// The most tokens that pass together: their numbers take some megabytes.
pub const MOST_ROWS: usize = 256;
/// Up to here every thread prepares all inputs for itself.
const FEW_ROWS: usize = 2;
/// The same where inputs are packed for tiles: who packs is as quick with sixteen as with three.
const FEW_PACKED_ROWS: usize = SIDE;
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

/// What a product is given: normed, in eight bits where the weights are, and packed for tiles.
#[derive(Debug)]
struct Inputs {
    normed: Shared<f32>,
    pairs: Shared<u32>,
    bytes: Shared<i8>,
    starts: Shared<i32>,
    scales: Shared<f32>,
}

impl Inputs {
    fn new(rows: usize, emb_dim: usize, widest: usize, is_int8: bool) -> Result<Self> {
        let what = "activations";
        // Tiles take sixteen, whether all of them are meant or not.
        let tiled = rows.next_multiple_of(SIDE);
        let padded = if is_int8 { tiled * widest.next_multiple_of(GROUP) } else { 0 };
        let pairs = if is_int8 { 0 } else { tiled * widest / 2 };
        Ok(Self {
            normed: Shared::new(rows * emb_dim, what)?,
            pairs: Shared::new(pairs, what)?,
            bytes: Shared::new(padded, what)?,
            starts: Shared::new(padded / GROUP, what)?,
            scales: Shared::new(padded / GROUP, what)?,
        })
    }
}

impl Arena {
    pub fn new(weights: &Weights, is_int8: bool, threads: usize) -> Result<Self> {
        let (width, hidden) = (weights.emb_dim(), weights.hidden_dim());
        let what = "activations";
        let own = || {
            let inputs = Inputs::new(FEW_PACKED_ROWS, width, width.max(hidden), is_int8)?;
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
        is_few: true,
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
    /// This thread's, if the processor has some.
    tiles: Option<ReadyTiles>,
    /// Of the current products.
    num_rows: usize,
    /// Which rows of x these are; none: all.
    rows: &'a [usize],
    /// Whether every thread has their inputs for itself.
    is_few: bool,
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

        self.prepare(From::Normed, &[&block.query, &block.key, &block.value], Some(&block.norm1));
        self.product(&block.query, packed[0], From::Normed, qkv(0));
        self.product(&block.key, packed[1], From::Normed, qkv(1));
        self.product(&block.value, packed[2], From::Normed, qkv(2));
        // Where every thread has made what its own heads need, none waits for others.
        if !self.has_own_heads() {
            self.worker.wait();
        }
        self.attend(index);
        self.worker.wait();
        self.prepare(From::Attended, &[&block.out], None);
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
        self.worker.wait();
        self.prepare(From::Hidden, &[&block.down], None);
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

    /// Whether a matrix is multiplied on tiles as it lies.
    fn is_tiled(&self, linear: &Linear) -> bool {
        self.tiles.is_some() && self.model.packed.is_none() && tiles::fit(&linear.weight)
    }

    /// Makes the inputs of some layers ready: normed, and in the form that their products take.
    ///
    /// Of few, every thread does so for itself.
    fn prepare(&mut self, from: From, layers: &[&Linear], norm: Option<&Norm>) {
        let width = layers[0].weight.columns;
        let is_int8 = self.model.packed.is_some();
        let is_tiled = layers.iter().any(|layer| self.is_tiled(layer));
        self.is_few = self.num_rows <= if is_tiled { FEW_PACKED_ROWS } else { FEW_ROWS };
        if norm.is_none() && !is_int8 && !is_tiled {
            return;
        }
        let unit = if is_tiled { SIDE } else { 1 };
        let rows =
            if self.is_few { 0..self.num_rows } else { self.worker.share(self.num_rows, unit) };
        if let Some(norm) = norm {
            self.norm(norm, rows.clone());
        }
        if is_int8 {
            self.quantize(from, width, rows);
        } else if is_tiled {
            self.pack(from, width, rows);
        }
        if !self.is_few {
            self.worker.wait();
        }
    }

    fn inputs(&self) -> &Inputs {
        if self.is_few { &self.own.inputs } else { &self.arena.inputs }
    }

    /// Some rows of what a product gets, as floats.
    ///
    /// # Safety
    /// They were written before the last barrier, or by this thread; nobody writes before the next.
    unsafe fn floats(&self, from: From, width: usize, rows: Range<usize>) -> &[f32] {
        let span = rows.start * width..rows.end * width;
        // SAFETY: the caller's.
        unsafe {
            match from {
                From::Normed => self.inputs().normed.read(span),
                From::Attended => self.arena.attended.read(span),
                From::Hidden => self.arena.hidden.read(span),
            }
        }
    }

    fn norm(&mut self, norm: &Norm, rows: Range<usize>) {
        let (width, arena) = (self.width(), self.arena);
        let Own { inputs: own, norm: [scale_room, shift_room], .. } = &mut *self.own;
        let inputs = if self.is_few { &*own } else { &arena.inputs };
        let scale = norm.scale.floats().widened(scale_room);
        let shift = norm.shift.floats().widened(shift_room);
        for row in rows {
            let source = self.rows.get(row).copied().unwrap_or(row);
            // SAFETY: this row of the inputs is this thread's, as all of its own are, until the barrier;
            // nobody writes to x before it.
            let (x, out) = unsafe {
                let x = arena.x.read(source * width..(source + 1) * width);
                (x, inputs.normed.write(row * width..(row + 1) * width))
            };
            dispatch(self.model.found, LayerNorm { x, scale, shift, eps: norm.eps, out });
        }
    }

    fn quantize(&self, from: From, width: usize, rows: Range<usize>) {
        let (inputs, padded) = (self.inputs(), width.next_multiple_of(GROUP));
        for row in rows {
            let start = row * padded;
            let groups = start / GROUP..(start + padded) / GROUP;
            // SAFETY: this row is this thread's until the barrier; so were its floats, or they were
            // written before the last.
            let job = unsafe {
                Quantize {
                    x: self.floats(from, width, row..row + 1),
                    bytes: inputs.bytes.write(start..start + padded),
                    starts: inputs.starts.write(groups.clone()),
                    scales: inputs.scales.write(groups),
                }
            };
            dispatch(self.model.found, job);
        }
    }

    fn pack(&self, from: From, width: usize, rows: Range<usize>) {
        let Some(tiles) = &self.tiles else { return };
        for first in rows.clone().step_by(SIDE) {
            let place = first * width / 2;
            // SAFETY: these sixteen rows are this thread's until the barrier; so were their floats, or
            // they were written before the last.
            let (x, out) = unsafe {
                let x = self.floats(from, width, first..rows.end.min(first + SIDE));
                (x, self.inputs().pairs.write(place..place + SIDE * width / 2))
            };
            tiles.pack(x, width, out);
        }
    }

    /// This thread's rows of a linear layer, of all inputs; which rows these are.
    fn product(
        &mut self,
        linear: &Linear,
        packed: Option<&Packed>,
        from: From,
        to: To<'_>,
    ) -> Range<usize> {
        let mine = self.worker.share(linear.weight.rows, ROW_UNIT);
        if mine.is_empty() {
            return mine;
        }
        let num_rows = to.first_row + self.num_rows;
        let place = to.first_column + mine.start..to.first_column + mine.end;
        // SAFETY: these columns are this thread's, until the next barrier.
        let mut out = unsafe { to.buffer.columns(num_rows, to.stride, place) };
        let bias = linear.bias.as_ref().map(Numbers::floats);
        let bias = bias.map(|bias| bias.part(mine.start, mine.len()));
        for row in to.first_row..num_rows {
            begin(out.row(row), bias, to.write);
        }
        let out = out.skip_rows(to.first_row);
        match (packed, linear.weight.numbers.floats()) {
            (Some(packed), _) => self.multiply_i8(packed.rows(mine.clone()), linear, out),
            (None, Floats::Bf16(matrix)) if self.is_tiled(linear) => {
                self.multiply_tiled(matrix, mine.clone(), linear, out);
            }
            (None, rows) => {
                let columns = linear.weight.columns;
                let rows = rows.part(mine.start * columns, mine.len() * columns);
                self.multiply(rows, columns, from, out);
            }
        }
        mine
    }

    fn multiply(&mut self, rows: Floats<'_>, columns: usize, from: From, out: Columns<'_>) {
        let num_inputs = self.num_rows;
        let mut room = std::mem::take(&mut self.own.widened);
        // SAFETY: written before the last barrier, or by `prepare`; nobody writes before the next.
        let inputs = unsafe { self.floats(from, columns, 0..num_inputs) };
        let job = MatMul { rows, columns, inputs, num_inputs, out, room: &mut room };
        dispatch(self.model.found, job);
        self.own.widened = room;
    }

    fn multiply_tiled(
        &self,
        matrix: &[bf16],
        rows: Range<usize>,
        linear: &Linear,
        out: Columns<'_>,
    ) {
        let Some(tiles) = &self.tiles else { return };
        let (num_inputs, columns) = (self.num_rows, linear.weight.columns);
        let end = num_inputs.next_multiple_of(SIDE) * columns / 2;
        // SAFETY: `prepare` has written them, and nobody does before the next barrier.
        let inputs = unsafe { self.inputs().pairs.read(0..end) };
        tiles.multiply_bf16(MatMulBf16 { matrix, columns, rows, inputs, num_inputs, out });
    }

    fn multiply_i8(&self, rows: PackedRows<'_>, linear: &Linear, out: Columns<'_>) {
        let (num_inputs, all) = (self.num_rows, self.inputs());
        let padded = linear.weight.columns.next_multiple_of(GROUP);
        // One alone is quicker without tiles; the sums are the same.
        let tiles = self.tiles.as_ref().filter(|_| num_inputs > 1);
        let end = num_inputs.next_multiple_of(SIDE) * padded;
        // SAFETY: `prepare` has written what is meant of them, and nobody does before the next barrier.
        let inputs = unsafe {
            Quantized {
                bytes: all.bytes.read(0..end),
                starts: all.starts.read(0..end / GROUP),
                scales: all.scales.read(0..end / GROUP),
                padded,
            }
        };
        let job = MatMulI8 { rows, inputs, num_inputs, out };
        match tiles {
            Some(tiles) => tiles.multiply_i8(job),
            None => dispatch(self.model.found, job),
        }
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
