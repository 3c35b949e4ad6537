//! llm.c's `.bin`: 256 int32 of header, then ids; an end-of-text before each document.

use std::path::Path;

use super::Foreign;
use crate::Result;
use crate::store::documents::{Documents, Marked};
use crate::store::files::refused;
use crate::store::manifest::{Dtype, TokenizerInfo};
use crate::store::region::{self, Region};

/// What `Manifest::format` says of such a file.
pub const FORMAT: &str = "llm.c";

/// The header's length.
pub const HEADER_BYTES: usize = 1024;

/// The header's first two numbers: which file it is, and which version of it.
const GPT2: (i32, i32) = (20_240_520, 1);
const LLAMA3: (i32, i32) = (20_240_801, 7);

/// llm.c dates its files: weights, states and evaluations have other days of that year.
const DATES: std::ops::Range<i32> = 20_240_300..20_250_000;

/// What a file's header says.
#[derive(Debug, Clone, Copy)]
pub struct Header {
    pub dtype: Dtype,
    pub num_tokens: i32,
}

impl Header {
    /// The header at a file's start; `None` if this is no file of llm.c.
    pub fn of(path: &Path, start: &[u8]) -> Result<Option<Self>> {
        let (numbers, _) = start.as_chunks::<4>();
        let number = |index: usize| numbers.get(index).copied().map_or(0, i32::from_le_bytes);
        let (magic, version, num_tokens) = (number(0), number(1), number(2));
        if !DATES.contains(&magic) || start.len() < HEADER_BYTES {
            return Ok(None);
        }
        let dtype = match (magic, version) {
            GPT2 => Dtype::Uint16,
            LLAMA3 => Dtype::Uint32,
            (magic, version) if magic == GPT2.0 || magic == LLAMA3.0 => {
                let known = if magic == GPT2.0 { GPT2.1 } else { LLAMA3.1 };
                let reason =
                    format!("llm.c's version {version} of it is unknown, expected {known}");
                return Err(refused(path, reason));
            }
            _ => {
                let reason = format!(
                    "is a file of llm.c, but none of tokens: its number is {magic}, expected {} or {}",
                    GPT2.0, LLAMA3.0
                );
                return Err(refused(path, reason));
            }
        };
        if num_tokens < 0 {
            return Err(refused(path, format!("its header says {num_tokens} tokens")));
        }
        Ok(Some(Self { dtype, num_tokens }))
    }

    /// The header as it stands in a file.
    pub fn to_bytes(self) -> Vec<u8> {
        let (magic, version) = if self.dtype == Dtype::Uint16 { GPT2 } else { LLAMA3 };
        let mut bytes = vec![0; HEADER_BYTES];
        for (at, number) in bytes.chunks_exact_mut(4).zip([magic, version, self.num_tokens]) {
            at.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    /// Opens the file of `size` bytes that has this header.
    pub fn open(
        self,
        path: &Path,
        size: u64,
        tokenizer: Option<&TokenizerInfo>,
    ) -> Result<Foreign> {
        let (num_tokens, width) = (self.num_tokens as u64, self.dtype.size());
        let expected = HEADER_BYTES as u64 + num_tokens * width as u64;
        if size != expected {
            let reason = format!(
                "has {size} bytes, expected {expected} for the {num_tokens} tokens of its header"
            );
            return Err(refused(path, reason));
        }
        let by_default = || match self.dtype {
            Dtype::Uint16 => TokenizerInfo::gpt2(),
            Dtype::Uint32 => llama3(),
        };
        let tokenizer = tokenizer.cloned().unwrap_or_else(by_default);
        let header = region::Header::Bytes(self.to_bytes());
        Ok(Foreign {
            format: FORMAT,
            dtype: self.dtype,
            tokens: Region::new(path.to_owned(), header, num_tokens, width),
            num_tokens,
            documents: Documents::Marked(Marked::starts(tokenizer.end_of_text)),
            tokenizer,
        })
    }
}

/// What llm.c's files of uint32 are made with.
fn llama3() -> TokenizerInfo {
    TokenizerInfo {
        name: "llama3".to_owned(),
        fingerprint: String::new(),
        n_vocab: 128_256,
        end_of_text: Some(128_000),
        json_xxh3: 0,
    }
}
