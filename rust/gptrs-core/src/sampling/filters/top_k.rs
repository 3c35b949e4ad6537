//! Top-k: the k largest logits, and whatever ties with the k-th.

use crate::sampling::candidates::{By, Candidates};

/// Keeps the `k` largest. If k blocks have a maximum of at least t, so has the k-th largest logit:
/// few others do, and those alone are looked at. Comes first: the blocks are those of the row.
pub fn keep(candidates: &mut Candidates<'_>, k: usize) {
    let maxima = &mut candidates.scratch.maxima;
    if (1..maxima.len()).contains(&k) {
        let (_, &mut threshold, _) = maxima.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
        candidates.keep_at_least(By::Logit, threshold);
    }
    if k < candidates.len()
        && let Some(kth) = candidates.reach_count(By::Logit, k)
    {
        candidates.keep_at_least(By::Logit, kth.score);
    }
}
