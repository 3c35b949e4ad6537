//! What is asked of the loop, and what it answers.

use std::sync::Arc;

use super::stops::StopStrings;
use crate::constraint::Grammar;
use crate::sampling::{LogProbs, SamplingConfig};

/// One sequence to continue.
#[derive(Debug, Clone)]
pub struct Request {
    /// At least one token.
    pub prompt: Vec<u32>,
    /// Seed of its draws.
    pub seed: u64,
    /// Its number in the draws' counter.
    pub sequence: u64,
    /// Everything else; requests may share it.
    pub settings: Arc<Settings>,
}

/// What many requests may have in common.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How many tokens a sequence gets at most.
    pub max_new_tokens: usize,
    /// The model sees this many of the newest tokens; no more than its context length.
    pub window: usize,
    /// What happens when a sequence outgrows the window.
    pub overflow: Overflow,
    /// Tokens that end a sequence, and are not part of it.
    pub stop_ids: Vec<u32>,
    /// Texts that end a sequence, and are not part of it.
    pub stop_strings: Option<Arc<StopStrings>>,
    /// What the new text must match.
    pub grammar: Option<Arc<Grammar>>,
    /// How tokens are chosen.
    pub sampling: SamplingConfig,
    /// Log-probabilities of the chosen token, and of this many of the likeliest.
    pub logprobs: Option<usize>,
}

impl Settings {
    /// Greedy, without any stops, up to `max_new_tokens` in a window of `window`.
    pub fn greedy(max_new_tokens: usize, window: usize) -> Self {
        Self {
            max_new_tokens,
            window,
            overflow: Overflow::Slide,
            stop_ids: Vec::new(),
            stop_strings: None,
            grammar: None,
            sampling: SamplingConfig::greedy(),
            logprobs: None,
        }
    }
}

/// What happens when a sequence outgrows the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Overflow {
    /// At every step the model reads the newest `window` tokens again: the book's window, exactly.
    #[default]
    Slide,
    /// The newest half of the window is read again, and then goes on: the cost is shared by the
    /// steps in between.
    Rebase,
    /// The sequence ends.
    Stop,
}

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// A stop token, a stop string, or the end of what its grammar allows.
    Stop,
    /// It has all the tokens it may have.
    Length,
    /// The window is full, and `Overflow::Stop` was asked for.
    Context,
    /// Somebody cancelled it.
    Cancelled,
}

/// What one step did to one sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Which request: the number that it got when it was added.
    pub request: usize,
    /// The new token; none if it ended the sequence.
    pub token: Option<u32>,
    /// Log-probabilities of the new token, if they were asked for.
    pub logprobs: Option<LogProbs>,
    /// Bytes of text that are sure to be part of the result: only with stop strings, which hold back
    /// what may become one of them.
    pub text: Vec<u8>,
    /// Set on a sequence's last event.
    pub finish: Option<Finish>,
    /// With stop strings, on the last event: how many of its tokens are part of the result. Those
    /// that begin before the stop string; all, if none was found.
    pub tokens_kept: Option<usize>,
}

impl Event {
    /// An event that says nothing yet.
    pub(super) fn of(request: usize) -> Self {
        let (token, logprobs, finish, tokens_kept) = (None, None, None, None);
        Self { request, token, logprobs, text: Vec::new(), finish, tokens_kept }
    }
}

/// A finished sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// New tokens, without the prompt and what stopped it.
    pub tokens: Vec<u32>,
    /// The log-probabilities of each, if they were asked for.
    pub logprobs: Vec<LogProbs>,
    /// With stop strings: the bytes of the text, cut before the one that was found.
    pub text: Option<Vec<u8>>,
    /// Why it ended.
    pub finish: Finish,
}

impl Default for Output {
    fn default() -> Self {
        let finish = Finish::Cancelled;
        Self { tokens: Vec::new(), logprobs: Vec::new(), text: None, finish }
    }
}

impl Output {
    /// Takes the next event of its sequence.
    pub fn add(&mut self, event: Event) {
        self.tokens.extend(event.token);
        self.logprobs.extend(event.logprobs);
        self.text.get_or_insert_default().extend(event.text);
        if let Some(finish) = event.finish {
            self.finish = finish;
            match event.tokens_kept {
                Some(kept) => {
                    self.tokens.truncate(kept);
                    self.logprobs.truncate(kept);
                }
                None => self.text = None,
            }
        }
    }
}
