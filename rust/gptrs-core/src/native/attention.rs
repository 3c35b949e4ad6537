//! Attention of one head: new keys and values go into the cache, then every new token looks back.
//!
//! Four queries share what is loaded for them. Each gets its own sums in its own order, so it is the same
//! bits whether it comes alone or among others.

#![allow(clippy::needless_range_loop, reason = "loops over registers, which iterators hide")]

use std::ops::Range;

use super::cache::{HeadCache, PAIR, Pair};
use super::lanes::{LANES, Simd, Work, padded};
use super::math::{filled, softmax};
use super::shared::Columns;

/// Queries that are computed side by side.
pub const TOGETHER: usize = 4;

/// Sixteens of keys that are computed side by side for one query; half as many for several.
const BLOCKS: usize = 4;
/// How many bytes before their turn the memory is asked for keys and values, a cache line at a time.
const AHEAD: usize = 2048;
const LINE: usize = 64;

/// Cosines and sines of one position, half a head of each.
#[derive(Debug, Clone, Copy)]
pub struct Turn<'a> {
    pub cos: &'a [f32],
    pub sin: &'a [f32],
}

/// One head's new tokens.
pub struct Attend<'a> {
    pub cache: HeadCache<'a>,
    /// A head's width in the cache.
    pub width: usize,
    /// And its own.
    pub head_dim: usize,
    /// How many tokens the slot has already.
    pub start: usize,
    /// Of the new tokens: query, key and value of this head; token t's lie at t * `stride`.
    pub qkv: [&'a [f32]; 3],
    pub stride: usize,
    pub count: usize,
    /// The model's angles, `[positions][head_dim / 2]` of cosines and of sines; none: nothing turns.
    pub turns: Option<Turn<'a>>,
    /// Of the scores.
    pub scale: f32,
    /// What distances take off the scores.
    pub slope: f32,
    /// `[count][head_dim]`.
    pub out: Columns<'a>,
    pub room: &'a mut Room,
}

/// What a thread needs on the way.
#[derive(Debug, Default)]
pub struct Room {
    /// `[TOGETHER][context]`.
    scores: Vec<f32>,
    /// `[TOGETHER][width]`.
    queries: Vec<f32>,
    turned: Vec<f32>,
}

impl Room {
    /// For so many tokens: no token asks for memory.
    pub fn new(context: usize) -> Self {
        Self { scores: Vec::with_capacity(TOGETHER * padded(context)), ..Self::default() }
    }
}

impl Work for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let cache = std::mem::replace(&mut self.cache, HeadCache::F32([&mut [], &mut []]));
        match cache {
            HeadCache::F32([keys, values]) => {
                self.append(keys, values);
                self.look_back(simd, keys, values);
            }
            HeadCache::Bf16([keys, values]) => {
                self.append(keys, values);
                self.look_back(simd, keys, values);
            }
        }
    }
}

impl Attend<'_> {
    /// Writes keys, turned, and values.
    #[inline(always)]
    fn append<P: Pair>(&mut self, keys: &mut [P], values: &mut [P]) {
        let mut turned = std::mem::take(&mut self.room.turned);
        turned.resize(self.head_dim, 0.0);
        for t in 0..self.count {
            let at = self.start + t;
            let [_, key, value] = self.parts(t);
            let key = self.turned(t, key, &mut turned);
            let block = self.block(at / LANES);
            for (pair, two) in keys[block].iter_mut().zip(key.chunks(2)) {
                pair.set(at % LANES, filled(two, 0.0));
            }
            let length = self.width / PAIR;
            let pairs = &mut values[at * length..(at + 1) * length];
            for (pair, numbers) in pairs.iter_mut().zip(value.chunks(PAIR)) {
                let room: [f32; PAIR];
                let numbers = if let Some(whole) = numbers.first_chunk::<PAIR>() {
                    whole
                } else {
                    room = filled(numbers, 0.0);
                    &room
                };
                let (halves, _) = numbers.as_chunks::<LANES>();
                *pair = P::of([&halves[0], &halves[1]]);
            }
        }
        self.room.turned = turned;
    }

    /// Where the numbers of sixteen keys lie.
    #[inline(always)]
    fn block(&self, block: usize) -> Range<usize> {
        let start = block * self.width / 2;
        start..start + self.head_dim.div_ceil(2)
    }

    #[inline(always)]
    fn parts(&self, t: usize) -> [&[f32]; 3] {
        let at = t * self.stride;
        let [query, key, value] = self.qkv;
        [
            &query[at..at + self.head_dim],
            &key[at..at + self.head_dim],
            &value[at..at + self.head_dim],
        ]
    }

    /// A query or a key, turned by the angles of its position: number i with number i + half.
    #[inline(always)]
    fn turned<'b>(&self, t: usize, x: &'b [f32], out: &'b mut [f32]) -> &'b [f32] {
        let Some(turns) = self.turns else { return x };
        let half = self.head_dim / 2;
        let at = (self.start + t) * half;
        let (cos, sin) = (&turns.cos[at..at + half], &turns.sin[at..at + half]);
        for i in 0..half {
            out[i] = x[i] * cos[i] - x[i + half] * sin[i];
            out[i + half] = x[i + half] * cos[i] + x[i] * sin[i];
        }
        out
    }

    #[inline(always)]
    fn look_back<S: Simd, P: Pair>(&mut self, simd: S, keys: &[P], values: &[P]) {
        let longest = self.start + self.count;
        let mut room = std::mem::take(self.room);
        let Room { scores, queries, turned } = &mut room;
        queries.resize(TOGETHER * self.width, 0.0);
        turned.resize(self.head_dim, 0.0);
        scores.resize(scores.len().max(TOGETHER * padded(longest)), 0.0);
        let mut t = 0;
        while t < self.count {
            if t + TOGETHER <= self.count {
                self.queries::<S, P, TOGETHER>(simd, t, keys, values, &mut room);
                t += TOGETHER;
            } else {
                self.queries::<S, P, 1>(simd, t, keys, values, &mut room);
                t += 1;
            }
        }
        *self.room = room;
    }

    /// C queries from token `t` on.
    #[inline(always)]
    fn queries<S: Simd, P: Pair, const C: usize>(
        &mut self,
        simd: S,
        t: usize,
        keys: &[P],
        values: &[P],
        Room { scores, queries, turned }: &mut Room,
    ) {
        let (width, head_dim) = (self.width, self.head_dim);
        for c in 0..C {
            let [query, ..] = self.parts(t + c);
            let place = &mut queries[c * width..c * width + head_dim];
            let query = self.turned(t + c, query, turned);
            for (place, &x) in place.iter_mut().zip(query) {
                *place = x * self.scale;
            }
        }
        // The last of them sees most.
        let seen = self.start + t + C;
        let stride = scores.len() / TOGETHER;
        let mut rows = [&queries[..0]; C];
        for (c, row) in rows.iter_mut().enumerate() {
            *row = &queries[c * width..(c + 1) * width];
        }
        self.score(simd, keys, seen, rows, scores);
        let mut factors = [0.0; C];
        for (c, row) in scores.chunks_exact_mut(stride).take(C).enumerate() {
            let last = self.start + t + c;
            if self.slope != 0.0 {
                for (s, score) in row[..=last].iter_mut().enumerate() {
                    *score -= self.slope * (last - s) as f32;
                }
            }
            factors[c] = 1.0 / softmax(simd, row, last + 1);
        }
        let mut weights = [&scores[..0]; C];
        for (c, row) in scores.chunks_exact(stride).take(C).enumerate() {
            weights[c] = &row[..=self.start + t + c];
        }
        let mut from = 0;
        let length = width / PAIR;
        while from < length {
            // Four sums are on their way at once, whatever the head's width.
            from += match length - from {
                1 => self.mix::<S, P, C, 1, 2>(simd, t, from, weights, factors, values),
                _ => self.mix::<S, P, C, 2, 1>(simd, t, from, weights, factors, values),
            };
        }
    }

    /// Scores of C queries with the first keys, sixteen by sixteen.
    #[inline(always)]
    fn score<S: Simd, P: Pair, const C: usize>(
        &self,
        simd: S,
        keys: &[P],
        seen: usize,
        queries: [&[f32]; C],
        scores: &mut [f32],
    ) {
        let count = seen.div_ceil(LANES);
        let mut block = 0;
        while block < count {
            block += match count - block {
                1 => self.blocks::<S, P, C, 1>(simd, keys, block, queries, scores),
                BLOCKS.. if C == 1 => {
                    self.blocks::<S, P, C, BLOCKS>(simd, keys, block, queries, scores)
                }
                _ => self.blocks::<S, P, C, 2>(simd, keys, block, queries, scores),
            };
        }
    }

    /// Scores of C queries with B times sixteen keys: B. Every other product belongs to the one and the
    /// other of two partial sums.
    #[inline(always)]
    fn blocks<S: Simd, P: Pair, const C: usize, const B: usize>(
        &self,
        simd: S,
        keys: &[P],
        block: usize,
        queries: [&[f32]; C],
        scores: &mut [f32],
    ) -> usize {
        let mut blocks = [&keys[..0]; B];
        for b in 0..B {
            blocks[b] = &keys[self.block(block + b)];
        }
        let length = blocks[0].len();
        let queries = queries.map(|query| &query.as_chunks::<2>().0[..length]);
        let mut sums = [[[simd.splat(0.0); 2]; B]; C];
        for d in 0..length {
            let mut keys = [[simd.splat(0.0); 2]; B];
            for b in 0..B {
                ask_ahead::<S, P, C>(simd, &blocks[b][d]);
                keys[b] = blocks[b][d].load(simd);
            }
            for c in 0..C {
                for half in 0..2 {
                    let query = simd.splat(queries[c][d][half]);
                    for b in 0..B {
                        sums[c][b][half] = simd.mul_add(keys[b][half], query, sums[c][b][half]);
                    }
                }
            }
        }
        let stride = scores.len() / TOGETHER;
        for c in 0..C {
            let row = &mut scores[c * stride + block * LANES..][..B * LANES];
            for (b, place) in row.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
                simd.store(simd.add(sums[c][b][0], sums[c][b][1]), place);
            }
        }
        B
    }

    /// Weighted sums of the values' pairs from `from` on, J of them, which it returns. Value s belongs to
    /// partial sum s mod G; at the end they are added from the first to the last.
    #[inline(always)]
    fn mix<S: Simd, P: Pair, const C: usize, const J: usize, const G: usize>(
        &mut self,
        simd: S,
        t: usize,
        from: usize,
        weights: [&[f32]; C],
        factors: [f32; C],
        values: &[P],
    ) -> usize {
        let length = self.width / PAIR;
        // All see whole groups up to here; what is left is each one's own.
        let common = weights[0].len() / G * G;
        let mut sums = [[[[simd.splat(0.0); 2]; J]; G]; C];
        for s in (0..common).step_by(G) {
            for g in 0..G {
                let value = &values[(s + g) * length + from..][..J];
                for j in 0..J {
                    ask_ahead::<S, P, C>(simd, &value[j]);
                    let value = value[j].load(simd);
                    for c in 0..C {
                        let weight = simd.splat(weights[c][s + g]);
                        for half in 0..2 {
                            let sum = &mut sums[c][g][j][half];
                            *sum = simd.mul_add(weight, value[half], *sum);
                        }
                    }
                }
            }
        }
        for c in 0..C {
            for s in (common..weights[c].len()).step_by(G) {
                for g in 0..G.min(weights[c].len() - s) {
                    let value = &values[(s + g) * length + from..][..J];
                    for j in 0..J {
                        let value = value[j].load(simd);
                        let weight = simd.splat(weights[c][s + g]);
                        for half in 0..2 {
                            let sum = &mut sums[c][g][j][half];
                            *sum = simd.mul_add(weight, value[half], *sum);
                        }
                    }
                }
            }
            let out = self.out.row(t + c);
            for j in 0..J {
                for half in 0..2 {
                    let mut sum = sums[c][0][j][half];
                    for g in 1..G {
                        sum = simd.add(sum, sums[c][g][j][half]);
                    }
                    let mixed = simd.mul(sum, simd.splat(factors[c]));
                    let start = ((from + j) * PAIR + half * LANES).min(out.len());
                    let place = &mut out[start..];
                    if let Some(place) = place.first_chunk_mut::<LANES>() {
                        simd.store(mixed, place);
                    } else {
                        let mut lanes = [0.0; LANES];
                        simd.store(mixed, &mut lanes);
                        place.copy_from_slice(&lanes[..place.len()]);
                    }
                }
            }
        }
        J
    }
}

/// Asks the memory for what one query comes to soon; several take long enough with what they have.
#[inline(always)]
fn ask_ahead<S: Simd, P: Pair, const C: usize>(simd: S, pair: &P) {
    if C == 1 {
        for line in (0..size_of::<P>()).step_by(LINE) {
            simd.prefetch((&raw const *pair).wrapping_byte_add(AHEAD + line));
        }
    }
}
