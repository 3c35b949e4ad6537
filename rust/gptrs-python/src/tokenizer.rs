//! `_core.Tokenizer`: encodes with the GIL released, and hears Ctrl-C while it works.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::available_parallelism;

use gptrs_core::Error;
use gptrs_core::tokenizer::{OnInvalid, TextFile, Tokenizer, file, refuse_special};
use numpy::{IntoPyArray, PyArray1};
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyOverflowError, PyTypeError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::PyBytes;

use crate::errors::{ConfigError, CoreError, TokenizerError};
use crate::signals::interruptible;

/// GPT-2's tokenizer, or a trained one. Threads may share it.
#[pyclass(name = "Tokenizer", module = "gptrs._core", frozen)]
pub struct PyTokenizer(pub Arc<Tokenizer>);

type Ids<'py> = Bound<'py, PyArray1<u16>>;

#[pymethods]
impl PyTokenizer {
    /// GPT-2's, whose vocabulary is compiled in.
    #[staticmethod]
    fn gpt2() -> Self {
        Self(Arc::new(Tokenizer::gpt2()))
    }

    /// The tokenizer that the bytes of a `tokenizer.json` describe.
    ///
    /// Raises:
    ///     TokenizerError: they are damaged, or describe one that is not supported.
    #[staticmethod]
    fn from_json(py: Python<'_>, json: &[u8]) -> PyResult<Self> {
        let tokenizer = py.detach(|| Tokenizer::new(file::from_json(json)?)).map_err(CoreError)?;
        Ok(Self(Arc::new(tokenizer)))
    }

    /// The content of a `tokenizer.json`.
    fn to_json(&self, py: Python<'_>) -> PyResult<String> {
        Ok(py.detach(|| file::to_json(&self.0.description())).map_err(CoreError)?)
    }

    /// What tells this tokenizer from every other: 64 hexadecimal digits.
    fn fingerprint(&self) -> String {
        self.0.description().fingerprint()
    }

    /// "bpe" or "char".
    #[getter]
    fn kind(&self) -> &'static str {
        if self.0.is_char_level() { "char" } else { "bpe" }
    }

    /// The number of ids.
    #[getter]
    fn n_vocab(&self) -> usize {
        self.0.n_vocab()
    }

    /// The special tokens in order of their ids, which are the last.
    #[getter]
    fn special_tokens(&self) -> Vec<String> {
        self.0.special_tokens().to_vec()
    }

    /// The ids of `text`, as a list of int.
    ///
    /// Args:
    ///     allowed_special: special tokens that become one id each; others are ordinary text.
    ///     disallowed_special: strings that `text` must not contain.
    /// Raises:
    ///     TokenizerError: `text` contains one of `disallowed_special`, a character that this
    ///         tokenizer does not know, or too long a piece.
    ///     UnicodeEncodeError: `text` has lone surrogates.
    fn encode(
        &self,
        py: Python<'_>,
        text: &str,
        allowed_special: Vec<String>,
        disallowed_special: Vec<String>,
    ) -> PyResult<Vec<u16>> {
        let special = Special::new(&allowed_special, &disallowed_special);
        Ok(self.encode_texts(py, &[text], &special, Some(1))?.0)
    }

    /// The ids of `text`, as a uint16 array. Imports NumPy.
    ///
    /// Args:
    ///     threads: how many threads encode; None is one for each processor.
    fn encode_to_numpy<'py>(
        &self,
        py: Python<'py>,
        text: &str,
        allowed_special: Vec<String>,
        disallowed_special: Vec<String>,
        threads: Option<isize>,
    ) -> PyResult<Ids<'py>> {
        let special = Special::new(&allowed_special, &disallowed_special);
        Ok(self.encode_texts(py, &[text], &special, threads)?.0.into_pyarray(py))
    }

    /// The ids of all texts, uint16, and where each text's start, int64; the last is where all end.
    fn encode_batch_to_numpy<'py>(
        &self,
        py: Python<'py>,
        texts: Vec<PyBackedStr>,
        allowed_special: Vec<String>,
        disallowed_special: Vec<String>,
        threads: Option<isize>,
    ) -> PyResult<(Ids<'py>, Bound<'py, PyArray1<i64>>)> {
        let special = Special::new(&allowed_special, &disallowed_special);
        let texts: Vec<&str> = texts.iter().map(|text| &**text).collect();
        let (ids, ends) = self.encode_texts(py, &texts, &special, threads)?;
        let offsets: Vec<i64> =
            std::iter::once(0).chain(ends.into_iter().map(|end| end as i64)).collect();
        Ok((ids.into_pyarray(py), offsets.into_pyarray(py)))
    }

    /// How many ids `encode` gives.
    fn count(
        &self,
        py: Python<'_>,
        text: &str,
        allowed_special: Vec<String>,
        disallowed_special: Vec<String>,
    ) -> PyResult<usize> {
        let special = Special::new(&allowed_special, &disallowed_special);
        interruptible(py, |check| {
            refuse_special(text, &special.disallowed)?;
            self.0.count(text, &special.allowed, check)
        })
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
        let ids = self.token_ids(ids)?;
        let bytes = py.detach(|| self.0.decode(&ids)).map_err(CoreError)?;
        Ok(PyBytes::new(py, &bytes))
    }

    /// The bytes that `ids` stand for, and for each id the number of the character that its bytes
    /// begin in; the bytes need not be UTF-8.
    fn decode_with_offsets<'py>(
        &self,
        py: Python<'py>,
        ids: &Bound<'py, PyAny>,
    ) -> PyResult<(Bound<'py, PyBytes>, Vec<usize>)> {
        let ids = self.token_ids(ids)?;
        let decode = || self.0.decode_with_offsets(&ids);
        let (bytes, offsets) = py.detach(decode).map_err(CoreError)?;
        Ok((PyBytes::new(py, &bytes), offsets))
    }

    /// The bytes of every token but the special ones, in order of id.
    fn ranks<'py>(&self, py: Python<'py>) -> Vec<Bound<'py, PyBytes>> {
        let num_ordinary = self.0.n_vocab() - self.0.special_tokens().len();
        (0..num_ordinary)
            .filter_map(|id| Some(PyBytes::new(py, self.0.token_bytes(id as u16)?)))
            .collect()
    }
}

impl PyTokenizer {
    fn encode_texts(
        &self,
        py: Python<'_>,
        texts: &[&str],
        special: &Special<'_>,
        threads: Option<isize>,
    ) -> PyResult<(Vec<u16>, Vec<usize>)> {
        let threads = num_threads(threads)?;
        interruptible(py, |check| {
            for text in texts {
                refuse_special(text, &special.disallowed)?;
            }
            self.0.encode_batch(texts, &special.allowed, threads, check)
        })
    }

    fn token_ids(&self, ids: &Bound<'_, PyAny>) -> PyResult<Vec<u16>> {
        if let Ok(buffer) = PyBuffer::<u16>::get(ids)
            && buffer.dimensions() == 1
        {
            return buffer.to_vec(ids.py());
        }
        let items = ids.try_iter().map_err(|_| {
            PyTypeError::new_err(format!("ids must be an iterable of int, found {ids:?}"))
        })?;
        items.enumerate().map(|(index, item)| self.token_id(&item?, index)).collect()
    }

    fn token_id(&self, item: &Bound<'_, PyAny>, index: usize) -> PyResult<u16> {
        item.extract::<u16>().map_err(|error| {
            if error.is_instance_of::<PyOverflowError>(item.py()) {
                let (id, last) = (item.to_string(), self.0.n_vocab() - 1);
                CoreError(Error::TokenIdOutOfVocabulary { id, index, last }).into()
            } else {
                PyTypeError::new_err(format!("ids[{index}] is no integer: {item:?}"))
            }
        })
    }
}

/// What a text may have and what it must not.
struct Special<'a> {
    allowed: Vec<&'a str>,
    disallowed: Vec<&'a str>,
}

impl<'a> Special<'a> {
    fn new(allowed: &'a [String], disallowed: &'a [String]) -> Self {
        let strs = |strings: &'a [String]| strings.iter().map(String::as_str).collect();
        Self { allowed: strs(allowed), disallowed: strs(disallowed) }
    }
}

/// Iterates over the ids of a file, part by part: uint16 arrays of a few million ids at most.
#[pyclass(name = "FileEncoder", module = "gptrs._core")]
pub struct PyFileEncoder {
    tokenizer: Py<PyTokenizer>,
    path: PathBuf,
    file: TextFile,
    /// How many characters the parts had until now, where strings are disallowed.
    num_chars: usize,
    allowed_special: Vec<String>,
    disallowed_special: Vec<String>,
    threads: usize,
}

#[pymethods]
impl PyFileEncoder {
    /// Opens the file.
    ///
    /// Args:
    ///     allowed_special, disallowed_special: as for `Tokenizer.encode`; the latter without
    ///         whitespace in them.
    ///     replace: puts U+FFFD in the place of bytes that are not UTF-8.
    ///     threads: how many threads encode, at most three; None is one for each processor.
    /// Raises:
    ///     SourceError: the file cannot be opened or, while it is read, is not UTF-8.
    #[new]
    #[pyo3(signature = (tokenizer, path, allowed_special, disallowed_special, *, replace, threads))]
    fn new(
        tokenizer: Py<PyTokenizer>,
        path: PathBuf,
        allowed_special: Vec<String>,
        disallowed_special: Vec<String>,
        replace: bool,
        threads: Option<isize>,
    ) -> PyResult<Self> {
        let on_invalid = if replace { OnInvalid::Replace } else { OnInvalid::Refuse };
        let file = TextFile::open(&path, on_invalid).map_err(CoreError)?;
        let threads = num_threads(threads)?.min(MOST_FILE_THREADS);
        Ok(Self {
            tokenizer,
            path,
            file,
            num_chars: 0,
            allowed_special,
            disallowed_special,
            threads,
        })
    }

    fn __iter__(this: PyRef<'_, Self>) -> PyRef<'_, Self> {
        this
    }

    /// The ids of the next part.
    fn __next__<'py>(&mut self, py: Python<'py>) -> PyResult<Option<Ids<'py>>> {
        let mut ids = Vec::new();
        Ok(self.append_part(py, &mut ids)?.then(|| ids.into_pyarray(py)))
    }

    /// The ids of all parts that are left, in one array.
    fn rest<'py>(&mut self, py: Python<'py>) -> PyResult<Ids<'py>> {
        let mut ids = Vec::new();
        while self.append_part(py, &mut ids)? {
            py.check_signals()?; // One part may be done before the first check.
        }
        Ok(ids.into_pyarray(py))
    }
}

impl PyFileEncoder {
    /// False if there is no part left.
    fn append_part(&mut self, py: Python<'_>, ids: &mut Vec<u16>) -> PyResult<bool> {
        let special = Special::new(&self.allowed_special, &self.disallowed_special);
        let (file, num_chars) = (&mut self.file, &mut self.num_chars);
        let (tokenizer, threads) = (&self.tokenizer.get().0, self.threads);
        let done = interruptible(py, |check| {
            let Some((start, text)) = file.next_part(check)? else { return Ok(false) };
            if !special.disallowed.is_empty() {
                refuse_special(text, &special.disallowed)
                    .map_err(|error| later(error, *num_chars))?;
                *num_chars += text.chars().count();
            }
            let part = tokenizer.encode_batch(&[text], &special.allowed, threads, check);
            let mut new = part.map_err(|error| error.moved_by(start))?.0;
            if ids.is_empty() {
                *ids = new; // No copy.
            } else {
                ids.append(&mut new);
            }
            Ok(true)
        });
        done.map_err(|error| named(py, error, &self.path))
    }
}

/// The same error of a text that starts so many characters later.
fn later(error: Error, num_chars: usize) -> Error {
    match error {
        Error::DisallowedSpecial { token, offset } => {
            Error::DisallowedSpecial { token, offset: offset + num_chars }
        }
        other => other,
    }
}

/// The same error, which also says in which file the text is.
fn named(py: Python<'_>, error: PyErr, path: &Path) -> PyErr {
    if error.is_instance_of::<TokenizerError>(py) {
        TokenizerError::new_err(format!("{}: {}", path.display(), error.value(py)))
    } else {
        error
    }
}

/// More threads than this would wait for the disk, and take more memory than was promised.
const MOST_FILE_THREADS: usize = 3;

/// How many threads to use.
pub fn num_threads(asked: Option<isize>) -> PyResult<usize> {
    match asked {
        Some(threads) if threads > 0 => Ok(threads.unsigned_abs()),
        Some(wrong) => Err(ConfigError::new_err(format!("threads is at least 1, found {wrong}"))),
        None => Ok(available_parallelism().map_or(1, usize::from)),
    }
}
