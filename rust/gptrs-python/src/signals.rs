//! Ctrl-C, heard while Rust works without the GIL.

use std::time::{Duration, Instant};

use gptrs_core::tokenizer::Check;
use gptrs_core::{Error, Result};
use pyo3::prelude::*;

use crate::errors::CoreError;

/// How often to ask Python. Asking takes the GIL, which others may hold for a while.
const BETWEEN_SIGNAL_CHECKS: Duration = Duration::from_millis(40);

/// Does `work` without the GIL. The check that it gets asks for signals now and then; what Python
/// raises then ends the work and arrives unchanged.
pub fn interruptible<T: Send>(
    py: Python<'_>,
    work: impl FnOnce(Check<'_>) -> Result<T> + Send,
) -> PyResult<T> {
    interruptible_with(py, |_| Ok(()), work)
}

/// As `interruptible`; calls `also` with the GIL whenever it asks for signals.
pub fn interruptible_with<T: Send>(
    py: Python<'_>,
    mut also: impl FnMut(Python<'_>) -> PyResult<()> + Send,
    work: impl FnOnce(Check<'_>) -> Result<T> + Send,
) -> PyResult<T> {
    let mut raised = None;
    let done = py.detach(|| {
        let mut last_check = Instant::now();
        let mut check = || {
            if last_check.elapsed() < BETWEEN_SIGNAL_CHECKS {
                return Ok(());
            }
            let heard = Python::attach(|py| py.check_signals().and_then(|()| also(py)));
            last_check = Instant::now();
            heard.map_err(|error| {
                raised = Some(error);
                Error::Stopped
            })
        };
        work(&mut check)
    });
    done.map_err(|error| raised.unwrap_or_else(|| CoreError(error).into()))
}
