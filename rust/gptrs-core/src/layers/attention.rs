//! Causal attention of whole sequences, with dropout of its weights, and its gradient.
//!
//! ```text
//!  forward    scores = Q K^T             32 queries at a time, with all keys up to the last of them
//!             weights = softmax(scores)  ─► logarithm of each row's sum, for the gradient
//!             out = dropped(weights) V
//!  backward   weights again from scores and that sum, dropped again from the seed
//!             dV = dropped^T dO          dS = weights * (dropped(dO V^T) - rows' dO . out)
//!             dQ = dS K                  dK = dS^T Q
//! ```
//!
//! The way of FlashAttention-2 (Dao, 2023), without its running maximum: a row of scores is in cache whole.

mod backward;
mod forward;

use self::backward::Backward;
use self::forward::Forward;
use super::dropout::Dropout;
use super::for_each;
use super::numbers::Number;
use super::product::{UNIT, multiply, transpose};
use crate::native::Kernels;
use crate::native::lanes::{Found, Simd, dispatch};
use crate::native::shared::{Columns, split_heads};
use crate::native::tiles::{Product, ReadyTiles, Tiles, Words};

/// The last word of a counter of random numbers.
const DOMAIN: u32 = 1;

/// What the tensors' sides are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Sequences.
    pub batch: usize,
    /// Of each.
    pub heads: usize,
    /// Of each; every one sees itself and those before it.
    pub tokens: usize,
    /// Numbers of a token in a head.
    pub head_dim: usize,
}

/// A tensor to be read, `[batch, heads, tokens, head_dim]`, of which each token's numbers lie together.
#[derive(Debug, Clone, Copy)]
pub struct Heads<'a, N> {
    /// From the tensor's first number to its last.
    pub numbers: &'a [N],
    /// From one batch row, head and token to the next, in numbers.
    pub strides: [usize; 3],
}

/// How to attend.
#[derive(Debug, Clone, Copy)]
pub struct Attention {
    /// Of queries, keys and values.
    pub shape: Shape,
    /// Of the scores.
    pub scale: f32,
    /// Of the weights.
    pub dropout: Dropout,
    /// For which processor.
    pub kernels: Kernels,
    /// How many compute.
    pub threads: usize,
}

/// What `backward` gives, `[batch, tokens, heads, head_dim]` each.
#[derive(Debug)]
pub struct Gradients<'a, N> {
    /// That of the queries.
    pub query: &'a mut [N],
    /// That of the keys.
    pub key: &'a mut [N],
    /// That of the values.
    pub value: &'a mut [N],
}

/// Fills `out`, `[batch, tokens, heads, head_dim]`, and the logarithm of the sum of each row's exponentials,
/// `[batch, heads, tokens]`, which `backward` needs.
pub fn forward<N: Number>(
    attention: &Attention,
    [query, key, value]: [Heads<'_, N>; 3],
    out: &mut [N],
    log_sums: &mut [f32],
) {
    let Attention { shape, kernels, threads, .. } = *attention;
    if shape.tokens == 0 || shape.head_dim == 0 {
        return;
    }
    let found = kernels.found();
    let heads = split_heads(out, shape.tokens, shape.heads, shape.head_dim);
    let jobs = heads.into_iter().zip(log_sums.chunks_mut(shape.tokens)).enumerate();
    for_each(threads, jobs, Room::default, |room, (number, (out, log_sums))| {
        let inputs = [query, key, value].map(|tensor| tensor.head(shape, number));
        let head = Head::new(attention, number, found);
        dispatch(found, Forward { head, inputs, out, log_sums, room });
    });
}

/// Fills the gradients, of `forward`'s inputs and output, for that of its output.
pub fn backward<N: Number>(
    attention: &Attention,
    [query, key, value, out, grad]: [Heads<'_, N>; 5],
    log_sums: &[f32],
    gradients: Gradients<'_, N>,
) {
    let Attention { shape, kernels, threads, .. } = *attention;
    if shape.tokens == 0 || shape.head_dim == 0 {
        return;
    }
    let found = kernels.found();
    let split = |to| split_heads(to, shape.tokens, shape.heads, shape.head_dim).into_iter();
    let Gradients { query: to_query, key: to_key, value: to_value } = gradients;
    let jobs = split(to_query)
        .zip(split(to_key))
        .zip(split(to_value))
        .zip(log_sums.chunks(shape.tokens))
        .enumerate();
    for_each(threads, jobs, Room::default, |room, (number, (((dq, dk), dv), log_sums))| {
        let inputs = [query, key, value, out, grad].map(|tensor| tensor.head(shape, number));
        let head = Head::new(attention, number, found);
        dispatch(found, Backward { head, inputs, log_sums, to: [dq, dk, dv], room });
    });
}

impl<'a, N> Heads<'a, N> {
    fn head(self, shape: Shape, number: usize) -> Rows<'a, N> {
        let [batch, head, token] = self.strides;
        let start = number / shape.heads * batch + number % shape.heads * head;
        Rows { numbers: &self.numbers[start..], stride: token, width: shape.head_dim }
    }
}

/// A head's rows of a tensor.
#[derive(Clone, Copy)]
struct Rows<'a, N> {
    numbers: &'a [N],
    stride: usize,
    width: usize,
}

impl<'a, N> Rows<'a, N> {
    fn row(self, row: usize) -> &'a [N] {
        &self.numbers[row * self.stride..][..self.width]
    }
}

/// Which head, and how.
struct Head<'a> {
    attention: &'a Attention,
    /// Among all of all batch rows.
    number: u32,
    tokens: usize,
    /// `tokens` in whole units.
    padded: usize,
    /// The head's width in whole units.
    width: usize,
    /// From row to row where a token is a column: a power of two would put all rows of a tile into the
    /// same places of the cache.
    stride: usize,
    tiles: Option<ReadyTiles>,
}

impl<'a> Head<'a> {
    fn new(attention: &'a Attention, number: usize, found: Found) -> Self {
        let padded = attention.shape.tokens.next_multiple_of(UNIT);
        Self {
            attention,
            number: number as u32,
            tokens: attention.shape.tokens,
            padded,
            width: attention.shape.head_dim.next_multiple_of(UNIT),
            stride: padded + UNIT,
            tiles: found.tiles().map(Tiles::make_ready),
        }
    }

    #[inline(always)]
    fn multiply<S: Simd, N: Number>(&self, simd: S, product: Product<'_>) {
        multiply::<S, N>(simd, self.tiles.as_ref(), product);
    }

    /// The rows, and zeros in what is padded: `[padded tokens][width]`.
    #[inline(always)]
    fn gather<'r, N: Number>(&self, rows: Rows<'_, N>, room: &'r mut Vec<u32>) -> &'r [u32] {
        let words = sized(room, self.padded * self.width / N::PER_WORD);
        let numbers: &mut [N] = bytemuck::cast_slice_mut(words);
        for (row, place) in numbers.chunks_exact_mut(self.width).enumerate() {
            let count = if row < self.tokens { rows.width } else { 0 };
            if count > 0 {
                place[..count].copy_from_slice(rows.row(row));
            }
            place[count..].fill(N::zeroed());
        }
        words
    }

    /// Gathered rows as the right side of a product over their numbers: `[width / PER_WORD][stride]`.
    #[inline(always)]
    fn across<'r, S: Simd, N: Number>(
        &self,
        simd: S,
        words: &[u32],
        room: &'r mut Vec<u32>,
    ) -> Words<'r> {
        let columns = self.width / N::PER_WORD;
        let turned = sized(room, columns * self.stride);
        let from = Words { words, stride: columns };
        transpose(simd, from, [self.padded, columns], turned, self.stride);
        Words { words: turned, stride: self.stride }
    }

    /// Gathered rows as the right side of a product over the rows: `[padded tokens / PER_WORD][width]`.
    #[inline(always)]
    fn along<'r, N: Number>(&self, words: &[u32], room: &'r mut Vec<u32>) -> Words<'r> {
        let mixed = sized(room, self.padded / N::PER_WORD * self.width);
        let numbers: &[N] = bytemuck::cast_slice(words);
        let rows = numbers.chunks_exact(N::PER_WORD * self.width);
        for (rows, mixed) in rows.zip(mixed.chunks_exact_mut(self.width)) {
            N::interleave(rows, self.width, mixed);
        }
        Words { words: mixed, stride: self.width }
    }

    /// The same as the left side of such a product: `[width][stride / PER_WORD]`.
    #[inline(always)]
    fn upright<'r, S: Simd, N: Number>(
        &self,
        simd: S,
        along: Words<'_>,
        room: &'r mut Vec<u32>,
    ) -> Words<'r> {
        let stride = self.stride / N::PER_WORD;
        let turned = sized(room, self.width * stride);
        transpose(simd, along, [self.padded / N::PER_WORD, self.width], turned, stride);
        Words { words: turned, stride }
    }

    /// Rounded numbers of `UNIT` rows, `[UNIT][stride]`, of which `columns` are wanted, as the left side
    /// of a product over their columns.
    #[inline(always)]
    fn narrow<'r, N: Number>(
        &self,
        from: &[f32],
        columns: usize,
        room: &'r mut Vec<u32>,
    ) -> Words<'r> {
        let words = sized(room, UNIT * self.stride / N::PER_WORD);
        let rows = bytemuck::cast_slice_mut::<u32, N>(words).chunks_exact_mut(self.stride);
        for (row, from) in rows.zip(from.chunks_exact(self.stride)) {
            N::narrow(&from[..columns], &mut row[..columns]);
        }
        Words { words, stride: self.stride / N::PER_WORD }
    }

    /// What dropout makes of the weights that a query gives the `DECIDED` keys of a block.
    #[inline(always)]
    fn factors<S: Simd>(&self, simd: S, query: usize, block: usize) -> [S::F; 8] {
        let dropout = self.attention.dropout;
        if dropout.keeps_all() {
            return [simd.splat(1.0); 8];
        }
        dropout.factors(simd, block as u32, [query as u32, self.number, DOMAIN])
    }
}

/// The first `len` of a vector, which is made as long; their values may be anything.
#[inline(always)]
fn sized<T: bytemuck::Zeroable + Copy>(room: &mut Vec<T>, len: usize) -> &mut [T] {
    if room.len() < len {
        room.resize(len, T::zeroed());
    }
    &mut room[..len]
}

/// Writes rows, rounded, to their places.
#[inline(always)]
fn scatter<N: Number>(
    from: &[f32],
    stride: usize,
    rows: std::ops::Range<usize>,
    to: &mut Columns<'_, N>,
) {
    for (row, from) in rows.zip(from.chunks_exact(stride)) {
        let to = to.row(row);
        N::narrow(&from[..to.len()], to);
    }
}

/// What a thread needs on the way, in words and in sums.
#[derive(Debug, Default)]
struct Room {
    gathered: [Vec<u32>; 4],
    across: [Vec<u32>; 2],
    along: [Vec<u32>; 3],
    upright: [Vec<u32>; 2],
    narrowed: Vec<u32>,
    kept: [Vec<u32>; 2],
    scores: [Vec<f32>; 2],
    rows: Vec<f32>,
    grads: [Vec<f32>; 2],
    turned: Vec<u32>,
}
