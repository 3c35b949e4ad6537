//! Learning a tokenizer from texts. Reads no files, writes none.
//!
//! ```text
//!   texts ─► segments ─► words and their counts ─► places and pairs ─► merges     BpeTrainer
//!            between special tokens                                     one by one
//!   texts ─► segments ─► characters                                              CharTrainer
//! ```
//!
//! Memory is bounded by the distinct words, not by the text; time is linear in both. The same
//! texts give the same merges, in whatever order they come and with however many threads. They
//! are the merges of Hugging Face's `BpeTrainer` on words that GPT-2's pattern splits.

mod bpe;
mod chars;
mod pairs;
mod places;
mod queue;
mod words;

pub use bpe::BpeTrainer;
pub use chars::CharTrainer;

#[cfg(test)]
mod tests;
