//! Reads what the beams' slots lack, and keeps the likeliest next tokens of each.

use super::BeamSettings;
use crate::generate::{Extend, GenerateError, NextLogits, Outcome};
use crate::sampling::{Choice, Draw, History, Row, Sampler, SamplingConfig};
use crate::{Error, Result};

/// A running sequence. Its slot holds `tokens[first..first + held]`.
#[derive(Debug, Clone)]
pub(super) struct Beam {
    /// Which prompt it continues.
    prompt: usize,
    /// Prompt and output.
    pub tokens: Vec<u32>,
    /// Sum of the output's log-probabilities.
    pub score: f32,
    pub slot: usize,
    pub first: usize,
    pub held: usize,
    /// The likeliest next tokens and their log-probabilities; none before they have been read.
    pub next: Vec<(u32, f32)>,
}

impl Beam {
    pub fn new(prompt: usize, tokens: Vec<u32>, slot: usize) -> Self {
        Self { prompt, tokens, score: 0.0, slot, first: 0, held: 0, next: Vec::new() }
    }

    fn unread(&self) -> &[u32] {
        &self.tokens[self.first + self.held..]
    }
}

/// Reads until the next tokens of all beams are known, in several calls if a prompt is long.
pub(super) fn read<M: NextLogits>(
    model: &mut M,
    mut beams: Vec<&mut Beam>,
    settings: &BeamSettings<'_>,
    sampler: &mut Sampler,
) -> Outcome<(), M> {
    let window = settings.window.min(model.limits().context_length);
    beams.sort_unstable_by_key(|beam| beam.slot);
    for beam in &mut beams {
        let first = beam.tokens.len().saturating_sub(window);
        if first != beam.first {
            model.truncate(beam.slot, 0).map_err(GenerateError::Model)?;
            (beam.first, beam.held) = (first, 0);
        }
    }
    while beams.iter().any(|beam| !beam.unread().is_empty()) {
        let mut left = settings.prefill_tokens;
        let mut work = Vec::with_capacity(beams.len());
        for beam in &beams {
            let unread = beam.unread();
            // A single token is always read, as in the loop.
            let share = if unread.len() == 1 { 1 } else { unread.len().min(left) };
            if share > 0 {
                left -= share.min(left);
                let wanted = usize::from(share == unread.len());
                work.push(Extend { slot: beam.slot, tokens: &unread[..share], wanted });
            }
        }
        model.extend(&work).map_err(GenerateError::Model)?;
        let read: Vec<_> = work.iter().map(|w| (w.slot, w.tokens.len(), w.wanted == 1)).collect();
        let logits = model.logits();
        let mut rows = 0..;
        let mut beams = beams.iter_mut();
        for (slot, share, is_last) in read {
            let Some(beam) = beams.find(|beam| beam.slot == slot) else { continue };
            beam.held += share;
            if is_last && let Some(row) = rows.next() {
                let next = likeliest(logits.row(row), settings.num_candidates(), sampler);
                let request = beam.prompt;
                beam.next =
                    next.map_err(|error| Error::InSequence { request, error: Box::new(error) })?;
            }
        }
    }
    Ok(())
}

fn likeliest(row: Row<'_>, count: usize, sampler: &mut Sampler) -> Result<Vec<(u32, f32)>> {
    let mut next = sampler.top_log_probs(row, count);
    next.retain(|(_, log_prob)| *log_prob > f32::NEG_INFINITY);
    if next.is_empty() {
        // No probabilities can be made of this row; the sampler says why.
        let (config, history) = (SamplingConfig::greedy(), History::default());
        let draw = Draw { seed: 0, sequence: 0, position: 0 };
        let choice = Choice { row, config: &config, history: &history, allowed: None, draw };
        sampler.sample(&choice)?;
    }
    Ok(next)
}
