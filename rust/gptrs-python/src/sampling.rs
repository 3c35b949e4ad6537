//! `_core.Sampler`: rows of logits in, token ids out.

mod config;
mod history;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use gptrs_core::sampling::{Choice, Draw, History, LogProbs, Sampler, SamplingConfig, sample_all};
use gptrs_core::{Error, Result};
use numpy::{IntoPyArray, PyArray1, PyArray2, PyArrayMethods};
use pyo3::prelude::*;

use crate::errors::{CoreError, GenerationError};
use crate::signals::interruptible;
use crate::tensor::Matrix;
use crate::tokenizer::num_threads;

pub use config::PySamplingConfig;
use history::GivenHistory;

/// Logits a thread between two looks for Ctrl-C: some 50 ms where a row is slow.
const LOGITS_AT_ONCE: usize = 1 << 22;

/// Chooses one token a row.
///
/// Args:
///     configs, seeds: one for all rows, or one a row.
///     threads: the most that share a large batch; None is one for each processor.
#[pyclass(frozen, name = "Sampler", module = "gptrs._core")]
pub struct PySampler {
    configs: Vec<Arc<SamplingConfig>>,
    seeds: Vec<u64>,
    threads: usize,
    state: Mutex<State>,
}

/// What stays from call to call.
#[derive(Default)]
struct State {
    samplers: Vec<Sampler>,
    /// The tokens drawn for each sequence, if a setting looks at them.
    histories: HashMap<u64, History>,
    next_position: u64,
    /// A vocabulary that has all ids of the settings.
    fitting_width: Option<usize>,
}

/// What a call is about.
struct Rows {
    logits: Matrix,
    sequences: Vec<u64>,
    positions: Option<Vec<u64>>,
    /// `None`: the sampler's own.
    histories: Option<Vec<History>>,
}

#[pymethods]
impl PySampler {
    #[new]
    #[pyo3(signature = (configs, seeds, *, threads=None))]
    fn new(
        configs: Vec<PyRef<'_, PySamplingConfig>>,
        seeds: Vec<u64>,
        threads: Option<isize>,
    ) -> PyResult<Self> {
        let configs = configs.iter().map(|config| Arc::clone(&config.0)).collect();
        let threads = num_threads(threads)?;
        Ok(Self { configs, seeds, threads, state: Mutex::default() })
    }

    /// Draws for each row by its counter.
    ///
    /// Args:
    ///     logits: float32, float16 or bfloat16 [B, V], of NumPy or of torch on the CPU.
    ///     sequences: [B]; None is 0 to B-1.
    ///     positions: [B]; None is how many calls without them came before.
    ///     history: (prompt ids, output ids) of each row, or (ids int64 [B, T], each row's first
    ///         index, the output's first index); None is what was drawn for each sequence.
    /// Returns:
    ///     int64 [B].
    /// Raises:
    ///     GenerationError: a row has NaN or +inf, or no token that may be drawn.
    ///     TokenIdError: the history has an id outside the vocabulary.
    #[pyo3(signature = (logits, *, sequences=None, positions=None, history=None))]
    fn sample<'py>(
        &self,
        py: Python<'py>,
        logits: &Bound<'py, PyAny>,
        sequences: Option<Vec<u64>>,
        positions: Option<Vec<u64>>,
        history: Option<GivenHistory<'py>>,
    ) -> PyResult<Bound<'py, PyArray1<i64>>> {
        let rows = self.rows(logits, sequences, positions, history)?;
        let draw = |samplers: &mut Vec<Sampler>, choices: &[Choice<'_>]| {
            sample_all(samplers, choices, self.threads)
        };
        let at_once = LOGITS_AT_ONCE * self.threads / rows.logits.width().max(1);
        let ids = self.for_choices(py, &rows, at_once.max(1), draw, |state, ids: &[u32]| {
            state.next_position += u64::from(rows.positions.is_none());
            if rows.histories.is_none() && self.configs.iter().any(|config| uses_history(config)) {
                for (&sequence, &id) in rows.sequences.iter().zip(ids) {
                    state.histories.entry(sequence).or_default().push(id);
                }
            }
        })?;
        Ok(ids.into_iter().map(i64::from).collect::<Vec<_>>().into_pyarray(py))
    }

    /// The distributions that `sample` would draw from: float32 [B, V].
    ///
    /// Args and errors as for `sample`.
    #[pyo3(signature = (logits, *, sequences=None, history=None))]
    fn probabilities<'py>(
        &self,
        py: Python<'py>,
        logits: &Bound<'py, PyAny>,
        sequences: Option<Vec<u64>>,
        history: Option<GivenHistory<'py>>,
    ) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let rows = self.rows(logits, sequences, None, history)?;
        let out = PyArray2::zeros(py, [rows.len(), rows.logits.width()], false);
        let mut array = out.readwrite();
        let mut left = array.as_slice_mut()?.chunks_exact_mut(rows.logits.width().max(1));
        let write = |samplers: &mut Vec<Sampler>, choices: &[Choice<'_>]| {
            samplers.resize_with(samplers.len().max(1), Sampler::new);
            left.next().map_or(Ok(vec![]), |out| {
                samplers[0].probabilities(&choices[0], out).map(|()| vec![()])
            })
        };
        self.for_choices(py, &rows, 1, write, |_, _| ())?;
        drop(array);
        Ok(out)
    }

    /// Log-probabilities under the model, before any setting.
    ///
    /// Args:
    ///     ids: [B], the tokens that were chosen.
    ///     top: how many of the likeliest tokens.
    /// Returns:
    ///     The chosen tokens' float32 [B]; the likeliest tokens int64 [B, top], and theirs float32
    ///     [B, top]. `top` is the vocabulary's size at most.
    #[pyo3(signature = (logits, ids, *, top=0))]
    fn log_probs<'py>(
        &self,
        py: Python<'py>,
        logits: &Bound<'py, PyAny>,
        ids: Vec<i64>,
        top: usize,
    ) -> PyResult<LogProbArrays<'py>> {
        let rows = self.rows(logits, None, None, None)?;
        let (vocab_size, num_rows) = (rows.logits.width(), rows.len());
        one_a_row("ids", ids.len(), num_rows)?;
        for (row, &id) in ids.iter().enumerate() {
            if !(0..vocab_size as i64).contains(&id) {
                let error = Error::TokenIdInPrompt { id, row, column: 0, vocab_size };
                return Err(CoreError(error).into());
            }
        }
        let top = top.min(vocab_size);
        let mut left = ids.iter();
        let look = |samplers: &mut Vec<Sampler>, choices: &[Choice<'_>]| {
            samplers.resize_with(samplers.len().max(1), Sampler::new);
            let ids = left.by_ref().zip(choices);
            Ok(ids.map(|(&id, c)| samplers[0].log_probs(c.row, id as u32, top)).collect())
        };
        let found = self.for_choices(py, &rows, 1, look, |_, _: &[LogProbs]| ())?;
        let chosen: Vec<_> = found.iter().map(|row| row.chosen).collect();
        let likeliest = || found.iter().flat_map(|row| &row.top);
        let top_ids: Vec<_> = likeliest().map(|&(id, _)| i64::from(id)).collect();
        let top_values: Vec<_> = likeliest().map(|&(_, value)| value).collect();
        Ok((
            chosen.into_pyarray(py),
            top_ids.into_pyarray(py).reshape([num_rows, top])?,
            top_values.into_pyarray(py).reshape([num_rows, top])?,
        ))
    }
}

type LogProbArrays<'py> =
    (Bound<'py, PyArray1<f32>>, Bound<'py, PyArray2<i64>>, Bound<'py, PyArray2<f32>>);

impl PySampler {
    /// Checks what does not need the logits' values.
    fn rows(
        &self,
        logits: &Bound<'_, PyAny>,
        sequences: Option<Vec<u64>>,
        positions: Option<Vec<u64>>,
        history: Option<GivenHistory<'_>>,
    ) -> PyResult<Rows> {
        let logits = Matrix::of(logits)?;
        let (num_rows, width) = (logits.num_rows(), logits.width());
        let sequences = sequences.unwrap_or_else(|| (0..num_rows as u64).collect());
        for (what, found) in [
            ("sequences", Some(sequences.len())),
            ("positions", positions.as_ref().map(Vec::len)),
            ("config", (self.configs.len() != 1).then_some(self.configs.len())),
            ("seeds", (self.seeds.len() != 1).then_some(self.seeds.len())),
        ] {
            if let Some(found) = found {
                one_a_row(what, found, num_rows)?;
            }
        }
        let histories = history.map(|given| given.read(num_rows, width)).transpose()?;
        Ok(Rows { logits, sequences, positions, histories })
    }

    /// Calls `work` with the rows' choices, `at_once` at a time, then `done` with all that it
    /// returned; without the GIL.
    fn for_choices<T: Send>(
        &self,
        py: Python<'_>,
        rows: &Rows,
        at_once: usize,
        mut work: impl FnMut(&mut Vec<Sampler>, &[Choice<'_>]) -> Result<Vec<T>> + Send,
        done: impl FnOnce(&mut State, &[T]) + Send,
    ) -> PyResult<Vec<T>> {
        let outcome = interruptible(py, |check| {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.fitting_width != Some(rows.logits.width()) {
                self.configs.iter().try_for_each(|c| c.check_vocabulary(rows.logits.width()))?;
                state.fitting_width = Some(rows.logits.width());
            }
            let State { samplers, histories, next_position, .. } = &mut *state;
            let new = History::default();
            let choice = |row: usize| {
                let sequence = rows.sequences[row];
                let history = match &rows.histories {
                    Some(given) => &given[row],
                    None => histories.get(&sequence).unwrap_or(&new),
                };
                let position = rows.positions.as_ref().map_or(*next_position, |p| p[row]);
                let draw = Draw { seed: self.seeds[row % self.seeds.len()], sequence, position };
                let config = &*self.configs[row % self.configs.len()];
                Choice { row: rows.logits.row(row), config, history, allowed: None, draw }
            };
            let mut results = Vec::with_capacity(rows.len());
            for first in (0..rows.len()).step_by(at_once) {
                check()?;
                let end = rows.len().min(first + at_once);
                let choices: Vec<_> = (first..end).map(choice).collect();
                match work(samplers, &choices) {
                    Ok(more) => results.extend(more),
                    Err(error) => return Ok(Err((first + first_bad(&choices), error))),
                }
            }
            done(&mut state, &results);
            Ok(Ok(results))
        })?;
        outcome.map_err(|(row, error)| of_row(row, error))
    }
}

/// The first choice that fails, one of which does.
fn first_bad(choices: &[Choice<'_>]) -> usize {
    let mut sampler = Sampler::new();
    choices.iter().position(|choice| sampler.sample(choice).is_err()).unwrap_or_default()
}

impl Rows {
    fn len(&self) -> usize {
        self.logits.num_rows()
    }
}

/// Whether a token's chances depend on the tokens before it.
fn uses_history(config: &SamplingConfig) -> bool {
    let SamplingConfig { repetition_penalty, frequency_penalty, presence_penalty, .. } = config;
    [(repetition_penalty, 1.0), (frequency_penalty, 0.0), (presence_penalty, 0.0)]
        .iter()
        .any(|(found, off)| found.total_cmp(off).is_ne())
        || config.no_repeat_ngram_size.is_some()
        || config.bad_words.iter().any(|word| word.len() > 1)
        || config.min_new_tokens > 0
}

fn one_a_row(what: &str, found: usize, num_rows: usize) -> PyResult<()> {
    if found == num_rows {
        return Ok(());
    }
    let message = format!("{what} has {found} entries, expected one a row: {num_rows}");
    Err(GenerationError::new_err(message))
}

/// An error of the core, and which row has it.
fn of_row(row: usize, error: Error) -> PyErr {
    match error {
        Error::BadLogit { .. } | Error::NothingAllowed | Error::NothingToDraw => {
            GenerationError::new_err(format!("row {row}: {error}"))
        }
        other => CoreError(other).into(),
    }
}
