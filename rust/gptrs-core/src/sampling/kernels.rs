//! The loops over a whole row, compiled for each kind of processor.
//!
//! A block is summed by adding its second half to its first, and so on, and a product and the sum it goes
//! into are rounded one after the other, on every processor: so weights, sums and tokens are the same to
//! the last bit on all. It is also what compilers are sure to turn into vector instructions: loops
//! over arrays of a known length that do the same to each element.
//!
//! | kernel | reads | gives |
//! |---|---|---|
//! | [`Convert`] | bfloat16 or float16 | float32 |
//! | [`Scan`] | logits | the largest of each block; whether NaN or +inf is among them |
//! | [`Weigh`] | logits | exp((logit - largest) / temperature), and the sum of each block |
//! | [`SumOfExp`] | logits | the sum of exp(logit - largest) |
//! | [`Sum`] | weights | the sum of each block |
//! | [`MeanLog`] | logits, weights | the mean of (logit - largest) / temperature |
//! | [`Distances`] | logits | how far each is from that mean |
//! | [`Allow`] | logits, a mask | -inf where it has no bit |
//! | [`Count`] | any values | how many are at or above a threshold |
//! | [`TakeOff`] | scores, weights | no weight where the score is below a threshold |
//! | [`Find`] | any values | the indices of those in a range |

mod block;
mod float;

use std::f32::consts::LOG2_E;

use self::block::{exp_of, for_blocks, max, sum};
use self::float::Float;
use crate::tokenizer::simd::{self, Simd, Work};

/// Values whose largest, or whose sum, is kept: a draw looks for its block, then within it.
pub const BLOCK: usize = 256;

/// Writes a row as float32.
pub struct Convert<'a, T> {
    pub row: &'a [T],
    pub logits: &'a mut Vec<f32>,
}

impl<T: Float> Work for Convert<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run(self, _: impl Simd) {
        self.logits.clear();
        self.logits.extend(self.row.iter().map(|number| number.widen()));
    }
}

/// Finds the largest of each block of logits. The answer is whether NaN is among them: the maxima
/// mean nothing then.
pub struct Scan<'a> {
    pub logits: &'a [f32],
    pub maxima: &'a mut Vec<f32>,
}

impl Work for Scan<'_> {
    type Output = bool;
    #[inline(always)]
    fn run(self, _: impl Simd) -> bool {
        self.maxima.clear();
        let mut num_nan = 0;
        for_blocks(self.logits, f32::NEG_INFINITY, |logits: &[f32; BLOCK]| {
            num_nan += logits.iter().map(|logit| u32::from(logit.is_nan())).sum::<u32>();
            self.maxima.push(max(logits));
        });
        num_nan > 0
    }
}

/// Weighs logits: the largest becomes 1.
pub struct Weigh<'a> {
    pub logits: &'a [f32],
    pub largest: f32,
    /// 1 / temperature.
    pub scale: f32,
    pub weights: &'a mut Vec<f32>,
    /// The sum of each block of weights.
    pub sums: &'a mut Vec<f64>,
}

impl Work for Weigh<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self, _: impl Simd) {
        let Self { logits, largest, scale, weights, sums } = self;
        weights.clear();
        weights.reserve(logits.len() + BLOCK);
        sums.clear();
        for_blocks(logits, f32::NEG_INFINITY, |logits| {
            let block = exp_of(logits, largest, scale * LOG2_E);
            weights.extend_from_slice(&block);
            sums.push(sum(&block));
        });
        weights.truncate(logits.len());
    }
}

/// Sums exp(logit - largest), and keeps nothing.
pub struct SumOfExp<'a> {
    pub logits: &'a [f32],
    pub largest: f32,
}

impl Work for SumOfExp<'_> {
    type Output = f64;
    #[inline(always)]
    fn run(self, _: impl Simd) -> f64 {
        let mut total = 0.0;
        for_blocks(self.logits, f32::NEG_INFINITY, |logits| {
            total += sum(&exp_of(logits, self.largest, LOG2_E));
        });
        total
    }
}

/// Sums each block of weights.
pub struct Sum<'a> {
    pub weights: &'a [f32],
    pub sums: &'a mut Vec<f64>,
}

impl Work for Sum<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self, _: impl Simd) {
        self.sums.clear();
        for_blocks(self.weights, 0.0, |weights| self.sums.push(sum(weights)));
    }
}

/// The sum of weight * (logit - largest) * scale: the mean, once it is divided by the sum of the
/// weights.
pub struct MeanLog<'a> {
    pub logits: &'a [f32],
    pub weights: &'a [f32],
    pub largest: f32,
    pub scale: f32,
}

impl Work for MeanLog<'_> {
    type Output = f64;
    #[inline(always)]
    fn run(self, _: impl Simd) -> f64 {
        let Self { logits, mut weights, largest, scale } = self;
        let mut total = 0.0;
        for_blocks(logits, f32::NEG_INFINITY, |logits: &[f32; BLOCK]| {
            // A logit of -inf has no weight, and no part in the mean.
            let mut products = [0.0; BLOCK];
            for ((product, logit), &weight) in products.iter_mut().zip(logits).zip(weights) {
                *product = if weight > 0.0 { weight * ((logit - largest) * scale) } else { 0.0 };
            }
            total += sum(&products);
            weights = &weights[weights.len().min(BLOCK)..];
        });
        total
    }
}

/// Scores logits by how close they are to `mean`: the closest have the highest, 0.
pub struct Distances<'a> {
    pub logits: &'a [f32],
    pub largest: f32,
    pub scale: f32,
    pub mean: f32,
    pub scores: &'a mut Vec<f32>,
}

impl Work for Distances<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self, _: impl Simd) {
        let Self { logits, largest, scale, mean, scores } = self;
        scores.clear();
        scores.extend(logits.iter().map(|logit| -((logit - largest) * scale - mean).abs()));
    }
}

/// Bans the tokens that are not in a mask: bit i % 64 of word i / 64 is token i's.
pub struct Allow<'a> {
    pub logits: &'a mut [f32],
    pub mask: &'a [u64],
}

impl Work for Allow<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self, _: impl Simd) {
        let words = self.mask.iter().copied().chain(std::iter::repeat(0));
        for (logits, word) in self.logits.chunks_mut(64).zip(words) {
            match word {
                u64::MAX => {}
                0 => logits.fill(f32::NEG_INFINITY),
                _ => {
                    for (i, logit) in logits.iter_mut().enumerate() {
                        let stays = word >> i & 1 == 1;
                        *logit = if stays { *logit } else { f32::NEG_INFINITY };
                    }
                }
            }
        }
    }
}

/// Counts the values of at least `threshold`.
pub struct Count<'a> {
    pub values: &'a [f32],
    pub threshold: f32,
}

impl Work for Count<'_> {
    type Output = usize;
    #[inline(always)]
    fn run(self, _: impl Simd) -> usize {
        self.values.iter().map(|&value| u32::from(value >= self.threshold)).sum::<u32>() as usize
    }
}

/// Takes the weight off what scores less than `threshold`: the weights themselves, if there are no
/// scores.
pub struct TakeOff<'a> {
    pub weights: &'a mut [f32],
    pub scores: Option<&'a [f32]>,
    pub threshold: f32,
}

impl Work for TakeOff<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self, _: impl Simd) {
        if let Some(scores) = self.scores {
            for (weight, &score) in self.weights.iter_mut().zip(scores) {
                *weight = if score >= self.threshold { *weight } else { 0.0 };
            }
        } else {
            for weight in self.weights {
                *weight = if *weight >= self.threshold { *weight } else { 0.0 };
            }
        }
    }
}

/// Finds the values of at least `from` and less than `below`; their indices come in order.
pub struct Find<'a> {
    pub values: &'a [f32],
    pub from: f32,
    pub below: f32,
    pub found: &'a mut Vec<u32>,
}

impl Work for Find<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self, simd: impl Simd) {
        self.found.clear();
        let mut places = [0; simd::BLOCK];
        let mut first = 0;
        for_blocks(self.values, f32::NAN, |values: &[f32; simd::BLOCK]| {
            let mut bits = 0;
            for (i, &value) in values.iter().enumerate() {
                // NaN fills up the last block, and is never found.
                let is_found = value >= self.from && value < self.below;
                bits |= u64::from(is_found) << i;
            }
            if bits != 0 {
                simd.expand(bits, first, &mut places);
                self.found.extend_from_slice(&places[..bits.count_ones() as usize]);
            }
            first += simd::BLOCK as u32;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::Isa;
    use super::*;
    use crate::tokenizer::simd::dispatch;

    #[test]
    fn blocks_have_their_maxima_and_sums_whatever_the_length() {
        for len in [0, 1, 15, 255, 256, 257, 511, 512, 1_000] {
            let values: Vec<f32> = (0..len).map(|i| (i * 37 % 101) as f32 / 64.0).collect();
            for isa in Isa::available() {
                let (mut maxima, mut sums) = (Vec::new(), Vec::new());
                let scan = Scan { logits: &values, maxima: &mut maxima };
                assert!(!dispatch(isa.found(), scan));
                dispatch(isa.found(), Sum { weights: &values, sums: &mut sums });
                let blocks = values.chunks(BLOCK);
                let max = |block: &[f32]| block.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                assert!(blocks.clone().map(max).eq(maxima));
                let sum = |block: &[f32]| block.iter().copied().map(f64::from).sum::<f64>();
                assert!(blocks.map(sum).eq(sums), "sums of 64ths are exact");
            }
        }
    }

    #[test]
    fn values_in_a_range_are_counted_and_found_in_order() {
        let values: Vec<f32> = (0..333).map(|i| (i * 37 % 11) as f32).collect();
        for isa in Isa::available() {
            for threshold in [0.0, 4.0, 10.0, 11.0] {
                let values = &values;
                let find = |below| {
                    let mut found = vec![1];
                    let find = Find { values, from: threshold, below, found: &mut found };
                    dispatch(isa.found(), find);
                    found
                };
                let expected: Vec<_> =
                    (0..333).filter(|&i| values[i as usize] >= threshold).collect();
                assert_eq!(find(f32::INFINITY), expected);
                let count = dispatch(isa.found(), Count { values, threshold });
                assert_eq!(count, expected.len());
                let below: Vec<_> =
                    expected.into_iter().filter(|&i| values[i as usize] < 8.0).collect();
                assert_eq!(find(8.0), below);
            }
        }
    }
}
