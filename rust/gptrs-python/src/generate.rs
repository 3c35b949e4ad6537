//! `_core.Generation`: the sampling loop over a model in Python, or a native one.

mod any_model;
mod model;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

use gptrs_core::Error;
use gptrs_core::generate::{
    Event, Finish, GenerateError, Generation, Inbox, LogProbs, NextLogits, Options, Output,
    Overflow, Request, Settings,
};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

pub use self::any_model::AnyModel;
use crate::constraint::{PyGrammar, PyStopStrings};
use crate::errors::{CoreError, GenerationError};
use crate::sampling::PySamplingConfig;

/// The sampling loop over an engine: `submit` sequences, then `run`, or `step` until None.
///
/// Requests may be submitted and cancelled from any thread while another one is in `run` or `step`.
///
/// Args:
///     engine: vocab_size, context_length, slots; tokens and starts, int64 tensors that are written
///         in place; step, extend and copy: see `gptrs.engines`. Or native, a NativeModel, which the
///         loop takes, and refresh: see `gptrs.engines.native_engine`.
///     prefill_tokens: the most tokens that one callback reads.
///     queue: the most requests that may wait; None: any number.
/// Raises:
///     ConfigError: the engine has no slots.
#[pyclass(name = "Generation", module = "gptrs._core", frozen)]
pub struct PyGeneration {
    inbox: Arc<Inbox>,
    vocab_size: usize,
    /// See `AnyModel::is_due`.
    is_due: Option<Arc<AtomicBool>>,
    work: Mutex<Work>,
}

struct Work {
    generation: Generation<AnyModel>,
    /// What the other sequences got in a step that raised; the next one hands it on.
    left: Vec<Event>,
}

/// (chosen, [(id, log-probability)])
type PyLogProbs = (f32, Vec<(u32, f32)>);
/// (request, token, log-probabilities, text, finish reason, tokens kept)
type PyEvent = (
    usize,
    Option<u32>,
    Option<PyLogProbs>,
    Option<Py<PyBytes>>,
    Option<&'static str>,
    Option<usize>,
);
/// (tokens, log-probabilities, text, finish reason)
type PyOutput = (Vec<u32>, Vec<PyLogProbs>, Option<Py<PyBytes>>, &'static str);

#[pymethods]
impl PyGeneration {
    #[new]
    #[pyo3(signature = (engine, *, prefill_tokens=2048, queue=None))]
    fn new(
        engine: &Bound<'_, PyAny>,
        prefill_tokens: usize,
        queue: Option<usize>,
    ) -> PyResult<Self> {
        let options =
            Options { prefill_tokens, queue: queue.unwrap_or(usize::MAX), ..Options::default() };
        let model = AnyModel::new(engine)?;
        let (vocab_size, is_due) = (model.limits().vocab_size, model.is_due());
        let generation = Generation::new(model, options).map_err(CoreError)?;
        let inbox = Arc::clone(generation.inbox());
        let work = Mutex::new(Work { generation, left: Vec::new() });
        Ok(Self { inbox, vocab_size, is_due, work })
    }

    /// Lets a sequence wait for a slot; returns its number, counted from 0.
    ///
    /// Args:
    ///     prompt: token ids.
    ///     row: the prompt's number for messages.
    ///     window: the model sees this many of the newest tokens.
    ///     overflow: "slide", "rebase" or "stop".
    ///     seed, sequence: the draws' counter.
    /// Raises:
    ///     GenerationError: the prompt is empty, or too long for overflow="stop".
    ///     TokenIdError: it has an id outside the vocabulary.
    ///     QueueFullError: `queue` requests wait already.
    #[pyo3(signature = (
        prompt, *, max_new_tokens, window, sampling, overflow="slide", stop_ids=Vec::new(),
        stop_strings=None, grammar=None, logprobs=None, seed=0, sequence=0, row=0
    ))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments of a Python method")]
    fn submit(
        &self,
        prompt: Vec<i64>,
        max_new_tokens: usize,
        window: usize,
        sampling: &PySamplingConfig,
        overflow: &str,
        stop_ids: Vec<u32>,
        stop_strings: Option<&PyStopStrings>,
        grammar: Option<&PyGrammar>,
        logprobs: Option<usize>,
        seed: u64,
        sequence: u64,
        row: usize,
    ) -> Result<usize, CoreError> {
        let settings = Arc::new(Settings {
            max_new_tokens,
            window,
            overflow: to_overflow(overflow)?,
            stop_ids,
            stop_strings: stop_strings.map(|stops| Arc::clone(&stops.0)),
            grammar: grammar.map(|grammar| Arc::clone(&grammar.0)),
            sampling: (*sampling.0).clone(),
            logprobs,
        });
        let prompt = to_ids(row, prompt, self.vocab_size)?;
        let submitted = self.inbox.submit(Request { prompt, seed, sequence, settings });
        submitted.map_err(|error| CoreError(of_prompt(row, error)))
    }

    /// Ends a request, or all of them, at the next step, with what they have.
    #[pyo3(signature = (request=None))]
    fn cancel(&self, request: Option<usize>) {
        match request {
            Some(request) => self.inbox.cancel(request),
            None => self.inbox.cancel_all(),
        }
    }

    /// How many requests wait for a slot.
    #[getter]
    fn num_waiting(&self) -> usize {
        self.inbox.num_waiting()
    }

    /// Runs every request to its end: [(token_ids, logprobs, text, finish_reason)], as submitted.
    ///
    /// Raises:
    ///     GenerationError: logits that nothing can be drawn from, or it runs already.
    ///     Anything the engine raises, unchanged. All requests are dropped then.
    fn run(&self, py: Python<'_>) -> PyResult<Vec<PyOutput>> {
        let outputs = py.detach(|| self.lock()?.generation.run().map_err(to_py_err))?;
        Ok(outputs.into_iter().map(|output| to_py_output(py, output)).collect())
    }

    /// One token for every running sequence: a list of (request, token, logprobs, text,
    /// finish_reason, tokens_kept), or None once there is nothing left to do.
    ///
    /// Raises as run does; `failed` then has the requests that ended by it, and the others go on.
    fn step(&self, py: Python<'_>) -> PyResult<Option<Vec<PyEvent>>> {
        let events = py.detach(|| self.lock()?.step())?;
        Ok(events.map(|events| events.into_iter().map(|e| to_py_event(py, e)).collect()))
    }

    /// The requests that the error of the last step ended, without an event.
    fn failed(&self) -> PyResult<Vec<usize>> {
        Ok(self.lock()?.generation.failed().to_vec())
    }
}

impl PyGeneration {
    /// Never waits: whoever is inside may wait for the GIL, or be further up on this thread.
    fn lock(&self) -> PyResult<MutexGuard<'_, Work>> {
        if let Some(is_due) = &self.is_due {
            is_due.store(true, Ordering::Relaxed);
        }
        match self.work.try_lock() {
            Ok(work) => Ok(work),
            Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => {
                Err(GenerationError::new_err("this generation is running already"))
            }
        }
    }
}

impl Work {
    fn step(&mut self) -> PyResult<Option<Vec<Event>>> {
        if !self.left.is_empty() {
            return Ok(Some(std::mem::take(&mut self.left)));
        }
        let mut events = Vec::new();
        match self.generation.step(&mut events) {
            Ok(true) => Ok(Some(events)),
            Ok(false) => Ok(None),
            Err(error) => {
                self.left = events;
                Err(to_py_err(error))
            }
        }
    }
}

fn to_overflow(name: &str) -> Result<Overflow, CoreError> {
    match name {
        "slide" => Ok(Overflow::Slide),
        "rebase" => Ok(Overflow::Rebase),
        "stop" => Ok(Overflow::Stop),
        _ => {
            let message = format!("overflow is \"slide\", \"rebase\" or \"stop\", found {name:?}");
            Err(Error::Setting(message).into())
        }
    }
}

pub fn to_ids(row: usize, prompt: Vec<i64>, vocab_size: usize) -> Result<Vec<u32>, CoreError> {
    let to_id = |(column, &id): (usize, &i64)| {
        u32::try_from(id).map_err(|_| Error::TokenIdInPrompt { id, row, column, vocab_size }.into())
    };
    prompt.iter().enumerate().map(to_id).collect()
}

/// The loop counts requests; a caller counts prompts.
fn of_prompt(row: usize, error: Error) -> Error {
    match error {
        Error::EmptyPrompt { .. } => Error::EmptyPrompt { row },
        Error::PromptTooLong { found, window, .. } => Error::PromptTooLong { row, found, window },
        Error::TokenIdInPrompt { id, column, vocab_size, .. } => {
            Error::TokenIdInPrompt { id, row, column, vocab_size }
        }
        other => other,
    }
}

pub fn to_py_err(error: GenerateError<PyErr>) -> PyErr {
    match error {
        GenerateError::Core(error) => CoreError(error).into(),
        GenerateError::Model(error) => error,
    }
}

pub fn finish_reason(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
        Finish::Context => "context",
        Finish::Cancelled => "cancelled",
    }
}

fn to_py_output(py: Python<'_>, output: Output) -> PyOutput {
    let logprobs = output.logprobs.into_iter().map(to_py_logprobs).collect();
    let text = output.text.map(|text| PyBytes::new(py, &text).unbind());
    (output.tokens, logprobs, text, finish_reason(output.finish))
}

fn to_py_event(py: Python<'_>, event: Event) -> PyEvent {
    // Most events have no text of their own, and bytes cost an allocation.
    let text = (!event.text.is_empty()).then(|| PyBytes::new(py, &event.text).unbind());
    let finish = event.finish.map(finish_reason);
    let logprobs = event.logprobs.map(to_py_logprobs);
    (event.request, event.token, logprobs, text, finish, event.tokens_kept)
}

fn to_py_logprobs(logprobs: LogProbs) -> PyLogProbs {
    (logprobs.chosen, logprobs.top)
}
