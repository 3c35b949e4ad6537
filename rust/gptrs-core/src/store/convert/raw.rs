//! nanoGPT's and llm.c's `.bin`: ids in a row, with an end-of-text between documents.

use std::path::Path;

use super::Sink;
use super::part::{Part, refuse_existing};
use crate::store::files::refused;
use crate::store::foreign::llmc::{HEADER_BYTES, Header};
use crate::store::manifest::Dtype;
use crate::store::tokens::Ids;
use crate::{Error, Result};

/// Documents in a row. Where one has no end-of-text behind it and another follows, it gets one.
struct Row {
    part: Part,
    dtype: Dtype,
    mark: Option<u32>,
    last: Option<u32>,
    /// Whether the next token is a document's first, and the one before it no end-of-text.
    lacks_mark: bool,
    num_tokens: u64,
}

impl Row {
    fn new(path: &Path, dtype: Dtype, mark: Option<u32>) -> Result<Self> {
        if path.extension().is_none_or(|extension| extension != "bin") {
            let path = path.display();
            return Err(Error::Setting(format!("{path}: the file's name has to end in .bin")));
        }
        refuse_existing(path)?;
        let part = Part::new(path)?;
        Ok(Self { part, dtype, mark, last: None, lacks_mark: false, num_tokens: 0 })
    }

    fn append(&mut self, ids: Ids<'_>) -> Result<()> {
        if let (true, Some(mark)) = (std::mem::take(&mut self.lacks_mark), self.mark) {
            self.write(Ids::U32(&[mark]))?;
        }
        self.last = ids.iter().last().or(self.last);
        self.write(ids)
    }

    fn write(&mut self, ids: Ids<'_>) -> Result<()> {
        self.num_tokens += ids.len() as u64;
        self.part.write_ids(ids, self.dtype)
    }

    fn end_document(&mut self) {
        self.lacks_mark = self.last != self.mark;
    }
}

/// nanoGPT's.
pub struct NanoGpt(Row);

impl NanoGpt {
    pub fn new(path: &Path, mark: Option<u32>) -> Result<Self> {
        Ok(Self(Row::new(path, Dtype::Uint16, mark)?))
    }
}

impl Sink for NanoGpt {
    fn append(&mut self, ids: Ids<'_>) -> Result<()> {
        self.0.append(ids)
    }

    fn end_document(&mut self) -> Result<()> {
        self.0.end_document();
        Ok(())
    }

    fn finish(self: Box<Self>, _num_empty: u64) -> Result<()> {
        self.0.part.finish()
    }
}

/// llm.c's, whose header has the number of tokens in 32 bits.
pub struct LlmC {
    row: Row,
    /// Whether the last end-of-text is the first instead.
    rotated: bool,
}

impl LlmC {
    pub fn new(path: &Path, dtype: Dtype, mark: Option<u32>, rotated: bool) -> Result<Self> {
        let mut row = Row::new(path, dtype, mark)?;
        row.part.write(&[0; HEADER_BYTES])?;
        if let (true, Some(mark)) = (rotated, mark) {
            row.write(Ids::U32(&[mark]))?;
        }
        Ok(Self { row, rotated })
    }
}

impl Sink for LlmC {
    fn append(&mut self, ids: Ids<'_>) -> Result<()> {
        self.row.append(ids)
    }

    fn end_document(&mut self) -> Result<()> {
        self.row.end_document();
        Ok(())
    }

    fn finish(mut self: Box<Self>, _num_empty: u64) -> Result<()> {
        let row = &mut self.row;
        if self.rotated {
            row.num_tokens -= 1;
            let ids_bytes = row.num_tokens * row.dtype.size() as u64;
            row.part.truncate(HEADER_BYTES as u64 + ids_bytes)?;
        }
        let num_tokens = i32::try_from(row.num_tokens).map_err(|_| {
            let reason = format!("{} tokens are too many: llm.c counts in 31 bits", row.num_tokens);
            refused(row.part.path(), reason)
        })?;
        row.part.write_at(0, &Header { dtype: row.dtype, num_tokens }.to_bytes())?;
        self.row.part.finish()
    }
}
