//! What rows' sequences have seen, as Python hands it over.

use gptrs_core::Error;
use gptrs_core::sampling::History;
use pyo3::prelude::*;

use super::one_a_row;
use crate::errors::{CoreError, GenerationError};
use crate::tensor::TensorView;

/// One history a row.
#[derive(FromPyObject)]
pub enum GivenHistory<'py> {
    /// (prompt ids, output ids) of each row.
    Lists(Vec<(Vec<i64>, Vec<i64>)>),
    /// Rows of one length: (ids int64 [B, T], each row's first index, the output's first index).
    Padded(Bound<'py, PyAny>, Vec<usize>, usize),
}

impl GivenHistory<'_> {
    /// Checks the number of rows and every id.
    pub fn read(self, num_rows: usize, vocab_size: usize) -> PyResult<Vec<History>> {
        match self {
            Self::Lists(lists) => {
                one_a_row("history", lists.len(), num_rows)?;
                let read = |(row, (prompt, output)): (usize, &(Vec<i64>, Vec<i64>))| {
                    history(row, prompt, output, vocab_size)
                };
                lists.iter().enumerate().map(read).collect()
            }
            Self::Padded(ids, starts, prompt_end) => {
                let ids = TensorView::of(&ids)?;
                let (Some(tokens), &[found, width]) = (ids.as_i64(), ids.shape()) else {
                    let (shape, dtype) = (ids.shape(), ids.dtype());
                    let message = format!("history is int64 [B, T], found {dtype:?} {shape:?}");
                    return Err(GenerationError::new_err(message));
                };
                one_a_row("history", found, num_rows)?;
                one_a_row("history's starts", starts.len(), num_rows)?;
                let read = |row: usize| {
                    let row_tokens = &tokens[row * width..(row + 1) * width];
                    let start = starts[row].min(width);
                    let end = prompt_end.clamp(start, width);
                    history(row, &row_tokens[start..end], &row_tokens[end..], vocab_size)
                };
                (0..num_rows).map(read).collect()
            }
        }
    }
}

fn history(row: usize, prompt: &[i64], output: &[i64], vocab_size: usize) -> PyResult<History> {
    let token = |(column, &id): (usize, &i64)| match u32::try_from(id) {
        Ok(token) if (token as usize) < vocab_size => Ok(token),
        _ => Err(CoreError(Error::TokenIdInPrompt { id, row, column, vocab_size })),
    };
    let mut tokens = prompt.iter().chain(output).enumerate().map(token);
    let prompt = tokens.by_ref().take(prompt.len()).collect::<Result<_, _>>()?;
    let mut history = History::new(prompt);
    for token in tokens {
        history.push(token?);
    }
    Ok(history)
}
