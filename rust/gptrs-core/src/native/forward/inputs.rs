//! What products are given: normed, and in the form that they take.
//!
//! Of a few tokens every thread makes all inputs for itself, which costs less than to wait for others.

#![allow(
    unsafe_code,
    reason = "parts of common memory; each says which, and which barrier orders it"
)]

use std::ops::Range;

use half::bf16;

use super::super::int8::Quantize;
use super::super::lanes::{GROUP, dispatch};
use super::super::math::{LayerNorm, Round};
use super::super::numbers::FloatType;
use super::super::shared::Shared;
use super::super::tiles::{self, SIDE};
use super::super::weights::{Linear, Norm};
use super::{Hand, Own};
use crate::Result;

/// Up to here every thread prepares all inputs for itself.
const FEW_ROWS: usize = 2;
/// The same where inputs are packed for tiles: who packs is as quick with sixteen as with three.
pub(super) const FEW_PACKED_ROWS: usize = SIDE;

/// Where a product's inputs are.
#[derive(Clone, Copy)]
pub(super) enum From {
    Normed,
    Attended,
    Hidden,
}

/// Whose the inputs of a product are.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Place {
    /// Every thread has them all for itself.
    Own,
    /// All threads', each of whom made some rows.
    Common,
    /// All threads', each of whom made some columns: those that it had computed.
    Handed,
}

/// What a product is given: normed, in eight bits where the weights are, and packed for tiles or rounded.
#[derive(Debug)]
pub(super) struct Inputs {
    pub(super) normed: Shared<f32>,
    pub(super) rounded: Shared<bf16>,
    pub(super) pairs: Shared<u32>,
    pub(super) bytes: Shared<i8>,
    pub(super) starts: Shared<i32>,
    pub(super) scales: Shared<f32>,
}

impl Inputs {
    pub(super) fn new(rows: usize, emb_dim: usize, widest: usize, is_int8: bool) -> Result<Self> {
        let what = "activations";
        // Tiles take sixteen, whether all of them are meant or not.
        let tiled = rows.next_multiple_of(SIDE);
        let padded = if is_int8 { tiled * widest.next_multiple_of(GROUP) } else { 0 };
        let numbers = if is_int8 { 0 } else { tiled * widest };
        Ok(Self {
            normed: Shared::new(rows * emb_dim, what)?,
            // One of the two, as the processor has it: the other takes no memory.
            rounded: Shared::new(numbers, what)?,
            pairs: Shared::new(numbers / 2, what)?,
            bytes: Shared::new(padded, what)?,
            starts: Shared::new(padded / GROUP, what)?,
            scales: Shared::new(padded / GROUP, what)?,
        })
    }
}

impl Hand<'_> {
    /// Whether a matrix is multiplied on tiles as it lies.
    pub(super) fn is_tiled(&self, linear: &Linear) -> bool {
        self.tiles.is_some() && self.model.packed.is_none() && tiles::fit(&linear.weight)
    }

    /// Whether a matrix is multiplied with rounded inputs, two at once.
    pub(super) fn is_paired(&self, linear: &Linear) -> bool {
        self.model.found.has_pairs()
            && self.model.packed.is_none()
            && linear.weight.numbers.dtype() == FloatType::Bf16
    }

    /// Makes the inputs of some layers ready: normed, and in the form that their products take.
    ///
    /// Of few, every thread does so for itself.
    pub(super) fn prepare(&mut self, from: From, layers: &[&Linear], norm: Option<&Norm>) {
        let width = layers[0].weight.columns;
        let is_int8 = self.model.packed.is_some();
        let is_tiled = layers.iter().any(|layer| self.is_tiled(layer));
        let is_paired = layers.iter().any(|layer| self.is_paired(layer));
        let is_few = self.num_rows <= if is_tiled { FEW_PACKED_ROWS } else { FEW_ROWS };
        self.place = if is_few { Place::Own } else { Place::Common };
        if norm.is_none() && !is_int8 && !is_tiled && !is_paired {
            return;
        }
        let unit = if is_tiled { SIDE } else { 1 };
        let rows = if is_few { 0..self.num_rows } else { self.worker.share(self.num_rows, unit) };
        if let Some(norm) = norm {
            self.norm(norm, rows.clone());
        }
        if is_int8 {
            self.quantize(from, width, rows, 0..width);
        } else if is_tiled {
            self.pack(from, width, rows);
        } else if is_paired {
            self.round(from, width, rows, 0..width);
        }
        if !is_few {
            self.worker.wait();
        }
    }

    /// Makes a product's inputs ready as far as this thread has computed them: these columns. False where
    /// that is not possible, or nothing is to be done.
    ///
    /// So numbers go from thread to thread in the form that is read, and nobody makes what others have.
    pub(super) fn hand_over(&mut self, from: From, linear: &Linear, mine: Range<usize>) -> bool {
        let width = linear.weight.columns;
        // Where they are whole groups, they are so for all threads.
        let is_int8 =
            self.model.packed.is_some() && width.is_multiple_of(GROUP * self.worker.count);
        if !is_int8 && !self.is_paired(linear) {
            return false;
        }
        self.place = Place::Handed;
        if is_int8 {
            self.quantize(from, width, 0..self.num_rows, mine);
        } else {
            self.round(from, width, 0..self.num_rows, mine);
        }
        true
    }

    pub(super) fn inputs(&self) -> &Inputs {
        match self.place {
            Place::Own => &self.own.inputs,
            Place::Common => &self.arena.inputs,
            Place::Handed => &self.arena.handed,
        }
    }

    /// Some of what a product gets, as floats.
    ///
    /// # Safety
    /// They were written before the last barrier, or by this thread; nobody writes before the next.
    pub(super) unsafe fn floats(&self, from: From, span: Range<usize>) -> &[f32] {
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
        let inputs = if self.place == Place::Own { &*own } else { &arena.inputs };
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

    /// Columns of rows to eight bits; they begin and end with groups.
    fn quantize(&self, from: From, width: usize, rows: Range<usize>, columns: Range<usize>) {
        let (inputs, padded) = (self.inputs(), width.next_multiple_of(GROUP));
        let end = columns.end.next_multiple_of(GROUP);
        for row in rows {
            let bytes = row * padded + columns.start..row * padded + end;
            let groups = bytes.start / GROUP..bytes.end / GROUP;
            // SAFETY: these columns of the row are this thread's until the barrier; so were their floats,
            // or they were written before the last.
            let job = unsafe {
                Quantize {
                    x: self.floats(from, row * width + columns.start..row * width + columns.end),
                    bytes: inputs.bytes.write(bytes),
                    starts: inputs.starts.write(groups.clone()),
                    scales: inputs.scales.write(groups),
                }
            };
            dispatch(self.model.found, job);
        }
    }

    fn round(&self, from: From, width: usize, rows: Range<usize>, columns: Range<usize>) {
        for row in rows {
            let span = row * width + columns.start..row * width + columns.end;
            // SAFETY: these columns of the row are this thread's until the barrier; so were their floats,
            // or they were written before the last.
            let job = unsafe {
                Round { x: self.floats(from, span.clone()), out: self.inputs().rounded.write(span) }
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
                let end = rows.end.min(first + SIDE);
                let x = self.floats(from, first * width..end * width);
                (x, self.inputs().pairs.write(place..place + SIDE * width / 2))
            };
            tiles.pack(x, width, out);
        }
    }
}
