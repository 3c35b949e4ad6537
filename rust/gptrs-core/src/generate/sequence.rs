//! One sequence: what the model sees of it, what may come next, and when it ends.
//!
//! ```text
//!             prompt                 output
//! tokens  0 1 2 3 4 5 6 7 8 9 10 11 │ 12 13 14
//!               └ first      held ┘   └ unread ┘     the window: tokens[first..], at most `window`
//! ```

use std::ops::RangeFrom;
use std::sync::Arc;

use super::stops::{StopStrings, StopWatch};
use super::{Event, Extend, Finish, LogProbs, Overflow, Request, Settings};
use crate::constraint::{Matcher, TokenMask};
use crate::sampling::{Choice, Draw, History, Row};

/// A sequence in a slot. Once begun, its slot holds `tokens[first..first + held]`.
#[derive(Debug)]
pub(super) struct Sequence {
    pub request: usize,
    pub settings: Arc<Settings>,
    /// Its seed and number; the position is filled in at each draw.
    draw: Draw,
    history: History,
    window: usize,
    first: usize,
    held: usize,
    /// Whether the slot holds tokens of this sequence yet, and not those of an earlier one.
    has_begun: bool,
    /// The request whose prompt is read for this one too: both draw from one row of logits.
    pub twin: Option<usize>,
    /// How many tokens are read in this step.
    pub share: usize,
    /// Which row of this step's logits the next token is drawn from.
    pub row: Option<usize>,
    stops: Option<StopWatch>,
    constraint: Option<Constraint>,
}

/// A place in a grammar, and the tokens that may come there.
#[derive(Debug)]
struct Constraint {
    matcher: Matcher,
    allowed: TokenMask,
}

impl Sequence {
    /// A prompt longer than the window is cropped to its newest tokens.
    pub fn new(request: usize, from: Request, context_length: usize) -> Self {
        let Request { prompt, seed, sequence, settings } = from;
        let window = settings.window.min(context_length);
        let constraint = settings
            .grammar
            .as_ref()
            .map(|grammar| Constraint { matcher: grammar.start(), allowed: TokenMask::new(0) });
        Self {
            request,
            draw: Draw { seed, sequence, position: 0 },
            first: prompt.len().saturating_sub(window),
            history: History::new(prompt),
            window,
            held: 0,
            has_begun: false,
            twin: None,
            share: 0,
            row: None,
            stops: settings.stop_strings.as_ref().map(StopStrings::watch),
            constraint,
            settings,
        }
    }

    /// What the model sees: the newest tokens, from the slot's first on.
    pub fn seen(&self) -> &[u32] {
        &self.history.tokens()[self.first..]
    }

    /// What its slot holds of that; none before it has begun.
    pub fn held(&self) -> &[u32] {
        &self.seen()[..self.held]
    }

    /// Whether its slot is its own; before that, it may move to another one without a copy.
    pub fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// Whether logits are still to come for the first token.
    pub fn is_at_prompt(&self) -> bool {
        self.history.output().is_empty()
    }

    /// How many tokens the slot still lacks.
    pub fn num_unread(&self) -> usize {
        self.history.tokens().len() - self.first - self.held
    }

    /// Its slot holds the first `held` tokens that it sees.
    pub fn begin(&mut self, held: usize) {
        (self.has_begun, self.held, self.twin) = (true, held, None);
    }

    /// Moves the window on if a token would be too many. Every token then stands at a new position:
    /// the slot has to start again.
    pub fn slide(&mut self) -> bool {
        let len = self.history.tokens().len();
        if len - self.first <= self.window {
            return false;
        }
        let kept = match self.settings.overflow {
            Overflow::Rebase => (self.window / 2).max(1),
            // `Stop` ends a sequence before that.
            Overflow::Slide | Overflow::Stop => self.window,
        };
        (self.first, self.held) = (len - kept, 0);
        true
    }

    /// Its share of a step, if it has one.
    pub fn work(&self, slot: usize) -> Option<Extend<'_>> {
        let unread = &self.seen()[self.held..];
        (self.share > 0).then(|| Extend {
            slot,
            tokens: &unread[..self.share],
            wanted: usize::from(self.share == unread.len()),
        })
    }

    /// The model has read its share; whoever has read all takes the next of the rows.
    pub fn has_read(&mut self, rows: &mut RangeFrom<usize>) {
        self.held += self.share;
        self.row = if self.num_unread() == 0 { rows.next() } else { None };
    }

    /// The token to be drawn.
    pub fn choice<'a>(&'a self, row: Row<'a>) -> Choice<'a> {
        Choice {
            row,
            config: &self.settings.sampling,
            history: &self.history,
            allowed: self.constraint.as_ref().map(|c| &c.allowed),
            draw: Draw { position: self.history.tokens().len() as u64, ..self.draw },
        }
    }

    /// Takes the token that was drawn.
    pub fn push(&mut self, token: u32, logprobs: Option<LogProbs>) -> Event {
        if self.settings.stop_ids.contains(&token) {
            return self.end(Finish::Stop);
        }
        self.history.push(token);
        let mut event = Event { token: Some(token), logprobs, ..Event::of(self.request) };
        if let Some(stops) = &mut self.stops {
            let released = stops.push(token);
            event.text = released.text;
            if released.stopped {
                event.finish = Some(Finish::Stop);
                event.tokens_kept = Some(released.tokens_kept);
                return event;
            }
        }
        if let Some(constraint) = &mut self.constraint {
            constraint.matcher.push(token);
        }
        if let Some(finish) = self.is_over() {
            let Event { text, finish, tokens_kept, .. } = self.end(finish);
            event.text.extend(text);
            (event.finish, event.tokens_kept) = (finish, tokens_kept);
        }
        event
    }

    /// Ends it, without a further token: what was held back of its text comes out.
    pub fn end(&mut self, finish: Finish) -> Event {
        let mut event = Event { finish: Some(finish), ..Event::of(self.request) };
        if let Some(stops) = &mut self.stops {
            let released = stops.finish();
            if released.stopped {
                event.finish = Some(Finish::Stop);
            }
            (event.text, event.tokens_kept) = (released.text, Some(released.tokens_kept));
        }
        event
    }

    /// Why it cannot have another token, if it cannot; else finds out which ones its grammar allows.
    pub fn is_over(&mut self) -> Option<Finish> {
        let Settings { max_new_tokens, overflow, ref stop_ids, .. } = *self.settings;
        let tokens_left = max_new_tokens - self.history.output().len();
        let room = match overflow {
            Overflow::Stop => tokens_left.min(self.window - self.history.tokens().len()),
            Overflow::Slide | Overflow::Rebase => tokens_left,
        };
        if let Some(constraint) = &mut self.constraint
            && !constraint.goes_on(room, stop_ids)
        {
            return Some(Finish::Stop);
        }
        match room {
            _ if tokens_left == 0 => Some(Finish::Length),
            0 => Some(Finish::Context),
            _ => None,
        }
    }
}

impl Constraint {
    /// Whether anything can follow; a stop token can only where the text may end.
    fn goes_on(&mut self, room: usize, stop_ids: &[u32]) -> bool {
        // Without any room the question is whether the text is complete, or was cut.
        let allowed = self.matcher.allowed(if room == 0 { usize::MAX } else { room });
        self.allowed.clone_from(allowed.tokens);
        if allowed.may_end {
            let num_ids = self.allowed.words().len() * 64;
            for &id in stop_ids.iter().filter(|&&id| (id as usize) < num_ids) {
                self.allowed.insert(id);
            }
        }
        allowed.goes_on
    }
}
