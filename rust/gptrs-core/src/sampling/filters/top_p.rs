//! Top-p, the nucleus (Holtzman et al., 2019): the most probable tokens that sum to p.

use crate::sampling::candidates::{By, Candidates};

/// Keeps the heaviest, the lowest id first on a tie, up to the one with which they reach `p`.
pub fn keep(candidates: &mut Candidates<'_>, p: f64) {
    let wanted = p * candidates.total();
    candidates.thin_out(By::Weight, candidates.never_needed(p));
    if let Some(last) = candidates.reach_weight(By::Weight, wanted) {
        candidates.keep_heaviest(last);
    }
}
