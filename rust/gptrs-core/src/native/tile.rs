//! Products of stored rows and input rows: `out[t][r] += rows[r] . inputs[t]`.
//!
//! ```text
//!             inputs, C at a time: in L1          a tile: R x C sums of sixteen lanes each, in
//!            ┌─────────────────────┐              registers; every number loaded serves C or R sums
//!  rows, R   │ R x C sums          │
//!  at a time │                     │              rows of a block stay in L2 while all inputs pass
//!            └─────────────────────┘
//! ```
//!
//! A sum over more than [`MOST_COLUMNS`] numbers is cut into parts of that many, each summed by itself and
//! added in order. Nothing of this depends on how many inputs there are or who computes which rows:
//! the same row and the same input give the same bits.

use half::bf16;

use super::lanes::{LANES, Operands, Simd, Work};
use super::math::filled;
use super::numbers::Floats;
use super::shared::Columns;
use super::terms::{Chunk, InputOf, Pairs, RowOf, Singles, Terms};

/// How long a sum is before it is added to the others: inputs of this length stay in L1.
const MOST_COLUMNS: usize = 1024;
/// Rows that stay in L2 while inputs pass by: at most 256 KiB.
const BLOCK_ROWS: usize = 64;
/// Rows of a tile of such a block.
const HEIGHT: usize = 4;
/// How far ahead of what is read the memory is asked.
pub const AHEAD_BYTES: usize = 512;
/// The most inputs that every row meets before the next.
const MOST_STREAMED: usize = 32;
/// The most inputs of a tile.
const MOST_INPUTS: usize = 6;
/// From so many inputs on, bfloat16 rows are widened once for all of them.
const WIDENED_FROM: usize = 18;

/// Rows of a stored matrix, and inputs that are multiplied with each.
pub struct MatMul<'a> {
    pub rows: Floats<'a>,
    /// How long a row is, and an input.
    pub columns: usize,
    pub inputs: &'a [f32],
    pub num_inputs: usize,
    /// [inputs][rows], to be added to.
    pub out: Columns<'a>,
    /// Room for widened rows.
    pub room: &'a mut Vec<f32>,
}

impl Work for MatMul<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { rows, columns, inputs, num_inputs, mut out, room } = self;
        match rows {
            Floats::Bf16(rows) if num_inputs < WIDENED_FROM => {
                let inputs = Inputs::<Singles<bf16>> { all: inputs, columns, count: num_inputs };
                inputs.meet_all(simd, rows, &mut out);
            }
            Floats::Bf16(rows) => {
                let inputs = Inputs::<Singles<f32>> { all: inputs, columns, count: num_inputs };
                for (number, rows) in rows.chunks(BLOCK_ROWS * columns).enumerate() {
                    inputs.pass_by(simd, widen(simd, rows, room), number * BLOCK_ROWS, &mut out);
                }
            }
            Floats::F32(rows) => {
                let inputs = Inputs::<Singles<f32>> { all: inputs, columns, count: num_inputs };
                inputs.meet_all(simd, rows, &mut out);
            }
        }
    }
}

/// The same in bfloat16, with inputs that are rounded to it.
pub struct MatMulPairs<'a> {
    pub rows: &'a [bf16],
    pub columns: usize,
    pub inputs: &'a [bf16],
    pub num_inputs: usize,
    pub out: Columns<'a>,
}

impl Work for MatMulPairs<'_> {
    type Output = ();

    const OPERANDS: Operands = Operands::Pairs;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { rows, columns, inputs, num_inputs, mut out } = self;
        let inputs = Inputs::<Pairs> { all: inputs, columns, count: num_inputs };
        inputs.meet_all(simd, rows, &mut out);
    }
}

#[inline(always)]
fn widen<'a, S: Simd>(simd: S, stored: &[bf16], room: &'a mut Vec<f32>) -> &'a [f32] {
    room.resize(room.len().max(stored.len().next_multiple_of(LANES)), 0.0);
    for (chunk, wide) in stored.chunks(LANES).zip(room.as_chunks_mut::<LANES>().0) {
        simd.store(simd.load_bf16(&filled(chunk, bf16::ZERO)), wide);
    }
    &room[..stored.len()]
}

/// Inputs, row behind row.
struct Inputs<'a, T: Terms> {
    all: &'a [InputOf<T>],
    columns: usize,
    count: usize,
}

impl<T: Terms> Inputs<'_, T> {
    /// Multiplies all of them with all rows.
    #[inline(always)]
    fn meet_all<S: Simd>(&self, simd: S, rows: &[RowOf<T>], out: &mut Columns<'_>) {
        match self.count {
            1 => self.stream::<S, 2, 1>(simd, rows, out),
            2 => self.stream::<S, 4, 2>(simd, rows, out),
            3 | 4 => self.stream::<S, 4, 4>(simd, rows, out),
            5..=MOST_STREAMED => self.stream::<S, 3, 8>(simd, rows, out),
            _ => {
                for (number, rows) in rows.chunks(BLOCK_ROWS * self.columns).enumerate() {
                    self.pass_by(simd, rows, number * BLOCK_ROWS, out);
                }
            }
        }
    }

    /// All of them, C at a time, with all rows, each of which is read once, from end to end. Rows of a tile
    /// are far apart: memory is quicker where it is read in several places at once, each as it lies.
    #[inline(always)]
    fn stream<S: Simd, const R: usize, const C: usize>(
        &self,
        simd: S,
        rows: &[RowOf<T>],
        out: &mut Columns<'_>,
    ) {
        let num_rows = rows.len() / self.columns;
        let distance = num_rows.div_ceil(R);
        for row in 0..distance {
            let height = (num_rows - row).div_ceil(distance);
            for input in (0..self.count).step_by(C) {
                for from in (0..self.columns).step_by(MOST_COLUMNS) {
                    let tile = Tile { row, distance, height, from, input };
                    self.meet::<S, R, C>(simd, rows, tile, 0, out);
                }
            }
        }
    }

    /// Multiplies all of them with a block of rows; the sums go to the columns from `place` on.
    #[inline(always)]
    fn pass_by<S: Simd>(&self, simd: S, rows: &[RowOf<T>], place: usize, out: &mut Columns<'_>) {
        let num_rows = rows.len() / self.columns;
        for from in (0..self.columns).step_by(MOST_COLUMNS) {
            let mut input = 0;
            while input < self.count {
                // What is left over is computed twice rather than compiled for every number.
                let is_four = matches!(self.count - input, 1..=4 | 7 | 8);
                for row in (0..num_rows).step_by(HEIGHT) {
                    let height = HEIGHT.min(num_rows - row);
                    let tile = Tile { row, distance: 1, height, from, input };
                    if is_four {
                        self.meet::<S, HEIGHT, 4>(simd, rows, tile, place, out);
                    } else {
                        self.meet::<S, HEIGHT, MOST_INPUTS>(simd, rows, tile, place, out);
                    }
                }
                input += if is_four { 4 } else { MOST_INPUTS };
            }
        }
    }

    /// The sums of a tile, added to their places.
    #[inline(always)]
    fn meet<S: Simd, const R: usize, const C: usize>(
        &self,
        simd: S,
        rows: &[RowOf<T>],
        Tile { row, distance, height, from, input }: Tile,
        place: usize,
        out: &mut Columns<'_>,
    ) {
        let (columns, span) = (self.columns, from..self.columns.min(from + MOST_COLUMNS));
        let num_inputs = C.min(self.count - input);
        let mut inputs = [&self.all[..0]; C];
        for (c, part) in inputs.iter_mut().enumerate() {
            let start = (input + c.min(num_inputs - 1)) * columns;
            *part = &self.all[start + span.start..start + span.end];
        }
        let mut tiled = [&rows[..0]; R];
        for (r, part) in tiled.iter_mut().enumerate() {
            let start = (row + r.min(height - 1) * distance) * columns;
            *part = &rows[start + span.start..start + span.end];
        }
        let sums = tile::<S, T, R, C>(simd, tiled, inputs, distance > 1);
        for (c, sums) in sums.iter().enumerate().take(num_inputs) {
            let out = out.row(input + c);
            for (r, sum) in sums.iter().enumerate().take(height) {
                out[place + row + r * distance] += sum;
            }
        }
    }
}

/// Which rows, columns and inputs.
#[derive(Clone, Copy)]
struct Tile {
    row: usize,
    /// From a row to the next. Where it is more than one, each is read from end to end, and memory is asked
    /// for what comes soon.
    distance: usize,
    /// How many of the rows there are.
    height: usize,
    /// The first column.
    from: usize,
    /// The first input.
    input: usize,
}

/// R x C sums of equally long rows and inputs. Where it looks ahead, memory is asked for what comes soon.
#[inline(always)]
fn tile<S: Simd, T: Terms, const R: usize, const C: usize>(
    simd: S,
    rows: [&[RowOf<T>]; R],
    inputs: [&[InputOf<T>]; C],
    looks_ahead: bool,
) -> [[f32; R]; C] {
    let ahead = AHEAD_BYTES / size_of::<RowOf<T>>();
    let len = inputs[0].len();
    let (count, width) = (len / T::Row::LEN, T::Row::LEN);
    let mut row_chunks = [&T::Row::whole(rows[0])[..count]; R];
    for r in 1..R {
        row_chunks[r] = &T::Row::whole(rows[r])[..count];
    }
    let mut input_chunks = [&T::Input::whole(inputs[0])[..count]; C];
    for c in 1..C {
        input_chunks[c] = &T::Input::whole(inputs[c])[..count];
    }
    let mut sums = [[simd.splat(0.0); R]; C];
    for k in 0..count {
        let mut loaded = [T::row(simd, &row_chunks[0][k]); R];
        for r in 0..R {
            if looks_ahead {
                simd.prefetch(rows[r].as_ptr().wrapping_add(ahead + k * width));
            }
            loaded[r] = T::row(simd, &row_chunks[r][k]);
        }
        for c in 0..C {
            let input = T::input(simd, &input_chunks[c][k]);
            for r in 0..R {
                sums[c][r] = T::add(simd, sums[c][r], loaded[r], input);
            }
        }
    }
    if !len.is_multiple_of(width) {
        add_tails::<S, T, R, C>(simd, &rows, &inputs, count * width, &mut sums);
    }
    let mut out = [[0.0; R]; C];
    for c in 0..C {
        sum_all(simd, &sums[c], &mut out[c]);
    }
    out
}

/// What is left over of rows that are not whole lanes.
#[inline(always)]
fn add_tails<S: Simd, T: Terms, const R: usize, const C: usize>(
    simd: S,
    rows: &[&[RowOf<T>]; R],
    inputs: &[&[InputOf<T>]; C],
    from: usize,
    sums: &mut [[S::F; R]; C],
) {
    let mut loaded = [T::row(simd, &T::Row::last(&rows[0][from..])); R];
    for r in 1..R {
        loaded[r] = T::row(simd, &T::Row::last(&rows[r][from..]));
    }
    for c in 0..C {
        let input = T::input(simd, &T::Input::last(&inputs[c][from..]));
        for r in 0..R {
            sums[c][r] = T::add(simd, sums[c][r], loaded[r], input);
        }
    }
}

#[inline(always)]
fn sum_all<S: Simd, const R: usize>(simd: S, sums: &[S::F; R], out: &mut [f32; R]) {
    let mut r = 0;
    while r + 4 <= R {
        let four = simd.sum4([sums[r], sums[r + 1], sums[r + 2], sums[r + 3]]);
        out[r..r + 4].copy_from_slice(&four);
        r += 4;
    }
    while r < R {
        out[r] = simd.sum(sums[r]);
        r += 1;
    }
}
