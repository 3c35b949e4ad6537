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

use super::dropout::{DECIDED, Dropout};
use super::for_each;
use super::numbers::Number;
use super::product::{Product, UNIT, Words, multiply, transpose};
use crate::native::Kernels;
use crate::native::lanes::{Found, LANES, Simd, Work, dispatch};
use crate::native::math::{exp, filled, largest_of};
use crate::native::shared::{Columns, split_heads};
use crate::native::tiles::{ReadyTiles, Tiles};

/// Queries whose weights are kept for dK and dV: with 1,024 keys, 1 MB in bfloat16.
const KEPT_QUERIES: usize = 256;
/// The last word of a counter of random numbers.
const DOMAIN: u32 = 1;

/// What the tensors' sides are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    pub batch: usize,
    pub heads: usize,
    pub tokens: usize,
    pub head_dim: usize,
}

/// A tensor to be read, `[batch, heads, tokens, head_dim]`, of which each token's numbers lie together.
#[derive(Debug, Clone, Copy)]
pub struct Heads<'a, N> {
    pub numbers: &'a [N],
    /// From one batch row, head and token to the next, in numbers.
    pub strides: [usize; 3],
}

/// How to attend.
#[derive(Debug, Clone, Copy)]
pub struct Attention {
    pub shape: Shape,
    /// Of the scores.
    pub scale: f32,
    pub dropout: Dropout,
    pub kernels: Kernels,
    pub threads: usize,
}

/// What `backward` gives, `[batch, tokens, heads, head_dim]` each.
#[derive(Debug)]
pub struct Gradients<'a, N> {
    pub query: &'a mut [N],
    pub key: &'a mut [N],
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

struct Forward<'a, N> {
    head: Head<'a>,
    /// Queries, keys, values.
    inputs: [Rows<'a, N>; 3],
    out: Columns<'a, N>,
    log_sums: &'a mut [f32],
    room: &'a mut Room,
}

impl<N: Number> Work for Forward<'_, N> {
    type Output = ();
    const HAS_BYTES: bool = false;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { head, inputs: [query, key, value], mut out, log_sums, room } = self;
        let Head { tokens, width, stride, .. } = head;
        let [first_room, second_room, ..] = &mut room.gathered;
        let keys = head.gather(key, first_room);
        let keys = head.across::<S, N>(simd, keys, &mut room.across[0]);
        let values = head.gather(value, first_room);
        let values = head.along::<N>(values, &mut room.along[0]);
        let queries = head.gather(query, second_room);
        let depth = width / N::PER_WORD;
        let scores = sized(&mut room.scores[0], UNIT * stride);
        let rows = sized(&mut room.rows, UNIT * width);
        for first in (0..tokens).step_by(UNIT) {
            let num_keys = first + UNIT;
            head.multiply::<S, N>(
                simd,
                Product {
                    left: Words { words: &queries[first * depth..], stride: depth },
                    right: keys,
                    out: scores,
                    out_stride: stride,
                    rows: UNIT,
                    columns: num_keys,
                    depth,
                    adds: false,
                },
            );
            let queries = first..tokens.min(num_keys);
            for (query, scores) in queries.clone().zip(scores.chunks_exact_mut(stride)) {
                log_sums[query] = weigh(simd, &head, query, &mut scores[..num_keys]);
            }
            let weights = head.narrow::<N>(scores, num_keys, &mut room.narrowed);
            head.multiply::<S, N>(
                simd,
                Product {
                    left: weights,
                    right: values,
                    out: rows,
                    out_stride: width,
                    rows: UNIT,
                    columns: width,
                    depth: num_keys / N::PER_WORD,
                    adds: false,
                },
            );
            scatter(rows, width, queries, &mut out);
        }
    }
}

/// A query's scores become its weights, dropped: those of later keys zero. The logarithm of their sum.
#[inline(always)]
fn weigh<S: Simd>(simd: S, head: &Head<'_>, query: usize, scores: &mut [f32]) -> f32 {
    let scale = head.attention.scale;
    let seen = query + 1;
    let count = seen.div_ceil(LANES);
    // Up to whole lanes, what is not seen has the weight zero, or nearly: e^-87.
    scores[seen..count * LANES].fill(f32::NEG_INFINITY);
    let chunks = &mut scores.as_chunks_mut::<LANES>().0[..count];
    let mut largest = simd.splat(f32::NEG_INFINITY);
    for chunk in &mut *chunks {
        let scaled = simd.mul(simd.load(chunk), simd.splat(scale));
        largest = simd.max(largest, scaled);
        simd.store(scaled, chunk);
    }
    let largest = largest_of(simd, largest);
    let mut sum = simd.splat(0.0);
    for chunk in &mut *chunks {
        let y = exp(simd, simd.add(simd.load(chunk), simd.splat(-largest)));
        sum = simd.add(sum, y);
        simd.store(y, chunk);
    }
    let sum = simd.sum(sum);
    let share = simd.splat(1.0 / sum);
    for (block, chunks) in chunks.chunks_mut(DECIDED / LANES).enumerate() {
        let factors = head.factors(simd, query, block);
        for (chunk, factors) in chunks.iter_mut().zip(factors) {
            let weight = simd.mul(simd.load(chunk), share);
            simd.store(simd.mul(weight, factors), chunk);
        }
    }
    scores[seen..].fill(0.0);
    largest + sum.ln()
}

struct Backward<'a, N> {
    head: Head<'a>,
    /// Queries, keys, values, outputs, and the gradient of these.
    inputs: [Rows<'a, N>; 5],
    log_sums: &'a [f32],
    /// The gradients of queries, keys and values.
    to: [Columns<'a, N>; 3],
    room: &'a mut Room,
}

impl<N: Number> Work for Backward<'_, N> {
    type Output = ();
    const HAS_BYTES: bool = false;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { head, inputs: [query, key, value, out, grad], log_sums, to, room } = self;
        let [mut to_query, to_key, to_value] = to;
        let Head { tokens, padded, width, stride, .. } = head;
        let [query_room, key_room, value_room, grad_room] = &mut room.gathered;
        let queries = head.gather(query, query_room);
        let keys = head.gather(key, key_room);
        let values = head.gather(value, value_room);
        let grads = head.gather(grad, grad_room);
        let [room_0, room_1] = &mut room.across;
        let keys_across = head.across::<S, N>(simd, keys, room_0);
        let values_across = head.across::<S, N>(simd, values, room_1);
        let [room_0, room_1, room_2] = &mut room.along;
        let keys_along = head.along::<N>(keys, room_0);
        let queries_along = head.along::<N>(queries, room_1);
        let grads_along = head.along::<N>(grads, room_2);
        let [room_0, room_1] = &mut room.upright;
        let queries_upright = head.upright::<S, N>(simd, queries_along, room_0);
        let grads_upright = head.upright::<S, N>(simd, grads_along, room_1);

        let kept = KEPT_QUERIES.min(padded);
        let depth = width / N::PER_WORD;
        let [weights, slopes] = room.scores.each_mut().map(|room| sized(room, UNIT * stride));
        let kept_words = kept / N::PER_WORD * stride;
        let [kept_weights, kept_slopes] = room.kept.each_mut().map(|room| sized(room, kept_words));
        let [key_grads, value_grads] =
            room.grads.each_mut().map(|room| sized(room, width * stride));
        let rows = sized(&mut room.rows, UNIT * width);
        for start in (0..padded).step_by(kept) {
            let end = padded.min(start + kept);
            for first in (start..end).step_by(UNIT) {
                let num_keys = first + UNIT;
                for (left, right, out) in
                    [(queries, keys_across, &mut *weights), (grads, values_across, &mut *slopes)]
                {
                    head.multiply::<S, N>(
                        simd,
                        Product {
                            left: Words { words: &left[first * depth..], stride: depth },
                            right,
                            out,
                            out_stride: stride,
                            rows: UNIT,
                            columns: num_keys,
                            depth,
                            adds: false,
                        },
                    );
                }
                let both = weights.chunks_exact_mut(stride).zip(slopes.chunks_exact_mut(stride));
                for (query, (weights, slopes)) in (first..).zip(both) {
                    let both = [&mut weights[..num_keys], &mut slopes[..num_keys]];
                    if query < tokens {
                        let dot = dot(simd, out.row(query), grad.row(query));
                        differentiate(simd, &head, query, [log_sums[query], dot], both);
                    } else {
                        both.map(|row| row.fill(0.0));
                    }
                }
                let place = (first - start) / N::PER_WORD * stride..;
                let words = head.narrow::<N>(weights, num_keys, &mut room.narrowed);
                keep::<N>(words, num_keys, stride, &mut kept_weights[place.clone()]);
                let words = head.narrow::<N>(slopes, num_keys, &mut room.narrowed);
                keep::<N>(words, num_keys, stride, &mut kept_slopes[place]);
                head.multiply::<S, N>(
                    simd,
                    Product {
                        left: words,
                        right: keys_along,
                        out: rows,
                        out_stride: width,
                        rows: UNIT,
                        columns: width,
                        depth: num_keys / N::PER_WORD,
                        adds: false,
                    },
                );
                scatter(rows, width, first..tokens.min(num_keys), &mut to_query);
            }
            for (left, right, out) in [
                (grads_upright, &*kept_weights, &mut *value_grads),
                (queries_upright, &*kept_slopes, &mut *key_grads),
            ] {
                // Keys from before have sums already; the others' begin where queries see them.
                for column in (0..end).step_by(UNIT) {
                    let from = column.max(start);
                    head.multiply::<S, N>(
                        simd,
                        Product {
                            left: Words { words: &left.words[from / N::PER_WORD..], ..left },
                            right: Words {
                                words: &right[(from - start) / N::PER_WORD * stride + column..],
                                stride,
                            },
                            out: &mut out[column..],
                            out_stride: stride,
                            rows: width,
                            columns: UNIT,
                            depth: (end - from) / N::PER_WORD,
                            adds: column < start,
                        },
                    );
                }
            }
        }
        let turned = sized(&mut room.turned, padded * width);
        for (grads, mut to) in [(key_grads, to_key), (value_grads, to_value)] {
            let from = Words { words: bytemuck::cast_slice(grads), stride };
            transpose(simd, from, [width, padded], turned, width);
            scatter(bytemuck::cast_slice(turned), width, 0..tokens, &mut to);
        }
    }
}

/// A query's scores become its weights, dropped, and the gradient of what these were before becomes that of
/// the scores; both zero for later keys.
#[inline(always)]
fn differentiate<S: Simd>(
    simd: S,
    head: &Head<'_>,
    query: usize,
    [log_sum, dot]: [f32; 2],
    [weights, slopes]: [&mut [f32]; 2],
) {
    let scale = simd.splat(head.attention.scale);
    let seen = query + 1;
    let count = seen.div_ceil(LANES);
    let weight_blocks = weights.as_chunks_mut::<LANES>().0[..count].chunks_mut(DECIDED / LANES);
    let slope_blocks = slopes.as_chunks_mut::<LANES>().0[..count].chunks_mut(DECIDED / LANES);
    for (block, (weights, slopes)) in weight_blocks.zip(slope_blocks).enumerate() {
        let factors = head.factors(simd, query, block);
        for ((weights, slopes), factors) in weights.iter_mut().zip(slopes).zip(factors) {
            let scores = simd.mul_add(simd.load(weights), scale, simd.splat(-log_sum));
            let weight = exp(simd, scores);
            let slope = simd.mul_add(simd.load(slopes), factors, simd.splat(-dot));
            simd.store(simd.mul(weight, factors), weights);
            simd.store(simd.mul(simd.mul(weight, slope), scale), slopes);
        }
    }
    weights[seen..].fill(0.0);
    slopes[seen..].fill(0.0);
}

/// Rows of words, as `narrow` gives them, as the right side of a product over the rows.
#[inline(always)]
fn keep<N: Number>(from: Words<'_>, columns: usize, stride: usize, to: &mut [u32]) {
    let numbers: &[N] = bytemuck::cast_slice(from.words);
    let rows = numbers.chunks_exact(N::PER_WORD * stride);
    for (rows, to) in rows.zip(to.chunks_exact_mut(stride)) {
        N::interleave(rows, stride, &mut to[..columns]);
    }
}

/// The product of two rows.
#[inline(always)]
fn dot<S: Simd, N: Number>(simd: S, a: &[N], b: &[N]) -> f32 {
    let ((chunks, tail), (others, other_tail)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut sum = simd.splat(0.0);
    for (a, b) in chunks.iter().zip(others) {
        sum = simd.mul_add(N::load(simd, a), N::load(simd, b), sum);
    }
    if !tail.is_empty() {
        let (a, b) = (filled(tail, N::zeroed()), filled(other_tail, N::zeroed()));
        sum = simd.mul_add(N::load(simd, &a), N::load(simd, &b), sum);
    }
    simd.sum(sum)
}
