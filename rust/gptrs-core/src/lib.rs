//! GPT-2 tokens, windows and sampling, with no Python in them.

mod error;
pub mod generate;
pub mod philox;
pub mod sampling;
pub mod tokenizer;
mod windows;

pub use error::{Error, Result};
pub use windows::Windows;
