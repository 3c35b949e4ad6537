//! `_core.WindowBatches`: a store's windows in batches, and the stream of them, as NumPy arrays.

use std::sync::{Arc, Mutex, PoisonError};

use gptrs_core::batches::{
    Batch, BatchStream, Batches, Boundary, Cursor, Plan, Settings, Walk, fill_windows,
};
use gptrs_core::{Windows, shuffle};
use numpy::ndarray::Array2;
use numpy::{IntoPyArray, PyArray1, PyArray2, PyReadonlyArray1, PyReadwriteArray2};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::errors::CoreError;
use crate::signals::interruptible;
use crate::store::PyTokenStore;

/// What windows there are, and in which batches they come. Threads may share it.
///
/// Args:
///     store: what the windows are cut from.
///     max_length: tokens a window.
///     stride: tokens from one window's start to the next.
///     boundary: "stream" or "document", where a window has to lie.
///     seed: of the shuffled order; None is the stream's own order.
///     batch_size: windows a batch.
///     rank, world_size: whose batches these are.
///     drop_last: whether to leave out the last batch, if it is smaller.
///     return_positions: whether batches have `position_ids` and `cu_seqlens`.
/// Raises:
///     ConfigError: a number makes no sense.
///     StoreError: the store's files cannot be read.
#[pyclass(name = "WindowBatches", module = "gptrs._core", frozen)]
pub struct PyWindowBatches {
    batches: Arc<Batches>,
    is_shuffled: bool,
}

#[pymethods]
impl PyWindowBatches {
    #[new]
    #[pyo3(signature = (
        store, *, max_length, stride, boundary, seed, batch_size, rank, world_size, drop_last,
        return_positions,
    ))]
    #[allow(clippy::too_many_arguments, reason = "one for each keyword")]
    fn new(
        py: Python<'_>,
        store: &PyTokenStore,
        max_length: i64,
        stride: i64,
        boundary: &str,
        seed: Option<u64>,
        batch_size: i64,
        rank: i64,
        world_size: i64,
        drop_last: bool,
        return_positions: bool,
    ) -> PyResult<Self> {
        let boundary = if boundary == "document" { Boundary::Document } else { Boundary::Stream };
        let positions = return_positions;
        let settings = Settings { length: max_length, stride, boundary, seed, positions };
        let plan = |count| Plan::new(count, batch_size, rank, world_size, drop_last);
        let tokens = Arc::clone(&store.0);
        let batches = interruptible(py, |check| Batches::new(tokens, settings, plan, check))?;
        Ok(Self { batches: Arc::new(batches), is_shuffled: seed.is_some() })
    }

    /// How many windows an epoch has.
    #[getter]
    fn num_windows(&self) -> u64 {
        self.batches.plan().num_windows()
    }

    /// How many batches each rank gets in an epoch.
    #[getter]
    fn batches_per_epoch(&self) -> u64 {
        self.batches.plan().batches_per_epoch()
    }

    /// How many windows of an epoch are in no batch.
    #[getter]
    fn dropped_windows(&self) -> u64 {
        self.batches.plan().dropped_windows()
    }

    /// How many tokens of the store are in no window.
    #[getter]
    fn dropped_tokens(&self) -> u64 {
        self.batches.dropped_tokens()
    }

    /// The kind of order, with the version of the permutation.
    #[getter]
    fn order(&self) -> String {
        if self.is_shuffled {
            format!("feistel-{}", shuffle::VERSION)
        } else {
            "sequential".to_owned()
        }
    }

    /// Batches from a position of an epoch on, up to epoch `end_epoch`, which is not part of them.
    ///
    /// Args:
    ///     skip: how many batches to leave out first.
    ///     step: yields one batch of so many: what one worker of several does.
    ///     prefetch: how many batches a thread fills ahead of the caller.
    /// Raises:
    ///     ConfigError: there are fewer windows than `position`.
    #[pyo3(signature = (epoch, position, *, end_epoch, skip, step, prefetch))]
    fn stream(
        &self,
        epoch: u64,
        position: u64,
        end_epoch: u64,
        skip: u64,
        step: u64,
        prefetch: usize,
    ) -> Result<PyBatchStream, CoreError> {
        let cursor = Cursor { epoch, position };
        let walk = Walk::new(*self.batches.plan(), cursor, end_epoch, skip, step)?;
        let stream = BatchStream::new(Arc::clone(&self.batches), walk, prefetch);
        Ok(PyBatchStream { stream: Mutex::new(stream), length: self.batches.length() })
    }
}

/// Iterates over batches: tuples of inputs and targets, int64 [B, T] each; with positions also
/// `position_ids`, int64 [B, T], and `cu_seqlens`, int32. The arrays are the caller's own.
#[pyclass(name = "BatchStream", module = "gptrs._core", frozen)]
pub struct PyBatchStream {
    stream: Mutex<BatchStream>,
    length: usize,
}

#[pymethods]
impl PyBatchStream {
    fn __iter__(this: PyRef<'_, Self>) -> PyRef<'_, Self> {
        this
    }

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyTuple>>> {
        let batch = interruptible(py, |check| self.locked(|stream| stream.next(check)))?;
        batch.map(|batch| self.arrays(py, batch)).transpose()
    }

    /// Ends the thread that fills batches ahead.
    fn close(&self, py: Python<'_>) {
        py.detach(|| self.locked(BatchStream::close));
    }

    /// Epoch and position behind the last batch that was yielded.
    #[getter]
    fn cursor(&self, py: Python<'_>) -> (u64, u64) {
        let Cursor { epoch, position } = py.detach(|| self.locked(|stream| stream.cursor()));
        (epoch, position)
    }

    /// Whether the caller was told that there is no further batch.
    #[getter]
    fn has_ended(&self, py: Python<'_>) -> bool {
        py.detach(|| self.locked(|stream| stream.has_ended()))
    }
}

impl PyBatchStream {
    /// Only without the GIL: another thread may hold the lock and wait for the GIL.
    fn locked<T>(&self, work: impl FnOnce(&mut BatchStream) -> T) -> T {
        work(&mut self.stream.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn arrays<'py>(&self, py: Python<'py>, batch: Batch) -> PyResult<Bound<'py, PyTuple>> {
        let shape = (batch.rows, self.length);
        let matrix = |ids: Vec<i64>| -> PyResult<Bound<'py, PyArray2<i64>>> {
            let array = Array2::from_shape_vec(shape, ids);
            Ok(array.map_err(|error| PyValueError::new_err(error.to_string()))?.into_pyarray(py))
        };
        let (inputs, targets) = (matrix(batch.inputs)?, matrix(batch.targets)?);
        let Some(positions) = batch.positions else { return (inputs, targets).into_pyobject(py) };
        let cu_seqlens: Bound<'py, PyArray1<i32>> = positions.cu_seqlens.into_pyarray(py);
        (inputs, targets, matrix(positions.position_ids)?, cu_seqlens).into_pyobject(py)
    }
}

/// The (input, target) windows of a store.
///
/// Args:
///     store: kept open.
///     length: tokens a window.
///     stride: tokens from one window's start to the next.
/// Raises:
///     ConfigError: length or stride is below 1.
#[pyclass(name = "StoreWindows", module = "gptrs._core", frozen)]
pub struct PyStoreWindows {
    windows: Windows,
    store: Py<PyTokenStore>,
}

#[pymethods]
impl PyStoreWindows {
    #[new]
    fn new(store: Py<PyTokenStore>, length: i64, stride: i64) -> Result<Self, CoreError> {
        let num_tokens = store.get().0.len() as usize;
        Ok(Self { windows: Windows::new(num_tokens, length, stride)?, store })
    }

    fn __len__(&self) -> usize {
        self.windows.len()
    }

    /// Copies windows `indices` into `inputs` and `targets`, in place.
    ///
    /// Args:
    ///     indices: int64 [B], each in -len(self)..len(self); -1 is the last window.
    ///     inputs, targets: int64 [B, length], C-contiguous.
    /// Raises:
    ///     WindowError: an index is out of range; nothing was written.
    ///     StoreError: the store's files cannot be read, or have ids outside the vocabulary.
    fn fill(
        &self,
        py: Python<'_>,
        indices: PyReadonlyArray1<'_, i64>,
        mut inputs: PyReadwriteArray2<'_, i64>,
        mut targets: PyReadwriteArray2<'_, i64>,
    ) -> PyResult<()> {
        let (tokens, indices) = (&*self.store.get().0, indices.as_slice()?);
        let (inputs, targets) = (inputs.as_slice_mut()?, targets.as_slice_mut()?);
        py.detach(|| fill_windows(tokens, &self.windows, indices, inputs, targets))
            .map_err(CoreError)?;
        Ok(())
    }
}
