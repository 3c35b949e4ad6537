//! A matrix that all threads read and write at once, without locks.
//!
//! Hogwild (Recht et al., 2011): two threads that change the same row at the same time may lose some of
//! one's change. Words are many, so it is rare, and what is lost is one small step of very many.
//!
//! All `unsafe` code of `word2vec` is here. Atomic floats would do without it, but compilers make no
//! vector instructions of them.

#![allow(unsafe_code, reason = "rows are shared between threads that write")]

use std::cell::UnsafeCell;

use bytemuck::Zeroable;

use crate::tokenizer::simd::prefetch;

/// The numbers that are added and multiplied together: a cache line.
pub const LANES: usize = 16;

/// A cache line of a row. What lies behind a row's last number is 0, and stays so.
#[derive(Debug, Clone, Copy, Zeroable)]
#[repr(C, align(64))]
pub struct Chunk(pub [f32; LANES]);

/// float32 [rows, columns], zeros at first. Each row starts a cache line.
pub struct Rows {
    chunks: Vec<UnsafeCell<Chunk>>,
    /// Chunks a row.
    width: usize,
    columns: usize,
}

// SAFETY: threads that share `Rows` load and store its chunks through `Row` alone, and no reference to
// a chunk is ever made. Those loads and stores may race. Nothing is decided by what was read but by how
// much numbers change: any mixture of old and new floats that a racing load finds is as good as either
// (every bit pattern is a float), and floats that are aligned arrive whole on every processor there is.
// By the letter of the memory model such a race between plain accesses is undefined; we rely, as all of
// Hogwild's implementations do, on compilers making plain vector loads and stores of them. One thread
// alone races with nobody.
unsafe impl Sync for Rows {}

impl Rows {
    pub fn zeros(rows: usize, columns: usize) -> Self {
        let width = columns.div_ceil(LANES);
        let mut chunks = Vec::new();
        chunks.resize_with(rows * width, || UnsafeCell::new(Chunk::zeroed()));
        Self { chunks, width, columns }
    }

    /// Chunks a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// A row, to be read and written.
    #[inline(always)]
    pub fn row(&self, row: u32) -> Row<'_> {
        let start = row as usize * self.width;
        Row(&self.chunks[start..start + self.width])
    }

    /// Asks for a row that is to be read soon.
    #[inline(always)]
    pub fn prefetch(&self, row: u32) {
        for chunk in self.row(row).0 {
            prefetch(chunk);
        }
    }

    /// The numbers of all rows, one row after the other.
    pub fn into_vec(self) -> Vec<f32> {
        let rows = self.chunks.chunks_exact(self.width);
        let mut numbers = Vec::with_capacity(rows.len() * self.columns);
        for row in rows {
            let chunks = 0..self.width;
            let lanes = chunks.flat_map(|chunk| Row(row).load(chunk).0);
            numbers.extend(lanes.take(self.columns));
        }
        numbers
    }
}

/// A row of a matrix.
#[derive(Clone, Copy)]
pub struct Row<'a>(&'a [UnsafeCell<Chunk>]);

impl Row<'_> {
    #[inline(always)]
    pub fn load(self, chunk: usize) -> Chunk {
        // SAFETY: the pointer is to a chunk of the matrix; that others may write is said above.
        unsafe { self.0[chunk].get().read() }
    }

    #[inline(always)]
    pub fn store(self, chunk: usize, value: Chunk) {
        // SAFETY: as above.
        unsafe { self.0[chunk].get().write(value) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_hold_what_is_stored_and_come_without_what_fills_them_up() {
        for columns in [1, 2, 15, 16, 17, 100] {
            let rows = Rows::zeros(3, columns);
            assert_eq!(rows.width(), columns.div_ceil(LANES));
            let row = rows.row(1);
            for chunk in 0..columns.div_ceil(LANES) {
                let lanes = std::array::from_fn(|lane| (chunk * LANES + lane + 1) as f32);
                row.store(chunk, Chunk(lanes));
                assert_eq!(row.load(chunk).0.map(f32::to_bits), lanes.map(f32::to_bits));
            }
            let mut expected = vec![0.0; 3 * columns];
            (0..columns).for_each(|column| expected[columns + column] = (column + 1) as f32);
            assert_eq!(rows.into_vec(), expected);
        }
    }
}
