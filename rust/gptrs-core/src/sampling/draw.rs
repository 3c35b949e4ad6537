//! One uniform number and the weights: a token.
//!
//! The weights stand side by side on a line from 0 to their sum, in the order of their ids; the uniform
//! number is a place on it. Sums are in float64, and the number has 53 bits: each token is as likely as
//! its weight says, however small.

use super::candidates::Candidates;
use super::kernels::BLOCK;

/// The id at `uniform`, in [0, 1), of the weights' sum.
pub fn draw(candidates: &Candidates<'_>, uniform: f64) -> u32 {
    let (weights, sums) = (&candidates.lists.weights, &candidates.lists.sums);
    let target = uniform * candidates.total();
    let (mut first, mut below) = (0, 0.0);
    for sum in sums {
        if below + sum > target {
            break;
        }
        below += sum;
        first += BLOCK;
    }
    for (index, &weight) in weights.iter().enumerate().skip(first) {
        below += f64::from(weight);
        if below > target {
            return candidates.id(index);
        }
    }
    // The sum was rounded up past all of them: it is the last that has any weight.
    candidates.id(weights.iter().rposition(|&weight| weight > 0.0).unwrap_or_default())
}
