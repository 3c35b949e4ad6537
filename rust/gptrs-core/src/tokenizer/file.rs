//! `tokenizer.json`, the file in which Hugging Face's libraries keep a tokenizer.
//!
//! ```text
//!                  Bpe                                      Char
//!   pre_tokenizer  ByteLevel: GPT-2's pattern               FixedLength 1: every character
//!   model          BPE, a visible letter for each byte      WordLevel, unknown ones an error
//!   decoder        ByteLevel                                Fuse: nothing between the tokens
//! ```
//!
//! Whatever else such a file may ask for (another model, a normalizer, tokens put around a text)
//! is refused by name: what is read here gives the ids that the file means, or an error.
//!
//! The model has a key of ours, `gptrs_fingerprint`: `Description::fingerprint` of what the file
//! describes. Hugging Face's libraries pass over it and do not save it, so a file need not have
//! it; but where it is and does not fit, somebody has altered the file.

mod ids;
mod json;
mod read;
mod write;

pub use read::from_json;
pub use write::to_json;

#[cfg(test)]
mod tests;
