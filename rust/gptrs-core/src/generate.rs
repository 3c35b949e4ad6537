//! The sampling loop: asks a model for logits, samples, checks the stops, says what came out.
//!
//! ```text
//! requests ─► waiting ─► slots 0..n ─► extend ─► logits ─► sample ─► events
//!                          ▲  └── a finished sequence's slot is filled by the last one ──┐
//!                          └───────────────────────────────────────────────────────────┘
//! ```
//!
//! The loop never knows what answers: a PyTorch model through one callback a step, or native code.
//! It keeps the running sequences in the slots 0..n, so that a model's cache stays dense.

use std::collections::VecDeque;

use half::{bf16, f16};

use crate::sampling::{Draw, Row, Sampler, SamplingConfig};
use crate::{Error, Result};

/// What a model can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Token ids are below this.
    pub vocab_size: usize,
    /// The most tokens a slot holds.
    pub context_length: usize,
    /// How many sequences it holds at once.
    pub slots: usize,
}

/// One slot's share of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extend<'a> {
    /// Which sequence.
    pub slot: usize,
    /// Tokens to append: a whole prompt, or the newest token.
    pub tokens: &'a [u32],
    /// For how many of the last positions logits are wanted.
    pub wanted: usize,
}

/// The rows that the last [`NextLogits::extend`] asked for, one after the other.
#[derive(Debug, Clone, Copy)]
pub enum Logits<'a> {
    /// `[rows, width]`.
    F32(&'a [f32], usize),
    /// `[rows, width]`.
    Bf16(&'a [bf16], usize),
    /// `[rows, width]`.
    F16(&'a [f16], usize),
    /// Reduced where they were computed; see [`Row::Candidates`].
    Candidates {
        /// `[rows, width]` token ids.
        ids: &'a [u32],
        /// `[rows, width]` logits.
        values: &'a [f32],
        /// `[rows]`.
        log_sum_exp: &'a [f32],
        /// Candidates a row.
        width: usize,
    },
}

impl<'a> Logits<'a> {
    /// Row `index`. Panics past the last, as a slice does.
    pub fn row(&self, index: usize) -> Row<'a> {
        let span = |width: usize| index * width..(index + 1) * width;
        match *self {
            Self::F32(values, width) => Row::F32(&values[span(width)]),
            Self::Bf16(values, width) => Row::Bf16(&values[span(width)]),
            Self::F16(values, width) => Row::F16(&values[span(width)]),
            Self::Candidates { ids, values, log_sum_exp, width } => Row::Candidates {
                ids: &ids[span(width)],
                values: &values[span(width)],
                log_sum_exp: log_sum_exp[index],
            },
        }
    }
}

/// A model as the loop sees it: slots that take tokens and give logits.
pub trait NextLogits {
    /// What can go wrong in the model; the loop hands it on unchanged.
    type Error;

    /// What the model can hold.
    fn limits(&self) -> Limits;
    /// Appends tokens to slots: prefill and step alike.
    fn extend(&mut self, work: &[Extend<'_>]) -> std::result::Result<(), Self::Error>;
    /// The rows wanted by the last `extend`, in its order.
    fn logits(&self) -> Logits<'_>;
    /// Makes the first `len` tokens of slot `to` those of slot `from`.
    fn copy(&mut self, from: usize, to: usize, len: usize) -> std::result::Result<(), Self::Error>;
    /// Forgets all but the first `len` tokens of a slot.
    fn truncate(&mut self, slot: usize, len: usize) -> std::result::Result<(), Self::Error>;
}

/// The loop's own errors, or the model's.
#[derive(Debug)]
pub enum GenerateError<E> {
    /// Bad prompts, settings or logits.
    Core(Error),
    /// Whatever the model raised.
    Model(E),
}

impl<E> From<Error> for GenerateError<E> {
    fn from(error: Error) -> Self {
        Self::Core(error)
    }
}

/// One sequence to continue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// At least one token.
    pub prompt: Vec<u32>,
    /// Seed of its draws.
    pub seed: u64,
    /// Its number in the draws' counter.
    pub sequence: u64,
}

/// What holds for all requests of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Plan {
    /// How many tokens each sequence gets at most.
    pub max_new_tokens: usize,
    /// The model sees this many of the newest tokens; no more than its context length.
    pub window: usize,
    /// Ends a sequence, and is not part of it.
    pub eos_id: Option<u32>,
    /// How tokens are chosen.
    pub sampling: SamplingConfig,
}

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The end-of-text token was drawn.
    Stop,
    /// It has all the tokens it may have.
    Length,
}

/// What one step did to one sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// Which request, by its place in the list.
    pub request: usize,
    /// The new token; none if that was the end-of-text.
    pub token: Option<u32>,
    /// Set on a sequence's last event.
    pub finish: Option<Finish>,
}

/// A finished sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// New tokens, without the prompt and the end-of-text.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
}

/// A sequence in a slot. Its slot holds `tokens[first..first + held]`.
#[derive(Debug)]
struct Sequence {
    request: usize,
    /// Its seed and number; the position is filled in at each draw.
    draw: Draw,
    tokens: Vec<u32>,
    max_tokens: usize,
    first: usize,
    held: usize,
}

/// A run of the loop: [`run`](Self::run) to the end, or [`step`](Self::step) by step for a stream.
#[derive(Debug)]
pub struct Generation<M> {
    model: M,
    sampler: Sampler,
    plan: Plan,
    num_requests: usize,
    waiting: VecDeque<Sequence>,
    /// The sequence in slot i.
    running: Vec<Sequence>,
}

impl<M: NextLogits> Generation<M> {
    /// Checks prompts and settings; computes nothing yet.
    pub fn new(model: M, plan: Plan, requests: Vec<Request>) -> Result<Self> {
        let Limits { vocab_size, context_length, slots } = model.limits();
        if plan.window == 0 || slots == 0 {
            return Err(Error::NoRoom { window: plan.window, slots });
        }
        for (row, request) in requests.iter().enumerate() {
            check_prompt(row, &request.prompt, vocab_size)?;
        }
        let num_requests = requests.len();
        let waiting = requests.into_iter().enumerate().map(|(index, request)| Sequence {
            request: index,
            draw: Draw { seed: request.seed, sequence: request.sequence, position: 0 },
            max_tokens: request.prompt.len().saturating_add(plan.max_new_tokens),
            tokens: request.prompt,
            first: 0,
            held: 0,
        });
        Ok(Self {
            model,
            sampler: Sampler::new(plan.sampling)?,
            plan: Plan { window: plan.window.min(context_length), ..plan },
            num_requests,
            waiting: waiting.collect(),
            running: Vec::new(),
        })
    }

    /// Runs every request to its end; outputs in the order of the requests.
    pub fn run(&mut self) -> std::result::Result<Vec<Output>, GenerateError<M::Error>> {
        let empty = Output { tokens: Vec::new(), finish: Finish::Length };
        let mut outputs = vec![empty; self.num_requests];
        let mut events = Vec::new();
        while self.step(&mut events)? {
            for event in &events {
                let output = &mut outputs[event.request];
                output.tokens.extend(event.token);
                output.finish = event.finish.unwrap_or(output.finish);
            }
        }
        Ok(outputs)
    }

    /// Gives each running sequence one token. False once there is nothing left to do.
    pub fn step(
        &mut self,
        events: &mut Vec<Event>,
    ) -> std::result::Result<bool, GenerateError<M::Error>> {
        events.clear();
        self.admit();
        if self.running.is_empty() {
            return Ok(false);
        }
        self.feed().map_err(GenerateError::Model)?;
        self.sample(events)?;
        self.retire(events).map_err(GenerateError::Model)?;
        Ok(true)
    }

    /// Moves waiting sequences into free slots.
    fn admit(&mut self) {
        if self.plan.max_new_tokens == 0 {
            self.waiting.clear();
        }
        let free = self.model.limits().slots - self.running.len();
        self.running.extend(self.waiting.drain(..free.min(self.waiting.len())));
    }

    /// Appends to every slot what its sequence has and the slot does not.
    ///
    /// A sequence longer than the window slides: every token then stands at a new position, so the
    /// slot starts again from the newest `window` tokens, as the book crops its context.
    fn feed(&mut self) -> std::result::Result<(), M::Error> {
        for (slot, sequence) in self.running.iter_mut().enumerate() {
            let first = sequence.tokens.len().saturating_sub(self.plan.window);
            if first != sequence.first {
                self.model.truncate(slot, 0)?;
                (sequence.first, sequence.held) = (first, 0);
            }
        }
        let work: Vec<_> = (self.running.iter().enumerate())
            .map(|(slot, s)| Extend { slot, tokens: &s.tokens[s.first + s.held..], wanted: 1 })
            .collect();
        self.model.extend(&work)?;
        for sequence in &mut self.running {
            sequence.held = sequence.tokens.len() - sequence.first;
        }
        Ok(())
    }

    fn sample(&mut self, events: &mut Vec<Event>) -> Result<()> {
        let logits = self.model.logits();
        for (slot, s) in self.running.iter_mut().enumerate() {
            let draw = Draw { position: s.tokens.len() as u64, ..s.draw };
            let token = self.sampler.sample(logits.row(slot), draw)?;
            let finish = if Some(token) == self.plan.eos_id {
                Some(Finish::Stop)
            } else {
                s.tokens.push(token);
                (s.tokens.len() == s.max_tokens).then_some(Finish::Length)
            };
            let token = (finish != Some(Finish::Stop)).then_some(token);
            events.push(Event { request: s.request, token, finish });
        }
        Ok(())
    }

    /// Frees the slots of finished sequences; the last running one moves into the hole.
    fn retire(&mut self, events: &[Event]) -> std::result::Result<(), M::Error> {
        for slot in (0..events.len()).rev().filter(|&slot| events[slot].finish.is_some()) {
            self.running.swap_remove(slot);
            let last = self.running.len();
            if let Some(moved) = self.running.get(slot) {
                self.model.copy(last, slot, moved.held)?;
            }
            self.model.truncate(last, 0)?;
        }
        Ok(())
    }
}

fn check_prompt(row: usize, prompt: &[u32], vocab_size: usize) -> Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Prefers the token that the slot's tokens hash to: any mix-up of slots or windows changes it.
    #[derive(Debug)]
    struct HashModel {
        slots: Vec<Vec<u32>>,
        limits: Limits,
        rows: Vec<f32>,
        steps: usize,
    }

    impl HashModel {
        fn new(vocab_size: usize, context_length: usize, slots: usize) -> Self {
            let limits = Limits { vocab_size, context_length, slots };
            Self { slots: vec![Vec::new(); slots], limits, rows: Vec::new(), steps: 0 }
        }

        fn next(tokens: &[u32], vocab_size: usize) -> u32 {
            let hash = tokens
                .iter()
                .fold(17_u64, |h, &t| h.wrapping_mul(31).wrapping_add(u64::from(t) + 1));
            (hash % vocab_size as u64) as u32
        }
    }

    impl NextLogits for HashModel {
        type Error = String;

        fn limits(&self) -> Limits {
            self.limits
        }
        fn extend(&mut self, work: &[Extend<'_>]) -> std::result::Result<(), String> {
            self.steps += 1;
            self.rows.clear();
            for Extend { slot, tokens, wanted } in work {
                assert_eq!(*wanted, 1);
                assert!(!tokens.is_empty());
                self.slots[*slot].extend_from_slice(tokens);
                let held = &self.slots[*slot];
                assert!(held.len() <= self.limits.context_length);
                let best = Self::next(held, self.limits.vocab_size) as usize;
                self.rows
                    .extend((0..self.limits.vocab_size).map(|id| f32::from(u8::from(id == best))));
            }
            Ok(())
        }
        fn logits(&self) -> Logits<'_> {
            Logits::F32(&self.rows, self.limits.vocab_size)
        }
        fn copy(&mut self, from: usize, to: usize, len: usize) -> std::result::Result<(), String> {
            self.slots[to] = self.slots[from][..len].to_vec();
            Ok(())
        }
        fn truncate(&mut self, slot: usize, len: usize) -> std::result::Result<(), String> {
            self.slots[slot].truncate(len);
            Ok(())
        }
    }

    fn greedy(max_new_tokens: usize, window: usize, eos_id: Option<u32>) -> Plan {
        let sampling = SamplingConfig { temperature: 0.0, top_k: None, top_p: None };
        Plan { max_new_tokens, window, eos_id, sampling }
    }

    /// The book's loop, with no slots, no cache and no batch.
    fn one_by_one(prompt: &[u32], plan: Plan, window: usize, vocab_size: usize) -> Output {
        let mut tokens = prompt.to_vec();
        while tokens.len() - prompt.len() < plan.max_new_tokens {
            let next = HashModel::next(&tokens[tokens.len().saturating_sub(window)..], vocab_size);
            if Some(next) == plan.eos_id {
                return Output { tokens: tokens[prompt.len()..].to_vec(), finish: Finish::Stop };
            }
            tokens.push(next);
        }
        Output { tokens: tokens[prompt.len()..].to_vec(), finish: Finish::Length }
    }

    proptest! {
        #[test]
        fn a_batch_gives_what_each_prompt_gives_alone(
            prompts in prop::collection::vec(prop::collection::vec(0_u32..11, 1..12), 0..9),
            max_new_tokens in 0_usize..20, window in 1_usize..12, context in 1_usize..12,
            slots in 1_usize..5, eos in prop::option::of(0_u32..11),
        ) {
            let plan = greedy(max_new_tokens, window, eos);
            let requests = prompts.iter()
                .map(|p| Request { prompt: p.clone(), seed: 0, sequence: 0 }).collect();
            let mut run = Generation::new(HashModel::new(11, context, slots), plan, requests)?;
            let outputs = run.run().unwrap();
            for (prompt, output) in prompts.iter().zip(outputs) {
                prop_assert_eq!(output, one_by_one(prompt, plan, window.min(context), 11));
            }
        }
    }

    #[test]
    fn n_tokens_take_n_steps_whatever_the_batch() {
        for batch in [1, 3, 8] {
            let request = Request { prompt: vec![1, 2], seed: 0, sequence: 0 };
            let mut run = Generation::new(
                HashModel::new(11, 64, batch),
                greedy(10, 64, None),
                vec![request; batch],
            )
            .unwrap();
            assert_eq!(run.run().unwrap().len(), batch);
            assert_eq!(run.model.steps, 10);
        }
    }

    #[test]
    fn bad_prompts_are_refused_before_anything_runs() {
        let bad = |prompt: Vec<u32>| {
            let requests = vec![Request { prompt, seed: 0, sequence: 0 }];
            Generation::new(HashModel::new(5, 8, 1), greedy(1, 8, None), requests)
                .unwrap_err()
                .to_string()
        };
        assert_eq!(bad(vec![4, 5]), "token id 5 at [0, 1] is outside 0..4");
        assert_eq!(bad(vec![]), "prompt 0 has no tokens: at least one is needed to go on from");
    }
}
