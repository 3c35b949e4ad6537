//! Many rows at once, shared among threads.

use std::thread;

use super::{Choice, Sampler, SamplingConfig};
use crate::Result;

/// What a thread is started for: about 100 microseconds of [`work`], two or three times what starting
/// it takes.
const WORK_A_THREAD: usize = 1 << 20;

/// How long a choice takes, in logits scanned: roughly, as measured.
fn work(choice: &Choice<'_>) -> usize {
    let SamplingConfig { temperature, top_k, top_p, typical_p, .. } = choice.config;
    let passes = match (top_k, top_p, typical_p) {
        _ if *temperature == 0.0 => 1,
        (Some(_), ..) => 2,
        (None, None, None) => 5,
        _ => 14,
    };
    choice.row.len() * passes
}

/// Chooses a token for each row, on at most `threads` threads: the same ones on any number of them.
/// `samplers` grows to one a thread, which keep their buffers for the next call.
///
/// # Errors
/// That of the first row that has one.
pub fn sample_all(
    samplers: &mut Vec<Sampler>,
    choices: &[Choice<'_>],
    threads: usize,
) -> Result<Vec<u32>> {
    let work: usize = choices.iter().map(work).sum();
    let threads = threads.min(choices.len()).min(work / WORK_A_THREAD).max(1);
    if samplers.len() < threads {
        samplers.resize_with(threads, Sampler::new);
    }
    let mut ids = vec![0; choices.len()];
    let share = choices.len().div_ceil(threads).max(1);
    let mut shares = samplers.iter_mut().zip(choices.chunks(share).zip(ids.chunks_mut(share)));
    let own = shares.next();
    thread::scope(|scope| {
        let others: Vec<_> = shares
            .map(|(sampler, (choices, ids))| scope.spawn(|| sample_each(sampler, choices, ids)))
            .collect();
        let first =
            own.map_or(Ok(()), |(sampler, (choices, ids))| sample_each(sampler, choices, ids));
        others.into_iter().fold(first, |result, other| {
            let other = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            result.and(other)
        })
    })?;
    Ok(ids)
}

fn sample_each(sampler: &mut Sampler, choices: &[Choice<'_>], ids: &mut [u32]) -> Result<()> {
    for (id, choice) in ids.iter_mut().zip(choices) {
        *id = sampler.sample(choice)?;
    }
    Ok(())
}
