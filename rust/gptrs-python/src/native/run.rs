//! A native model in the loop: Python is asked now and then, not at every step.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use gptrs_core::generate::{Extend, Limits, Logits, NextLogits};
use pyo3::prelude::*;

use super::{Lent, PyNativeModel, PyWeights, to_py_err};

/// How often to hear Ctrl-C, and to ask whether the model has changed. Asking takes the GIL, which
/// others may hold for a while; a step of a small model takes some 20 microseconds.
const BETWEEN_CHECKS: Duration = Duration::from_millis(20);
/// Prompts are read in parts that take about as long as people wait without noticing.
const A_PART: Duration = Duration::from_millis(200);
/// How many tokens such a part has before its time is known, and at least: all weights are read for
/// each part, which takes as long as some thirty tokens do.
const FIRST_PART: usize = 64;
const LEAST_PART: usize = 32;
/// More tokens at once are read no faster either.
const LARGEST_PART: usize = 2048;

/// A native model that a loop has taken from its Python engine.
pub struct NativeRun {
    lent: Lent,
    /// The engine's method: None, or the weights as they are now.
    refresh: Py<PyAny>,
    last_check: Instant,
    /// Whether Python code may have run since: whoever calls from there says so.
    is_due: Arc<AtomicBool>,
    /// How many tokens are read in a part.
    part: usize,
}

impl NativeRun {
    /// `engine.refresh` is asked from then on.
    pub fn new(engine: &Bound<'_, PyAny>, model: &PyNativeModel) -> PyResult<Self> {
        Ok(Self {
            refresh: engine.getattr("refresh")?.unbind(),
            lent: model.lend()?,
            last_check: Instant::now(),
            is_due: Arc::default(),
            part: FIRST_PART,
        })
    }

    /// To be set before the loop goes on.
    pub fn is_due(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.is_due)
    }

    /// Hears Ctrl-C and takes up new weights, unless it just has.
    fn check(&mut self) -> PyResult<()> {
        let is_due = self.is_due.swap(false, Ordering::Relaxed);
        if !is_due && self.last_check.elapsed() < BETWEEN_CHECKS {
            return Ok(());
        }
        let Self { lent, refresh, .. } = self;
        Python::attach(|py| {
            py.check_signals()?;
            let fresh = refresh.bind(py).call0()?;
            if fresh.is_none() {
                return Ok(());
            }
            // The engine takes them for known: if they cannot be taken, nobody may go on with the old ones.
            lent.is_outdated = true;
            let weights = fresh.extract::<PyWeights<'_>>()?.read()?;
            let model = lent.model_mut();
            py.detach(|| model.set_weights(weights)).map_err(to_py_err)?;
            lent.is_outdated = false;
            PyResult::Ok(())
        })?;
        self.last_check = Instant::now();
        Ok(())
    }

    /// Reads all but what fits a part, or what logits are wanted of, in parts of about one size:
    /// nobody waits long for Ctrl-C to be heard. A token's logits do not depend on how its text is
    /// cut.
    fn read_ahead(&mut self, work: &mut [Extend<'_>]) -> PyResult<()> {
        let mut part = Vec::new();
        loop {
            let num_left: usize = work.iter().map(|w| w.tokens.len()).sum();
            if num_left <= self.part {
                return Ok(());
            }
            let mut room = num_left.div_ceil(num_left.div_ceil(self.part));
            part.clear();
            for w in &mut *work {
                let ahead = w.tokens.len() - w.wanted.clamp(1, w.tokens.len());
                let (tokens, behind) = w.tokens.split_at(ahead.min(room));
                if !tokens.is_empty() {
                    part.push(Extend { slot: w.slot, tokens, wanted: 0 });
                    w.tokens = behind;
                    room -= tokens.len();
                }
            }
            if part.is_empty() {
                return Ok(());
            }
            let start = Instant::now();
            self.lent.model_mut().extend(&part).map_err(to_py_err)?;
            let num_read = part.iter().map(|w| w.tokens.len()).sum();
            self.part = next_part(num_read, start.elapsed());
            self.check()?;
        }
    }
}

impl NextLogits for NativeRun {
    type Error = PyErr;

    fn limits(&self) -> Limits {
        self.lent.model().limits()
    }

    fn extend(&mut self, work: &[Extend<'_>]) -> PyResult<()> {
        self.check()?;
        let num_tokens: usize = work.iter().map(|w| w.tokens.len()).sum();
        if num_tokens <= self.part.max(work.len()) {
            return self.lent.model_mut().extend(work).map_err(to_py_err);
        }
        let mut work = work.to_vec();
        self.read_ahead(&mut work)?;
        self.lent.model_mut().extend(&work).map_err(to_py_err)
    }

    fn logits(&self) -> Logits<'_> {
        self.lent.model().logits()
    }

    fn copy(&mut self, from: usize, to: usize, len: usize) -> PyResult<()> {
        self.lent.model_mut().copy(from, to, len).map_err(to_py_err)
    }

    fn truncate(&mut self, slot: usize, len: usize) -> PyResult<()> {
        self.lent.model_mut().truncate(slot, len).map_err(to_py_err)
    }
}

/// How many tokens take `A_PART`, if so many took so long.
fn next_part(num_read: usize, took: Duration) -> usize {
    let scale = A_PART.as_secs_f64() / took.as_secs_f64().max(1e-6);
    // Slowly upwards: a short part says little of a long one.
    ((num_read as f64 * scale.min(2.0)) as usize).clamp(LEAST_PART, LARGEST_PART)
}
