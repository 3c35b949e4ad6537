//! `gptrs._core`: converts, releases the GIL, calls `gptrs-core`, converts. No algorithm lives here.

#![allow(clippy::needless_pass_by_value, reason = "PyO3 hands arguments over by value")]

mod errors;
mod generate;
mod sampling;
mod signals;
mod tokenizer;
mod train;
mod windows;

use pyo3::prelude::*;

/// The compiled half of gptrs.
#[pymodule(gil_used = false)]
mod _core {
    #[pymodule_export]
    use super::generate::PyGeneration;
    #[pymodule_export]
    use super::sampling::PySampler;
    #[pymodule_export]
    use super::tokenizer::{PyFileEncoder, PyTokenizer};
    #[pymodule_export]
    use super::train::{train_bpe, train_char};
    #[pymodule_export]
    use super::windows::PyWindows;
}
