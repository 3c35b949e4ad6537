//! Rows that the caller hands over, as blocks; and whether they are those of an earlier run.

use std::collections::VecDeque;

use super::encoding::row_hash;
use super::feed::Blocks;
use super::progress::{Position, rows_digest};
use crate::source::{Block, Failure, Layout, chunk_end};
use crate::tokenizer::Check;

/// Rows of one input, from its first or from one at which an earlier run may have stopped.
pub struct Rows {
    block_bytes: usize,
    /// Where the build stopped in this input.
    resume: Position,
    /// The number of the next row.
    next: u64,
    /// The hash of all rows so far, if they are to be compared.
    digest: Option<u64>,
    /// What is to be encoded.
    blocks: VecDeque<Block>,
    pending_bytes: usize,
}

/// Why rows cannot be taken.
pub enum Unfit {
    /// They are not those that the build was begun with.
    Other(String),
    /// One is missing.
    Gap { expected: u64 },
}

impl Rows {
    pub fn new(resume: Position, first: u64, block_bytes: usize) -> Self {
        let digest = (first == 0 && resume.lines > 0).then_some(0);
        let blocks = VecDeque::new();
        let next = first.min(resume.lines);
        Self { block_bytes, resume, next, digest, blocks, pending_bytes: 0 }
    }

    /// Takes rows, the first of which has this number.
    pub fn push<'t>(
        &mut self,
        texts: impl IntoIterator<Item = Option<&'t str>>,
        first: u64,
    ) -> Result<(), Unfit> {
        if first != self.next {
            return Err(Unfit::Gap { expected: self.next });
        }
        for text in texts {
            if self.next >= self.resume.lines {
                self.refuse_others()?;
                let is_cut = self.next == self.resume.lines;
                self.add(text, if is_cut { self.resume.offset as usize } else { 0 })?;
            } else if let Some(digest) = &mut self.digest {
                *digest = rows_digest(*digest, row_hash(text, self.block_bytes));
            }
            self.next += 1;
        }
        Ok(())
    }

    /// No rows follow.
    pub fn end(&mut self) -> Result<(), Unfit> {
        if self.next < self.resume.lines {
            let (found, before) = (self.next, self.resume.lines);
            return Err(Unfit::Other(format!("it has {found} rows, {before} had been read")));
        }
        self.refuse_others()
    }

    /// Compares the rows that an earlier run had with those it has now.
    fn refuse_others(&mut self) -> Result<(), Unfit> {
        match self.digest.take() {
            Some(digest) if self.resume.digest != Some(digest) => {
                let rows = self.resume.lines;
                Err(Unfit::Other(format!("its first {rows} rows are not what they were")))
            }
            _ => Ok(()),
        }
    }

    /// Adds a row but for what was done of it before.
    fn add(&mut self, text: Option<&str>, done: usize) -> Result<(), Unfit> {
        let row = text.unwrap_or_default();
        self.pending_bytes += row.len() + 1;
        if row.len() > self.block_bytes {
            return self.add_large(row, done);
        }
        if done > 0 {
            return Err(Unfit::Other("a row is shorter than it was".to_owned()));
        }
        let has_room = |block: &Block| {
            matches!(block.layout, Layout::Rows { .. })
                && block.bytes.len() + row.len() <= self.block_bytes
        };
        if !self.blocks.back().is_some_and(has_room) {
            let bytes = Vec::with_capacity(self.block_bytes.min(1 << 20));
            self.blocks.push_back(block(bytes, Layout::Rows { ends: Vec::new() }, 0, 0));
        }
        if let Some(Block { bytes, layout: Layout::Rows { ends }, .. }) = self.blocks.back_mut() {
            bytes.extend_from_slice(row.as_bytes());
            ends.push(text.map(|_| bytes.len()));
        }
        Ok(())
    }

    fn add_large(&mut self, row: &str, done: usize) -> Result<(), Unfit> {
        let mut start = done;
        while start < row.len() {
            let Some(rest) = row.get(start..) else {
                return Err(Unfit::Other("a row is not what it was".to_owned()));
            };
            let end = start + chunk_end(rest, self.block_bytes);
            let ends_document = end == row.len();
            let layout = Layout::Chunk { is_first: start == 0, ends_document };
            let next = if ends_document { 0 } else { end as u64 };
            let bytes = row.as_bytes()[start..end].to_vec();
            self.blocks.push_back(block(bytes, layout, start as u64, next));
            start = end;
        }
        Ok(())
    }

    /// How much waits to be encoded.
    pub fn pending_bytes(&self) -> usize {
        self.pending_bytes
    }

    /// What waits to be encoded.
    pub fn take(&mut self) -> impl Blocks + 'static {
        self.pending_bytes = 0;
        Pending(std::mem::take(&mut self.blocks))
    }
}

fn block(bytes: Vec<u8>, layout: Layout, start: u64, end: u64) -> Block {
    Block { bytes, layout, start, end, is_last: false, file_bytes: 0, digest: None }
}

struct Pending(VecDeque<Block>);

impl Blocks for Pending {
    fn next_block(
        &mut self,
        _buffer: Vec<u8>,
        _check: Check<'_>,
    ) -> Result<Option<Block>, Failure> {
        Ok(self.0.pop_front())
    }
}
