//! What is attended to.

use super::super::dropout::DECIDED;
use super::super::numbers::Number;
use super::super::product::UNIT;
use super::{Head, Room, Rows, scatter, sized};
use crate::native::lanes::{LANES, Operands, Simd, Work};
use crate::native::math::exp;
use crate::native::shared::Columns;
use crate::native::tiles::{Product, Words};

/// One head.
pub(super) struct Forward<'a, N> {
    pub head: Head<'a>,
    /// Queries, keys, values.
    pub inputs: [Rows<'a, N>; 3],
    pub out: Columns<'a, N>,
    pub log_sums: &'a mut [f32],
    pub room: &'a mut Room,
}

impl<N: Number> Work for Forward<'_, N> {
    type Output = ();

    const OPERANDS: Operands = N::OPERANDS;

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
    let largest = simd.largest(largest);
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
