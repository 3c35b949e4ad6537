//! `_core.merge_stores`: joins stores with the GIL released, and hears Ctrl-C while it works.

use std::path::PathBuf;
use std::sync::atomic::Ordering;

use gptrs_core::build::{Merge, MergeProgress};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::signals::interruptible_with;

/// Joins stores in their order: the folder `out` becomes a store, or nothing does.
///
/// Args:
///     parts: folders with stores, or each with a `train` and a `val`.
///     deduplicate: leave out documents that equal an earlier one; each part has to have the hashes
///         that a task's build without duplicates keeps.
///     memory: about how many bytes the hashes of documents may take.
///     on_progress: called several times a second with a dict of "tokens", "bytes" and
///         "bytes_total".
/// Raises:
///     ConfigError: there are no parts.
///     StoreError: a part is missing or damaged, parts differ in what made them or are not all parts
///         of one build in order, hashes are missing, or `out` holds a store or a build or cannot be
///         written.
#[pyfunction]
#[pyo3(signature = (parts, out, *, deduplicate, memory = 1 << 28, on_progress = None))]
pub fn merge_stores(
    py: Python<'_>,
    parts: Vec<PathBuf>,
    out: PathBuf,
    deduplicate: bool,
    memory: usize,
    on_progress: Option<Py<PyAny>>,
) -> PyResult<()> {
    let progress = MergeProgress::default();
    let report = |py: Python<'_>| {
        on_progress
            .as_ref()
            .map_or(Ok(()), |call| call.call1(py, (counts(py, &progress)?,)).map(drop))
    };
    let merge = Merge { deduplicate, memory_bytes: memory, progress: &progress };
    interruptible_with(py, report, |check| merge.run(&parts, &out, check))?;
    report(py)
}

fn counts<'py>(py: Python<'py>, progress: &MergeProgress) -> PyResult<Bound<'py, PyDict>> {
    let counts = PyDict::new(py);
    counts.set_item("tokens", progress.tokens.load(Ordering::Relaxed))?;
    counts.set_item("bytes", progress.bytes.load(Ordering::Relaxed))?;
    counts.set_item("bytes_total", progress.bytes_total.load(Ordering::Relaxed))?;
    Ok(counts)
}
