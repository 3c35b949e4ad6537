//! A token store: one long stream of token ids on disk, and where its documents end.
//!
//! ```text
//!   DIR/manifest.json       what there is: tokenizer, dtype, totals, each shard's counts and checksums
//!       tokenizer.json      the tokenizer, as Hugging Face's libraries read it
//!       tokens-00000.npy    uint16 or uint32 [n]: up to 2^28 tokens of the stream
//!       ends-00000.npy      uint64 [m]: where in this shard the documents that end in it end
//!       hashes-00000.npy    uint64 [m, 2]: a hash of each of these documents; parts of a build alone
//!       tokens-00001.npy    …
//! ```
//!
//! `StoreWriter` writes such files, `TokenStore` reads them, and other programs' formats in place.

#[cfg(target_endian = "big")]
compile_error!("a store's files are little-endian, and are read and written as they lie in memory");

pub(crate) mod column;
mod convert;
mod counts;
mod documents;
pub mod files;
mod foreign;
pub mod manifest;
mod map;
pub mod npy;
mod reader;
mod region;
#[cfg(test)]
pub(crate) mod scratch;
mod tokens;
mod verify;
mod writeback;
mod writer;

pub use convert::{Target, convert};
pub use counts::Lengths;
pub use manifest::{Dtype, Manifest, Shard, TokenizerInfo};
pub use reader::TokenStore;
pub use tokens::{Ids, OwnedIds};
pub use writer::{DocumentEnd, LEDGER, Layout, Mark, StoreWriter};
