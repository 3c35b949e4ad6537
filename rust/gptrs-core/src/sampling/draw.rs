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
    let mut below = 0.0;
    let mut last = 0;
    for (number, sum) in sums.iter().enumerate() {
        if below + sum > target {
            let first = number * BLOCK;
            for (index, &weight) in (first..).zip(&weights[first..weights.len().min(first + BLOCK)])
            {
                below += f64::from(weight);
                if below > target {
                    return candidates.id(index);
                }
            }
            // Its sum was rounded up past the target: it is the last that has any weight.
            last = number;
            break;
        }
        below += sum;
        if *sum > 0.0 {
            last = number;
        }
    }
    let end = weights.len().min((last + 1) * BLOCK);
    candidates.id(weights[..end].iter().rposition(|&weight| weight > 0.0).unwrap_or_default())
}
