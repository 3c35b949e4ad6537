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

use super::lanes::{Found, LANES, Operands, Simd, Work, dispatch};
use super::math::filled;
use super::shared::Columns;
use super::terms::{Chunk, InputOf, RowOf, Singles, Terms};

/// How long a sum is before it is added to the others: inputs of this length stay in L1.
const MOST_COLUMNS: usize = 1024;
/// Rows that stay in L2 while inputs pass by: at most 256 KiB.
const BLOCK_ROWS: usize = 64;
/// Rows of a tile of such a block.
const HEIGHT: usize = 4;
/// How far ahead of what is read the memory is asked.
pub const AHEAD_BYTES: usize = 512;
/// Rows of so many numbers are short.
const SHORT: usize = 512;
/// The most inputs that every row meets before the next.
const MOST_STREAMED: usize = 32;
/// The most inputs of a tile.
const MOST_INPUTS: usize = 6;
/// From so many inputs on, bfloat16 rows are widened once for all of them.
pub const WIDENED_FROM: usize = 18;

/// Rows of a stored matrix, and inputs that are multiplied with each.
pub struct MatMul<'a, T: Terms> {
    pub rows: &'a [RowOf<T>],
    /// How long a row is, and an input.
    pub columns: usize,
    /// Row behind row.
    pub inputs: &'a [InputOf<T>],
    pub num_inputs: usize,
    /// [inputs][rows], to be added to.
    pub out: Columns<'a>,
}

impl<T: Terms> MatMul<'_, T> {
    /// Multiplies all inputs with all rows. Every shape of a tile is compiled by itself: together they
    /// leave the compiler no registers for where the rows are.
    pub fn run(mut self, found: Found) {
        match self.num_inputs {
            1 if !found.reads_ahead() => dispatch(found, OneInput::<T, 2, true>(self)),
            // Short rows are over before the sums' ends are: more of them overlap.
            1 if self.columns <= SHORT => dispatch(found, OneInput::<T, 4, false>(self)),
            1 => dispatch(found, OneInput::<T, 2, false>(self)),
            2 => dispatch(found, Stream::<T, 4, 2, true>(self)),
            3 | 4 => dispatch(found, Stream::<T, 4, 4, true>(self)),
            5..=MOST_STREAMED => dispatch(found, Stream::<T, 3, 8, true>(self)),
            _ => {
                for (number, rows) in self.rows.chunks(BLOCK_ROWS * self.columns).enumerate() {
                    let place = number * BLOCK_ROWS;
                    dispatch(found, PassBy { all: &mut self, rows, place });
                }
            }
        }
    }
}

impl MatMul<'_, Singles<bf16>> {
    /// The same with inputs that are worth it: each block of rows is widened once for all of them.
    pub fn run_widened(self, found: Found, room: &mut Vec<f32>) {
        let Self { rows, columns, inputs, num_inputs, out } = self;
        let mut all = MatMul::<Singles<f32>> { rows: &[], columns, inputs, num_inputs, out };
        for (number, rows) in rows.chunks(BLOCK_ROWS * columns).enumerate() {
            let rows = dispatch(found, Widen { rows, room });
            dispatch(found, PassBy { all: &mut all, rows, place: number * BLOCK_ROWS });
        }
    }
}

/// Rows that are widened.
struct Widen<'a> {
    rows: &'a [bf16],
    room: &'a mut Vec<f32>,
}

impl<'a> Work for Widen<'a> {
    type Output = &'a [f32];

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> &'a [f32] {
        let Self { rows, room } = self;
        room.resize(room.len().max(rows.len().next_multiple_of(LANES)), 0.0);
        for (chunk, wide) in rows.chunks(LANES).zip(room.as_chunks_mut::<LANES>().0) {
            simd.store(simd.load_bf16(&filled(chunk, bf16::ZERO)), wide);
        }
        &room[..rows.len()]
    }
}

/// One input with all rows, as `Stream`, but that hardly anything happens between rows: where they lie in
/// the processor's caches, that is what a token waits for.
struct OneInput<'a, T: Terms, const R: usize, const LOOKS_AHEAD: bool>(MatMul<'a, T>);

impl<T: Terms, const R: usize, const LOOKS_AHEAD: bool> Work for OneInput<'_, T, R, LOOKS_AHEAD> {
    type Output = ();

    const OPERANDS: Operands = T::OPERANDS;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self(MatMul { rows, columns, inputs, mut out, .. }) = self;
        let num_rows = rows.len() / columns;
        let distance = num_rows / R;
        let (side_by_side, others) = rows.split_at(R * distance * columns);
        let (out, other_out) = out.row(0)[..num_rows].split_at_mut(R * distance);
        let mut streams = [side_by_side; R];
        for r in 0..R {
            streams[r] = &side_by_side[r * distance * columns..][..distance * columns];
        }
        for row in 0..distance {
            for (part, input) in inputs.chunks(MOST_COLUMNS).enumerate() {
                let start = row * columns + part * MOST_COLUMNS;
                let tiled = streams.map(|rows| &rows[start..start + input.len()]);
                let [sums] = tile::<S, T, R, 1, LOOKS_AHEAD>(simd, tiled, [input]);
                for r in 0..R {
                    out[row + r * distance] += sums[r];
                }
            }
        }
        for (row, out) in others.chunks_exact(columns).zip(other_out) {
            for (row, input) in row.chunks(MOST_COLUMNS).zip(inputs.chunks(MOST_COLUMNS)) {
                let [[sum]] = tile::<S, T, 1, 1, LOOKS_AHEAD>(simd, [row], [input]);
                *out += sum;
            }
        }
    }
}

/// All inputs, C at a time, with all rows, each of which is read once, from end to end. R rows are read
/// side by side, far apart: memory is quicker where it is read in several places at once, each as it lies.
/// Where it looks ahead, memory is asked for what comes soon.
struct Stream<'a, T: Terms, const R: usize, const C: usize, const LOOKS_AHEAD: bool>(MatMul<'a, T>);

impl<T: Terms, const R: usize, const C: usize, const LOOKS_AHEAD: bool> Work
    for Stream<'_, T, R, C, LOOKS_AHEAD>
{
    type Output = ();

    const OPERANDS: Operands = T::OPERANDS;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self(mut all) = self;
        let num_rows = all.rows.len() / all.columns;
        let distance = num_rows.div_ceil(R);
        for row in 0..distance {
            let height = (num_rows - row).div_ceil(distance);
            for input in (0..all.num_inputs).step_by(C) {
                for from in (0..all.columns).step_by(MOST_COLUMNS) {
                    let tile = Tile { row, distance, height, from, input };
                    all.meet::<S, R, C, LOOKS_AHEAD>(simd, all.rows, tile, 0);
                }
            }
        }
    }
}

/// All inputs with a block of rows, which stays near; the sums go to the columns from `place` on.
struct PassBy<'a, 'b, T: Terms> {
    all: &'a mut MatMul<'b, T>,
    rows: &'a [RowOf<T>],
    place: usize,
}

impl<T: Terms> Work for PassBy<'_, '_, T> {
    type Output = ();

    const OPERANDS: Operands = T::OPERANDS;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { all, rows, place } = self;
        let num_rows = rows.len() / all.columns;
        for from in (0..all.columns).step_by(MOST_COLUMNS) {
            let mut input = 0;
            while input < all.num_inputs {
                // What is left over is computed twice rather than compiled for every number.
                let is_four = matches!(all.num_inputs - input, 1..=4 | 7 | 8);
                for row in (0..num_rows).step_by(HEIGHT) {
                    let height = HEIGHT.min(num_rows - row);
                    let tile = Tile { row, distance: 1, height, from, input };
                    if is_four {
                        all.meet::<S, HEIGHT, 4, false>(simd, rows, tile, place);
                    } else {
                        all.meet::<S, HEIGHT, MOST_INPUTS, false>(simd, rows, tile, place);
                    }
                }
                input += if is_four { 4 } else { MOST_INPUTS };
            }
        }
    }
}

impl<T: Terms> MatMul<'_, T> {
    /// The sums of a tile, added to their places.
    #[inline(always)]
    fn meet<S: Simd, const R: usize, const C: usize, const LOOKS_AHEAD: bool>(
        &mut self,
        simd: S,
        rows: &[RowOf<T>],
        Tile { row, distance, height, from, input }: Tile,
        place: usize,
    ) {
        let (columns, span) = (self.columns, from..self.columns.min(from + MOST_COLUMNS));
        let num_inputs = C.min(self.num_inputs - input);
        let mut inputs = [&self.inputs[..0]; C];
        for (c, part) in inputs.iter_mut().enumerate() {
            let start = (input + c.min(num_inputs - 1)) * columns;
            *part = &self.inputs[start + span.start..start + span.end];
        }
        let mut tiled = [&rows[..0]; R];
        for (r, part) in tiled.iter_mut().enumerate() {
            let start = (row + r.min(height - 1) * distance) * columns;
            *part = &rows[start + span.start..start + span.end];
        }
        let sums = tile::<S, T, R, C, LOOKS_AHEAD>(simd, tiled, inputs);
        for (c, sums) in sums.iter().enumerate().take(num_inputs) {
            let out = self.out.row(input + c);
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
    /// From a row to the next.
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
fn tile<S: Simd, T: Terms, const R: usize, const C: usize, const LOOKS_AHEAD: bool>(
    simd: S,
    rows: [&[RowOf<T>]; R],
    inputs: [&[InputOf<T>]; C],
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
            if LOOKS_AHEAD {
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
