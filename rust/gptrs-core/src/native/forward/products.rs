//! Linear layers: each thread makes its own rows of the output, for all inputs.

#![allow(
    unsafe_code,
    reason = "parts of common memory; each says which, and which barrier orders it"
)]

use std::ops::Range;

use half::bf16;

use super::super::int8::{MatMulI8, Packed, PackedRows, Quantized};
use super::super::lanes::GROUP;
use super::super::numbers::{Floats, Numbers};
use super::super::shared::{Columns, Shared};
use super::super::terms::{Pairs, Singles};
use super::super::tile::{MatMul, WIDENED_FROM};
use super::super::tiles::{MatMulBf16, SIDE};
use super::super::weights::Linear;
use super::inputs::From;
use super::{Hand, ROW_UNIT};

/// What a product does to what is there.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Write {
    Set,
    Add,
}

/// Where a product goes.
#[derive(Clone, Copy)]
pub(super) struct To<'a> {
    pub(super) buffer: &'a Shared<f32>,
    pub(super) first_row: usize,
    pub(super) stride: usize,
    pub(super) first_column: usize,
    pub(super) write: Write,
}

impl Hand<'_> {
    /// This thread's rows of a linear layer, of all inputs; which rows these are.
    pub(super) fn product(
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
            (None, Floats::Bf16(matrix)) if self.is_paired(linear) => {
                let columns = linear.weight.columns;
                self.multiply_pairs(
                    &matrix[mine.start * columns..mine.end * columns],
                    columns,
                    out,
                );
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
        let inputs = unsafe { self.floats(from, 0..num_inputs * columns) };
        let found = self.model.found;
        match rows {
            Floats::F32(rows) => {
                MatMul::<Singles<f32>> { rows, columns, inputs, num_inputs, out }.run(found);
            }
            Floats::Bf16(rows) => {
                let job = MatMul::<Singles<bf16>> { rows, columns, inputs, num_inputs, out };
                if num_inputs < WIDENED_FROM {
                    job.run(found);
                } else {
                    job.run_widened(found, &mut room);
                }
            }
        }
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

    fn multiply_pairs(&self, rows: &[bf16], columns: usize, out: Columns<'_>) {
        let num_inputs = self.num_rows;
        // SAFETY: `prepare` has written them, and nobody does before the next barrier.
        let inputs = unsafe { self.inputs().rounded.read(0..num_inputs * columns) };
        MatMul::<Pairs> { rows, columns, inputs, num_inputs, out }.run(self.model.found);
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
            None => job.run(self.model.found),
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
