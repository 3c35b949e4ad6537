//! Sampling settings, checked once, where a run starts.

use crate::{Error, Result};

/// How the next token is chosen. The defaults change nothing: the model's own distribution.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingConfig {
    /// Divides the logits; 0 takes the largest, the lowest id on a tie.
    pub temperature: f64,
    /// Keeps the k largest logits and whatever ties with the k-th.
    pub top_k: Option<usize>,
    /// Keeps the most probable tokens until their probabilities sum to this.
    pub top_p: Option<f64>,
    /// Keeps the tokens with at least this share of the largest probability.
    pub min_p: Option<f64>,
    /// Keeps the tokens whose information is closest to the row's entropy, until they sum to this.
    pub typical_p: Option<f64>,
    /// Divides the positive logits of tokens in prompt and output, multiplies the negative; 1 is off.
    pub repetition_penalty: f64,
    /// Subtracted once for each time a token is in the output; 0 is off.
    pub frequency_penalty: f64,
    /// Subtracted once from every token in the output; 0 is off.
    pub presence_penalty: f64,
    /// No sequence of this many tokens comes twice in prompt and output.
    pub no_repeat_ngram_size: Option<usize>,
    /// Added to the logits of these tokens, before anything else; -inf bans one.
    pub logit_bias: Vec<(u32, f32)>,
    /// Sequences of tokens that never come: the last token of each is banned after the others.
    pub bad_words: Vec<Vec<u32>>,
    /// `end_ids` are banned until the output has this many tokens.
    pub min_new_tokens: usize,
    /// Tokens that end a sequence.
    pub end_ids: Vec<u32>,
}

impl Default for SamplingConfig {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: None,
            top_p: None,
            min_p: None,
            typical_p: None,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            no_repeat_ngram_size: None,
            logit_bias: Vec::new(),
            bad_words: Vec::new(),
            min_new_tokens: 0,
            end_ids: Vec::new(),
        }
    }
}

impl SamplingConfig {
    /// The largest logit, whatever comes.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Refuses settings outside their range.
    pub fn check(&self) -> Result<()> {
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return Err(Error::Temperature(self.temperature));
        }
        if self.top_k == Some(0) {
            return Err(Error::TopK(0));
        }
        if let Some(p) = self.top_p.filter(|&p| !(p > 0.0 && p <= 1.0)) {
            return Err(Error::TopP(p));
        }
        if let Some(p) = self.min_p.filter(|p| !(0.0..=1.0).contains(p)) {
            return refuse("min_p", "at least 0 and at most 1, or None for no such filter", p);
        }
        if let Some(p) = self.typical_p.filter(|&p| !(p > 0.0 && p <= 1.0)) {
            return refuse("typical_p", "above 0 and at most 1, or None for no such filter", p);
        }
        if self.no_repeat_ngram_size == Some(0) {
            return refuse("no_repeat_ngram_size", "at least 1, or None to let n-grams repeat", 0);
        }
        self.check_penalties()?;
        self.check_lists()
    }

    fn check_penalties(&self) -> Result<()> {
        // The sampler multiplies and divides in float32.
        let penalty = self.repetition_penalty as f32;
        if !(penalty > 0.0 && penalty.is_finite() && penalty.recip().is_finite()) {
            let range = "above 0 and finite in float32; 1 is off";
            return refuse("repetition_penalty", range, self.repetition_penalty);
        }
        for (name, penalty) in [
            ("frequency_penalty", self.frequency_penalty),
            ("presence_penalty", self.presence_penalty),
        ] {
            if !penalty.is_finite() {
                return refuse(name, "finite; 0 is off", penalty);
            }
        }
        Ok(())
    }

    fn check_lists(&self) -> Result<()> {
        for &(id, bias) in &self.logit_bias {
            if bias.is_nan() || bias == f32::INFINITY {
                let what = format!("logit_bias[{id}]");
                return refuse(&what, "a finite number, or -inf to ban the token", bias);
            }
        }
        match self.bad_words.iter().position(Vec::is_empty) {
            Some(index) => {
                refuse("a word of bad_words_ids", "at least one id", format!("none at {index}"))
            }
            None => Ok(()),
        }
    }

    /// Refuses biases and bans of tokens that a vocabulary does not have.
    pub fn check_vocabulary(&self, vocab_size: usize) -> Result<()> {
        let biases = self.logit_bias.iter().map(|&(id, _)| ("logit_bias", id));
        let words = self.bad_words.iter().flatten().map(|&id| ("bad_words_ids", id));
        match biases.chain(words).find(|&(_, id)| id as usize >= vocab_size) {
            Some((what, id)) => Err(Error::Setting(format!(
                "{what} names token id {id}, but the vocabulary has {vocab_size} ids, from 0 on"
            ))),
            None => Ok(()),
        }
    }

    /// Whether any penalty is on.
    #[expect(clippy::float_cmp, reason = "off is one value, not what is close to it")]
    pub(super) fn penalizes(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.frequency_penalty != 0.0
            || self.presence_penalty != 0.0
    }
}

fn refuse(name: &str, range: &str, found: impl std::fmt::Display) -> Result<()> {
    Err(Error::Setting(format!("{name} is {range}; found {found}")))
}
