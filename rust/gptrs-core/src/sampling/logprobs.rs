//! Log-probabilities under the model, before any setting.

use super::candidates::Candidates;
use super::filters::top_k;
use super::kernels::SumOfExp;
use super::{Row, Sampler};
use crate::tokenizer::simd::dispatch;

/// Natural logarithms of probabilities under the model, before any setting.
#[derive(Debug, Clone, PartialEq)]
pub struct LogProbs {
    /// The chosen token's.
    pub chosen: f32,
    /// The likeliest tokens and theirs, the likeliest first, the lowest id on a tie.
    pub top: Vec<(u32, f32)>,
}

/// As [`Sampler::log_probs`]; a sampler keeps its buffers from row to row.
pub fn log_probs(row: Row<'_>, chosen: u32, top: usize) -> LogProbs {
    Sampler::new().log_probs(row, chosen, top)
}

/// As [`Sampler::top_log_probs`]; a sampler keeps its buffers from row to row.
pub fn top_log_probs(row: Row<'_>, n: usize) -> Vec<(u32, f32)> {
    Sampler::new().top_log_probs(row, n)
}

impl Sampler {
    /// The log-probability of the chosen token, -inf if the row does not have it, and those of the
    /// `top` likeliest. They are NaN where the row has NaN or +inf.
    pub fn log_probs(&mut self, row: Row<'_>, chosen: u32, top: usize) -> LogProbs {
        let (candidates, log_sum_exp) = self.normalized(row);
        let chosen = candidates.index_of(chosen).map(|index| candidates.logits()[index]);
        let chosen = chosen.map_or(f32::NEG_INFINITY, |logit| minus(logit, log_sum_exp));
        LogProbs { chosen, top: likeliest(candidates, log_sum_exp, top) }
    }

    /// The `n` likeliest tokens of a row, or as many as it has, and their log-probabilities: the
    /// likeliest first, the lowest id on a tie.
    pub fn top_log_probs(&mut self, row: Row<'_>, n: usize) -> Vec<(u32, f32)> {
        let (candidates, log_sum_exp) = self.normalized(row);
        likeliest(candidates, log_sum_exp, n)
    }

    fn normalized<'a>(&'a mut self, row: Row<'a>) -> (Candidates<'a>, f64) {
        let Self { simd, lists, scratch } = self;
        let mut candidates = Candidates::read(row, false, *simd, lists, scratch);
        // The sampler refuses such rows, and says why.
        let _ = candidates.scan();
        let log_sum_exp = if let Row::Candidates { log_sum_exp, .. } = row {
            f64::from(log_sum_exp)
        } else {
            let (logits, largest) = (candidates.logits(), candidates.largest);
            f64::from(largest) + dispatch(*simd, SumOfExp { logits, largest }).ln()
        };
        (candidates, log_sum_exp)
    }
}

fn likeliest(mut candidates: Candidates<'_>, log_sum_exp: f64, n: usize) -> Vec<(u32, f32)> {
    if n == 0 {
        return Vec::new();
    }
    top_k::keep(&mut candidates, n);
    let mut top: Vec<_> = candidates.logits().iter().copied().enumerate().collect();
    top.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    top.truncate(n);
    top.into_iter().map(|(i, logit)| (candidates.id(i), minus(logit, log_sum_exp))).collect()
}

fn minus(logit: f32, log_sum_exp: f64) -> f32 {
    (f64::from(logit) - log_sum_exp) as f32
}
