//! The finished sequences of one search, and whether more may come.

use super::{BeamOutput, BeamSettings, EarlyStopping};
use crate::generate::Finish;

/// The best finished sequences so far: at most `num_beams`.
#[derive(Debug)]
pub(super) struct Hypotheses {
    /// The best first.
    found: Vec<BeamOutput>,
    most: usize,
    length_penalty: f64,
    early_stopping: EarlyStopping,
    max_new_tokens: usize,
}

impl Hypotheses {
    pub fn new(settings: &BeamSettings<'_>) -> Self {
        let BeamSettings { num_beams, length_penalty, early_stopping, max_new_tokens, .. } =
            *settings;
        Self { found: Vec::new(), most: num_beams, length_penalty, early_stopping, max_new_tokens }
    }

    /// Adds a sequence of `len` tokens, the stop token among them, if it is good enough.
    pub fn add(&mut self, tokens: Vec<u32>, sum: f32, len: usize, finish: Finish) {
        let score = self.score(sum, len);
        let place = self.found.partition_point(|other| other.score >= score);
        self.found.insert(place, BeamOutput { tokens, score, finish });
        self.found.truncate(self.most);
    }

    /// Whether no running sequence is worth following any more; `best` is the best one's sum of
    /// log-probabilities, `len` its length.
    pub fn are_final(&self, best: f32, len: usize) -> bool {
        let Some(worst) = self.found.last().filter(|_| self.found.len() == self.most) else {
            return false;
        };
        let hoped_for = match self.early_stopping {
            EarlyStopping::Yes => return true,
            EarlyStopping::Never if self.length_penalty > 0.0 => self.max_new_tokens,
            EarlyStopping::Never | EarlyStopping::No => len,
        };
        self.score(best, hoped_for) <= worst.score
    }

    /// The best `count`.
    pub fn best(mut self, count: usize) -> Vec<BeamOutput> {
        self.found.truncate(count);
        self.found
    }

    fn score(&self, sum: f32, len: usize) -> f32 {
        sum / (len as f64).powf(self.length_penalty) as f32
    }
}
