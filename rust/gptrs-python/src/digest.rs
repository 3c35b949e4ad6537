//! `_core.Digest`: the sum by which files are known.

use std::sync::{Mutex, PoisonError};

use gptrs_core::Xxh3;
use pyo3::prelude::*;

use crate::tensor::bytes;

/// XXH3-64 of bytes that come in parts.
#[pyclass(name = "Digest", module = "gptrs._core", frozen)]
pub struct PyDigest(Mutex<Xxh3>);

#[pymethods]
impl PyDigest {
    #[new]
    fn new() -> Self {
        Self(Mutex::new(Xxh3::new()))
    }

    /// Goes on with the bytes of any object that shows them, as arrays do.
    fn update(&self, py: Python<'_>, part: &Bound<'_, PyAny>) -> PyResult<()> {
        let part = bytes(part)?;
        let update = || self.0.lock().unwrap_or_else(PoisonError::into_inner).update(part.get());
        py.detach(update);
        Ok(())
    }

    /// 16 digits.
    fn hexdigest(&self) -> String {
        let digest = self.0.lock().unwrap_or_else(PoisonError::into_inner).digest();
        format!("{digest:016x}")
    }
}
