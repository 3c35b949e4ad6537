//! `_core.train_tokenizer`: learns a tokenizer from files.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use gptrs_core::tokenizer::train::{BpeTrainer, CharTrainer};
use gptrs_core::tokenizer::{Check, OnInvalid, TextFile, Tokenizer};
use gptrs_core::{Error, Result};
use pyo3::prelude::*;

use crate::signals::interruptible_with;
use crate::tokenizer::{PyTokenizer, num_threads};

/// Learns a tokenizer from UTF-8 files.
///
/// Args:
///     vocab_size: the number of ids, special tokens included. None learns a token a character.
///     threads: how many threads count words; None is one for each processor.
///     on_progress: called with the number of merges so far, several times a second.
/// Raises:
///     TokenizerError: vocab_size does not fit the special tokens or the text; these are no special
///         tokens; there is no text.
///     SourceError: a file cannot be read, or is not UTF-8.
#[pyfunction]
#[pyo3(signature = (files, vocab_size, special_tokens, *, threads, on_progress))]
pub fn train_bpe(
    py: Python<'_>,
    files: Vec<PathBuf>,
    vocab_size: usize,
    special_tokens: Vec<String>,
    threads: Option<isize>,
    on_progress: Option<Py<PyAny>>,
) -> PyResult<PyTokenizer> {
    let threads = num_threads(threads)?;
    let num_merges = AtomicUsize::new(0);
    let report = |py: Python<'_>| {
        let Some(on_progress) = &on_progress else { return Ok(()) };
        on_progress.call1(py, (num_merges.load(Ordering::Relaxed),)).map(drop)
    };
    let tokenizer = interruptible_with(py, report, |check| {
        let mut trainer = BpeTrainer::new(vocab_size, special_tokens, threads)?;
        read_all(&files, check, |text, check| trainer.add(text, &mut || check()))?;
        let mut check_merges = |merges| {
            num_merges.store(merges, Ordering::Relaxed);
            check()
        };
        Tokenizer::new(trainer.learn::<Error>(&mut check_merges)?)
    })?;
    Ok(PyTokenizer(Arc::new(tokenizer)))
}

/// Learns a tokenizer of characters from UTF-8 files; arguments and errors of `train_bpe`.
///
/// Args:
///     vocab_size: the most ids there may be; None sets no bound but 65,536.
#[pyfunction]
pub fn train_char(
    py: Python<'_>,
    files: Vec<PathBuf>,
    vocab_size: Option<usize>,
    special_tokens: Vec<String>,
) -> PyResult<PyTokenizer> {
    let tokenizer = interruptible_with(
        py,
        |_| Ok(()),
        |check| {
            let mut trainer = CharTrainer::new(vocab_size, special_tokens)?;
            read_all(&files, check, |text, check| trainer.add(text, &mut || check()))?;
            Tokenizer::new(trainer.learn()?)
        },
    )?;
    Ok(PyTokenizer(Arc::new(tokenizer)))
}

/// Calls `each` with every part of every file's text.
fn read_all(
    files: &[PathBuf],
    check: Check<'_>,
    mut each: impl FnMut(&str, Check<'_>) -> Result<()>,
) -> Result<()> {
    for path in files {
        let mut file = TextFile::open(path, OnInvalid::Refuse)?;
        while let Some((_, text)) = file.next_part(check)? {
            each(text, check)?;
        }
    }
    Ok(())
}
