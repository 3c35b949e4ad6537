//! `_core.TokenStore`: a store on disk, as NumPy arrays that lie in its memory map where they can.

mod view;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use gptrs_core::store::{Dtype, Lengths, OwnedIds, Target, TokenStore, TokenizerInfo, convert};
use gptrs_core::tokenizer::Check;
use numpy::{IntoPyArray, PyArray1};
use pyo3::prelude::*;

use crate::errors::{ConfigError, CoreError};
use crate::signals::{interruptible, interruptible_with};
use crate::tokenizer::num_threads;

/// A store that is open. Threads may share it.
#[pyclass(name = "TokenStore", module = "gptrs._core", frozen)]
pub struct PyTokenStore(pub Arc<TokenStore>);

/// A tokenizer's name, fingerprint, number of ids and end-of-text.
type Info = (String, String, usize, Option<u32>);

/// Each bin's shortest length, and how many documents are in it.
type Bins = Vec<(u64, u64)>;

#[pymethods]
impl PyTokenStore {
    /// Opens a folder of ours, a `.bin` of nanoGPT or llm.c, or Megatron's `.bin` and `.idx`.
    ///
    /// Args:
    ///     tokenizer: name, fingerprint ("" if it has none), number of ids, end-of-text or None.
    /// Raises:
    ///     StoreError: there is no such store, or a file of it is missing or has another size.
    #[staticmethod]
    fn open(py: Python<'_>, path: PathBuf, tokenizer: Option<Info>) -> PyResult<Self> {
        let tokenizer = tokenizer.map(|(name, fingerprint, n_vocab, end_of_text)| TokenizerInfo {
            name,
            fingerprint,
            n_vocab,
            end_of_text,
            json_xxh3: 0,
        });
        let store = py.detach(|| TokenStore::open(&path, tokenizer.as_ref())).map_err(CoreError)?;
        Ok(Self(Arc::new(store)))
    }

    fn __len__(&self) -> usize {
        self.0.len() as usize
    }

    /// "uint16" or "uint32".
    #[getter]
    fn dtype(&self) -> &'static str {
        if self.0.dtype() == Dtype::Uint16 { "uint16" } else { "uint32" }
    }

    /// The number of ids in the vocabulary.
    #[getter]
    fn n_vocab(&self) -> usize {
        self.0.manifest().tokenizer.n_vocab
    }

    /// What tells this store from every other: 16 hexadecimal digits.
    #[getter]
    fn fingerprint(&self) -> String {
        format!("{:016x}", self.0.fingerprint())
    }

    /// The manifest as JSON; for another program's files, what it would be.
    fn manifest(&self) -> String {
        self.0.manifest().to_json()
    }

    /// The tokens from `start` to `stop`: an array that cannot be written to and lies in the memory
    /// map, if one shard has them all; else a copy.
    ///
    /// Raises:
    ///     ConfigError: there are no such tokens.
    ///     StoreError: a file is missing or damaged, or has ids that the vocabulary has not.
    fn read<'py>(this: &Bound<'py, Self>, start: u64, stop: u64) -> PyResult<Bound<'py, PyAny>> {
        let (py, store) = (this.py(), &this.get().0);
        if let Some(view) = view::of(this, start..stop)? {
            return Ok(view);
        }
        Ok(match interruptible(py, |check| store.copied(start..stop, check))? {
            OwnedIds::U16(ids) => ids.into_pyarray(py).into_any(),
            OwnedIds::U32(ids) => ids.into_pyarray(py).into_any(),
        })
    }

    /// The number of documents. Another program's file is searched for them the first time.
    fn num_documents(&self, py: Python<'_>) -> PyResult<u64> {
        interruptible(py, |check| self.0.num_documents(check))
    }

    /// Where document `index` starts and stops, its end-of-text included.
    fn document(&self, py: Python<'_>, index: u64) -> PyResult<(u64, u64)> {
        let range = interruptible(py, |check| self.0.document(index, check))?;
        Ok((range.start, range.end))
    }

    /// Reads every file anew: sizes, headers and checksums, ids, document ends.
    ///
    /// Args:
    ///     threads: how many threads read; None is one for each processor.
    ///     on_progress: called with the number of tokens so far, several times a second.
    /// Raises:
    ///     StoreError: something is wrong; the message has the file and what it is.
    #[pyo3(signature = (*, threads, on_progress))]
    fn verify(
        &self,
        py: Python<'_>,
        threads: Option<isize>,
        on_progress: Option<Py<PyAny>>,
    ) -> PyResult<()> {
        let (store, threads) = (&self.0, num_threads(threads)?);
        counting(py, on_progress, |done, check| store.verify(threads, done, check))
    }

    /// How often each id occurs from token `start` to `stop`: uint64 [n_vocab].
    #[pyo3(signature = (start, stop, *, threads, on_progress))]
    fn token_counts<'py>(
        &self,
        py: Python<'py>,
        start: u64,
        stop: u64,
        threads: Option<isize>,
        on_progress: Option<Py<PyAny>>,
    ) -> PyResult<Bound<'py, PyArray1<u64>>> {
        let (store, threads) = (&self.0, num_threads(threads)?);
        let counts = counting(py, on_progress, |done, check| {
            store.token_counts(start..stop, threads, done, check)
        })?;
        Ok(counts.into_pyarray(py))
    }

    /// How long the documents are: the shortest, the longest, and bins, each with its shortest length
    /// and how many documents are in it, that are narrower than an eighth of the lengths they hold.
    fn document_lengths(&self, py: Python<'_>) -> PyResult<(u64, u64, Bins)> {
        let lengths = interruptible(py, |check| self.0.document_lengths(check))?;
        let bins = lengths.bins.iter().enumerate();
        let bins = bins.map(|(bin, &count)| (Lengths::bin_start(bin), count)).collect();
        Ok((lengths.shortest, lengths.longest, bins))
    }
}

/// Writes a store as another program's file, or another program's file as a store.
///
/// Args:
///     target: "gptrs", "nanogpt", "llmc" or "megatron".
///     tokenizer_json: for "gptrs", the content of its tokenizer.json, or None.
///     shard_tokens: for "gptrs", tokens a shard.
///     on_progress: called with the number of tokens so far, several times a second.
/// Raises:
///     ConfigError: there is no such target, or `out` is no name for such a file.
///     StoreError: a file cannot be read or written, there is something at `out`, or the format cannot
///         hold the tokens.
#[pyfunction]
#[pyo3(signature = (store, out, target, *, tokenizer_json, shard_tokens, on_progress))]
pub fn convert_store(
    py: Python<'_>,
    store: &PyTokenStore,
    out: PathBuf,
    target: &str,
    tokenizer_json: Option<Vec<u8>>,
    shard_tokens: u64,
    on_progress: Option<Py<PyAny>>,
) -> PyResult<()> {
    let target = match target {
        "gptrs" => Target::Folder { tokenizer_json: tokenizer_json.as_deref(), shard_tokens },
        "nanogpt" => Target::NanoGpt,
        "llmc" => Target::LlmC,
        "megatron" => Target::Megatron,
        _ => {
            return Err(ConfigError::new_err(format!(
                "a store is converted to gptrs, nanogpt, llmc or megatron, not to {target:?}"
            )));
        }
    };
    counting(py, on_progress, |done, check| convert(&store.0, &out, target, done, check))
}

/// Does work that counts tokens, and calls `on_progress` with their number now and then.
fn counting<T: Send>(
    py: Python<'_>,
    on_progress: Option<Py<PyAny>>,
    work: impl FnOnce(&AtomicU64, Check<'_>) -> gptrs_core::Result<T> + Send,
) -> PyResult<T> {
    let done = AtomicU64::new(0);
    let report = |py: Python<'_>| {
        let Some(on_progress) = &on_progress else { return Ok(()) };
        on_progress.call1(py, (done.load(Ordering::Relaxed),)).map(drop)
    };
    interruptible_with(py, report, |check| work(&done, check))
}
