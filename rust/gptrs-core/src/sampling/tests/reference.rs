//! The settings as they are defined, in float64, one full sort each: slow and plain.

#![expect(clippy::float_cmp, reason = "a tie is two equal logits, not two close ones")]

use crate::sampling::{History, SamplingConfig};

/// Logits in float64, -inf where a token is banned or dropped; and how close a filter came to
/// deciding otherwise, in probability.
pub struct Reference {
    pub logits: Vec<f64>,
    pub margin: f64,
}

impl Reference {
    pub fn new(row: &[f32], config: &SamplingConfig, history: &History) -> Self {
        let logits = row.iter().copied().map(f64::from).collect();
        let mut reference = Self { logits, margin: f64::INFINITY };
        reference.penalize(config, history);
        reference.ban(config, history);
        if config.temperature > 0.0 {
            reference.filter(config);
        }
        reference
    }

    pub fn probabilities(&self) -> Vec<f64> {
        let largest = self.logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<_> = self.logits.iter().map(|logit| (logit - largest).exp()).collect();
        let total: f64 = weights.iter().sum();
        weights.iter().map(|weight| weight / total).collect()
    }

    fn penalize(&mut self, config: &SamplingConfig, history: &History) {
        for &(id, bias) in &config.logit_bias {
            self.logits[id as usize] += f64::from(bias);
        }
        for (id, logit) in (0_u32..).zip(&mut self.logits) {
            if history.tokens().contains(&id) {
                let penalty = config.repetition_penalty;
                *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
            }
            let times = history.output().iter().filter(|&&token| token == id).count();
            *logit -= config.frequency_penalty * times as f64;
            *logit -= if times > 0 { config.presence_penalty } else { 0.0 };
        }
    }

    fn ban(&mut self, config: &SamplingConfig, history: &History) {
        let tokens = history.tokens();
        let may_end = history.output().len() >= config.min_new_tokens;
        for (id, logit) in (0_u32..).zip(&mut self.logits) {
            let with = [tokens, &[id]].concat();
            let repeats = config.no_repeat_ngram_size.is_some_and(|size| {
                with.len() > size
                    && tokens.windows(size).any(|window| window == &with[with.len() - size..])
            });
            let is_bad = config.bad_words.iter().any(|word| {
                with.ends_with(word) && !(word.len() == 1 && config.end_ids.contains(&id))
            });
            if repeats || is_bad || (!may_end && config.end_ids.contains(&id)) {
                *logit = f64::NEG_INFINITY;
            }
        }
    }

    fn filter(&mut self, config: &SamplingConfig) {
        self.logits.iter_mut().for_each(|logit| *logit /= config.temperature);
        if let Some(k) = config.top_k {
            let mut sorted = self.logits.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let kth = sorted[k.min(sorted.len()) - 1];
            self.keep(|_, logit| logit >= kth);
        }
        if let Some(p) = config.top_p.filter(|&p| p < 1.0) {
            let scores = self.logits.clone();
            let last = self.reach(&scores, p);
            self.keep(|id, _| {
                scores[id] > scores[last] || (scores[id] == scores[last] && id <= last)
            });
        }
        if let Some(share) = config.min_p {
            let probabilities = self.probabilities();
            let least = share * probabilities.iter().copied().fold(0.0, f64::max);
            for p in &probabilities {
                self.margin = self.margin.min(((p - least) / least.max(1e-300)).abs());
            }
            self.keep(|id, _| probabilities[id] >= least);
        }
        if let Some(p) = config.typical_p.filter(|&p| p < 1.0) {
            let logs: Vec<_> = self.probabilities().iter().map(|p| p.ln()).collect();
            let entropy: f64 =
                logs.iter().filter(|log| log.is_finite()).map(|l| -l * l.exp()).sum();
            let scores: Vec<_> = logs.iter().map(|log| -(-log - entropy).abs()).collect();
            let last = scores[self.reach(&scores, p)];
            for score in scores.iter().filter(|score| (**score - last).abs() > 1e-12) {
                self.margin = self.margin.min((score - last).abs());
            }
            self.keep(|id, _| scores[id] >= last - 1e-12);
        }
    }

    /// The id with which the highest scores reach `p`.
    fn reach(&mut self, scores: &[f64], p: f64) -> usize {
        let probabilities = self.probabilities();
        let mut ids: Vec<_> = (0..scores.len()).collect();
        ids.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        let mut sum = 0.0;
        let mut reached = None;
        for id in ids {
            sum += probabilities[id];
            self.margin = self.margin.min((sum - p).abs());
            if sum >= p && reached.is_none() {
                reached = Some(id);
            }
        }
        reached.unwrap_or_default()
    }

    fn keep(&mut self, keeps: impl Fn(usize, f64) -> bool) {
        for (id, logit) in self.logits.iter_mut().enumerate() {
            if !keeps(id, *logit) {
                *logit = f64::NEG_INFINITY;
            }
        }
    }
}
