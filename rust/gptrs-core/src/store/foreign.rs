//! Other programs' files of tokens, read where they lie. Which program's is told by their content,
//! and where they have no header, by their name.
//!
//! | program | files | ids | documents |
//! |---|---|---|---|
//! | nanoGPT | `NAME.bin` | uint16, no header | each ends with end-of-text |
//! | llm.c | `NAME.bin` | 1,024 bytes, then uint16 or uint32 | each starts with end-of-text |
//! | Megatron | `NAME.bin`, `NAME.idx` | uint16 or int32, no header | in the index |

pub mod llmc;
pub mod megatron;
pub mod nanogpt;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::documents::Documents;
use super::files::{failed, refused};
use super::manifest::{Dtype, TokenizerInfo};
use super::region::Region;
use crate::Result;

/// A file of another program, or a pair of them.
#[derive(Debug)]
pub struct Foreign {
    /// The program's name.
    pub format: &'static str,
    pub dtype: Dtype,
    pub tokens: Region,
    pub num_tokens: u64,
    pub documents: Documents,
    /// What made the ids.
    pub tokenizer: TokenizerInfo,
}

/// Opens `path`; `tokenizer` is what made the ids, by default what the program commonly uses.
pub fn open(path: &Path, tokenizer: Option<&TokenizerInfo>) -> Result<Foreign> {
    if let Some(pair) = megatron::Pair::of(path)? {
        return pair.open(tokenizer);
    }
    let (mut start, size) = (vec![], size_of(path)?);
    let file = File::open(path).map_err(|error| failed(path, "read", &error))?;
    file.take(START_BYTES).read_to_end(&mut start).map_err(|error| failed(path, "read", &error))?;
    if let Some(header) = llmc::Header::of(path, &start)? {
        return header.open(path, size, tokenizer);
    }
    if path.extension().is_some_and(|extension| extension == "bin") {
        return nanogpt::open(path, size, &start, tokenizer);
    }
    Err(refused(
        path,
        "is no file of tokens: expected a folder with a manifest.json, a .bin of nanoGPT or llm.c, \
         or Megatron's .bin and .idx"
            .to_owned(),
    ))
}

/// How much of a file's start is looked at.
const START_BYTES: u64 = 4096;

fn size_of(path: &Path) -> Result<u64> {
    let found = std::fs::metadata(path).and_then(|metadata| {
        if metadata.is_dir() { Err(io::ErrorKind::IsADirectory.into()) } else { Ok(metadata.len()) }
    });
    found.map_err(|error| failed(path, "read", &error))
}

/// `path` with another extension; `a.b` and `bin` make `a.b.bin` where `is_prefix`.
fn sibling(path: &Path, extension: &str, is_prefix: bool) -> PathBuf {
    if !is_prefix {
        return path.with_extension(extension);
    }
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(extension);
    name.into()
}
