//! What training's layers compute, from tensor to tensor.

mod causal_attention;
mod elementwise;
mod rows;

use pyo3::PyErr;

pub use self::causal_attention::{attention, attention_backward};
pub use self::elementwise::{dropout, gelu, gelu_backward, sum_of_squares};
pub use self::rows::{exp_and_sum, softmax_and_losses, turn};
use crate::errors::GenerationError;

fn other_dtype() -> PyErr {
    GenerationError::new_err("tensors are float32 or bfloat16, found another or a mixture")
}
