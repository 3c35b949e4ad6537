//! `gptrs._core`: converts, releases the GIL, calls `gptrs-core`, converts. No algorithm lives here.

#![allow(clippy::needless_pass_by_value, reason = "PyO3 hands arguments over by value")]

mod batches;
mod beam;
mod build;
mod constraint;
mod digest;
mod errors;
mod generate;
mod layers;
mod matmul;
mod merge;
mod native;
mod sampling;
mod signals;
mod store;
mod tensor;
mod tokenizer;
mod train;
mod windows;
mod word2vec;

use pyo3::prelude::*;

/// The compiled half of gptrs.
#[pymodule(gil_used = false)]
mod _core {
    #[pymodule_export]
    use super::batches::{PyBatchStream, PyStoreWindows, PyWindowBatches};
    #[pymodule_export]
    use super::beam::beam_search;
    #[pymodule_export]
    use super::build::PyStoreBuilder;
    #[pymodule_export]
    use super::constraint::{PyGrammar, PyMatcher, PyStopStrings, PyTokenBytes};
    #[pymodule_export]
    use super::digest::PyDigest;
    #[pymodule_export]
    use super::generate::PyGeneration;
    #[pymodule_export]
    use super::layers::{
        attention, attention_backward, dropout, exp_and_sum, gelu, gelu_backward,
        softmax_and_losses, sum_of_squares, turn,
    };
    #[pymodule_export]
    use super::matmul::{matmul, matmul_beats_mkl};
    #[pymodule_export]
    use super::merge::merge_stores;
    #[pymodule_export]
    use super::native::{PyNativeModel, PyPackedWeights};
    #[pymodule_export]
    use super::sampling::{PySampler, PySamplingConfig};
    #[pymodule_export]
    use super::store::{PyTokenStore, convert_store};
    #[pymodule_export]
    use super::tokenizer::{PyFileEncoder, PyTokenizer};
    #[pymodule_export]
    use super::train::{train_bpe, train_char};
    #[pymodule_export]
    use super::windows::PyWindows;
    #[pymodule_export]
    use super::word2vec::train_word2vec;
}
