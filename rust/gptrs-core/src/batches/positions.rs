//! Where documents start in a batch: positions that count from there, and all starts in one list.
//!
//! ```text
//! row 0          a b c │ d e        position_ids  0 1 2 0 1
//! row 1          f g h   i j                      0 1 2 3 4      cu_seqlens  0 3 5 10
//! ```

use std::ops::Range;

use crate::Result;
use crate::windows::ForEachBoundary;

/// The parts of a batch that belong to one document each. Every row starts a part.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Positions {
    /// For each token, how many tokens of its part come before it.
    pub position_ids: Vec<i64>,
    /// Where each part starts among all tokens of the batch, row by row; and where the last one ends.
    pub cu_seqlens: Vec<i32>,
}

impl Positions {
    /// Those of no rows, with room in `position_ids`.
    pub fn new(position_ids: Vec<i64>) -> Self {
        Self { position_ids, cu_seqlens: Vec::new() }
    }

    /// Adds the tokens of `range` as a row; `for_each_boundary` knows the documents' ends in a range.
    pub fn add_row(
        &mut self,
        range: Range<u64>,
        for_each_boundary: &ForEachBoundary<'_>,
    ) -> Result<()> {
        let mut part = range.start;
        for_each_boundary(range.clone(), &mut |end| {
            self.add_part(end - part);
            part = end;
        })?;
        self.add_part(range.end - part);
        Ok(())
    }

    /// Ends the last part.
    pub fn finish(&mut self) {
        self.cu_seqlens.push(self.position_ids.len() as i32);
    }

    fn add_part(&mut self, num_tokens: u64) {
        // Empty documents end where the one before does.
        if num_tokens > 0 {
            self.cu_seqlens.push(self.position_ids.len() as i32);
            self.position_ids.extend(0..num_tokens as i64);
        }
    }
}
