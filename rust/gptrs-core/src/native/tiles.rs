//! Products on tiles, by AMX: sixteen rows times sixteen inputs with one instruction.
//!
//! ```text
//!  bfloat16     weights, as they lie: [16 rows][32 columns]
//!               inputs, packed:       [16 pairs of columns][16 inputs]     ─► sums [16 rows][16 inputs]
//!  eight bits   inputs, as they lie:  [16 inputs][64 columns]
//!               weights, packed:      [16 times 4 columns][16 rows]        ─► sums [16 inputs][16 rows]
//! ```
//!
//! Every sum is made by the same instructions in the same order, whatever its neighbours in the tile are:
//! a token's numbers are the same bits alone or among others. In bfloat16, inputs are rounded to it, as
//! PyTorch does; in eight bits, sums are the very ones of `int8`.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
mod none;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub use self::amx::{ReadyTiles, Tiles};
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
pub use self::none::{ReadyTiles, Tiles};

use half::bf16;

use super::numbers::FloatType;
use super::shared::Columns;
use super::weights::Matrix;

/// Rows of a tile, and inputs.
pub const SIDE: usize = 16;
/// Columns of a tile of bfloat16.
pub const DEPTH: usize = 32;

/// Whether tiles can multiply a matrix of bfloat16 as it lies.
pub fn fit(matrix: &Matrix) -> bool {
    matrix.numbers.dtype() == FloatType::Bf16
        && matrix.columns.is_multiple_of(DEPTH)
        && matrix.rows >= SIDE
}

/// `out[t][r] += matrix[rows][r] . inputs[t]`.
pub struct MatMulBf16<'a> {
    /// All rows of the matrix.
    pub matrix: &'a [bf16],
    pub columns: usize,
    /// Which of them.
    pub rows: std::ops::Range<usize>,
    /// Sixteen behind sixteen, as `ReadyTiles::pack` leaves them: `[columns / 2][SIDE]` pairs.
    pub inputs: &'a [u32],
    pub num_inputs: usize,
    pub out: Columns<'a>,
}

/// A matrix of words, or a part of one: each is one float32, or two bfloat16 that are neighbours in a sum.
#[derive(Debug, Clone, Copy)]
pub struct Words<'a> {
    pub words: &'a [u32],
    /// From one row to the next.
    pub stride: usize,
}

/// `out`, `[rows][columns]`, becomes or is added `left` times `right`, over `depth` words.
///
/// Rows and columns come in 32, the depth in 16 words.
pub struct Product<'a> {
    pub left: Words<'a>,
    pub right: Words<'a>,
    pub out: &'a mut [f32],
    pub out_stride: usize,
    pub rows: usize,
    pub columns: usize,
    pub depth: usize,
    pub adds: bool,
}
