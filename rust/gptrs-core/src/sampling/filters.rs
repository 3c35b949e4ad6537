//! What of a row stays in the running: each filter sees what the one before has left.
//!
//! ```text
//! logits ─► top_k ─► exp(logit / temperature) ─► top_p ─► min_p ─► typical_p ─► weights
//! ```
//!
//! Another filter is a file that drops candidates, by their logits, their weights or scores of its
//! own, a line in [`filter`] and a field of `SamplingConfig`. Each keeps at least one.

mod min_p;
pub mod top_k;
mod top_p;
mod typical;

use super::SamplingConfig;
use super::candidates::Candidates;

/// Leaves the candidates that may be drawn, with their weights.
///
/// Top-k comes before the division by the temperature: the order of the values is the same either
/// way, and fewer of them are left to weigh.
pub fn filter(candidates: &mut Candidates<'_>, config: &SamplingConfig) {
    if let Some(k) = config.top_k {
        top_k::keep(candidates, k);
    }
    let top_p = config.top_p.filter(|&p| p < 1.0);
    let min_p = config.min_p.filter(|&share| share > 0.0);
    if let (None, Some(share)) = (top_p, min_p) {
        min_p::foresee(candidates, share, config.temperature);
    }
    candidates.weigh(config.temperature);
    if let Some(p) = top_p {
        top_p::keep(candidates, p);
    }
    if let Some(share) = min_p {
        min_p::keep(candidates, share);
    }
    if let Some(p) = config.typical_p.filter(|&p| p < 1.0) {
        typical::keep(candidates, p);
    }
}
