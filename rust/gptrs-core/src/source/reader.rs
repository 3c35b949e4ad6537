//! Cuts an input into blocks, one after the other.

use memchr::memmem::Finder;
use xxhash_rust::xxh3::Xxh3;

use super::bytes::Bytes;
use super::cut::{Chunk, ChunkSearch, last_line_end};
use super::{Block, Failure, Layout, Stat};
use crate::tokenizer::Check;
use crate::{Error, Result};

/// How many bytes more than a block's are read, so that a chunk's end is mostly among them.
const SLACK: usize = 1 << 9;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Where to start reading.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Start {
    /// Bytes to skip, and their hash, if they come from a stream.
    pub offset: u64,
    pub digest: Option<u64>,
    /// A chunk of a large document starts there, but not its first.
    pub in_document: bool,
}

/// How an input is cut into documents.
pub enum Cutting {
    /// It is text, with this between two documents; `None` if it is one document.
    Text(Option<Box<Finder<'static>>>),
    /// It is lines of JSON.
    Lines,
}

/// An open input and what of it has been read.
pub struct Reader {
    path: String,
    bytes: Bytes,
    cutting: Cutting,
    block_bytes: usize,
    /// What was read behind the last block.
    rest: Vec<u8>,
    /// Where `rest` starts.
    offset: u64,
    in_document: bool,
    /// Of a stream: of everything up to `offset`.
    hash: Option<Xxh3>,
}

/// How many bytes a block has, what of them is its text, and whether the input ends there.
struct Cut {
    layout: Layout,
    text: usize,
    used: usize,
    is_last: bool,
}

impl Reader {
    /// Opens an input that should be as `expected`.
    ///
    /// # Errors
    /// `Error::File`: it cannot be read, or has changed. Those of `check`.
    pub fn open(
        path: &str,
        expected: Option<Stat>,
        cutting: Cutting,
        block_bytes: usize,
        start: Start,
        check: Check<'_>,
    ) -> Result<Self> {
        let mut bytes = Bytes::open(path, expected)?;
        let skipped = bytes.skip(start.offset, check)?;
        let hash = bytes.is_stream().then_some(skipped);
        if let (Some(hash), Some(expected)) = (&hash, start.digest)
            && hash.digest() != expected
        {
            let reason = "does not start with the bytes that this build began with".to_owned();
            return Err(Error::File { path: path.to_owned(), reason });
        }
        Ok(Self {
            path: path.to_owned(),
            bytes,
            cutting,
            block_bytes,
            rest: Vec::new(),
            offset: start.offset,
            in_document: start.in_document,
            hash,
        })
    }

    /// The next block, in `buffer`. There is one at least; none follows the one that says so.
    pub fn next_block(
        &mut self,
        mut buffer: Vec<u8>,
        check: Check<'_>,
    ) -> std::result::Result<Block, Failure> {
        buffer.clear();
        buffer.append(&mut self.rest);
        if self.offset == 0 {
            self.drop_byte_order_mark(&mut buffer, check)?;
        }
        let cut = match self.cutting {
            Cutting::Text(_) => self.cut_documents(&mut buffer, check)?,
            Cutting::Lines => self.cut_lines(&mut buffer, check)?,
        };
        self.rest.extend_from_slice(&buffer[cut.used..]);
        if let Some(hash) = &mut self.hash {
            hash.update(&buffer[..cut.used]);
        }
        buffer.truncate(cut.text);
        let start = self.offset;
        self.offset += cut.used as u64;
        Ok(Block {
            bytes: buffer,
            layout: cut.layout,
            start,
            end: self.offset,
            is_last: cut.is_last,
            file_bytes: self.bytes.file_bytes(),
            digest: self.hash.as_ref().map(Xxh3::digest),
        })
    }

    fn drop_byte_order_mark(&mut self, buffer: &mut Vec<u8>, check: Check<'_>) -> Result<()> {
        self.bytes.fill(buffer, BYTE_ORDER_MARK.len(), check)?;
        if buffer.starts_with(BYTE_ORDER_MARK) {
            buffer.drain(..BYTE_ORDER_MARK.len());
            self.offset += BYTE_ORDER_MARK.len() as u64;
            if let Some(hash) = &mut self.hash {
                hash.update(BYTE_ORDER_MARK);
            }
        }
        Ok(())
    }

    fn cut_lines(
        &mut self,
        buffer: &mut Vec<u8>,
        check: Check<'_>,
    ) -> std::result::Result<Cut, Failure> {
        let mut searched = 0;
        loop {
            self.bytes.fill(buffer, searched.max(buffer.len()).max(1) + self.block_bytes, check)?;
            let end = last_line_end(buffer, searched)?;
            let is_last = self.bytes.ended();
            if let Some(used) = if is_last { Some(buffer.len()) } else { end } {
                return Ok(Cut { layout: Layout::Lines, text: used, used, is_last });
            }
            searched = buffer.len();
        }
    }

    fn cut_documents(
        &mut self,
        buffer: &mut Vec<u8>,
        check: Check<'_>,
    ) -> std::result::Result<Cut, Failure> {
        self.bytes.fill(buffer, self.block_bytes + SLACK, check)?;
        if !self.in_document
            && let Some(cut) = self.whole_documents(buffer)
        {
            return Ok(cut);
        }
        self.chunk(buffer, check)
    }

    /// The documents of up to a block's length that `buffer` starts with.
    fn whole_documents(&self, buffer: &[u8]) -> Option<Cut> {
        let (mut ends, mut start) = (Vec::new(), 0);
        if let Cutting::Text(Some(finder)) = &self.cutting {
            let gap = finder.needle().len();
            for end in finder.find_iter(buffer) {
                if end - start > self.block_bytes {
                    break;
                }
                ends.push(end);
                start = end + gap;
            }
        }
        let is_last = self.bytes.ended() && buffer.len() - start <= self.block_bytes;
        if is_last {
            ends.push(buffer.len());
            start = buffer.len();
        }
        let text = *ends.last()?;
        let layout = Layout::Documents { ends, gap: self.gap() };
        Some(Cut { layout, text, used: start, is_last })
    }

    /// The next chunk of a document that is longer than a block.
    fn chunk(
        &mut self,
        buffer: &mut Vec<u8>,
        check: Check<'_>,
    ) -> std::result::Result<Cut, Failure> {
        let is_first = !self.in_document;
        let mut search = ChunkSearch::new(self.block_bytes);
        let mut searched = 0;
        loop {
            let separator = self.find_separator(buffer, searched);
            let end = separator.or(self.bytes.ended().then_some(buffer.len()));
            let found = search.search(buffer, end, self.gap()).map_err(|error| self.named(error));
            let cut = |text, used, ends_document, is_last| {
                let layout = Layout::Chunk { is_first, ends_document };
                Cut { layout, text, used, is_last }
            };
            match found? {
                Chunk::Cut(at) => {
                    self.in_document = true;
                    return Ok(cut(at, at, false, false));
                }
                Chunk::End(at) => {
                    self.in_document = false;
                    let gap = if separator.is_some() { self.gap() } else { 0 };
                    return Ok(cut(at, at + gap, true, separator.is_none()));
                }
                Chunk::Unknown => {}
            }
            searched = (buffer.len() + 1).saturating_sub(self.gap());
            self.bytes.fill(buffer, buffer.len() + self.block_bytes, check)?;
        }
    }

    fn find_separator(&self, buffer: &[u8], from: usize) -> Option<usize> {
        let Cutting::Text(Some(finder)) = &self.cutting else { return None };
        finder.find(buffer.get(from..)?).map(|at| from + at)
    }

    /// How many bytes are between two documents.
    fn gap(&self) -> usize {
        match &self.cutting {
            Cutting::Text(Some(finder)) => finder.needle().len(),
            _ => 0,
        }
    }

    /// An error of the text behind `offset`, with the file's name.
    fn named(&self, error: Error) -> Error {
        let reason = error.moved_by(self.offset as usize).to_string();
        Error::File { path: self.path.clone(), reason }
    }
}
