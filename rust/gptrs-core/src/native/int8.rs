//! Weights in eight bits: a scale for each row, and inputs in eight bits with a scale for each 64.
//!
//! ```text
//! weight = (byte - 128) * scale of the row          byte in 1..=255
//! input  = byte * scale of the group                byte in -127..=127
//! ```
//!
//! Products of unsigned weights and signed inputs are what AVX-512 VNNI has an instruction for. The 128
//! that every weight has too much is taken off by a start of -128 times the inputs' sum: it is the
//! same for all rows. Sums within a group are whole numbers, so their order is no matter.

use super::lanes::{Found, GROUP, LANES, Simd, Work, dispatch};
use super::math::{filled, largest_of};
use super::shared::Columns;
use super::tile::sum_all;
use super::weights::Matrix;

/// A matrix in eight bits.
#[derive(Debug)]
pub struct Packed {
    /// Rows, each filled up with 128 (0) to whole groups.
    bytes: Vec<u8>,
    scales: Vec<f32>,
    padded: usize,
}

impl Packed {
    /// Rounds every weight to the nearest of the 255 that its row has.
    pub fn of(matrix: &Matrix, found: Found) -> Self {
        let padded = matrix.columns.next_multiple_of(GROUP);
        let mut packed =
            Self { bytes: vec![0; matrix.rows * padded], scales: vec![0.0; matrix.rows], padded };
        let mut room = Vec::new();
        let rows = packed.bytes.chunks_mut(padded.max(1)).zip(&mut packed.scales);
        for (row, (bytes, scale)) in rows.enumerate() {
            let weights = matrix.row(row).widened(&mut room);
            dispatch(found, PackRow { weights, bytes, scale });
        }
        packed
    }

    /// Whether it may be a copy of this matrix.
    pub fn fits(&self, matrix: &Matrix) -> bool {
        (self.scales.len(), self.padded) == (matrix.rows, matrix.columns.next_multiple_of(GROUP))
    }

    /// Neighbouring rows.
    pub fn rows(&self, rows: std::ops::Range<usize>) -> PackedRows<'_> {
        PackedRows {
            bytes: &self.bytes[rows.start * self.padded..rows.end * self.padded],
            scales: &self.scales[rows],
        }
    }
}

/// One row of weights to eight bits.
struct PackRow<'a> {
    weights: &'a [f32],
    bytes: &'a mut [u8],
    scale: &'a mut f32,
}

impl Work for PackRow<'_> {
    type Output = ();
    const HAS_BYTES: bool = false;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (chunks, tail) = self.weights.as_chunks::<LANES>();
        let tail: [f32; LANES] = filled(tail, 0.0);
        let parts = [scale_of(simd, chunks), scale_of(simd, &[tail])];
        let factor;
        (*self.scale, factor) =
            if parts[1].0 > parts[0].0 || parts[1].0.is_nan() { parts[1] } else { parts[0] };
        let chunks = chunks.iter().chain([&tail]);
        let zeros = std::iter::repeat(&[0.0; LANES]);
        for (x, place) in chunks.chain(zeros).zip(self.bytes.as_chunks_mut::<LANES>().0) {
            let bytes = simd.to_i8(simd.mul(simd.load(x), simd.splat(factor)));
            *place = bytes.map(|byte| byte as u8 ^ 0x80);
        }
    }
}

/// Some rows of a packed matrix.
#[derive(Debug, Clone, Copy)]
pub struct PackedRows<'a> {
    bytes: &'a [u8],
    scales: &'a [f32],
}

/// What a byte stands for, and its reciprocal. Numbers that are none stay it.
#[inline(always)]
fn scale_of<S: Simd>(simd: S, numbers: &[[f32; LANES]]) -> (f32, f32) {
    let (mut most, mut least, mut check) = (simd.splat(0.0), simd.splat(0.0), simd.splat(0.0));
    for x in numbers {
        let x = simd.load(x);
        most = simd.max(most, x);
        least = simd.min(least, x);
        // 0, unless one is infinite or none.
        check = simd.mul_add(x, simd.splat(0.0), check);
    }
    let both = simd.max(most, simd.mul(least, simd.splat(-1.0)));
    let largest = largest_of(simd, both);
    match largest + simd.sum(check) {
        0.0 => (0.0, 0.0),
        largest if largest > 0.0 => (largest / 127.0, 127.0 / largest),
        _ => (f32::NAN, 0.0),
    }
}

/// Inputs in eight bits, each filled up with zeros to whole groups.
#[derive(Debug, Clone, Copy)]
pub struct Quantized<'a> {
    pub bytes: &'a [i8],
    /// -128 times the sum of every four bytes.
    pub starts: &'a [i32],
    /// One a group.
    pub scales: &'a [f32],
    /// Bytes an input.
    pub padded: usize,
}

/// One input to eight bits.
pub struct Quantize<'a> {
    pub x: &'a [f32],
    pub bytes: &'a mut [i8],
    pub starts: &'a mut [i32],
    pub scales: &'a mut [f32],
}

impl Work for Quantize<'_> {
    type Output = ();
    const HAS_BYTES: bool = false;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (bytes, _) = self.bytes.as_chunks_mut::<GROUP>();
        let (starts, _) = self.starts.as_chunks_mut::<LANES>();
        let groups = bytes.iter_mut().zip(starts).zip(self.scales);
        for (x, ((bytes, starts), place)) in self.x.chunks(GROUP).zip(groups) {
            let x: [f32; GROUP] = filled(x, 0.0);
            let (quarters, _) = x.as_chunks::<LANES>();
            let (scale, factor) = scale_of(simd, quarters);
            *place = scale;
            for (x, bytes) in quarters.iter().zip(bytes.as_chunks_mut::<LANES>().0) {
                *bytes = simd.to_i8(simd.mul(simd.load(x), simd.splat(factor)));
            }
            for (start, four) in starts.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *start = -128 * four.iter().map(|&byte| i32::from(byte)).sum::<i32>();
            }
        }
    }
}

/// `out[t][r] += rows[r] . inputs[t]`.
pub struct MatMulI8<'a> {
    pub rows: PackedRows<'a>,
    pub inputs: Quantized<'a>,
    pub num_inputs: usize,
    pub out: Columns<'a>,
}

/// The most inputs of a tile.
const MOST_INPUTS: usize = 6;
/// Rows of a tile with a single input.
const MOST_HEIGHT: usize = 8;
/// Rows that stay in L2 while inputs pass by.
const BLOCK_ROWS: usize = 128;

impl Work for MatMulI8<'_> {
    type Output = ();
    const HAS_BYTES: bool = true;

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let num_rows = self.rows.scales.len();
        let height = if self.num_inputs > MOST_INPUTS { BLOCK_ROWS } else { MOST_HEIGHT };
        let mut first = 0;
        while first < num_rows {
            let rows = first..num_rows.min(first + height);
            let mut input = 0;
            while input < self.num_inputs {
                let rows = rows.clone();
                input += match self.num_inputs - input {
                    1 => self.meet::<S, MOST_HEIGHT, 1>(simd, rows, input),
                    2 => self.meet::<S, 4, 2>(simd, rows, input),
                    3 | 4 | 7 | 8 => self.meet::<S, 4, 4>(simd, rows, input),
                    _ => self.meet::<S, 4, MOST_INPUTS>(simd, rows, input),
                };
            }
            first = rows.end;
        }
    }
}

impl MatMulI8<'_> {
    /// C inputs with a block of rows, R at a time: how many inputs there were.
    #[inline(always)]
    fn meet<S: Simd, const R: usize, const C: usize>(
        &mut self,
        simd: S,
        rows: std::ops::Range<usize>,
        input: usize,
    ) -> usize {
        let num_inputs = C.min(self.num_inputs - input);
        for row in rows.clone().step_by(R) {
            let height = R.min(rows.end - row);
            let sums = self.tile::<S, R, C>(simd, row, height, input, num_inputs);
            let scales = &self.rows.scales[row..row + height];
            for (c, sums) in sums.iter().enumerate().take(num_inputs) {
                let out = &mut self.out.row(input + c)[row..row + height];
                for ((out, sum), scale) in out.iter_mut().zip(sums).zip(scales) {
                    *out += sum * scale;
                }
            }
        }
        num_inputs
    }

    /// R x C sums; where there are fewer rows or inputs, the last counts several times.
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const C: usize>(
        &self,
        simd: S,
        row: usize,
        height: usize,
        input: usize,
        num_inputs: usize,
    ) -> [[f32; R]; C] {
        let padded = self.inputs.padded;
        let count = padded / GROUP;
        let mut rows = [&[[0_u8; GROUP]; 0][..]; R];
        for (r, part) in rows.iter_mut().enumerate() {
            let bytes = &self.rows.bytes[(row + r.min(height - 1)) * padded..][..padded];
            *part = &bytes.as_chunks::<GROUP>().0[..count];
        }
        let mut inputs = [&[[0_i8; GROUP]; 0][..]; C];
        let mut starts = [&[[0_i32; LANES]; 0][..]; C];
        let mut scales = [&[0.0_f32; 0][..]; C];
        for c in 0..C {
            let at = input + c.min(num_inputs - 1);
            inputs[c] = &self.inputs.bytes[at * padded..].as_chunks::<GROUP>().0[..count];
            starts[c] = &self.inputs.starts[at * padded / 4..].as_chunks::<LANES>().0[..count];
            scales[c] = &self.inputs.scales[at * count..][..count];
        }
        let mut sums = [[simd.splat(0.0); R]; C];
        for k in 0..count {
            for c in 0..C {
                let scale = simd.splat(scales[c][k]);
                for r in 0..R {
                    if C == 1 {
                        // The next rows.
                        simd.prefetch(rows[r].as_ptr().wrapping_add(R * count + k));
                    }
                    let products = simd.dot_i8(&rows[r][k], &inputs[c][k], &starts[c][k]);
                    sums[c][r] = simd.mul_add(products, scale, sums[c][r]);
                }
            }
        }
        let mut out = [[0.0; R]; C];
        for c in 0..C {
            sum_all(simd, &sums[c], &mut out[c]);
        }
        out
    }
}
