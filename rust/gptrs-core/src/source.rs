//! Inputs to blocks: files of text or of rows, compressed or not, read piece by piece.
//!
//! ```text
//!   file ─► bytes ────────► block, about 1 MiB ─► a thread that encodes it
//!           .gz .zst "-"     many whole documents,
//!                            or a chunk of a large one
//! ```
//!
//! A document that is longer than a block is cut into chunks: from a chunk's start go a block's
//! length on, then to the first place where text may be cut (`tokenizer::cuts`). So the chunks
//! depend on the document alone, not on how it was read. What is in a block, lines of JSON too, is
//! looked into by the thread that encodes it: reading stays fast, for one thread reads a file.

mod bytes;
mod cut;
mod json;
mod reader;
mod stream;

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use crate::tokenizer::unreadable;
use crate::{Error, Result};

pub(crate) use cut::chunk_end;
pub(crate) use json::text_of_line;
pub(crate) use reader::{Cutting, Reader, Start};

/// Standard input's name among the inputs.
pub const STANDARD_INPUT: &str = "-";

/// A line of JSON may have this many bytes.
const LONGEST_LINE: usize = 1 << 26;

/// What is in an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Text: one document, or many with something between them.
    Text,
    /// JSON Lines: a document a line.
    Jsonl,
    /// Rows that the caller hands over.
    Rows,
}

/// A file, or rows that the caller has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// What is in it.
    pub kind: Kind,
    /// The file; its extension says how it is compressed. Of rows: their name in messages.
    pub path: String,
}

/// What a file was when somebody looked: enough to notice that it has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stat {
    pub size: u64,
    pub mtime_ns: u64,
}

impl Stat {
    /// `None` for what can be read but is no regular file: pipes, standard input.
    ///
    /// # Errors
    /// `Error::File`: there is no such file, or it is a folder.
    pub fn of(path: &str) -> Result<Option<Self>> {
        if path == STANDARD_INPUT {
            return Ok(None);
        }
        let refused = |error| unreadable(path.as_ref(), &error);
        let metadata = fs::metadata(path).map_err(refused)?;
        if metadata.is_dir() {
            return Err(refused(ErrorKind::IsADirectory.into()));
        }
        Ok(metadata.is_file().then(|| Self::from(&metadata)))
    }
}

impl From<&fs::Metadata> for Stat {
    fn from(metadata: &fs::Metadata) -> Self {
        let modified = metadata.modified().ok();
        let since = modified.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        Self { size: metadata.len(), mtime_ns: since.map_or(0, |since| since.as_nanos() as u64) }
    }
}

/// Says what changed about a file between two looks.
pub(crate) fn change(then: Option<Stat>, now: Option<Stat>) -> String {
    let size = |stat: Option<Stat>| {
        stat.map_or("was no regular file".to_owned(), |stat| format!("{} bytes", stat.size))
    };
    match (then, now) {
        (Some(then), Some(now)) if then.size == now.size => {
            format!("it still has {} bytes, but was modified", now.size)
        }
        (Some(_), None) => "it is gone".to_owned(),
        _ => format!("{} then, {} now", size(then), size(now)),
    }
}

/// How a file's bytes are packed, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    None,
    Gzip,
    Zstd,
}

impl Packing {
    pub fn of(path: &str) -> Self {
        match Path::new(path).extension().and_then(|extension| extension.to_str()) {
            Some(name) if name.eq_ignore_ascii_case("gz") => Self::Gzip,
            Some(name) if name.eq_ignore_ascii_case("zst") => Self::Zstd,
            _ => Self::None,
        }
    }
}

/// Some of an input's bytes, to be encoded by whoever takes it.
#[derive(Debug, PartialEq)]
pub(crate) struct Block {
    pub bytes: Vec<u8>,
    pub layout: Layout,
    /// Where in the input `bytes` starts, and where the next block does. Of text that is
    /// compressed: as if it were not. Of rows: within the row that is cut, if one is.
    pub start: u64,
    pub end: u64,
    /// Nothing of the input is left behind this.
    pub is_last: bool,
    /// How much of the file has been read, as it lies on the disk.
    pub file_bytes: u64,
    /// XXH3-64 of everything up to `end`, where the bytes cannot be read a second time.
    pub digest: Option<u64>,
}

impl Block {
    /// What it takes in memory until it is encoded: itself, its ids, what is decoded of it.
    pub fn cost(&self) -> usize {
        4 * self.bytes.capacity()
    }
}

/// What the bytes of a block are.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Layout {
    /// Documents that end at `ends`, with `gap` bytes between each two.
    Documents { ends: Vec<usize>, gap: usize },
    /// Lines of JSON.
    Lines,
    /// Rows that end at `ends`; `None` for one that is no text.
    Rows { ends: Vec<Option<usize>> },
    /// A chunk of a document that is longer than a block.
    Chunk { is_first: bool, ends_document: bool },
}

/// Why a block cannot be read or encoded.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Failure {
    /// One of its lines or rows, counted from 0, is no document.
    Row { line: u64, reason: String },
    /// Anything else.
    Other(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}
