//! The loop against the plainest one there is: one sequence, no slots, no cache, no batch.

mod batches;
mod faults;
mod hash_model;
mod plain;
mod prefixes;
mod stops;

use std::sync::Arc;

use super::*;
pub(super) use hash_model::HashModel;
use plain::alone;

/// A generation over a new model, of 11 tokens.
fn generation(context_length: usize, slots: usize, options: Options) -> Generation<HashModel> {
    Generation::new(HashModel::new(11, context_length, slots), options).unwrap()
}

fn request(prompt: &[u32], settings: &Arc<Settings>) -> Request {
    let settings = Arc::clone(settings);
    Request { prompt: prompt.to_vec(), seed: 0, sequence: 0, settings }
}

fn greedy(max_new_tokens: usize, window: usize) -> Arc<Settings> {
    Arc::new(Settings::greedy(max_new_tokens, window))
}
