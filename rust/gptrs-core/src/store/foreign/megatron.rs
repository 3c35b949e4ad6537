//! Megatron's `.bin` of bare ids and `.idx`, which says where sequences and documents are.
//!
//! ```text
//!   .idx   "MMIDIDX\0\0"   u64 1   u8 dtype   u64 S   u64 D
//!          i32[S] lengths   i64[S] byte offsets   i64[D] documents: 0, …, S   (i8[S] modes)
//! ```
//!
//! Document d is the sequences `documents[d]..documents[d + 1]`.

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::{Foreign, sibling, size_of};
use crate::Result;
use crate::store::documents::{Documents, each_checked};
use crate::store::files::{failed, refused};
use crate::store::manifest::{Dtype, TokenizerInfo};
use crate::store::region::{Header, Region};
use crate::tokenizer::Check;

/// What `Manifest::format` says of such a pair.
pub const FORMAT: &str = "megatron";

/// What an index begins with.
pub const MAGIC: &[u8; 9] = b"MMIDIDX\0\0";

/// The one version there is.
pub const VERSION: u64 = 1;

/// How its dtypes are called.
pub const DTYPE_INT32: u8 = 4;
pub const DTYPE_UINT16: u8 = 8;

/// Bytes before the lengths.
pub const HEADER_BYTES: usize = 34;

/// An index and its tokens.
#[derive(Debug)]
pub struct Pair {
    bin: PathBuf,
    idx: PathBuf,
}

impl Pair {
    /// The pair that `path` is one of, or the common beginning of; `None` if it is neither.
    pub fn of(path: &Path) -> Result<Option<Self>> {
        let is_prefix = !path.exists();
        let (bin, idx) = (sibling(path, "bin", is_prefix), sibling(path, "idx", is_prefix));
        let is_index = path == idx;
        if path != bin && !is_index && !(is_prefix && bin.exists()) || !is_index && !idx.exists() {
            return Ok(None);
        }
        let mut start = vec![];
        let file = File::open(&idx).map_err(|error| failed(&idx, "read", &error))?;
        let read = file.take(MAGIC.len() as u64).read_to_end(&mut start);
        read.map_err(|error| failed(&idx, "read", &error))?;
        match (start == MAGIC, is_index || is_prefix) {
            (true, _) => Ok(Some(Self { bin, idx })),
            (false, true) => {
                Err(refused(&idx, "is no index of Megatron: it does not begin so".to_owned()))
            }
            (false, false) => Ok(None),
        }
    }

    pub fn open(self, tokenizer: Option<&TokenizerInfo>) -> Result<Foreign> {
        let (index, dtype) = Index::open(self.idx)?;
        let (found, expected) =
            (size_of(&self.bin)?, index.num_tokens.saturating_mul(dtype.size() as u64));
        if found != expected {
            let tokens = index.num_tokens;
            let reason = format!(
                "has {found} bytes, expected {expected} for the {tokens} tokens of its index"
            );
            return Err(refused(&self.bin, reason));
        }
        Ok(Foreign {
            format: FORMAT,
            dtype,
            tokens: Region::new(self.bin, Header::None, index.num_tokens, dtype.size()),
            num_tokens: index.num_tokens,
            documents: Documents::Indexed(index),
            tokenizer: tokenizer.cloned().unwrap_or_else(TokenizerInfo::gpt2),
        })
    }
}

/// An `.idx` in memory.
#[derive(Debug)]
pub struct Index {
    file: Region,
    num_sequences: u64,
    /// How many numbers say where documents are: one more than there are documents.
    num_bounds: u64,
    num_tokens: u64,
    /// Bytes an id.
    width: u64,
}

impl Index {
    /// Checks all but the single sequences and documents.
    fn open(path: PathBuf) -> Result<(Self, Dtype)> {
        let size = size_of(&path)?;
        let file = Region::new(path, Header::None, size, 1);
        let bytes = file.bytes()?;
        let wrong = |reason: String| Err(refused(file.path(), reason));
        if bytes.len() < HEADER_BYTES {
            return wrong(format!("has {size} bytes, and an index begins with {HEADER_BYTES}"));
        }
        let (version, num_sequences, num_bounds) =
            (u64_at(bytes, 9), u64_at(bytes, 18), u64_at(bytes, 26));
        if version != VERSION {
            return wrong(format!("its version is {version}, expected {VERSION}"));
        }
        let dtype = match bytes[17] {
            DTYPE_UINT16 => Dtype::Uint16,
            DTYPE_INT32 => Dtype::Uint32, // What is negative is no id either way.
            code => {
                return wrong(format!(
                    "its dtype has the code {code}, expected 8, uint16, or 4, int32"
                ));
            }
        };
        let needed = |mode: u128| {
            let (sequences, bounds) = (u128::from(num_sequences), u128::from(num_bounds));
            HEADER_BYTES as u128 + sequences * (12 + mode) + bounds * 8
        };
        if u128::from(size) != needed(0) && u128::from(size) != needed(1) {
            return wrong(format!(
                "has {size} bytes, expected {} for {num_sequences} sequences and {num_bounds} bounds",
                needed(0)
            ));
        }
        let width = dtype.size() as u64;
        let mut index = Self { file, num_sequences, num_bounds, num_tokens: 0, width };
        index.num_tokens = match num_sequences.checked_sub(1) {
            Some(last) => index.start(last)?.saturating_add(index.length(last)?),
            None => 0,
        };
        let bounds = num_bounds.checked_sub(1).map(|last| (index.bound(0), index.bound(last)));
        if bounds != Some((0, num_sequences)) {
            let reason =
                format!("its documents do not run from 0 to its {num_sequences} sequences");
            return Err(refused(index.file.path(), reason));
        }
        Ok((index, dtype))
    }

    pub fn file(&self) -> &Region {
        &self.file
    }

    pub fn num_documents(&self) -> u64 {
        self.num_bounds - 1
    }

    /// Where document `index` ends; there is such a document.
    pub fn end(&self, index: u64) -> Result<u64> {
        let sequence = self.bound(index + 1);
        match sequence.cmp(&self.num_sequences) {
            std::cmp::Ordering::Less => self.start(sequence),
            std::cmp::Ordering::Equal => Ok(self.num_tokens),
            std::cmp::Ordering::Greater => Err(self.damaged(&format!(
                "document {index} ends with sequence {sequence}, and there are {}",
                self.num_sequences
            ))),
        }
    }

    pub fn for_each_in(&self, range: Range<u64>, f: &mut dyn FnMut(u64)) -> Result<()> {
        let (mut low, mut high) = (0, self.num_documents());
        while low < high {
            let middle = low + (high - low) / 2;
            if self.end(middle)? <= range.start { low = middle + 1 } else { high = middle }
        }
        for document in low..self.num_documents() {
            let end = self.end(document)?;
            if end >= range.end {
                break;
            }
            f(end);
        }
        Ok(())
    }

    pub fn for_each(&self, check: Check<'_>, f: &mut dyn FnMut(u64) -> Result<()>) -> Result<()> {
        each_checked((0..self.num_documents()).map(|index| self.end(index)), check, f)
    }

    /// Checks every sequence and every document: each starts where the one before it ends.
    pub fn verify(&self, check: Check<'_>) -> Result<()> {
        let mut expected = 0;
        let mut starts = (0..self.num_sequences).map(|sequence| {
            let start = self.start(sequence)?;
            if start != expected {
                return Err(self.damaged(&format!(
                    "sequence {sequence} starts at token {start}, expected {expected}: sequences with \
                     gaps or in another order cannot be read in place"
                )));
            }
            expected = start + self.length(sequence)?;
            Ok(start)
        });
        each_checked(starts.by_ref(), check, &mut |_| Ok(()))?;
        drop(starts);
        let mut before = 0;
        let bounds = (1..self.num_bounds).map(|index| {
            let bound = self.bound(index);
            if bound < before || bound > self.num_sequences {
                return Err(self.damaged(&format!(
                    "document {} ends with sequence {bound}, after {before}",
                    index - 1
                )));
            }
            before = bound;
            Ok(bound)
        });
        each_checked(bounds, check, &mut |_| Ok(()))
    }

    /// How many tokens a sequence has.
    fn length(&self, sequence: u64) -> Result<u64> {
        let at = HEADER_BYTES + 4 * sequence as usize;
        let bytes = self.file.bytes()?;
        let length = bytes[at..].first_chunk().map_or(-1, |bytes| i32::from_le_bytes(*bytes));
        u64::try_from(length)
            .map_err(|_| self.damaged(&format!("sequence {sequence} has {length} tokens")))
    }

    /// The token that a sequence starts with.
    fn start(&self, sequence: u64) -> Result<u64> {
        let at = HEADER_BYTES as u64 + 4 * self.num_sequences + 8 * sequence;
        let offset = u64_at(self.file.bytes()?, at as usize);
        if !offset.is_multiple_of(self.width)
            || self.num_tokens > 0 && offset / self.width > self.num_tokens
        {
            let reason =
                format!("sequence {sequence} starts at byte {offset}, where no token does");
            return Err(self.damaged(&reason));
        }
        Ok(offset / self.width)
    }

    /// The sequence that document `index` starts with.
    fn bound(&self, index: u64) -> u64 {
        let at = HEADER_BYTES as u64 + 12 * self.num_sequences + 8 * index;
        self.file.bytes().map_or(u64::MAX, |bytes| u64_at(bytes, at as usize))
    }

    fn damaged(&self, reason: &str) -> crate::Error {
        refused(self.file.path(), reason.to_owned())
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(u64::MAX, |bytes| u64::from_le_bytes(*bytes))
}
