//! GPT-2 tokens, windows and sampling, with no Python in them.
//!
//! ```text
//! text ─► tokenizer ─► ids ─► windows ─► (input, target) pairs, for training
//! prompt ids ─► generate ◄─► NextLogits, a model ; sampling ─► new ids
//! ```
//!
//! The whole flow, with a model that always expects the token to come that follows in the text:
//!
//! ```
//! use gptrs_core::generate::{Extend, Generation, Limits, Logits, NextLogits, Options, Request, Settings};
//! use gptrs_core::{Error, Tokenizer, Windows};
//!
//! let tokenizer = Tokenizer::gpt2();
//! let ids = tokenizer.encode_ordinary("one two three four five")?;
//! let windows = Windows::new(ids.len(), 2, 1)?;
//! let (mut inputs, mut targets) = ([0; 2], [0; 2]);
//! windows.fill(&ids, &[-1], &mut inputs, &mut targets)?;
//! assert_eq!(tokenizer.decode(&targets.map(|id| id as u16))?, b" four five");
//!
//! struct KnowsTheText(Vec<u16>, Vec<f32>);
//!
//! impl NextLogits for KnowsTheText {
//!     type Error = Error;
//!     fn limits(&self) -> Limits {
//!         Limits { vocab_size: 50_257, context_length: 8, slots: 1 }
//!     }
//!     fn extend(&mut self, work: &[Extend<'_>]) -> Result<(), Error> {
//!         let last = work[0].tokens.last().copied().unwrap_or_default();
//!         let at = self.0.iter().position(|&id| u32::from(id) == last).unwrap_or_default();
//!         self.1 = vec![0.0; 50_257];
//!         self.1[usize::from(self.0[at + 1])] = 1.0;
//!         Ok(())
//!     }
//!     fn logits(&self) -> Logits<'_> {
//!         Logits::F32(&self.1, 50_257)
//!     }
//!     fn copy(&mut self, _: usize, _: usize, _: usize) -> Result<(), Error> {
//!         Ok(())
//!     }
//!     fn truncate(&mut self, _: usize, _: usize) -> Result<(), Error> {
//!         Ok(())
//!     }
//! }
//!
//! let prompt = vec![u32::from(ids[0]), u32::from(ids[1])];
//! let mut run = Generation::new(KnowsTheText(ids, vec![]), Options::default())?;
//! let settings = Settings::greedy(3, 8).into();
//! run.inbox().submit(Request { prompt, seed: 0, sequence: 0, settings })?;
//! let outputs = run.run().unwrap();
//! let new: Vec<u16> = outputs[0].tokens.iter().map(|&id| id as u16).collect();
//! assert_eq!(tokenizer.decode(&new)?, b" three four five");
//! # Ok::<(), Error>(())
//! ```

pub mod batches;
pub mod build;
pub mod constraint;
mod error;
pub mod generate;
pub mod layers;
pub mod native;
pub mod philox;
pub mod sampling;
pub mod shuffle;
pub mod source;
pub mod store;
mod threads;
pub mod tokenizer;
mod windows;
pub mod word2vec;

pub use error::{Error, Result};
pub use tokenizer::Tokenizer;
pub use windows::Windows;
pub use xxhash_rust::xxh3::Xxh3;
