//! The gradients.

use super::super::dropout::DECIDED;
use super::super::numbers::Number;
use super::super::product::{UNIT, transpose};
use super::{Head, Room, Rows, scatter, sized};
use crate::native::lanes::{LANES, Operands, Simd, Work};
use crate::native::math::{exp, filled};
use crate::native::shared::Columns;
use crate::native::tiles::{Product, Words};

/// Queries whose weights are kept for dK and dV: with 1,024 keys, 1 MB in bfloat16.
const KEPT_QUERIES: usize = 256;

/// One head.
pub(super) struct Backward<'a, N> {
    pub head: Head<'a>,
    /// Queries, keys, values, outputs, and the gradient of these.
    pub inputs: [Rows<'a, N>; 5],
    pub log_sums: &'a [f32],
    /// The gradients of queries, keys and values.
    pub to: [Columns<'a, N>; 3],
    pub room: &'a mut Room,
}

/// The inputs as sides of products.
struct Sides<'a> {
    queries: &'a [u32],
    grads: &'a [u32],
    keys_across: Words<'a>,
    values_across: Words<'a>,
    keys_along: Words<'a>,
    queries_upright: Words<'a>,
    grads_upright: Words<'a>,
}

/// Weights, dropped, and gradients of the scores: of `UNIT` queries as sums, and as words of all that are
/// kept, the right sides of products over queries.
struct Rounds<'a> {
    weights: &'a mut [f32],
    slopes: &'a mut [f32],
    kept_weights: &'a mut [u32],
    kept_slopes: &'a mut [u32],
    narrowed: &'a mut Vec<u32>,
    rows: &'a mut [f32],
}

impl<N: Number> Work for Backward<'_, N> {
    type Output = ();

    const OPERANDS: Operands = N::OPERANDS;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { head, inputs, log_sums, to: [mut to_query, to_key, to_value], room } = self;
        let Head { tokens, padded, width, stride, .. } = head;
        let Room { gathered, across, along, upright, scores, kept, grads, .. } = room;
        let sides = sides::<S, N>(simd, &head, &inputs, gathered, across, along, upright);
        let num_kept = KEPT_QUERIES.min(padded);
        let [weights, slopes] = scores.each_mut().map(|room| sized(room, UNIT * stride));
        let kept_words = num_kept / N::PER_WORD * stride;
        let [kept_weights, kept_slopes] = kept.each_mut().map(|room| sized(room, kept_words));
        let rows = sized(&mut room.rows, UNIT * width);
        let narrowed = &mut room.narrowed;
        let mut rounds = Rounds { weights, slopes, kept_weights, kept_slopes, narrowed, rows };
        let [key_grads, value_grads] = grads.each_mut().map(|room| sized(room, width * stride));
        for start in (0..padded).step_by(num_kept) {
            let end = padded.min(start + num_kept);
            for first in (start..end).step_by(UNIT) {
                let place = (first - start) / N::PER_WORD * stride;
                rounds.fill::<S, N>(simd, &head, &sides, &inputs, log_sums, [first, place]);
                scatter(rounds.rows, width, first..tokens.min(first + UNIT), &mut to_query);
            }
            for (left, right, out) in [
                (sides.grads_upright, &*rounds.kept_weights, &mut *value_grads),
                (sides.queries_upright, &*rounds.kept_slopes, &mut *key_grads),
            ] {
                add_over_queries::<S, N>(simd, &head, left, right, start..end, out);
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

#[inline(always)]
fn sides<'r, S: Simd, N: Number>(
    simd: S,
    head: &Head<'_>,
    [query, key, value, _, grad]: &[Rows<'_, N>; 5],
    [query_room, key_room, value_room, grad_room]: &'r mut [Vec<u32>; 4],
    [key_across, value_across]: &'r mut [Vec<u32>; 2],
    [key_rows, query_rows, grad_rows]: &'r mut [Vec<u32>; 3],
    [query_upright, grad_upright]: &'r mut [Vec<u32>; 2],
) -> Sides<'r> {
    let queries = head.gather(*query, query_room);
    let keys = head.gather(*key, key_room);
    let values = head.gather(*value, value_room);
    let grads = head.gather(*grad, grad_room);
    let queries_along = head.along::<N>(queries, query_rows);
    let grads_along = head.along::<N>(grads, grad_rows);
    Sides {
        queries,
        grads,
        keys_across: head.across::<S, N>(simd, keys, key_across),
        values_across: head.across::<S, N>(simd, values, value_across),
        keys_along: head.along::<N>(keys, key_rows),
        queries_upright: head.upright::<S, N>(simd, queries_along, query_upright),
        grads_upright: head.upright::<S, N>(simd, grads_along, grad_upright),
    }
}

impl Rounds<'_> {
    /// For the queries from `first` on: both kinds of words, from `place` on, and the queries' gradients.
    #[inline(always)]
    fn fill<S: Simd, N: Number>(
        &mut self,
        simd: S,
        head: &Head<'_>,
        sides: &Sides<'_>,
        [_, _, _, out, grad]: &[Rows<'_, N>; 5],
        log_sums: &[f32],
        [first, place]: [usize; 2],
    ) {
        let (width, stride) = (head.width, head.stride);
        let num_keys = first + UNIT;
        let depth = width / N::PER_WORD;
        for (left, right, out) in [
            (sides.queries, sides.keys_across, &mut *self.weights),
            (sides.grads, sides.values_across, &mut *self.slopes),
        ] {
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
        let both = self.weights.chunks_exact_mut(stride).zip(self.slopes.chunks_exact_mut(stride));
        for (query, (weights, slopes)) in (first..).zip(both) {
            let (weights, slopes) = (&mut weights[..num_keys], &mut slopes[..num_keys]);
            if query < head.tokens {
                let dot = dot(simd, out.row(query), grad.row(query));
                differentiate(simd, head, query, [log_sums[query], dot], [weights, slopes]);
            } else {
                weights.fill(0.0);
                slopes.fill(0.0);
            }
        }
        let words = head.narrow::<N>(self.weights, num_keys, self.narrowed);
        keep::<N>(words, num_keys, stride, &mut self.kept_weights[place..]);
        let words = head.narrow::<N>(self.slopes, num_keys, self.narrowed);
        keep::<N>(words, num_keys, stride, &mut self.kept_slopes[place..]);
        head.multiply::<S, N>(
            simd,
            Product {
                left: words,
                right: sides.keys_along,
                out: self.rows,
                out_stride: width,
                rows: UNIT,
                columns: width,
                depth: num_keys / N::PER_WORD,
                adds: false,
            },
        );
    }
}

/// Adds products over some queries to sums of keys, `[width][stride]`. Keys from before these queries have
/// sums already; the others' begin where queries see them.
#[inline(always)]
fn add_over_queries<S: Simd, N: Number>(
    simd: S,
    head: &Head<'_>,
    left: Words<'_>,
    right: &[u32],
    queries: std::ops::Range<usize>,
    out: &mut [f32],
) {
    let stride = head.stride;
    for column in (0..queries.end).step_by(UNIT) {
        let from = column.max(queries.start);
        let place = (from - queries.start) / N::PER_WORD * stride + column;
        head.multiply::<S, N>(
            simd,
            Product {
                left: Words { words: &left.words[from / N::PER_WORD..], ..left },
                right: Words { words: &right[place..], stride },
                out: &mut out[column..],
                out_stride: stride,
                rows: head.width,
                columns: UNIT,
                depth: (queries.end - from) / N::PER_WORD,
                adds: column < queries.start,
            },
        );
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
