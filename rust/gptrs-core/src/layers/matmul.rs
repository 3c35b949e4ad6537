//! Products of large matrices of float32.
//!
//! ```text
//!                          right: at most DEPTH rows and COLUMNS columns, packed by all threads together
//!                        ┌───────┬───────┬─   in panels of W sixteens of columns: a panel is in L2
//!                        │       │       │    while a block of rows passes by
//!  left: ROWS rows at a  │       │       │
//!  time are a job, and  ┌┼───────┼───────┼─
//!  packed by whoever    R│ sums  │       │    a tile: R rows of sums in registers
//!  does it, in L2       └┼───────┼───────┼─
//! ```
//!
//! A sum of more than [`DEPTH`] products is cut into equal parts, which are added in order: no number
//! depends on how many threads there are.

#![allow(clippy::needless_range_loop, reason = "loops over registers, which iterators hide")]

mod pack;

use std::cell::RefCell;
use std::mem::take;
use std::ops::Range;

use self::pack::{Lines, Pack};
use super::for_each;
use crate::native::Kernels;
use crate::native::lanes::{Found, LANES, Simd, Work, dispatch};
use crate::native::math::filled;

/// The most products that are summed at once.
const DEPTH: usize = 768;
/// The most columns that are packed at once: 4.5 MiB.
const COLUMNS: usize = 1536;
/// The most rows of a job: 288 KiB.
const ROWS: usize = 96;
/// Jobs for each thread at least, where there are rows enough: one may be slower than the others.
const JOBS: usize = 4;

/// Whether it is faster here than MKL, with which PyTorch multiplies float32 on x86-64: that keeps its
/// AVX-512 for the processors of its maker, and on AMD's Zen 4 reaches two thirds of what can be.
pub fn matmul_beats_mkl() -> bool {
    Kernels::best().has_avx512() && !Kernels::is_intels()
}

/// A matrix whose rows or whose columns lie in one piece each.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    numbers: &'a [f32],
    /// Rows and columns.
    shape: [usize; 2],
    /// From a row to the next, and from a column to the next.
    strides: [usize; 2],
}

impl<'a> Matrix<'a> {
    /// `shape` is rows and columns, `strides` are from one to the next.
    ///
    /// # Panics
    /// Neither rows nor columns lie in one piece each; or there are too few numbers.
    pub fn new(numbers: &'a [f32], shape: [usize; 2], strides: [usize; 2]) -> Self {
        // Where there is one, there is no next.
        let strides = [0, 1].map(|dim| if shape[dim] > 1 { strides[dim] } else { 1 });
        let last = |dim: usize| (shape[dim].max(1) - 1) * strides[dim];
        assert!(shape.contains(&0) || last(0) + last(1) < numbers.len(), "numbers are missing");
        assert!(
            shape.contains(&0) || strides.contains(&1),
            "neither rows nor columns are in one piece"
        );
        Self { numbers, shape, strides }
    }

    /// Row `i` is line `i`.
    fn rows(self) -> Lines<'a> {
        let [line, step] = self.strides;
        Lines { numbers: self.numbers, line, step }
    }

    /// Column `i` is line `i`.
    fn columns(self) -> Lines<'a> {
        let [step, line] = self.strides;
        Lines { numbers: self.numbers, line, step }
    }
}

/// What a product is added to.
#[derive(Debug, Clone, Copy)]
pub enum Start<'a> {
    /// Nothing.
    Zero,
    /// What the output holds.
    Output,
    /// The same row everywhere.
    Row(&'a [f32]),
}

impl Start<'_> {
    /// The same from a column on.
    #[inline(always)]
    fn from(self, column: usize) -> Self {
        match self {
            Self::Row(row) => Self::Row(&row[column..]),
            _ => self,
        }
    }
}

/// `out = start + left @ right`, row behind row.
///
/// # Panics
/// The shapes do not fit together.
pub fn matmul(
    kernels: Kernels,
    threads: usize,
    left: Matrix<'_>,
    right: Matrix<'_>,
    start: Start<'_>,
    out: &mut [f32],
) {
    let ([rows, depth], [right_rows, columns]) = (left.shape, right.shape);
    assert!(depth == right_rows && out.len() == rows * columns);
    assert!(!matches!(start, Start::Row(row) if row.len() != columns));
    let product = Product { found: kernels.found(), threads, left, right, start };
    if out.is_empty() {
        return;
    }
    // As many sums as there are registers for.
    if kernels.has_avx512() {
        product.run::<8, 3, 48>(out);
    } else {
        product.run::<6, 1, 16>(out);
    }
}

struct Product<'a> {
    found: Found,
    threads: usize,
    left: Matrix<'a>,
    right: Matrix<'a>,
    start: Start<'a>,
}

impl Product<'_> {
    /// In tiles of `R` rows and `W` sixteens of columns, which are `P` columns.
    fn run<const R: usize, const W: usize, const P: usize>(&self, out: &mut [f32]) {
        const { assert!(P == W * LANES && COLUMNS.is_multiple_of(P) && ROWS.is_multiple_of(R)) };
        let (depth, columns) = (self.left.shape[1], self.right.shape[1]);
        let parts = depth.div_ceil(DEPTH).max(1);
        for first in (0..columns).step_by(COLUMNS) {
            let across = first..columns.min(first + COLUMNS);
            for part in 0..parts {
                let down = depth * part / parts..depth * (part + 1) / parts;
                let start = if part == 0 { self.start } else { Start::Output };
                let size = across.len().next_multiple_of(P) * down.len();
                PACKED_RIGHT.with_borrow_mut(|room| {
                    let packed = room_for(room, size);
                    self.pack_right::<P>(&across, &down, packed);
                    self.add_part::<R, W, P>(&across, &down, packed, start, out);
                });
            }
        }
    }

    fn pack_right<const P: usize>(
        &self,
        across: &Range<usize>,
        down: &Range<usize>,
        packed: &mut [f32],
    ) {
        let lines = self.right.columns();
        // Of nothing there are still sums, which are zero.
        let panels = packed.chunks_mut((P * down.len()).max(1)).enumerate();
        for_each(
            self.threads,
            panels,
            || (),
            |(), (index, panel)| {
                let from = across.start + index * P;
                let chosen = from..across.end.min(from + P);
                dispatch(self.found, Pack::<P> { lines, chosen, span: down.clone(), panel });
            },
        );
    }

    fn add_part<const R: usize, const W: usize, const P: usize>(
        &self,
        across: &Range<usize>,
        down: &Range<usize>,
        right: &[f32],
        start: Start<'_>,
        out: &mut [f32],
    ) {
        let (rows, columns) = (self.left.shape[0], self.right.shape[1]);
        let cuts = cuts::<R>(rows, self.threads.max(1));
        let mut rest = out;
        let jobs = cuts.windows(2).map(|cut| {
            let (own, others) = take(&mut rest).split_at_mut((cut[1] - cut[0]) * columns);
            rest = others;
            (cut[0]..cut[1], own)
        });
        for_each(
            self.threads,
            jobs,
            || (),
            |(), (rows, out)| {
                let (down, across) = (down.clone(), across.clone());
                PACKED_LEFT.with_borrow_mut(|room| {
                    let left = self.left.rows();
                    let block = Block::<R, W, P> {
                        left,
                        rows,
                        down,
                        right,
                        across,
                        columns,
                        start,
                        out,
                        room,
                    };
                    dispatch(self.found, block);
                });
            },
        );
    }
}

/// Where rows are cut into jobs, tile by tile: as many for each thread, and as many rows in each as can be.
fn cuts<const R: usize>(rows: usize, threads: usize) -> Vec<usize> {
    let tiles = rows.div_ceil(R);
    let each = tiles.div_ceil(threads).div_ceil(ROWS / R).max(JOBS);
    let count = each * threads;
    (0..=count).map(|index| (tiles * index / count * R).min(rows)).collect()
}

// A thread's rooms are kept: the system clears every page that it gives.
thread_local! {
    static PACKED_LEFT: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    static PACKED_RIGHT: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

fn room_for(room: &mut Vec<f32>, size: usize) -> &mut [f32] {
    if room.len() < size {
        room.resize(size, 0.0);
    }
    &mut room[..size]
}

/// Some rows of the left matrix, with what is packed of the right one.
struct Block<'a, const R: usize, const W: usize, const P: usize> {
    left: Lines<'a>,
    rows: Range<usize>,
    down: Range<usize>,
    right: &'a [f32],
    across: Range<usize>,
    /// Of a whole row of the output.
    columns: usize,
    start: Start<'a>,
    /// These rows, whole.
    out: &'a mut [f32],
    room: &'a mut Vec<f32>,
}

impl<const R: usize, const W: usize, const P: usize> Work for Block<'_, R, W, P> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { left, rows, down, right, across, columns, start, out, room } = self;
        let depth = down.len();
        let packed = room_for(room, rows.len().next_multiple_of(R) * depth);
        for (index, panel) in packed.chunks_mut((R * depth).max(1)).enumerate() {
            let from = rows.start + index * R;
            let chosen = from..rows.end.min(from + R);
            Pack::<R> { lines: left, chosen, span: down.clone(), panel }.run(simd);
        }
        for (index, column) in across.clone().step_by(P).enumerate() {
            let right = &right[index * P * depth..][..P * depth];
            let width = P.min(across.end - column);
            for (index, first) in (0..rows.len()).step_by(R).enumerate() {
                let left = &packed[index * R * depth..][..R * depth];
                // The sums take long enough for what they are added to, or replace, to come near.
                for r in 0..R.min(rows.len() - first) {
                    let line = &out[(first + r) * columns + column..][..width];
                    line.chunks(LANES).for_each(|chunk| simd.prefetch(chunk.as_ptr()));
                }
                let sums = tile::<S, R, W>(simd, left, right);
                for r in 0..R.min(rows.len() - first) {
                    let out = &mut out[(first + r) * columns + column..][..width];
                    put(simd, sums[r], start.from(column), out);
                }
            }
        }
    }
}

/// The products of R rows and W sixteens of columns, summed.
#[inline(always)]
fn tile<S: Simd, const R: usize, const W: usize>(
    simd: S,
    left: &[f32],
    right: &[f32],
) -> [[S::F; W]; R] {
    let mut sums = [[simd.splat(0.0); W]; R];
    let right = right.as_chunks::<LANES>().0.as_chunks::<W>().0;
    for (left, right) in left.as_chunks::<R>().0.iter().zip(right) {
        let mut lanes = [simd.splat(0.0); W];
        for w in 0..W {
            lanes[w] = simd.load(&right[w]);
        }
        for r in 0..R {
            let factor = simd.splat(left[r]);
            for w in 0..W {
                sums[r][w] = simd.mul_add(factor, lanes[w], sums[r][w]);
            }
        }
    }
    sums
}

/// Writes a row of a tile, added to what it starts from; what lies beyond the row is dropped.
#[inline(always)]
fn put<S: Simd, const W: usize>(simd: S, sums: [S::F; W], start: Start<'_>, out: &mut [f32]) {
    for (w, out) in out.chunks_mut(LANES).enumerate().take(W) {
        let base = match start {
            Start::Zero => simd.splat(0.0),
            Start::Output => simd.load(&filled(out, 0.0)),
            Start::Row(row) => simd.load(&filled(&row[w * LANES..][..out.len()], 0.0)),
        };
        let sums = simd.add(base, sums[w]);
        if let Some(out) = out.first_chunk_mut() {
            simd.store(sums, out);
        } else {
            let mut lanes = [0.0; LANES];
            simd.store(sums, &mut lanes);
            out.copy_from_slice(&lanes[..out.len()]);
        }
    }
}
