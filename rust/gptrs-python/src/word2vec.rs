//! `_core.train_word2vec`: vectors of words, or of tokens, from files or a store.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use gptrs_core::source::{Input, Kind};
use gptrs_core::word2vec::{
    Algorithm, Corpus, Progress, Settings, Units, Vectors, WordSplitter, train,
};
use numpy::{IntoPyArray, PyArray1, PyArray2, PyArrayMethods};
use pyo3::prelude::*;

use crate::errors::{ConfigError, CoreError};
use crate::signals::interruptible_with;
use crate::store::PyTokenStore;
use crate::tokenizer::{PyTokenizer, num_threads};

/// The words or the ids, how often each occurs, and the vectors.
type Learned<'py> = (Bound<'py, PyAny>, Bound<'py, PyArray1<u64>>, Bound<'py, PyArray2<f32>>);

/// Learns vectors of words by word2vec.
///
/// Args:
///     inputs: (kind, path) in order; the kind is "text" or "jsonl". Not read if there is a `store`.
///     store: learns vectors of its ids.
///     tokenizer: learns vectors of the ids that it makes of the files; None learns words.
///     threads: how many threads learn; None is one for each processor.
///     on_progress: called with ("counting" or "training", done, total) several times a second.
/// Returns:
///     The words as list[str], or the ids as uint32 [N], the most frequent first; how often each
///     occurs, uint64 [N]; float32 [N, vector_size].
/// Raises:
///     ConfigError: a setting or the pattern makes no sense.
///     DataError: no word occurs `min_count` times.
///     SourceError: a file cannot be read or used.
///     StoreError: the store cannot be read.
#[pyfunction]
#[pyo3(signature = (
    inputs, store, tokenizer, *, text_key, replace_invalid, pattern, lower, cbow, cbow_mean,
    vector_size, window, negative, epochs, alpha, min_alpha, sample, min_count, max_vocab, seed,
    threads, on_progress
))]
#[allow(clippy::too_many_arguments, clippy::fn_params_excessive_bools, reason = "Python's names")]
pub fn train_word2vec<'py>(
    py: Python<'py>,
    inputs: Vec<(String, String)>,
    store: Option<&PyTokenStore>,
    tokenizer: Option<&PyTokenizer>,
    text_key: String,
    replace_invalid: bool,
    pattern: Option<&str>,
    lower: bool,
    cbow: bool,
    cbow_mean: bool,
    vector_size: i64,
    window: i64,
    negative: i64,
    epochs: i64,
    alpha: f32,
    min_alpha: f32,
    sample: f64,
    min_count: i64,
    max_vocab: Option<i64>,
    seed: u64,
    threads: Option<isize>,
    on_progress: Option<Py<PyAny>>,
) -> PyResult<Learned<'py>> {
    let settings = Settings {
        algorithm: if cbow { Algorithm::Cbow { mean: cbow_mean } } else { Algorithm::SkipGram },
        vector_size: not_negative("vector_size", vector_size)?,
        window: not_negative("window", window)?,
        negative: not_negative("negative", negative)?,
        epochs: not_negative("epochs", epochs)? as u64,
        alpha,
        min_alpha,
        sample,
        min_count: not_negative("min_count", min_count)? as u64,
        max_vocab: max_vocab.map(|most| not_negative("max_vocab", most)).transpose()?,
        seed,
        threads: num_threads(threads)?,
    };
    let corpus = if let Some(store) = store {
        Corpus::store(Arc::clone(&store.0))
    } else {
        let units = match tokenizer {
            Some(tokenizer) => Units::Tokens(Arc::clone(&tokenizer.0)),
            None => Units::Words(WordSplitter::new(pattern, lower).map_err(CoreError)?),
        };
        let inputs = inputs.into_iter().map(input).collect();
        Corpus::files(inputs, text_key, replace_invalid, units).map_err(CoreError)?
    };
    let vectors = run(py, &corpus, &settings, on_progress.as_ref())?;
    converted(py, vectors, settings.vector_size)
}

fn run(
    py: Python<'_>,
    corpus: &Corpus,
    settings: &Settings,
    on_progress: Option<&Py<PyAny>>,
) -> PyResult<Vectors> {
    let progress = Progress::default();
    let report = |py: Python<'_>| {
        let Some(on_progress) = on_progress else { return Ok(()) };
        let number = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let to_learn = number(&progress.to_learn);
        let counts = if to_learn == 0 {
            ("counting", number(&progress.counted), number(&progress.to_count))
        } else {
            ("training", number(&progress.learned), to_learn)
        };
        on_progress.call1(py, counts).map(drop)
    };
    interruptible_with(py, report, |check| train(corpus, settings, &progress, check))
}

fn converted(py: Python<'_>, vectors: Vectors, columns: usize) -> PyResult<Learned<'_>> {
    let Vectors { vocabulary, numbers } = vectors;
    let words = match (vocabulary.words(), vocabulary.ids()) {
        (Some(words), _) => words.collect::<Vec<_>>().into_pyobject(py)?.into_any(),
        (None, ids) => ids.unwrap_or_default().to_vec().into_pyarray(py).into_any(),
    };
    let counts = vocabulary.counts().to_vec().into_pyarray(py);
    let shape = [vocabulary.counts().len(), columns];
    Ok((words, counts, numbers.into_pyarray(py).reshape(shape)?))
}

fn input((kind, path): (String, String)) -> Input {
    let kind = match &*kind {
        "text" => Kind::Text,
        "jsonl" => Kind::Jsonl,
        _ => Kind::Rows,
    };
    Input { kind, path }
}

/// A number that cannot be below 0; how large it has to be, the core knows.
fn not_negative(name: &str, found: i64) -> PyResult<usize> {
    usize::try_from(found)
        .map_err(|_| ConfigError::new_err(format!("{name} is at least 1, found {found}")))
}
