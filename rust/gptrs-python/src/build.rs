//! `_core.StoreBuilder`: builds with the GIL released, and hears Ctrl-C while it works.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gptrs_core::build::{Builder, Counts, Options};
use gptrs_core::source::{Input, Kind};
use gptrs_core::{Error, Result};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::{PyDict, PyString};

use crate::errors::{ConfigError, CoreError};
use crate::signals::{interruptible, interruptible_with};
use crate::tokenizer::{PyTokenizer, num_threads};

/// A build that is under way. One thread uses it; `progress` may be called while it works.
#[pyclass(name = "StoreBuilder", module = "gptrs._core", frozen)]
pub struct PyStoreBuilder {
    /// `None` once it is closed.
    builder: Mutex<Option<Builder>>,
    counts: Arc<Mutex<Counts>>,
    bytes_total: u64,
}

#[pymethods]
impl PyStoreBuilder {
    /// Begins a build in the folder `out`, or goes on with the one that was begun there.
    ///
    /// Args:
    ///     name: the tokenizer's.
    ///     inputs: (kind, path) in order; the kind is "text", "jsonl" or "rows", and rows have a
    ///         label or their file instead of a path. The path "-" is standard input.
    ///     task: (i, n) builds part i of n, counted from 0.
    ///     shard_tokens: the tokens of a full shard.
    ///     memory: how many bytes all this may take.
    ///     threads: how many threads encode; None is one for each processor.
    /// Raises:
    ///     ConfigError: a setting makes no sense.
    ///     StoreError: `out` holds a store, or a build that was begun otherwise, or another process
    ///         builds there, or it cannot be written.
    #[new]
    #[pyo3(signature = (
        out, tokenizer, name, inputs, *, text_key, split_on, skip_invalid, replace_invalid,
        allow_special, min_chars, deduplicate, val_fraction, task, shard_tokens, memory, threads
    ))]
    #[allow(
        clippy::too_many_arguments,
        clippy::fn_params_excessive_bools,
        reason = "Python's names"
    )]
    fn new(
        py: Python<'_>,
        out: PathBuf,
        tokenizer: Py<PyTokenizer>,
        name: String,
        inputs: Vec<(String, String)>,
        text_key: String,
        split_on: Option<String>,
        skip_invalid: bool,
        replace_invalid: bool,
        allow_special: bool,
        min_chars: i64,
        deduplicate: bool,
        val_fraction: f64,
        task: Option<(i64, i64)>,
        shard_tokens: i64,
        memory: i64,
        threads: Option<isize>,
    ) -> PyResult<Self> {
        let options = Options {
            text_key,
            split_on,
            skip_invalid,
            replace_invalid,
            allow_special,
            min_chars: at_least("min_chars", min_chars, 0)?,
            deduplicate,
            val_fraction,
            task: task.map(part).transpose()?,
            shard_tokens: at_least("shard_tokens", shard_tokens, 1)?,
            memory: at_least("memory", memory, 1)?,
            threads: num_threads(threads)?,
        };
        let inputs = inputs.into_iter().map(input).collect::<PyResult<Vec<_>>>()?;
        let tokenizer = Arc::clone(&tokenizer.get().0);
        let builder = interruptible(py, |check| {
            Builder::open(&out, tokenizer, &name, &inputs, options, check)
        })?;
        let (counts, bytes_total) = (builder.counts(), builder.total_bytes());
        Ok(Self { builder: Mutex::new(Some(builder)), counts, bytes_total })
    }

    /// The number of the first input that is not done; None if all of this part's are.
    fn next_input(&self, py: Python<'_>) -> PyResult<Option<usize>> {
        self.with(py, |builder| Ok(builder.next_input()))
    }

    /// How many rows of `next_input` are done.
    #[getter]
    fn rows_done(&self, py: Python<'_>) -> PyResult<u64> {
        self.with(py, |builder| Ok(builder.rows_done()))
    }

    /// Builds all files up to the next input of rows.
    ///
    /// Args:
    ///     on_progress: called without arguments several times a second.
    /// Raises:
    ///     SourceError: an input cannot be read or used, or has changed. All before is done.
    ///     StoreError: the output cannot be written.
    #[pyo3(signature = (on_progress = None))]
    fn add_files(&self, py: Python<'_>, on_progress: Option<Py<PyAny>>) -> PyResult<()> {
        let report =
            |py: Python<'_>| on_progress.as_ref().map_or(Ok(()), |call| call.call0(py).map(drop));
        interruptible_with(py, report, |check| self.lock().work(|it| it.add_files(check)))?;
        Ok(())
    }

    /// Builds rows of `next_input`, the first of which has the number `first`. Those that are done
    /// are passed over. What is no str, or has lone
    /// surrogates, is an invalid row.
    ///
    /// Raises:
    ///     SourceError: a row is invalid, and those are not to be skipped.
    ///     StoreError: the rows before are not those that this build was begun with, as far as they
    ///         are handed over again; the output cannot be written.
    fn add_rows(&self, py: Python<'_>, texts: Vec<Bound<'_, PyAny>>, first: u64) -> PyResult<()> {
        let texts: Vec<Option<PyBackedStr>> = texts.iter().map(row).collect();
        let rows = texts.iter().map(Option::as_deref);
        interruptible(py, |check| self.lock().work(|it| it.add_rows(rows, first, check)))
    }

    /// `next_input` has no more rows.
    fn end_rows(&self, py: Python<'_>) -> PyResult<()> {
        interruptible(py, |check| self.lock().work(|it| it.end_rows(check)))
    }

    /// How much is done: bytes of the inputs' files, and all of them; the kept documents, their
    /// bytes of text and their tokens; what was left out, and why.
    fn progress<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let counts = *self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let progress = PyDict::new(py);
        progress.set_item("bytes", counts.bytes)?;
        progress.set_item("bytes_total", self.bytes_total)?;
        progress.set_item("text_bytes", counts.text_bytes)?;
        progress.set_item("tokens", counts.tokens)?;
        progress.set_item("documents", counts.documents)?;
        progress.set_item("empty", counts.dropped.empty)?;
        progress.set_item("short", counts.dropped.short)?;
        progress.set_item("duplicate", counts.dropped.duplicate)?;
        progress.set_item("invalid", counts.dropped.invalid)?;
        Ok(progress)
    }

    /// Makes the store whole, once all inputs are done.
    ///
    /// Raises:
    ///     ConfigError: an input is not done.
    ///     StoreError: the output cannot be written.
    fn finish(&self, py: Python<'_>) -> PyResult<()> {
        self.with(py, Builder::finish)
    }

    /// Saves how far this is, and lets others go on with it. Nothing else may follow.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let close = |mut builder: Builder| builder.close();
        py.detach(|| self.lock().0.take().map_or(Ok(()), close)).map_err(CoreError)?;
        Ok(())
    }
}

/// A builder that is in use.
struct Held<'a>(MutexGuard<'a, Option<Builder>>);

impl Held<'_> {
    fn work<T>(&mut self, work: impl FnOnce(&mut Builder) -> Result<T>) -> Result<T> {
        match &mut *self.0 {
            Some(builder) => work(builder),
            None => Err(Error::Setting("the builder is closed".to_owned())),
        }
    }
}

impl PyStoreBuilder {
    /// Waits for other threads' work, so the GIL must not be held.
    fn lock(&self) -> Held<'_> {
        Held(self.builder.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn with<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut Builder) -> Result<T> + Send,
    ) -> PyResult<T> {
        Ok(py.detach(|| self.lock().work(work)).map_err(CoreError)?)
    }
}

/// A row's text, if it has one that can be encoded in UTF-8.
fn row(row: &Bound<'_, PyAny>) -> Option<PyBackedStr> {
    PyBackedStr::try_from(row.cast::<PyString>().ok()?.clone()).ok()
}

fn input((kind, path): (String, String)) -> PyResult<Input> {
    let kind = match &*kind {
        "text" => Kind::Text,
        "jsonl" => Kind::Jsonl,
        "rows" => Kind::Rows,
        _ => {
            let message = format!("an input is \"text\", \"jsonl\" or \"rows\", found {kind:?}");
            return Err(ConfigError::new_err(message));
        }
    };
    Ok(Input { kind, path })
}

fn at_least(name: &str, value: i64, least: i64) -> PyResult<u64> {
    if value < least {
        return Err(ConfigError::new_err(format!("{name} is at least {least}, found {value}")));
    }
    Ok(value.unsigned_abs())
}

fn part((part, parts): (i64, i64)) -> PyResult<(u64, u64)> {
    match (u64::try_from(part), u64::try_from(parts)) {
        (Ok(index), Ok(count)) => Ok((index, count)),
        _ => Err(ConfigError::new_err(format!(
            "task is (i, n) with i in 0..n, found ({part}, {parts})"
        ))),
    }
}
