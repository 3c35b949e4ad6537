//! What the settings do to single logits, before any filter: only the tokens they name are touched.
//!
//! ```text
//! logits ─► bias ─► repetition ─► frequency, presence ─► n-grams ─► bad words ─► constraint ─► end ids
//! ```

use super::history::{History, Seen};
use super::kernels::Allow;
use super::{Choice, SamplingConfig};
use crate::tokenizer::simd::{Found, dispatch};

/// A row that may be written.
pub struct Logits<'a> {
    pub values: &'a mut [f32],
    /// Whose they are, ascending; none if value i is token i's.
    pub ids: Option<&'a [u32]>,
}

impl Logits<'_> {
    /// Makes a token's logit another finite one; tokens that the row does not have, or that are
    /// banned, stay as they are.
    fn change(&mut self, id: u32, change: impl Fn(f32) -> f32) {
        if let Some(logit) = self.of(id).filter(|logit| **logit > f32::NEG_INFINITY) {
            *logit = change(*logit).clamp(f32::MIN, f32::MAX);
        }
    }

    fn ban(&mut self, id: u32) {
        if let Some(logit) = self.of(id) {
            *logit = f32::NEG_INFINITY;
        }
    }

    fn of(&mut self, id: u32) -> Option<&mut f32> {
        let index = match self.ids {
            None => id as usize,
            Some(ids) => ids.binary_search(&id).ok()?,
        };
        self.values.get_mut(index)
    }
}

/// Whether [`adjust`] would change anything.
pub fn is_needed(choice: &Choice<'_>) -> bool {
    let Choice { config, history, allowed, .. } = choice;
    !config.logit_bias.is_empty()
        || !config.bad_words.is_empty()
        || allowed.is_some()
        || (config.penalizes() || config.no_repeat_ngram_size.is_some())
            && !history.tokens().is_empty()
        || may_not_end(config, history)
}

/// Applies biases, penalties and bans. The logits are finite or -inf before and after.
pub fn adjust(logits: &mut Logits<'_>, choice: &Choice<'_>, simd: Found) {
    let Choice { config, history, allowed, .. } = choice;
    for &(id, bias) in &config.logit_bias {
        if bias == f32::NEG_INFINITY {
            logits.ban(id);
        } else {
            logits.change(id, |logit| logit + bias);
        }
    }
    if config.penalizes() {
        for &seen in history.seen() {
            logits.change(seen.id, |logit| penalize(logit, seen, config));
        }
    }
    if let Some(size) = config.no_repeat_ngram_size {
        history.repeating(size).for_each(|id| logits.ban(id));
    }
    ban_words(logits, config, history.tokens());
    if let Some(mask) = allowed {
        match logits.ids {
            None => dispatch(simd, Allow { logits: logits.values, mask: mask.words() }),
            Some(ids) => {
                for (logit, _) in
                    logits.values.iter_mut().zip(ids).filter(|(_, id)| !mask.contains(**id))
                {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
    }
    if may_not_end(config, history) {
        config.end_ids.iter().for_each(|&id| logits.ban(id));
    }
}

/// Repetition penalty (Keskar et al., 2019), then OpenAI's two.
fn penalize(logit: f32, seen: Seen, config: &SamplingConfig) -> f32 {
    let penalty = config.repetition_penalty as f32;
    let logit = if logit < 0.0 { logit * penalty } else { logit / penalty };
    if seen.times_in_output == 0 {
        return logit;
    }
    let times = f64::from(seen.times_in_output);
    logit - (config.frequency_penalty * times + config.presence_penalty) as f32
}

/// Bans the last token of each word whose other tokens are the newest. A word that is an end id alone
/// is not banned, as in transformers: nothing could end.
fn ban_words(logits: &mut Logits<'_>, config: &SamplingConfig, tokens: &[u32]) {
    for word in &config.bad_words {
        if let Some((&last, before)) = word.split_last()
            && tokens.ends_with(before)
            && !(before.is_empty() && config.end_ids.contains(&last))
        {
            logits.ban(last);
        }
    }
}

fn may_not_end(config: &SamplingConfig, history: &History) -> bool {
    !config.end_ids.is_empty() && history.output().len() < config.min_new_tokens
}
