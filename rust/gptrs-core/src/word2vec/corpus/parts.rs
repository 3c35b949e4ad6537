//! Hands out a corpus, part by part, to whichever thread asks next.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use memchr::memchr_iter;
use memchr::memmem::Finder;

use super::{Corpus, From};
use crate::source::{Block, Cutting, Failure, Input, Kind, Layout, Reader, Start, Stat};
use crate::tokenizer::Check;
use crate::{Error, Result};

/// How much of a file is a part: less of a small corpus, so that all threads have some.
const PART_BYTES: Range<u64> = 1 << 13..1 << 18;
const LEAST_PARTS: u64 = 64;
/// How much of a store is a part.
const PART_TOKENS: Range<u64> = 1 << 12..1 << 16;

/// Some of a corpus.
pub struct Part {
    /// How often all was handed out before.
    pub epoch: u64,
    /// How many parts came before in this epoch.
    pub number: u64,
    /// How much of the corpus lies before the part's end: bytes of files, tokens of a store.
    pub done: u64,
    pub(super) input: usize,
    pub(super) content: Content,
    /// Lines of the file before the part, if it is one of lines.
    pub(super) first_line: u64,
}

pub(super) enum Content {
    Block(Block),
    Tokens(Range<u64>),
}

/// The parts of a corpus, `epochs` times.
pub struct Parts<'a> {
    corpus: &'a Corpus,
    epochs: u64,
    place: Mutex<Place>,
}

/// Where the next part starts.
#[derive(Default)]
struct Place {
    epoch: u64,
    number: u64,
    /// Of files.
    input: usize,
    reader: Option<Reader>,
    lines: u64,
    /// Bytes of the files before, or tokens of the store.
    done: u64,
}

impl<'a> Parts<'a> {
    pub fn new(corpus: &'a Corpus, epochs: u64) -> Self {
        Self { corpus, epochs, place: Mutex::default() }
    }

    /// The next part; `None` after the last one of all epochs, and after an error.
    ///
    /// # Errors
    /// `Error::File`: a file cannot be read, or has changed. Those of `check`.
    pub fn next(&self, check: Check<'_>) -> Result<Option<Part>> {
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        while place.epoch < self.epochs {
            match place.next_of_epoch(self.corpus, check) {
                Ok(Some(part)) => return Ok(Some(part)),
                Ok(None) => *place = Place { epoch: place.epoch + 1, ..Place::default() },
                Err(error) => {
                    place.epoch = self.epochs;
                    return Err(error);
                }
            }
        }
        Ok(None)
    }

    /// Hands out nothing more.
    pub fn stop(&self) {
        self.place.lock().unwrap_or_else(PoisonError::into_inner).epoch = self.epochs;
    }
}

impl Place {
    fn next_of_epoch(&mut self, corpus: &Corpus, check: Check<'_>) -> Result<Option<Part>> {
        let (input, first_line) = (self.input, self.lines);
        let (content, done) = match &corpus.from {
            From::Files { inputs, .. } => {
                let Some((Input { kind, path }, stat)) = inputs.get(input) else { return Ok(None) };
                let block = self.next_block(*kind, path, *stat, corpus, check)?;
                let done = self.done + block.file_bytes;
                if block.is_last {
                    (self.input, self.reader, self.lines) = (input + 1, None, 0);
                    self.done += stat.size;
                }
                (Content::Block(block), done)
            }
            From::Store(store) if self.done < store.len() => {
                let start = self.done;
                self.done = store.len().min(start + part_size(store.len(), &PART_TOKENS));
                (Content::Tokens(start..self.done), self.done)
            }
            From::Store(_) => return Ok(None),
        };
        let number = self.number;
        self.number += 1;
        Ok(Some(Part { epoch: self.epoch, number, done, input, content, first_line }))
    }

    fn next_block(
        &mut self,
        kind: Kind,
        path: &str,
        expected: Stat,
        corpus: &Corpus,
        check: Check<'_>,
    ) -> Result<Block> {
        let reader = match &mut self.reader {
            Some(reader) => reader,
            closed => {
                let cutting = match kind {
                    Kind::Jsonl => Cutting::Lines,
                    _ => Cutting::Text(Some(Box::new(Finder::new("\n").into_owned()))),
                };
                let size = part_size(corpus.size(), &PART_BYTES) as usize;
                let start = Start::default();
                closed.insert(Reader::open(path, Some(expected), cutting, size, start, check)?)
            }
        };
        let block = reader.next_block(Vec::new(), check).map_err(|failure| match failure {
            Failure::Other(error) => error,
            Failure::Row { line, reason } => {
                Error::Row { path: path.to_owned(), line: self.lines + line + 1, reason }
            }
        })?;
        if block.layout == Layout::Lines {
            self.lines += memchr_iter(b'\n', &block.bytes).count() as u64;
        }
        Ok(block)
    }
}

/// How large a part of `all` is.
fn part_size(all: u64, sizes: &Range<u64>) -> u64 {
    (all / LEAST_PARTS).clamp(sizes.start, sizes.end)
}
