//! Weights in eight bits: a scale for each row, and inputs in eight bits with a scale for each 64.
//!
//! ```text
//! weight = (byte - 128) * scale of the row          byte in 1..=255
//! input  = byte * scale of the group                byte in -127..=127
//!
//!            4 columns   the next 4         a block: 16 rows, lane l the l-th of them;
//!  row 0     b b b b  │  b b b b  │         what is multiplied with four bytes of an input
//!  row 1     b b b b  │  b b b b  │ ...     at once lies together: 64 bytes
//!  ...16     64 bytes │  64 bytes │
//! ```
//!
//! Products of unsigned weights and signed inputs are what processors have instructions for. The 128
//! that every weight has too much is taken off by a start of -128 times the inputs' sum: it is the
//! same for all rows. Sums within a group are whole numbers, so their order is no matter; groups are added
//! in order. A lane is a row, so nothing is ever summed across lanes.

mod product;

pub use product::MatMulI8;

use super::lanes::{Found, GROUP, LANES, Simd, Work, dispatch};
use super::math::filled;
use super::numbers::Bytes;
use super::weights::Matrix;
use crate::{Error, Result};

/// Bytes of a block for one group of columns.
pub const BLOCK_GROUP: usize = LANES * GROUP;

/// A matrix in eight bits.
#[derive(Debug)]
pub struct Packed {
    /// Block behind block, each filled up with 128 (0) to whole groups and sixteen rows.
    bytes: Bytes,
    /// One a row, also of those that fill up.
    scales: Vec<f32>,
    rows: usize,
    padded: usize,
}

impl Packed {
    /// How many bytes a matrix has.
    pub fn num_bytes(matrix: &Matrix) -> usize {
        matrix.rows.next_multiple_of(LANES) * matrix.columns.next_multiple_of(GROUP)
    }

    /// Rounds every weight to the nearest of the 255 that its row has, into these bytes, of which there are
    /// as many as `num_bytes` says; the scales.
    pub fn pack(matrix: &Matrix, all_bytes: &mut [u8], found: Found) -> Vec<f32> {
        let padded = matrix.columns.next_multiple_of(GROUP);
        let mut all_scales = vec![0.0; matrix.rows.next_multiple_of(LANES)];
        let mut wide = Vec::new();
        let mut row_bytes = vec![0; padded];
        let blocks = all_bytes.chunks_mut((LANES * padded).max(1));
        let scales = all_scales.as_chunks_mut::<LANES>().0;
        for (block, (bytes, scales)) in blocks.zip(scales).enumerate() {
            for (lane, scale) in scales.iter_mut().enumerate() {
                let row = block * LANES + lane;
                if row < matrix.rows {
                    let weights = matrix.row(row).widened(&mut wide);
                    dispatch(found, PackRow { weights, bytes: &mut row_bytes, scale });
                } else {
                    row_bytes.fill(128);
                }
                let places = bytes.as_chunks_mut::<4>().0.iter_mut().skip(lane).step_by(LANES);
                for (place, four) in places.zip(row_bytes.as_chunks::<4>().0) {
                    *place = *four;
                }
            }
        }
        all_scales
    }

    /// What `pack` gave, or `parts` of a copy of this matrix.
    ///
    /// # Errors
    /// `Setting`: they are of another size.
    pub fn of_parts(matrix: &Matrix, bytes: Bytes, scales: Vec<f32>) -> Result<Self> {
        let padded = matrix.columns.next_multiple_of(GROUP);
        let padded_rows = matrix.rows.next_multiple_of(LANES);
        let (found, expected) =
            ([bytes.get().len(), scales.len()], [padded_rows * padded, padded_rows]);
        if found != expected {
            let message = format!(
                "a matrix of {} x {} has {} bytes and {} scales, found {} and {}",
                matrix.rows, matrix.columns, expected[0], expected[1], found[0], found[1]
            );
            return Err(Error::Setting(message));
        }
        Ok(Self { bytes, scales, rows: matrix.rows, padded })
    }

    /// Its bytes, `[padded rows, padded columns]` of them, and a scale for each padded row.
    pub fn parts(&self) -> (&Bytes, &[f32]) {
        (&self.bytes, &self.scales)
    }

    /// Whether it may be a copy of this matrix.
    pub fn fits(&self, matrix: &Matrix) -> bool {
        (self.rows, self.padded) == (matrix.rows, matrix.columns.next_multiple_of(GROUP))
    }

    /// Neighbouring rows, from the first of a block on.
    pub fn rows(&self, rows: std::ops::Range<usize>) -> PackedRows<'_> {
        assert!(rows.start.is_multiple_of(LANES) && rows.end <= self.rows, "{rows:?}");
        let end = rows.end.next_multiple_of(LANES);
        PackedRows {
            bytes: &self.bytes.get()[rows.start * self.padded..end * self.padded],
            scales: &self.scales[rows.start..end],
            count: rows.len(),
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

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (chunks, tail) = self.weights.as_chunks::<LANES>();
        let tail: [f32; LANES] = filled(tail, 0.0);
        let [most, last] = [simd.magnitude(chunks), simd.magnitude(&[tail])];
        let factor;
        (*self.scale, factor) = scale_of(if last > most || last.is_nan() { last } else { most });
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
    /// Whole blocks.
    pub bytes: &'a [u8],
    /// Of all rows in them.
    pub scales: &'a [f32],
    /// How many rows are meant.
    pub count: usize,
}

impl<'a> PackedRows<'a> {
    /// The blocks' groups, one block's behind the other's: for every four columns sixteen rows.
    #[inline(always)]
    fn groups(&self) -> &'a [[[u8; GROUP]; LANES]] {
        self.bytes.as_chunks::<GROUP>().0.as_chunks::<LANES>().0
    }

    /// Each block's scales.
    #[inline(always)]
    fn block_scales(&self) -> &'a [[f32; LANES]] {
        self.scales.as_chunks::<LANES>().0
    }
}

/// What a byte stands for where numbers are no larger, and its reciprocal. Numbers that are none stay it.
#[inline(always)]
fn scale_of(magnitude: f32) -> (f32, f32) {
    match magnitude {
        0.0 => (0.0, 0.0),
        _ if magnitude > 0.0 => (magnitude / 127.0, 127.0 / magnitude),
        _ => (f32::NAN, 0.0),
    }
}

/// Inputs in eight bits, each filled up with zeros to whole groups.
#[derive(Debug, Clone, Copy)]
pub struct Quantized<'a> {
    pub bytes: &'a [i8],
    /// One a group: -128 times the sum of its bytes.
    pub starts: &'a [i32],
    /// One a group.
    pub scales: &'a [f32],
    /// Bytes an input.
    pub padded: usize,
}

/// One of them, group by group.
#[derive(Debug, Clone, Copy)]
struct Input<'a> {
    groups: &'a [[[i8; 4]; LANES]],
    starts: &'a [i32],
    scales: &'a [f32],
}

impl<'a> Quantized<'a> {
    #[inline(always)]
    fn row(&self, row: usize) -> Input<'a> {
        let count = self.padded / GROUP;
        let bytes = &self.bytes[row * self.padded..][..self.padded];
        Input {
            groups: bytes.as_chunks::<4>().0.as_chunks::<LANES>().0,
            starts: &self.starts[row * count..][..count],
            scales: &self.scales[row * count..][..count],
        }
    }
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

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (bytes, _) = self.bytes.as_chunks_mut::<GROUP>();
        let groups = bytes.iter_mut().zip(self.starts).zip(self.scales);
        for (x, ((bytes, start), place)) in self.x.chunks(GROUP).zip(groups) {
            let room;
            let x = if let Some(whole) = x.first_chunk::<GROUP>() {
                whole
            } else {
                room = filled(x, 0.0);
                &room
            };
            let (quarters, _) = x.as_chunks::<LANES>();
            let (scale, factor) = scale_of(simd.magnitude(quarters));
            *place = scale;
            let mut sum = simd.splat(0.0);
            for (x, bytes) in quarters.iter().zip(bytes.as_chunks_mut::<LANES>().0) {
                let x = simd.round(simd.mul(simd.load(x), simd.splat(factor)));
                *bytes = simd.to_i8(x);
                sum = simd.add(sum, x);
            }
            // Whole numbers, and small ones: exact as floats. What is none counts as its byte, zero.
            *start = -128 * simd.sum(sum) as i32;
        }
    }
}
