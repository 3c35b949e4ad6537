//! Attention of one head: new keys and values go into the cache, then every new token looks back.
//!
//! Four queries share what is loaded for them. Each gets its own sums in its own order, so it is the same
//! bits whether it comes alone or among others.

#![allow(clippy::needless_range_loop, reason = "loops over registers, which iterators hide")]

use super::cache::HeadCache;
use super::lanes::{LANES, Simd, Work};
use super::math::{rounded, softmax};
use super::shared::Columns;
use super::terms::Stored;

/// Queries that are computed side by side.
pub const TOGETHER: usize = 4;

/// Sixteens of keys that are computed side by side.
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

impl Work for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let cache = std::mem::replace(&mut self.cache, HeadCache::F32([&mut [], &mut []]));
        match cache {
            HeadCache::F32([keys, values]) => {
                self.append(keys, values, |x| x);
                self.look_back(simd, keys, values);
            }
            HeadCache::Bf16([keys, values]) => {
                self.append(keys, values, rounded);
                self.look_back(simd, keys, values);
            }
        }
    }
}

impl Attend<'_> {
    /// Writes keys, turned, and values.
    #[inline(always)]
    fn append<W: Copy>(&mut self, keys: &mut [W], values: &mut [W], to: impl Fn(f32) -> W) {
        let mut turned = std::mem::take(&mut self.room.turned);
        turned.resize(self.head_dim, 0.0);
        for t in 0..self.count {
            let at = (self.start + t) * self.width;
            let [_, key, value] = self.parts(t);
            let key = self.turned(t, key, &mut turned);
            let (block, lane) = ((self.start + t) / LANES, (self.start + t) % LANES);
            let places = &mut keys[block * LANES * self.width..][..LANES * self.head_dim];
            for (place, &x) in places.as_chunks_mut::<LANES>().0.iter_mut().zip(key) {
                place[lane] = to(x);
            }
            for (place, &x) in values[at..at + self.head_dim].iter_mut().zip(value) {
                *place = to(x);
            }
        }
        self.room.turned = turned;
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
    fn look_back<S: Simd, W: Stored>(&mut self, simd: S, keys: &[W], values: &[W]) {
        let longest = self.start + self.count;
        let mut room = std::mem::take(self.room);
        let Room { scores, queries, turned } = &mut room;
        queries.resize(TOGETHER * self.width, 0.0);
        turned.resize(self.head_dim, 0.0);
        scores.resize(scores.len().max(TOGETHER * longest.next_multiple_of(LANES)), 0.0);
        let mut t = 0;
        while t < self.count {
            if t + TOGETHER <= self.count {
                self.queries::<S, W, TOGETHER>(simd, t, keys, values, &mut room);
                t += TOGETHER;
            } else {
                self.queries::<S, W, 1>(simd, t, keys, values, &mut room);
                t += 1;
            }
        }
        *self.room = room;
    }

    /// C queries from token `t` on.
    #[inline(always)]
    fn queries<S: Simd, W: Stored, const C: usize>(
        &mut self,
        simd: S,
        t: usize,
        keys: &[W],
        values: &[W],
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
        while from < width {
            // Four sums at least are on their way at once, whatever the head's width.
            from += match (width - from) / LANES {
                1 => self.mix::<S, W, C, 1, 4>(simd, t, from, weights, factors, values),
                2 | 3 => self.mix::<S, W, C, 2, 2>(simd, t, from, weights, factors, values),
                _ => self.mix::<S, W, C, 4, 1>(simd, t, from, weights, factors, values),
            };
        }
    }

    /// Scores of C queries with the first keys, sixteen by sixteen.
    #[inline(always)]
    fn score<S: Simd, W: Stored, const C: usize>(
        &self,
        simd: S,
        keys: &[W],
        seen: usize,
        queries: [&[f32]; C],
        scores: &mut [f32],
    ) {
        let count = seen.div_ceil(LANES);
        let mut block = 0;
        while block < count {
            // Four sums at least are on their way at once.
            block += match count - block {
                1 => self.blocks::<S, W, C, 1>(simd, keys, block, queries, scores),
                2 | 3 => self.blocks::<S, W, C, 2>(simd, keys, block, queries, scores),
                _ => self.blocks::<S, W, C, BLOCKS>(simd, keys, block, queries, scores),
            };
        }
    }

    /// Scores of C queries with B times sixteen keys: B.
    #[inline(always)]
    fn blocks<S: Simd, W: Stored, const C: usize, const B: usize>(
        &self,
        simd: S,
        keys: &[W],
        block: usize,
        queries: [&[f32]; C],
        scores: &mut [f32],
    ) -> usize {
        let mut blocks: [&[[W; LANES]]; B] = [&[]; B];
        for b in 0..B {
            let all = &keys[(block + b) * LANES * self.width..][..LANES * self.head_dim];
            blocks[b] = &all.as_chunks::<LANES>().0[..self.head_dim];
        }
        let queries = queries.map(|query| &query[..self.head_dim]);
        let mut sums = [[simd.splat(0.0); B]; C];
        for d in 0..self.head_dim {
            let mut keys = [simd.splat(0.0); B];
            for b in 0..B {
                let key = &blocks[b][d];
                if C == 1 && d % (LINE / size_of::<[W; LANES]>()) == 0 {
                    simd.prefetch(key.as_ptr().wrapping_byte_add(AHEAD));
                }
                keys[b] = W::load(simd, key);
            }
            for c in 0..C {
                let query = simd.splat(queries[c][d]);
                for b in 0..B {
                    sums[c][b] = simd.mul_add(keys[b], query, sums[c][b]);
                }
            }
        }
        let stride = scores.len() / TOGETHER;
        for c in 0..C {
            let row = &mut scores[c * stride + block * LANES..][..B * LANES];
            for (b, place) in row.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
                simd.store(sums[c][b], place);
            }
        }
        B
    }

    /// Weighted sums of the values' numbers from `from` on, J times sixteen of them, which it returns.
    /// Value s belongs to partial sum s mod G; at the end they are added from the first to the last.
    #[inline(always)]
    fn mix<S: Simd, W: Stored, const C: usize, const J: usize, const G: usize>(
        &mut self,
        simd: S,
        t: usize,
        from: usize,
        weights: [&[f32]; C],
        factors: [f32; C],
        values: &[W],
    ) -> usize {
        let width = self.width;
        // All see whole groups up to here; what is left is each one's own.
        let common = weights[0].len() / G * G;
        let mut sums = [[[simd.splat(0.0); J]; G]; C];
        for s in (0..common).step_by(G) {
            for g in 0..G {
                let value = &values[(s + g) * width + from..][..J * LANES].as_chunks::<LANES>().0;
                for j in 0..J {
                    if C == 1 && j % (LINE / size_of::<[W; LANES]>()) == 0 {
                        simd.prefetch(value[j].as_ptr().wrapping_byte_add(AHEAD));
                    }
                    let value = W::load(simd, &value[j]);
                    for c in 0..C {
                        let weight = simd.splat(weights[c][s + g]);
                        sums[c][g][j] = simd.mul_add(weight, value, sums[c][g][j]);
                    }
                }
            }
        }
        for c in 0..C {
            for s in (common..weights[c].len()).step_by(G) {
                for g in 0..G.min(weights[c].len() - s) {
                    let value = &values[(s + g) * width + from..][..J * LANES];
                    for j in 0..J {
                        let value = W::load(simd, &value.as_chunks::<LANES>().0[j]);
                        let weight = simd.splat(weights[c][s + g]);
                        sums[c][g][j] = simd.mul_add(weight, value, sums[c][g][j]);
                    }
                }
            }
            let out = self.out.row(t + c);
            for j in 0..J {
                let mut sum = sums[c][0][j];
                for g in 1..G {
                    sum = simd.add(sum, sums[c][g][j]);
                }
                let mixed = simd.mul(sum, simd.splat(factors[c]));
                let start = (from + j * LANES).min(out.len());
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
        J * LANES
    }
}
