//! The plainest loop, and what it is compared on.

use std::sync::Arc;

use proptest::prelude::*;

use super::HashModel;
use crate::generate::{Finish, Output, Overflow, Request, Settings};
use crate::sampling::{Choice, Draw, History, Row, Sampler, SamplingConfig};

/// What a request gets, with no slots, no cache and no batch: the whole window at every step.
pub fn alone(request: &Request, context_length: usize, vocab_size: usize) -> Output {
    let settings = &request.settings;
    let window = settings.window.min(context_length);
    let mut history = History::new(request.prompt.clone());
    let mut first = request.prompt.len().saturating_sub(window);
    let finish = loop {
        let len = history.tokens().len();
        if history.output().len() == settings.max_new_tokens {
            break Finish::Length;
        }
        if settings.overflow == Overflow::Stop && len == window {
            break Finish::Context;
        }
        if len - first > window {
            let half = if window == 1 { 1 } else { window / 2 };
            first = len - if settings.overflow == Overflow::Rebase { half } else { window };
        }
        let row: Vec<f32> =
            HashModel::logits_after(&history.tokens()[first..], vocab_size).collect();
        let draw = Draw { seed: request.seed, sequence: request.sequence, position: len as u64 };
        let (row, config) = (Row::F32(&row), &settings.sampling);
        let choice = Choice { row, config, history: &history, allowed: None, draw };
        let token = Sampler::new().sample(&choice).unwrap();
        if settings.stop_ids.contains(&token) {
            break Finish::Stop;
        }
        history.push(token);
    };
    Output { tokens: history.output().to_vec(), logprobs: vec![], text: None, finish }
}

/// Settings of a single request.
fn settings() -> impl Strategy<Value = Settings> {
    let overflow = prop_oneof![Just(Overflow::Slide), Just(Overflow::Rebase), Just(Overflow::Stop)];
    let temperature = prop_oneof![Just(0.0), Just(1.0)];
    (0_usize..14, 1_usize..30, overflow, prop::option::of(0_u32..11), temperature).prop_map(
        |(max_new_tokens, window, overflow, stop, temperature)| Settings {
            overflow,
            stop_ids: stop.into_iter().collect(),
            sampling: SamplingConfig { temperature, ..SamplingConfig::default() },
            ..Settings::greedy(max_new_tokens, window)
        },
    )
}

/// Up to `most` requests, many of which begin alike or are the same.
pub fn requests(most: usize) -> impl Strategy<Value = Vec<Request>> {
    let own_part = prop::collection::vec(0_u32..11, 1..4);
    let one = (0_usize..20, own_part, settings(), 0_u64..3);
    (prop::collection::vec(0_u32..11, 20), prop::collection::vec(one, 0..most)).prop_map(
        |(beginning, many)| {
            let mut requests: Vec<Request> = Vec::new();
            for (shared, own_part, settings, seed) in many {
                let prompt = match requests.last() {
                    Some(last) if shared % 4 == 0 => last.prompt.clone(),
                    _ => [&beginning[..shared], &own_part].concat(),
                };
                let sequence = requests.len() as u64;
                requests.push(Request { prompt, seed, sequence, settings: Arc::new(settings) });
            }
            requests
        },
    )
}
