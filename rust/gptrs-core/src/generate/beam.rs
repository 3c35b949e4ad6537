//! Beam search: the likeliest sequences that so many beams find.
//!
//! ```text
//! running          candidates: each beam with each token       running          finished
//! a  -1.2   ─►     b x  -1.9    the best so many beams         b x  -1.9
//! b  -1.5          a y  -2.0    ────────────────────────►      a y  -2.0
//!                  b .  -2.1    ends with a stop token ───────────────────────►  b .  -2.1 / 5^p
//! ```
//!
//! The same as transformers' beam search, so that the same sequences come out with the same scores:
//! what counts as better, when a search ends, and that a finished sequence counts only while it is
//! among the best `num_beams` candidates. The sampler's settings have no part in it.
//!
//! A prompt is read once. A beam stays in its slot while one of its continuations goes on, and the
//! other ones go to slots of beams that do not: so no copy overwrites what another one needs.

mod hypotheses;
mod reading;
#[cfg(test)]
mod tests;

use super::inbox::check_prompt;
use super::{Finish, GenerateError, Limits, NextLogits, Outcome};
use crate::sampling::Sampler;
use crate::{Error, Result};
use hypotheses::Hypotheses;
use reading::Beam;

/// What to search for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BeamSettings<'a> {
    /// How many sequences are followed at once; the model needs a slot for each.
    pub num_beams: usize,
    /// How many of the best are returned: at most `num_beams`.
    pub num_return: usize,
    /// How many tokens a sequence gets at most.
    pub max_new_tokens: usize,
    /// The model sees this many of the newest tokens; no more than its context length. Past that the
    /// window slides, as with `Overflow::Slide`.
    pub window: usize,
    /// Scores are sums of log-probabilities divided by the length to this power.
    pub length_penalty: f64,
    /// When the search ends.
    pub early_stopping: EarlyStopping,
    /// Tokens that end a sequence, and are not part of it; they count in its score and its length.
    pub stop_ids: &'a [u32],
    /// The most tokens of prompts that one `extend` takes.
    pub prefill_tokens: usize,
}

/// When a search ends, once there are `num_beams` finished sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EarlyStopping {
    /// As soon as there are that many.
    Yes,
    /// When the best running one, at its present length, is no better than the worst of them.
    #[default]
    No,
    /// When no running one can become better than the worst of them at any length.
    Never,
}

/// A sequence that was found.
#[derive(Debug, Clone, PartialEq)]
pub struct BeamOutput {
    /// New tokens, without the prompt and the stop token.
    pub tokens: Vec<u32>,
    /// Sum of the log-probabilities, divided by the length to the power of `length_penalty`.
    pub score: f32,
    /// Why it ended.
    pub finish: Finish,
}

/// The search for the continuations of one prompt. It has `num_beams` slots, from `first_slot` on.
#[derive(Debug)]
struct Search {
    prompt: usize,
    prompt_len: usize,
    first_slot: usize,
    /// The best first.
    running: Vec<Beam>,
    finished: Hypotheses,
}

/// The best continuations of each prompt, the best first: `num_return` of them, fewer only if the
/// vocabulary does not make as many. As many prompts at once as the model's slots allow.
///
/// # Errors
/// A setting out of its range, fewer slots than beams, a prompt that is empty or has an id outside
/// the vocabulary, logits that are NaN or infinite; the model's own errors, unchanged.
pub fn beam_search<M: NextLogits>(
    model: &mut M,
    prompts: &[Vec<u32>],
    settings: &BeamSettings<'_>,
) -> Outcome<Vec<Vec<BeamOutput>>, M> {
    let limits = model.limits();
    settings.check(limits)?;
    for (row, prompt) in prompts.iter().enumerate() {
        check_prompt(row, prompt, limits.vocab_size)?;
    }
    let mut sampler = Sampler::new();
    let mut outputs = vec![Vec::new(); prompts.len()];
    let mut waiting = prompts.iter().enumerate();
    let mut searches: Vec<Search> = Vec::new();
    loop {
        while searches.len() < limits.slots / settings.num_beams
            && let Some((number, prompt)) = waiting.next()
        {
            let first_slot = searches.len() * settings.num_beams;
            model.truncate(first_slot, 0).map_err(GenerateError::Model)?;
            searches.push(Search::new(number, prompt, first_slot, settings));
        }
        if searches.is_empty() {
            return Ok(outputs);
        }
        let beams = searches.iter_mut().flat_map(|search| &mut search.running);
        reading::read(model, beams.collect(), settings, &mut sampler)?;
        for place in (0..searches.len()).rev() {
            let is_over = searches[place].advance(model, settings).map_err(GenerateError::Model)?;
            if is_over {
                let search = searches.swap_remove(place);
                outputs[search.prompt] = search.finished.best(settings.num_return);
                if let Some(moved) = searches.get_mut(place) {
                    moved.move_to(search.first_slot, model).map_err(GenerateError::Model)?;
                }
            }
        }
    }
}

impl BeamSettings<'_> {
    fn check(&self, limits: Limits) -> Result<()> {
        let Self { num_beams, num_return, window, length_penalty, .. } = *self;
        if num_beams == 0 {
            return Err(Error::Setting("num_beams is at least 1, found 0".into()));
        }
        if !(1..=num_beams).contains(&num_return) {
            return Err(Error::Setting(format!(
                "of {num_beams} beams 1 to {num_beams} sequences are returned, asked for {num_return}"
            )));
        }
        if !length_penalty.is_finite() {
            return Err(Error::Setting(format!(
                "length_penalty is a finite number, found {length_penalty}"
            )));
        }
        if self.max_new_tokens == 0 || self.prefill_tokens == 0 {
            return Err(Error::Setting(format!(
                "a beam search needs max_new_tokens and prefill_tokens of at least 1, found {} and {}",
                self.max_new_tokens, self.prefill_tokens
            )));
        }
        if limits.slots < num_beams {
            return Err(Error::Setting(format!(
                "{num_beams} beams need as many slots, the model has {}",
                limits.slots
            )));
        }
        if window.min(limits.context_length) == 0 {
            return Err(Error::NoRoom { window: 0, slots: limits.slots });
        }
        Ok(())
    }

    /// How many candidates are looked at: enough to go on with, even if the best all end.
    fn num_candidates(&self) -> usize {
        self.num_beams.saturating_mul((1 + self.stop_ids.len()).max(2))
    }
}

/// A beam with one more token.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    /// The beam's place among the running ones.
    beam: usize,
    token: u32,
    /// Sum of the log-probabilities.
    score: f32,
}

impl Search {
    fn new(prompt: usize, tokens: &[u32], slot: usize, settings: &BeamSettings<'_>) -> Self {
        Self {
            prompt,
            prompt_len: tokens.len(),
            first_slot: slot,
            running: vec![Beam::new(prompt, tokens.to_vec(), slot)],
            finished: Hypotheses::new(settings),
        }
    }

    /// Chooses among the candidates, which have been read. True once the search is over.
    fn advance<M: NextLogits>(
        &mut self,
        model: &mut M,
        settings: &BeamSettings<'_>,
    ) -> std::result::Result<bool, M::Error> {
        let candidates = self.candidates(settings.num_candidates());
        let len = self.running[0].tokens.len() + 1 - self.prompt_len;
        let ends =
            |c: &Candidate| len == settings.max_new_tokens || settings.stop_ids.contains(&c.token);
        for candidate in candidates.iter().take(settings.num_beams).filter(|c| ends(c)) {
            let is_stop = settings.stop_ids.contains(&candidate.token);
            let mut tokens = self.running[candidate.beam].tokens[self.prompt_len..].to_vec();
            tokens.extend((!is_stop).then_some(candidate.token));
            let finish = if is_stop { Finish::Stop } else { Finish::Length };
            self.finished.add(tokens, candidate.score, len, finish);
        }
        let go_on = candidates.iter().filter(|c| !ends(c)).take(settings.num_beams);
        let go_on: Vec<_> = go_on.copied().collect();
        if go_on.first().is_none_or(|best| self.finished.are_final(best.score, len)) {
            return Ok(true);
        }
        self.go_on_with(&go_on, model)?;
        Ok(false)
    }

    /// The best of all beams with all tokens, the best first.
    fn candidates(&mut self, most: usize) -> Vec<Candidate> {
        let mut candidates = Vec::new();
        for (beam, running) in self.running.iter_mut().enumerate() {
            let next = std::mem::take(&mut running.next);
            let score = |log_prob| running.score + log_prob;
            candidates.extend(next.into_iter().map(|(token, p)| Candidate {
                beam,
                token,
                score: score(p),
            }));
        }
        // On a tie the better beam, then the lower id: the order in which they came.
        candidates.sort_by(|a, b| b.score.total_cmp(&a.score));
        candidates.truncate(most);
        candidates
    }

    /// Makes beams of candidates, each in a slot that holds what it continues.
    fn go_on_with<M: NextLogits>(
        &mut self,
        candidates: &[Candidate],
        model: &mut M,
    ) -> std::result::Result<(), M::Error> {
        let goes_on = |beam: usize| candidates.iter().any(|candidate| candidate.beam == beam);
        let mut stays: Vec<_> = (0..self.running.len()).map(goes_on).collect();
        let beams = self.running.iter().zip(&stays);
        let taken: Vec<_> = beams.filter(|(_, stays)| **stays).map(|(beam, _)| beam.slot).collect();
        let mut free = (self.first_slot..).filter(|slot| !taken.contains(slot));
        let mut next = Vec::with_capacity(candidates.len());
        for candidate in candidates {
            let mut beam = self.running[candidate.beam].clone();
            // The best continuation of a beam stays in its slot.
            if !std::mem::take(&mut stays[candidate.beam])
                && let Some(slot) = free.next()
            {
                model.copy(beam.slot, slot, beam.held)?;
                beam.slot = slot;
            }
            beam.tokens.push(candidate.token);
            beam.score = candidate.score;
            next.push(beam);
        }
        self.running = next;
        Ok(())
    }

    /// Moves all beams to the slots of a search that is over.
    fn move_to<M: NextLogits>(
        &mut self,
        first_slot: usize,
        model: &mut M,
    ) -> std::result::Result<(), M::Error> {
        for beam in &mut self.running {
            let slot = first_slot + (beam.slot - self.first_slot);
            model.copy(beam.slot, slot, beam.held)?;
            beam.slot = slot;
        }
        self.first_slot = first_slot;
        Ok(())
    }
}
