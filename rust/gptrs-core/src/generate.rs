//! The sampling loop: asks a model for logits, samples, checks the stops, says what came out.
//!
//! ```text
//!  any thread                    the loop: one call of `step` gives every running sequence a token
//!
//!  submit ─► Inbox ─► Slots ─────► Reader ─────► NextLogits ─────► sample ──► Sequence ──► Event
//!  cancel ─►          free slots   one extend,   the model:        a row      stop ids,    token,
//!                     are filled,  long prompts  PyTorch by one    each, by   strings,     text,
//!                     prefixes     in chunks     callback, or      counter    grammar,     finish
//!                     shared                     native code                  window
//!                       ▲                                                       │
//!                       └────── an ended sequence's slot keeps what it holds ───┘
//! ```
//!
//! The loop never knows what answers. Sequences join and leave a running batch; those that run are in
//! the slots 0..n, so that a step is one dense batch, and n tokens of any number of prompts take n
//! calls of the model. What a sequence gets does not depend on its neighbours: its draws go by its own
//! counter, and a slot never holds anything but its own tokens.
//!
//! Past the window ([`Overflow`]), with a window of 4 and a prompt of 3:
//! ```text
//!           step 1   step 2    step 3              step 4
//! slide     0 1 2    0 1 2 3   1 2 3 4   (again)   2 3 4 5 (again)
//! rebase    0 1 2    0 1 2 3   3 4       (again)   3 4 5
//! stop      0 1 2    and ends with token 3, which fills the window
//! ```
//! A prompt longer than the window is cropped to its newest tokens; `Overflow::Stop` refuses it.

pub mod beam;
mod inbox;
mod model;
mod reader;
mod request;
mod sequence;
mod slots;
mod stops;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use inbox::Inbox;
pub use model::{Extend, Limits, Logits, NextLogits};
pub use request::{Event, Finish, Output, Overflow, Request, Settings};
pub use stops::{Released, StopStrings, StopWatch};

pub use crate::sampling::LogProbs;
use crate::sampling::{Choice, Sampler, sample_all};
use crate::{Error, Result};
use reader::{Reader, emptied};
use sequence::Sequence;
use slots::Slots;

/// The loop's own errors, or the model's.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError<E> {
    /// Bad prompts, settings or logits.
    #[error(transparent)]
    Core(#[from] Error),
    /// Whatever the model raised.
    #[error("{0}")]
    Model(E),
}

/// What a loop gives, or why it cannot.
pub type Outcome<T, M> = std::result::Result<T, GenerateError<<M as NextLogits>::Error>>;

/// How a run deals with many requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// The most tokens of prompts that one `extend` takes: long ones are read in several. A sequence
    /// that lacks one token reads it besides, so an `extend` takes at most this many and one a slot.
    pub prefill_tokens: usize,
    /// The most requests that may wait.
    pub queue: usize,
    /// The most threads that sample the rows of a large batch.
    pub threads: usize,
    /// A prompt waits for another one that is being read only if that spares this many tokens:
    /// waiting costs a step. What has been read already is shared from the first token.
    pub least_shared: usize,
}

impl Default for Options {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self { prefill_tokens: 2048, queue: usize::MAX, threads, least_shared: 16 }
    }
}

/// A run of the loop: [`run`](Self::run) to the end, or [`step`](Self::step) by step for a stream.
///
/// It may be kept: later requests go on from what the slots still hold of earlier ones.
#[derive(Debug)]
pub struct Generation<M> {
    model: M,
    limits: Limits,
    options: Options,
    inbox: Arc<Inbox>,
    /// Whether requests may wait for a slot.
    has_waiting: bool,
    slots: Slots,
    reader: Reader,
    samplers: Vec<Sampler>,
    /// Kept for its memory alone.
    choices: Vec<Choice<'static>>,
    drawn: Vec<Result<u32>>,
    failed: Vec<usize>,
}

impl<M: NextLogits> Generation<M> {
    /// A loop over a model; computes nothing yet.
    pub fn new(model: M, options: Options) -> Result<Self> {
        let limits = model.limits();
        if limits.slots == 0 {
            return Err(Error::NoRoom { window: limits.context_length, slots: 0 });
        }
        if options.prefill_tokens == 0 {
            return Err(Error::Setting("prefill_tokens is at least 1, found 0".into()));
        }
        Ok(Self {
            model,
            limits,
            options,
            inbox: Arc::new(Inbox::new(limits, options)),
            has_waiting: false,
            slots: Slots::new(limits.slots),
            reader: Reader::default(),
            samplers: vec![Sampler::new()],
            choices: Vec::new(),
            drawn: Vec::new(),
            failed: Vec::new(),
        })
    }

    /// Where requests come in, also from other threads.
    pub fn inbox(&self) -> &Arc<Inbox> {
        &self.inbox
    }

    /// Runs every request to its end; outputs in the order in which they were submitted, from the
    /// first that had not ended before.
    ///
    /// On an error all requests are dropped, also those that wait: the next run starts afresh.
    pub fn run(&mut self) -> Outcome<Vec<Output>, M> {
        self.run_with(|| Ok(()))
    }

    /// As `run`; calls `check` before each step, and ends with its error.
    pub fn run_with(
        &mut self,
        mut check: impl FnMut() -> Outcome<(), M>,
    ) -> Outcome<Vec<Output>, M> {
        let mut outputs: BTreeMap<usize, Output> = BTreeMap::new();
        let mut events = Vec::new();
        loop {
            match check().and_then(|()| self.step(&mut events)) {
                Ok(true) => {
                    for event in events.drain(..) {
                        outputs.entry(event.request).or_default().add(event);
                    }
                }
                Ok(false) => return Ok(outputs.into_values().collect()),
                Err(error) => {
                    self.abort();
                    return Err(error);
                }
            }
        }
    }

    /// Gives each running sequence one token. False once there is nothing left to do.
    ///
    /// True without any events: a long prompt is being read. On an error `events` has what the other
    /// sequences got. A model's error ends every running request; a row of logits that nothing can be
    /// drawn from ends its own request alone; see [`failed`](Self::failed). The others go on at the
    /// next step.
    pub fn step(&mut self, events: &mut Vec<Event>) -> Outcome<bool, M> {
        events.clear();
        self.failed.clear();
        if let Err(error) = self.read(events) {
            // How far the model came is not known.
            self.failed = self.slots.clear();
            return Err(GenerateError::Model(error));
        }
        if self.slots.num_running() == 0 {
            return Ok(!events.is_empty());
        }
        self.draw();
        self.push(events)?;
        Ok(true)
    }

    /// Drops every request, waiting or running, and forgets what the slots hold.
    pub fn abort(&mut self) {
        self.failed.extend(self.slots.clear());
        self.failed.extend(self.inbox.drop_waiting());
    }

    /// The requests that the last error of [`step`](Self::step), or [`abort`](Self::abort), ended:
    /// they get no event.
    pub fn failed(&self) -> &[usize] {
        &self.failed
    }

    /// All that asks something of the model.
    fn read(&mut self, events: &mut Vec<Event>) -> std::result::Result<(), M::Error> {
        let has_news = self.inbox.has_news();
        if has_news || self.slots.has_holes() {
            self.admit(has_news, events);
            self.slots.close_holes(&mut self.model)?;
        }
        if self.slots.num_running() == 0 {
            return Ok(());
        }
        self.slots.begin_new(&mut self.model, self.options.least_shared)?;
        self.slots.slide(&mut self.model)?;
        self.reader.read(&mut self.model, &mut self.slots, self.options.prefill_tokens)
    }

    /// Ends who was cancelled, and moves waiting requests into free slots.
    fn admit(&mut self, has_news: bool, events: &mut Vec<Event>) {
        if has_news {
            self.has_waiting = true;
            let cancelled = self.inbox.take_cancelled();
            events.extend(
                cancelled.waiting.iter().map(|&request| Event {
                    finish: Some(Finish::Cancelled),
                    ..Event::of(request)
                }),
            );
            let is_cancelled =
                |request: usize| request < cancelled.below || cancelled.running.contains(&request);
            self.slots.cancel(is_cancelled, events);
        }
        while let Some(slot) = self.slots.free().filter(|_| self.has_waiting) {
            let Some((number, request)) = self.inbox.next() else {
                self.has_waiting = false;
                return;
            };
            let mut sequence = Sequence::new(number, request, self.limits.context_length);
            match sequence.is_over() {
                Some(finish) => events.push(sequence.end(finish)),
                None => self.slots.put(slot, sequence),
            }
        }
    }

    /// Draws a token for every sequence whose logits have come, in the order of their slots.
    fn draw(&mut self) {
        let logits = self.model.logits();
        let mut choices = emptied(std::mem::take(&mut self.choices));
        let ready = self.slots.running().filter_map(|(_, s)| Some((s, s.row?)));
        choices.extend(ready.map(|(sequence, row)| sequence.choice(logits.row(row))));
        self.drawn.clear();
        // With a bad row among many the others are as good as ever: each is drawn by itself.
        let together = match choices.len() {
            0 | 1 => None,
            _ => sample_all(&mut self.samplers, &choices, self.options.threads).ok(),
        };
        if let Some(tokens) = together {
            self.drawn.extend(tokens.into_iter().map(Ok));
        } else {
            let sampler = &mut self.samplers[0];
            self.drawn.extend(choices.iter().map(|choice| sampler.sample(choice)));
        }
        self.choices = emptied(choices);
    }

    /// Hands out what was drawn.
    fn push(&mut self, events: &mut Vec<Event>) -> Result<()> {
        let logits = self.model.logits();
        let sampler = &mut self.samplers[0];
        let mut drawn = self.drawn.drain(..);
        let mut done = Ok(());
        for slot in 0..self.slots.num_running() {
            let Some(sequence) = self.slots.get_mut(slot) else { continue };
            let Some(row) = sequence.row.take() else { continue };
            match drawn.next() {
                Some(Ok(token)) => {
                    let logprobs = sequence.settings.logprobs;
                    let logprobs =
                        logprobs.map(|top| sampler.log_probs(logits.row(row), token, top));
                    let event = sequence.push(token, logprobs);
                    let has_ended = event.finish.is_some();
                    events.push(event);
                    if has_ended {
                        self.slots.end(slot);
                    }
                }
                Some(Err(error)) => {
                    let request = sequence.request;
                    self.failed.push(request);
                    self.slots.discard(slot);
                    let error = Error::InSequence { request, error: Box::new(error) };
                    done = done.and(Err(error));
                }
                None => {}
            }
        }
        done
    }
}

#[cfg(test)]
mod tests;
