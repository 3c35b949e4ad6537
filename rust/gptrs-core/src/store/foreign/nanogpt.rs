//! nanoGPT's `.bin`: uint16 ids and nothing else, an end-of-text after each document.

use std::path::Path;

use super::Foreign;
use crate::Result;
use crate::store::documents::{Documents, Marked};
use crate::store::files::refused;
use crate::store::manifest::{Dtype, TokenizerInfo};
use crate::store::region::{Header, Region};

/// What `Manifest::format` says of such a file.
pub const FORMAT: &str = "nanogpt";

/// Opens a file of `size` bytes that begins with `start`.
pub fn open(
    path: &Path,
    size: u64,
    start: &[u8],
    tokenizer: Option<&TokenizerInfo>,
) -> Result<Foreign> {
    if !size.is_multiple_of(2) {
        let reason = format!("has {size} bytes: a nanoGPT file has two for each token");
        return Err(refused(path, reason));
    }
    if looks_like_int32(start) {
        return Err(refused(
            path,
            "every second 16 bits are 0: it looks like a file that llm.c wrote before May 2024, \
             int32 without a header; have llm.c's data scripts write it anew"
                .to_owned(),
        ));
    }
    let tokenizer = tokenizer.cloned().unwrap_or_else(TokenizerInfo::gpt2);
    let num_tokens = size / 2;
    Ok(Foreign {
        format: FORMAT,
        dtype: Dtype::Uint16,
        tokens: Region::new(path.to_owned(), Header::None, num_tokens, 2),
        num_tokens,
        documents: Documents::Marked(Marked::ends(tokenizer.end_of_text)),
        tokenizer,
    })
}

/// Whether these are ids below 65,536 in 32 bits each, not all of them 0.
fn looks_like_int32(start: &[u8]) -> bool {
    /// Fewer could be anything.
    const FEWEST: usize = 16;
    let (ids, _) = start.as_chunks::<4>();
    ids.len() >= FEWEST
        && ids.iter().all(|id| id[2..] == [0, 0])
        && ids.iter().any(|id| id[..2] != [0, 0])
}
