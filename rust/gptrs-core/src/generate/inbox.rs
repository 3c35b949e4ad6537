//! Where requests wait. Any thread may add to it, or cancel, while the loop runs.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Limits, Options, Overflow, Request};
use crate::{Error, Result};

/// Where requests wait; any thread may add to it while the loop runs.
#[derive(Debug)]
pub struct Inbox {
    limits: Limits,
    options: Options,
    /// Set by every change: all that a step looks at while nothing happens.
    has_news: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    num_submitted: usize,
    waiting: VecDeque<(usize, Request)>,
    cancelled: Cancelled,
}

/// Whom to cancel.
#[derive(Debug, Default)]
pub(super) struct Cancelled {
    /// These waited, and do no longer.
    pub waiting: Vec<usize>,
    /// These run, or have ended.
    pub running: Vec<usize>,
    /// Whoever runs and has a number below this.
    pub below: usize,
}

impl Inbox {
    pub(super) fn new(limits: Limits, options: Options) -> Self {
        Self { limits, options, has_news: AtomicBool::new(false), state: Mutex::default() }
    }

    /// Checks a request and lets it wait; returns its number, counted from 0.
    ///
    /// # Errors
    /// A setting out of its range; a prompt that is empty, has an id outside the vocabulary or, with
    /// `Overflow::Stop`, is longer than the window; a full queue.
    pub fn submit(&self, request: Request) -> Result<usize> {
        let mut state = self.state();
        let number = state.num_submitted;
        check(number, &request, self.limits)?;
        if state.waiting.len() >= self.options.queue {
            return Err(Error::QueueFull { limit: self.options.queue });
        }
        state.num_submitted += 1;
        state.waiting.push_back((number, request));
        self.tell();
        Ok(number)
    }

    /// Ends a request at the next step, with what it has; one that has ended already stays as it is.
    pub fn cancel(&self, request: usize) {
        let mut state = self.state();
        let State { waiting, cancelled, .. } = &mut *state;
        match waiting.binary_search_by_key(&request, |(number, _)| *number) {
            Ok(place) => cancelled.waiting.extend(waiting.remove(place).map(|(number, _)| number)),
            Err(_) => cancelled.running.push(request),
        }
        self.tell();
    }

    /// Ends all requests submitted so far at the next step, with what they have.
    pub fn cancel_all(&self) {
        let mut state = self.state();
        let State { waiting, cancelled, num_submitted } = &mut *state;
        cancelled.waiting.extend(waiting.drain(..).map(|(number, _)| number));
        cancelled.below = *num_submitted;
        self.tell();
    }

    /// How many requests wait for a slot.
    pub fn num_waiting(&self) -> usize {
        self.state().waiting.len()
    }

    /// Whether anything changed since this was last asked.
    pub(super) fn has_news(&self) -> bool {
        // Most often nothing did: reading alone is the cheaper half of a swap.
        self.has_news.load(Ordering::Acquire) && self.has_news.swap(false, Ordering::AcqRel)
    }

    /// The request that has waited longest, and its number.
    pub(super) fn next(&self) -> Option<(usize, Request)> {
        self.state().waiting.pop_front()
    }

    pub(super) fn take_cancelled(&self) -> Cancelled {
        std::mem::take(&mut self.state().cancelled)
    }

    /// Forgets who waits; returns their numbers.
    pub(super) fn drop_waiting(&self) -> Vec<usize> {
        let mut state = self.state();
        state.cancelled = Cancelled::default();
        state.waiting.drain(..).map(|(number, _)| number).collect()
    }

    /// Says that there is something to look at, while the state is still locked.
    fn tell(&self) {
        self.has_news.store(true, Ordering::Release);
    }

    /// Nothing here panics halfway through a change, so a poisoned lock guards a sound state.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn check(row: usize, request: &Request, limits: Limits) -> Result<()> {
    let Request { prompt, settings, .. } = request;
    settings.sampling.check()?;
    settings.sampling.check_vocabulary(limits.vocab_size)?;
    let window = settings.window.min(limits.context_length);
    if window == 0 {
        return Err(Error::NoRoom { window, slots: limits.slots });
    }
    check_prompt(row, prompt, limits.vocab_size)?;
    let mut room = settings.max_new_tokens;
    if settings.overflow == Overflow::Stop {
        let too_long = Error::PromptTooLong { row, found: prompt.len(), window };
        room = room.min(window.checked_sub(prompt.len()).ok_or(too_long)?);
    }
    settings.grammar.as_ref().map_or(Ok(()), |grammar| grammar.check_budget(room))
}

/// Refuses a prompt without tokens, and ids that the model does not have.
pub(super) fn check_prompt(row: usize, prompt: &[u32], vocab_size: usize) -> Result<()> {
    if prompt.is_empty() {
        return Err(Error::EmptyPrompt { row });
    }
    match prompt.iter().position(|&id| id as usize >= vocab_size) {
        None => Ok(()),
        Some(column) => {
            Err(Error::TokenIdInPrompt { id: i64::from(prompt[column]), row, column, vocab_size })
        }
    }
}
