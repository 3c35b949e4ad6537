//! Locally typical sampling (Meister et al., 2022): the tokens whose information is closest to the
//! entropy.
//!
//! With d = (logit - largest) / temperature and Z the sum of the weights exp(d), a token's information
//! is ln Z - d, and the entropy, its mean, is ln Z - mean(d): the two differ by |d - mean(d)|.

use crate::sampling::candidates::{By, Candidates};

/// Keeps the closest up to the one with which they reach `p`, and whatever ties with it.
pub fn keep(candidates: &mut Candidates<'_>, p: f64) {
    let wanted = p * candidates.total();
    let mean = candidates.mean_log();
    // Those at least as heavy as `light` reach p. If the heaviest, whose d is 0, is as close to the
    // mean as the lightest of them, then all that are lighter are further away.
    let light = candidates.never_needed(p);
    if f64::from(light).ln() <= 2.0 * mean {
        candidates.thin_out(By::Weight, light);
    }
    candidates.score_by_distance(mean);
    if let Some(last) = candidates.reach_weight(By::Score, wanted) {
        candidates.keep_at_least(By::Score, last.score);
    }
}
