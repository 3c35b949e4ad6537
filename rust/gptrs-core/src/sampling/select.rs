//! Finds how far down the scores must be taken to reach a mass, without sorting them.
//!
//! ```text
//! scores    ▁▁▂▅█▇▃▁     one bin for each sign, exponent and 4 bits of fraction: the mass that fell into it
//!               │ from the top down: this bin reaches the mass that is wanted
//!               ▼
//!            ▁▃▆▂▁       its scores alone, by the next 11 bits, and then by the last 8
//!               ▼
//!             = = =      equal scores: one after the other, the lowest index first
//! ```

use super::kernels::Find;
use crate::tokenizer::simd::{Found, dispatch};

/// How a score's bits are read: after so many are dropped, that many count.
const DIGITS: [[u32; 2]; 3] = [[19, 13], [8, 11], [0, 8]];

/// Up to so many scores, sorting is faster than filling bins.
const FEW: usize = 192;

/// The last score that is needed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cut {
    /// What the last one needed scores.
    pub score: f32,
    /// Its index.
    pub last: usize,
    /// Whether others behind it score the same.
    pub ties_follow: bool,
}

/// Keeps its buffers from row to row.
#[derive(Debug, Default)]
pub struct Select {
    bins: Vec<f64>,
    members: Vec<u32>,
}

impl Select {
    /// The first cut from the highest score downwards, the lowest index first where they are equal,
    /// at which `mass` sums to `wanted`; none if all together do not. No score is NaN.
    pub fn reach(
        &mut self,
        simd: Found,
        scores: &[f32],
        mass: impl Fn(usize) -> f64,
        wanted: f64,
    ) -> Option<Cut> {
        let Self { bins, members } = self;
        members.clear();
        if scores.len() <= FEW {
            members.extend(0..scores.len() as u32);
            members.sort_unstable_by_key(|&i| (!order(scores[i as usize]), i));
            return walk(members, scores, mass, 0.0, wanted).ok();
        }
        let digit = |i: usize, [shift, bits]: [u32; 2]| {
            (order(scores[i]) >> shift) as usize & ((1 << bits) - 1)
        };
        let [first, rest @ ..] = DIGITS;
        fill(bins, first, (0..scores.len()).map(|i| (digit(i, first), mass(i))));
        let (reached, mut above) = descend(bins, 0.0, wanted).ok()?;
        let end = |digit: usize| score_at((digit as u32) << first[0]);
        // The first and the last bin reach beyond the infinities, where NaN is.
        let (from, below) = (end(reached), end(reached + 1));
        // No max: of a signaling NaN and a number, some processors make NaN.
        let from = if from.is_nan() { f32::NEG_INFINITY } else { from };
        let below = if below.is_nan() { f32::INFINITY } else { below };
        dispatch(simd, Find { values: scores, from, below, found: members });
        for read in rest {
            let of_member = |&i: &u32| (digit(i as usize, read), mass(i as usize));
            fill(bins, read, members.iter().map(of_member));
            // Summed in another order, the members may come to a little less than before.
            let (Ok(reached) | Err(reached)) = descend(bins, above, wanted);
            members.retain(|&i| digit(i as usize, read) == reached.0);
            above = reached.1;
        }
        let (Ok(cut) | Err(cut)) = walk(members, scores, mass, above, wanted);
        Some(cut)
    }
}

fn fill(bins: &mut Vec<f64>, [_, width]: [u32; 2], masses: impl Iterator<Item = (usize, f64)>) {
    bins.clear();
    bins.resize(1 << width, 0.0);
    for (digit, mass) in masses {
        bins[digit] += mass;
    }
}

/// The highest bin at which the sum from the top reaches `wanted`, and the sum before it; or as an
/// error the lowest bin that has any mass.
fn descend(bins: &[f64], mut above: f64, wanted: f64) -> Result<(usize, f64), (usize, f64)> {
    let mut lowest = (0, above);
    for (digit, &mass) in bins.iter().enumerate().rev().filter(|(_, mass)| **mass > 0.0) {
        lowest = (digit, above);
        if above + mass >= wanted {
            return Ok(lowest);
        }
        above += mass;
    }
    Err(lowest)
}

/// Takes one member after the other; as an error the last, if they are not enough.
#[expect(clippy::float_cmp, reason = "a tie is two equal scores, not two close ones")]
fn walk(
    members: &[u32],
    scores: &[f32],
    mass: impl Fn(usize) -> f64,
    mut sum: f64,
    wanted: f64,
) -> Result<Cut, Cut> {
    let reached = members.iter().position(|&i| {
        sum += mass(i as usize);
        sum >= wanted
    });
    let at = reached.unwrap_or(members.len().saturating_sub(1));
    let last = members.get(at).map_or(0, |&i| i as usize);
    let score = scores.get(last).copied().unwrap_or(f32::NEG_INFINITY);
    let ties_follow = members.get(at + 1).is_some_and(|&i| scores[i as usize] == score);
    let cut = Cut { score, last, ties_follow };
    reached.map_or(Err(cut), |_| Ok(cut))
}

/// Orders as the numbers do.
fn order(score: f32) -> u32 {
    // The sum makes 0 of -0.
    let bits = (score + 0.0).to_bits();
    bits ^ if bits >> 31 == 1 { u32::MAX } else { 1 << 31 }
}

/// The score that is ordered so.
fn score_at(order: u32) -> f32 {
    f32::from_bits(order ^ if order >> 31 == 1 { 1 << 31 } else { u32::MAX })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tokenizer::simd::Isa;

    proptest! {
        #[expect(clippy::float_cmp, reason = "a tie is two equal scores, not two close ones")]
        #[test]
        fn the_cut_is_where_a_full_sort_has_it(
            values in prop::collection::vec((-300_i16..300, 1_u8..20), 1..900),
            fineness in prop::sample::select(vec![1.0_f32, 64.0, 1e6, 1e-30]),
            share in 0.0_f64..1.1,
        ) {
            let score = |v: i16| if v < -200 { f32::NEG_INFINITY } else { f32::from(v) / fineness };
            let scores: Vec<_> = values.iter().map(|v| score(v.0)).collect();
            // Integers, whose sums are exact.
            let mass = |i: usize| f64::from(values[i].1);
            let wanted = (share * (0..values.len()).map(mass).sum::<f64>()).ceil().max(1.0);
            let mut sorted: Vec<_> = (0..values.len()).collect();
            sorted.sort_by(|&a, &b| (scores[b] + 0.0).total_cmp(&(scores[a] + 0.0)));
            let mut sum = 0.0;
            let reached = sorted.iter().position(|&i| { sum += mass(i); sum >= wanted });
            let expected = reached.map(|at| {
                let (score, last) = (scores[sorted[at]], sorted[at]);
                let ties_follow = sorted.get(at + 1).is_some_and(|&i| scores[i] == score);
                Cut { score, last, ties_follow }
            });
            for isa in Isa::available() {
                let found = Select::default().reach(isa.found(), &scores, mass, wanted);
                prop_assert_eq!(found, expected);
            }
        }
    }
}
