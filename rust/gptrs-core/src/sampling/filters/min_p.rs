//! Min-p (Nguyen et al., 2024): what has at least a share of the largest probability.

use crate::sampling::candidates::{By, Candidates};

/// Keeps what has at least `share` of the largest weight: that is 1, and no filter before drops it.
pub fn keep(candidates: &mut Candidates<'_>, share: f64) {
    candidates.keep_at_least(By::Weight, share as f32);
}

/// Drops most of what will be too light, before it is weighed: for a row that no filter in between
/// needs whole.
pub fn foresee(candidates: &mut Candidates<'_>, share: f64, temperature: f64) {
    // A weight is exp((logit - largest) / temperature). The hundredth is for its rounding.
    let least = f64::from(candidates.largest) + temperature * (0.99 * share).ln();
    candidates.thin_out(By::Logit, least as f32);
}
