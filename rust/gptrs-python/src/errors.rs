//! Core errors become the exceptions of `gptrs.errors`: here, and nowhere else.

use gptrs_core::Error;
use pyo3::PyErr;
use pyo3::exceptions::{PyRuntimeError, PyValueError};

pyo3::import_exception!(gptrs.errors, ConfigError);
pyo3::import_exception!(gptrs.errors, DataError);
pyo3::import_exception!(gptrs.errors, GenerationError);
pyo3::import_exception!(gptrs.errors, QueueFullError);
pyo3::import_exception!(gptrs.errors, SourceError);
pyo3::import_exception!(gptrs.errors, StoreError);
pyo3::import_exception!(gptrs.errors, TokenIdError);
pyo3::import_exception!(gptrs.errors, TokenizerError);
pyo3::import_exception!(gptrs.errors, WindowError);

/// Lets `?` turn a core error into the exception that Python code expects.
pub struct CoreError(pub Error);

impl From<Error> for CoreError {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl From<CoreError> for PyErr {
    fn from(CoreError(error): CoreError) -> Self {
        let message = error.to_string();
        match error {
            Error::WindowOutOfRange { .. } => WindowError::new_err(message),
            Error::EmptyWindow { .. }
            | Error::NoRoom { .. }
            | Error::Setting(_)
            | Error::Temperature(_)
            | Error::TopK(_)
            | Error::TopP(_)
            | Error::VocabSize { .. } => ConfigError::new_err(message),
            Error::EmptyVocabulary { .. } => DataError::new_err(message),
            Error::BadLogit { .. }
            | Error::NothingToDraw
            | Error::NothingAllowed
            | Error::EmptyPrompt { .. }
            | Error::InSequence { .. }
            | Error::NoMemory { .. }
            | Error::PromptTooLong { .. } => GenerationError::new_err(message),
            Error::QueueFull { .. } => QueueFullError::new_err(message),
            Error::TokenIdInPrompt { .. } | Error::TokenIdOutOfVocabulary { .. } => {
                TokenIdError::new_err(message)
            }
            Error::DisallowedSpecial { .. }
            | Error::PieceTooLong { .. }
            | Error::UnknownCharacter { .. }
            | Error::TokenizerDescription(_)
            | Error::TokenizerFile(_)
            | Error::TooFewPairs { .. }
            | Error::TooManyChars { .. }
            | Error::TooManyWords { .. } => TokenizerError::new_err(message),
            Error::File { .. } | Error::NotUtf8 { .. } | Error::Row { .. } => {
                SourceError::new_err(message)
            }
            Error::Store { .. } => StoreError::new_err(message),
            Error::Stopped => PyRuntimeError::new_err(message),
            Error::WrongLength { .. } => PyValueError::new_err(message),
        }
    }
}
