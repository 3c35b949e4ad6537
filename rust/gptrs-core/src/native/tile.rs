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

use super::lanes::{LANES, Simd, Work};
use super::math::filled;
use super::numbers::Floats;
use super::shared::Columns;

/// How long a sum is before it is added to the others: inputs of this length stay in L1.
const MOST_COLUMNS: usize = 1024;
/// Rows that stay in L2 while inputs pass by: at most 256 KiB.
const BLOCK_ROWS: usize = 64;
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
    const HAS_BYTES: bool = false;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { rows, columns, inputs, num_inputs, mut out, room } = self;
        // Few inputs stay in L1 anyway: then rows are read once, from end to end.
        let height = if num_inputs > MOST_INPUTS { BLOCK_ROWS } else { MOST_HEIGHT };
        let inputs = Inputs { all: inputs, columns, count: num_inputs };
        match rows {
            Floats::Bf16(rows) if num_inputs < WIDENED_FROM => {
                for (number, rows) in rows.chunks(height * columns).enumerate() {
                    inputs.pass_by(simd, rows, number * height, &mut out);
                }
            }
            // Whatever is stored, in float32 there is one version to be compiled.
            _ => {
                let num_rows = rows.len() / columns;
                let mut first = 0;
                while first < num_rows {
                    let count = height.min(num_rows - first);
                    let block = match rows.part(first * columns, count * columns) {
                        Floats::F32(block) => block,
                        Floats::Bf16(block) => widen(simd, block, room),
                    };
                    inputs.pass_by(simd, block, first, &mut out);
                    first += count;
                }
            }
        }
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

/// A stored number.
pub trait Stored: Copy {
    const ZERO: Self;
    fn load<S: Simd>(simd: S, from: &[Self; LANES]) -> S::F;
}

impl Stored for f32 {
    const ZERO: Self = 0.0;

    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[Self; LANES]) -> S::F {
        simd.load(from)
    }
}

impl Stored for bf16 {
    const ZERO: Self = bf16::ZERO;

    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[Self; LANES]) -> S::F {
        simd.load_bf16(from)
    }
}

/// Inputs, row behind row.
#[derive(Clone, Copy)]
struct Inputs<'a> {
    all: &'a [f32],
    columns: usize,
    count: usize,
}

impl Inputs<'_> {
    /// Multiplies all of them with a block of rows; the sums go to the columns from `place` on.
    #[inline(always)]
    fn pass_by<S: Simd, W: Stored>(
        &self,
        simd: S,
        rows: &[W],
        place: usize,
        out: &mut Columns<'_>,
    ) {
        let mut from = 0;
        while from < self.columns {
            let span = from..self.columns.min(from + MOST_COLUMNS);
            let mut input = 0;
            while input < self.count {
                let group = Group { inputs: *self, input, span: span.clone() };
                // What is left over is computed twice rather than compiled for every number.
                input += match self.count - input {
                    // So many streams at once keep the memory busy.
                    1 if size_of::<W>() == 4 => group.meet::<S, W, 4, 1>(simd, rows, place, out),
                    1 => group.meet::<S, W, MOST_HEIGHT, 1>(simd, rows, place, out),
                    2 => group.meet::<S, W, 4, 2>(simd, rows, place, out),
                    3 | 4 | 7 | 8 => group.meet::<S, W, 4, 4>(simd, rows, place, out),
                    _ => group.meet::<S, W, 4, MOST_INPUTS>(simd, rows, place, out),
                };
            }
            from = span.end;
        }
    }
}

/// The most rows of a tile.
const MOST_HEIGHT: usize = 8;

/// Inputs that share a tile, over a span of columns.
struct Group<'a> {
    inputs: Inputs<'a>,
    input: usize,
    span: std::ops::Range<usize>,
}

impl Group<'_> {
    /// C inputs with all rows, R at a time: how many inputs there were.
    #[inline(always)]
    fn meet<S: Simd, W: Stored, const R: usize, const C: usize>(
        &self,
        simd: S,
        rows: &[W],
        place: usize,
        out: &mut Columns<'_>,
    ) -> usize {
        let (columns, span) = (self.inputs.columns, &self.span);
        let num_rows = rows.len() / columns;
        let num_inputs = C.min(self.inputs.count - self.input);
        // To where the next tile of these rows begins, or that of the next rows.
        let ahead = if span.end < columns { span.len() } else { R * columns - span.start };
        let mut inputs = [&self.inputs.all[..0]; C];
        for (c, part) in inputs.iter_mut().enumerate() {
            let start = (self.input + c.min(num_inputs - 1)) * columns;
            *part = &self.inputs.all[start + span.start..start + span.end];
        }
        for row in (0..num_rows).step_by(R) {
            let height = R.min(num_rows - row);
            let mut tiled = [&rows[..0]; R];
            for (r, part) in tiled.iter_mut().enumerate() {
                let start = (row + r.min(height - 1)) * columns;
                *part = &rows[start + span.start..start + span.end];
            }
            let sums = tile::<S, W, R, C>(simd, tiled, inputs, ahead);
            for (c, sums) in sums.iter().enumerate().take(num_inputs) {
                let out = &mut out.row(self.input + c)[place + row..place + row + height];
                for (out, sum) in out.iter_mut().zip(sums) {
                    *out += sum;
                }
            }
        }
        num_inputs
    }
}

/// R x C sums of equally long rows and inputs; the memory is asked for what lies `ahead` of the rows.
#[inline(always)]
fn tile<S: Simd, W: Stored, const R: usize, const C: usize>(
    simd: S,
    rows: [&[W]; R],
    inputs: [&[f32]; C],
    ahead: usize,
) -> [[f32; R]; C] {
    let len = inputs[0].len();
    let count = len / LANES;
    let mut row_chunks = [&[[W::ZERO; LANES]; 0][..]; R];
    for r in 0..R {
        row_chunks[r] = &rows[r].as_chunks::<LANES>().0[..count];
    }
    let mut input_chunks = [&[[0.0; LANES]; 0][..]; C];
    for c in 0..C {
        input_chunks[c] = &inputs[c].as_chunks::<LANES>().0[..count];
    }
    let mut sums = [[simd.splat(0.0); R]; C];
    for k in 0..count {
        let mut stored = [simd.splat(0.0); R];
        for r in 0..R {
            if C == 1 {
                simd.prefetch(rows[r].as_ptr().wrapping_add(ahead + k * LANES));
            }
            stored[r] = W::load(simd, &row_chunks[r][k]);
        }
        for c in 0..C {
            let input = simd.load(&input_chunks[c][k]);
            for r in 0..R {
                sums[c][r] = simd.mul_add(stored[r], input, sums[c][r]);
            }
        }
    }
    if !len.is_multiple_of(LANES) {
        add_tails(simd, &rows, &inputs, count * LANES, &mut sums);
    }
    let mut out = [[0.0; R]; C];
    for c in 0..C {
        sum_all(simd, &sums[c], &mut out[c]);
    }
    out
}

/// What is left over of rows that are not whole lanes.
#[inline(always)]
fn add_tails<S: Simd, W: Stored, const R: usize, const C: usize>(
    simd: S,
    rows: &[&[W]; R],
    inputs: &[&[f32]; C],
    from: usize,
    sums: &mut [[S::F; R]; C],
) {
    let mut stored = [simd.splat(0.0); R];
    for r in 0..R {
        stored[r] = W::load(simd, &filled(&rows[r][from..], W::ZERO));
    }
    for c in 0..C {
        let input = simd.load(&filled(&inputs[c][from..], 0.0));
        for r in 0..R {
            sums[c][r] = simd.mul_add(stored[r], input, sums[c][r]);
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
