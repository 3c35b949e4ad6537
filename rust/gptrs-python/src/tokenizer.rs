//! `_core.Gpt2Tokenizer`: GPT-2's tokenizer with the GIL released, and Ctrl-C heard while it works.

#![allow(clippy::unused_self, reason = "methods, as of a tokenizer that has a state")]

use std::time::{Duration, Instant};

use gptrs_core::{Error, tokenizer};
use numpy::{IntoPyArray, PyArray1};
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyOverflowError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::errors::CoreError;

/// How often to ask Python for signals. Asking takes the GIL, which others may hold for a while.
const BETWEEN_SIGNAL_CHECKS: Duration = Duration::from_millis(40);

/// GPT-2's byte-pair encoding. It has no state: the vocabulary is compiled in.
#[pyclass(name = "Gpt2Tokenizer", module = "gptrs._core", frozen)]
pub struct PyTokenizer;

#[pymethods]
impl PyTokenizer {
    #[new]
    fn new() -> Self {
        Self
    }

    /// The number of ids, 50257.
    #[classattr]
    const N_VOCAB: usize = tokenizer::N_VOCAB;

    /// The one special token, as it is written in a text.
    #[classattr]
    const END_OF_TEXT: &'static str = tokenizer::END_OF_TEXT;

    /// The special token's id, 50256.
    #[classattr]
    const END_OF_TEXT_ID: u16 = tokenizer::END_OF_TEXT_ID;

    /// The ids of `text`, as a list of int.
    ///
    /// Args:
    ///     allowed_special: special tokens that become one id each; others are ordinary text.
    ///     disallowed_special: strings that `text` must not contain.
    /// Raises:
    ///     TokenizerError: `text` contains one of `disallowed_special`.
    ///     UnicodeEncodeError: `text` has lone surrogates.
    #[pyo3(signature = (text, allowed_special=Vec::new(), disallowed_special=Vec::new()))]
    #[allow(clippy::needless_pass_by_value, reason = "extracted from Python lists")]
    fn encode(
        &self,
        py: Python<'_>,
        text: &str,
        allowed_special: Vec<String>,
        disallowed_special: Vec<String>,
    ) -> PyResult<Vec<u16>> {
        encode(py, text, &allowed_special, &disallowed_special)
    }

    /// The ids of `text`, as a uint16 array. Imports NumPy.
    #[pyo3(signature = (text, allowed_special=Vec::new(), disallowed_special=Vec::new()))]
    #[allow(clippy::needless_pass_by_value, reason = "extracted from Python lists")]
    fn encode_to_numpy<'py>(
        &self,
        py: Python<'py>,
        text: &str,
        allowed_special: Vec<String>,
        disallowed_special: Vec<String>,
    ) -> PyResult<Bound<'py, PyArray1<u16>>> {
        Ok(encode(py, text, &allowed_special, &disallowed_special)?.into_pyarray(py))
    }

    /// The bytes that `ids` stand for.
    ///
    /// Args:
    ///     ids: any iterable of int; a one-dimensional uint16 buffer is read without making ints.
    /// Raises:
    ///     TokenIdError: an id is outside the vocabulary.
    fn decode_bytes<'py>(
        &self,
        py: Python<'py>,
        ids: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let ids = token_ids(ids)?;
        let bytes = py.detach(|| tokenizer::decode(ids)).map_err(CoreError)?;
        Ok(PyBytes::new(py, &bytes))
    }

    /// The bytes of every token but the special one, in order of rank, which is the id.
    fn ranks<'py>(&self, py: Python<'py>) -> Vec<Bound<'py, PyBytes>> {
        (0..tokenizer::END_OF_TEXT_ID)
            .filter_map(|id| Some(PyBytes::new(py, tokenizer::token_bytes(id)?)))
            .collect()
    }

    /// The two tokens that each merge joins, in order of rank.
    fn merges(&self) -> Vec<(u16, u16)> {
        tokenizer::merges().into_iter().map(|(left, right, _)| (left, right)).collect()
    }
}

/// Encodes without the GIL, and asks for signals now and then.
fn encode(
    py: Python<'_>,
    text: &str,
    allowed_special: &[String],
    disallowed_special: &[String],
) -> PyResult<Vec<u16>> {
    let allowed: Vec<&str> = allowed_special.iter().map(String::as_str).collect();
    let disallowed: Vec<&str> = disallowed_special.iter().map(String::as_str).collect();
    py.detach(|| {
        let mut last_check = Instant::now();
        let mut check = || {
            if last_check.elapsed() < BETWEEN_SIGNAL_CHECKS {
                return Ok(());
            }
            let signals = handle_signals();
            last_check = Instant::now();
            signals.map_err(Stop)
        };
        tokenizer::encode_with(text, &allowed, &disallowed, &mut check)
    })
    .map_err(|Stop(error)| error)
}

#[allow(clippy::redundant_closure_for_method_calls, reason = "the method has one lifetime only")]
fn handle_signals() -> PyResult<()> {
    Python::attach(|py| py.check_signals())
}

/// What ends an encoding early: an error of the core, or `KeyboardInterrupt` as Python raised it.
struct Stop(PyErr);

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self(CoreError(error).into())
    }
}

fn token_ids(ids: &Bound<'_, PyAny>) -> PyResult<Vec<u16>> {
    if let Ok(buffer) = PyBuffer::<u16>::get(ids)
        && buffer.dimensions() == 1
    {
        return buffer.to_vec(ids.py());
    }
    let items = ids.try_iter().map_err(|_| {
        PyTypeError::new_err(format!("ids must be an iterable of int, found {ids:?}"))
    })?;
    items.enumerate().map(|(index, item)| token_id(&item?, index)).collect()
}

fn token_id(item: &Bound<'_, PyAny>, index: usize) -> PyResult<u16> {
    item.extract::<u16>().map_err(|error| {
        if error.is_instance_of::<PyOverflowError>(item.py()) {
            CoreError(Error::TokenIdOutOfVocabulary {
                id: item.to_string(),
                index,
                last: tokenizer::END_OF_TEXT_ID,
            })
            .into()
        } else {
            PyTypeError::new_err(format!("ids[{index}] is no integer: {item:?}"))
        }
    })
}
