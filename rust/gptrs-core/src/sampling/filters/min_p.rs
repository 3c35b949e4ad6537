//! Min-p (Nguyen et al., 2024): what has at least a share of the largest probability.

use crate::sampling::candidates::{By, Candidates};

/// Keeps what has at least `share` of the largest weight: that is 1, and no filter before drops it.
pub fn keep(candidates: &mut Candidates<'_>, share: f64) {
    candidates.keep_at_least(By::Weight, share as f32);
}
