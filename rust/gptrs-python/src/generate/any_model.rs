//! An engine as the loop sees it: one that computes in Python, or a native one.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use gptrs_core::generate::{Extend, Limits, Logits, NextLogits};
use pyo3::intern;
use pyo3::prelude::*;

use super::model::PyModel;
use crate::native::{NativeRun, PyNativeModel};

/// What answers the loop.
pub enum AnyModel {
    Python(Box<PyModel>),
    Native(Box<NativeRun>),
}

impl AnyModel {
    pub fn new(engine: &Bound<'_, PyAny>) -> PyResult<Self> {
        match engine.getattr_opt(intern!(engine.py(), "native"))? {
            Some(native) => {
                let native = native.cast::<PyNativeModel>()?;
                Ok(Self::Native(Box::new(NativeRun::new(engine, native.get())?)))
            }
            None => Ok(Self::Python(Box::new(PyModel::new(engine)?))),
        }
    }

    /// What a native model wants set before the loop goes on: Python code may have changed it.
    pub fn is_due(&self) -> Option<Arc<AtomicBool>> {
        match self {
            Self::Python(_) => None,
            Self::Native(model) => Some(model.is_due()),
        }
    }
}

impl NextLogits for AnyModel {
    type Error = PyErr;

    fn limits(&self) -> Limits {
        match self {
            Self::Python(model) => model.limits(),
            Self::Native(model) => model.limits(),
        }
    }

    fn extend(&mut self, work: &[Extend<'_>]) -> PyResult<()> {
        match self {
            Self::Python(model) => model.extend(work),
            Self::Native(model) => model.extend(work),
        }
    }

    fn logits(&self) -> Logits<'_> {
        match self {
            Self::Python(model) => model.logits(),
            Self::Native(model) => model.logits(),
        }
    }

    fn copy(&mut self, from: usize, to: usize, len: usize) -> PyResult<()> {
        match self {
            Self::Python(model) => model.copy(from, to, len),
            Self::Native(model) => model.copy(from, to, len),
        }
    }

    fn truncate(&mut self, slot: usize, len: usize) -> PyResult<()> {
        match self {
            Self::Python(model) => model.truncate(slot, len),
            Self::Native(model) => model.truncate(slot, len),
        }
    }
}
