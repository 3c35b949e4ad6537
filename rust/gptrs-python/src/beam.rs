//! `_core.beam_search`: the likeliest continuations that so many beams find.

use gptrs_core::Error;
use gptrs_core::generate::NextLogits;
use gptrs_core::generate::beam::{self, BeamOutput, BeamSettings, EarlyStopping};
use pyo3::prelude::*;

use crate::errors::CoreError;
use crate::generate::{AnyModel, finish_reason, to_ids, to_py_err};

/// (tokens, score, finish reason)
type PyBeam = (Vec<u32>, f32, &'static str);

/// The best continuations of each prompt, the best first.
///
/// Args:
///     engine: as for Generation.
///     prompts: token ids of each.
///     num_beams: how many sequences are followed at once.
///     num_return: how many of the best are returned.
///     early_stopping: True, False or "never".
/// Raises:
///     ConfigError: a setting is out of its range.
///     GenerationError: an empty prompt, or logits that have no best token.
///     Anything the engine raises, unchanged.
#[pyfunction]
#[pyo3(signature = (
    engine, prompts, *, num_beams, num_return, max_new_tokens, window, length_penalty,
    early_stopping, stop_ids, prefill_tokens=2048
))]
#[expect(clippy::too_many_arguments, reason = "keyword arguments of a Python function")]
pub fn beam_search(
    py: Python<'_>,
    engine: &Bound<'_, PyAny>,
    prompts: Vec<Vec<i64>>,
    num_beams: usize,
    num_return: usize,
    max_new_tokens: usize,
    window: usize,
    length_penalty: f64,
    early_stopping: &Bound<'_, PyAny>,
    stop_ids: Vec<u32>,
    prefill_tokens: usize,
) -> PyResult<Vec<Vec<PyBeam>>> {
    let mut model = AnyModel::new(engine)?;
    let vocab_size = model.limits().vocab_size;
    let prompts: Vec<_> = (prompts.into_iter().enumerate())
        .map(|(row, prompt)| to_ids(row, prompt, vocab_size))
        .collect::<Result<_, _>>()?;
    let settings = BeamSettings {
        num_beams,
        num_return,
        max_new_tokens,
        window,
        length_penalty,
        early_stopping: to_early_stopping(early_stopping)?,
        stop_ids: &stop_ids,
        prefill_tokens,
    };
    let found = py.detach(|| beam::beam_search(&mut model, &prompts, &settings));
    let to_py = |beam: BeamOutput| (beam.tokens, beam.score, finish_reason(beam.finish));
    let found = found.map_err(to_py_err)?;
    Ok(found.into_iter().map(|beams| beams.into_iter().map(to_py).collect()).collect())
}

fn to_early_stopping(value: &Bound<'_, PyAny>) -> Result<EarlyStopping, CoreError> {
    match (value.extract(), value.extract()) {
        (Ok(true), _) => Ok(EarlyStopping::Yes),
        (Ok(false), _) => Ok(EarlyStopping::No),
        (_, Ok("never")) => Ok(EarlyStopping::Never),
        _ => {
            let message = format!("early_stopping is True, False or \"never\", found {value}");
            Err(Error::Setting(message).into())
        }
    }
}
