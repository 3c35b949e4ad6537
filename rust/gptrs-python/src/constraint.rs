//! `_core.Grammar` and `_core.StopStrings`: what a sequence may become, and what ends it.

use std::sync::Arc;

use gptrs_core::constraint::{Grammar, Matcher, TokenBytes};
use gptrs_core::generate::StopStrings;
use numpy::{IntoPyArray, PyArray1};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;

use crate::errors::{CoreError, GenerationError, TokenIdError};
use crate::tokenizer::PyTokenizer;

/// The bytes of every token of a vocabulary. Special tokens have none: they are no text.
///
/// Args:
///     tokens: the bytes of token 0, 1, 2, ...; b"" for a special one.
#[pyclass(name = "TokenBytes", module = "gptrs._core", frozen)]
pub struct PyTokenBytes(pub Arc<TokenBytes>);

#[pymethods]
impl PyTokenBytes {
    #[new]
    fn new(tokens: Vec<PyBackedBytes>) -> Self {
        Self(Arc::new(TokenBytes::new(tokens.iter().map(|token| (**token).into()).collect())))
    }

    /// Those of a tokenizer of ours.
    #[staticmethod]
    fn of_tokenizer(tokenizer: &PyTokenizer) -> Self {
        let num_ids = tokenizer.0.n_vocab();
        let num_ordinary = num_ids - tokenizer.0.special_tokens().len();
        let bytes = |id: usize| tokenizer.0.token_bytes(id as u16).filter(|_| id < num_ordinary);
        let tokens = (0..num_ids).map(|id| bytes(id).unwrap_or_default().into());
        Self(Arc::new(TokenBytes::new(tokens.collect())))
    }

    /// The number of ids.
    fn __len__(&self) -> usize {
        self.0.vocab_size()
    }

    /// The bytes of one token.
    ///
    /// Raises:
    ///     TokenIdError: there is no such token.
    fn __getitem__(&self, id: usize) -> PyResult<&[u8]> {
        let num_ids = self.0.vocab_size();
        if id < num_ids {
            return Ok(self.0.get(id as u32));
        }
        Err(TokenIdError::new_err(format!("token id {id} is outside 0..{num_ids}")))
    }
}

/// A pattern, compiled for one vocabulary. Threads may share it.
#[pyclass(name = "Grammar", module = "gptrs._core", frozen)]
pub struct PyGrammar(pub Arc<Grammar>);

#[pymethods]
impl PyGrammar {
    /// Texts that `re.fullmatch(pattern, text)` matches.
    ///
    /// Raises:
    ///     ConfigError: `pattern` is none, uses look-around, references to groups or what else is not
    ///         supported, is too large, or no text of these tokens matches it.
    #[staticmethod]
    fn regex(py: Python<'_>, pattern: &str, tokens: &PyTokenBytes) -> PyResult<Self> {
        let tokens = Arc::clone(&tokens.0);
        Ok(Self(Arc::new(py.detach(|| Grammar::regex(pattern, tokens)).map_err(CoreError)?)))
    }

    /// One of these texts.
    ///
    /// Raises:
    ///     ConfigError: there are none, one is empty, or no text of these tokens is among them.
    #[staticmethod]
    fn choices(py: Python<'_>, choices: Vec<String>, tokens: &PyTokenBytes) -> PyResult<Self> {
        let tokens = Arc::clone(&tokens.0);
        Ok(Self(Arc::new(py.detach(|| Grammar::choices(&choices, tokens)).map_err(CoreError)?)))
    }

    /// Raises:
    ///     ConfigError: no match can be promised in so many tokens.
    fn check_budget(&self, max_new_tokens: usize) -> PyResult<()> {
        Ok(self.0.check_budget(max_new_tokens).map_err(CoreError)?)
    }

    /// The start of a sequence.
    fn start(&self) -> PyMatcher {
        PyMatcher(self.0.start())
    }
}

/// One sequence's place in a grammar, for a loop of one's own.
#[pyclass(name = "Matcher", module = "gptrs._core")]
pub struct PyMatcher(Matcher);

#[pymethods]
impl PyMatcher {
    /// Which tokens may come next, and whether the text is a match as it stands. Where
    /// `tokens_left`, this one counted, allow a match at all, what is allowed leads to one.
    ///
    /// Returns:
    ///     bool [V], bool.
    fn allowed<'py>(
        &mut self,
        py: Python<'py>,
        tokens_left: usize,
    ) -> (Bound<'py, PyArray1<bool>>, bool) {
        let vocab_size = self.0.vocab_size() as u32;
        let allowed = self.0.allowed(tokens_left);
        let tokens: Vec<bool> = (0..vocab_size).map(|id| allowed.tokens.contains(id)).collect();
        (tokens.into_pyarray(py), allowed.may_end)
    }

    /// Goes on with a token.
    ///
    /// Raises:
    ///     GenerationError: no match has this token here.
    fn push(&mut self, token: u32) -> PyResult<()> {
        if self.0.push(token) {
            return Ok(());
        }
        Err(GenerationError::new_err(format!("token id {token} is not allowed here")))
    }
}

/// Texts that end a sequence. Threads may share it.
///
/// Raises:
///     ConfigError: there are none, or one is empty.
#[pyclass(name = "StopStrings", module = "gptrs._core", frozen)]
pub struct PyStopStrings(pub Arc<StopStrings>);

#[pymethods]
impl PyStopStrings {
    #[new]
    fn new(stops: Vec<String>, tokens: &PyTokenBytes) -> Result<Self, CoreError> {
        Ok(Self(Arc::new(StopStrings::new(&stops, Arc::clone(&tokens.0))?)))
    }
}
