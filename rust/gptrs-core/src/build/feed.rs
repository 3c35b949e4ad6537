//! Blocks for the threads that encode: each input's in order, from several inputs at a time.

use std::ops::Range;

use memchr::memmem::Finder;

use super::encoding::Rules;
use super::plan::PlannedInput;
use crate::Result;
use crate::source::{Block, Cutting, Failure, Kind, Packing, Reader, Start};
use crate::tokenizer::Check;

/// What hands out an input's blocks, one after the other.
pub trait Blocks: Send {
    /// The next block, in `buffer` if that is of use; `None` if there is none for now.
    fn next_block(
        &mut self,
        buffer: Vec<u8>,
        check: Check<'_>,
    ) -> std::result::Result<Option<Block>, Failure>;
}

impl Blocks for Reader {
    fn next_block(
        &mut self,
        buffer: Vec<u8>,
        check: Check<'_>,
    ) -> std::result::Result<Option<Block>, Failure> {
        Reader::next_block(self, buffer, check).map(Some)
    }
}

/// Inputs that are files.
pub struct Files<'a> {
    pub inputs: &'a [PlannedInput],
    /// Those to be read.
    pub range: Range<usize>,
    pub rules: &'a Rules,
    pub split_on: Option<&'a str>,
    /// Where in the first of them to start.
    pub start: Start,
}

impl Files<'_> {
    /// Opens one of the inputs.
    pub fn open(&self, input: usize, check: Check<'_>) -> Result<Box<dyn Blocks>> {
        let PlannedInput { kind, path, stat } = &self.inputs[input];
        let cutting = match kind {
            Kind::Jsonl => Cutting::Lines,
            _ => Cutting::Text(self.split_on.map(|text| Box::new(Finder::new(text).into_owned()))),
        };
        let start = if input == self.range.start { self.start } else { Start::default() };
        let reader = Reader::open(path, *stat, cutting, self.rules.block_bytes, start, check)?;
        Ok(Box::new(reader))
    }

    /// Whether others may read inputs behind this one while it is read: it is no more than one
    /// block, or it takes a while to decompress. Else it is read faster than it is encoded, and
    /// what comes from behind would only wait in memory.
    pub fn may_pass(&self, input: usize) -> bool {
        let PlannedInput { path, stat, .. } = &self.inputs[input];
        let is_small = |size: u64| size <= self.rules.block_bytes as u64;
        stat.is_some_and(|stat| is_small(stat.size)) || Packing::of(path) != Packing::None
    }
}
