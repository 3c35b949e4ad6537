//! Windows that lie inside one document each: a sampled count of them instead of an index.
//!
//! ```text
//! documents    a a a a a $ b b $ c c c c $     length 3, stride 2
//! window 0     a a a|a                         document b has no window: it is not longer than one
//! window 1         a a a|$
//! window 2                       c c c|c
//! ```
//!
//! Every few hundred documents, the number of windows before them is kept. What lies between is
//! counted anew whenever a window is looked for.

use std::ops::Range;

use super::Windows;
use crate::{Error, Result};

/// One sample a few hundred documents: 16 bytes, beside the 8 that each document's end takes on disk.
const DOCUMENTS_BETWEEN_SAMPLES: u64 = 256;

/// Calls its second argument with the places strictly inside a range at which documents end.
pub type ForEachBoundary<'a> = dyn Fn(Range<u64>, &mut dyn FnMut(u64)) -> Result<()> + 'a;

/// The windows inside the documents of a stream. A document's end-of-text belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DocumentWindows {
    /// Describes one document's windows, with a number of tokens that is replaced.
    windows: Windows,
    /// Ascending; the last one is where all ends.
    samples: Vec<Sample>,
    dropped_tokens: u64,
}

/// Where a document starts, and how many windows lie before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sample {
    token: u64,
    window: u64,
}

/// Counts windows, document by document.
#[derive(Debug)]
pub struct DocumentCounter {
    found: DocumentWindows,
    here: Sample,
    num_documents: u64,
}

impl DocumentWindows {
    /// A counter for documents whose windows, and all tokens together, are like `windows`.
    pub fn builder(windows: Windows) -> DocumentCounter {
        let found = Self { windows, samples: vec![Sample::default()], dropped_tokens: 0 };
        DocumentCounter { found, here: Sample::default(), num_documents: 0 }
    }

    /// How many windows there are.
    pub fn count(&self) -> u64 {
        self.samples.last().map_or(0, |end| end.window)
    }

    /// How many tokens are in no window, neither as input nor as target.
    pub fn dropped_tokens(&self) -> u64 {
        self.dropped_tokens
    }

    /// Where window `index` starts in the stream.
    pub fn start(&self, index: u64, for_each_boundary: &ForEachBoundary<'_>) -> Result<u64> {
        let missing = Error::WindowOutOfRange { index: index as i64, len: self.count() as usize };
        let after = self.samples.partition_point(|sample| sample.window <= index);
        let Some(&[mut here, end]) = self.samples.get(after.wrapping_sub(1)..=after) else {
            return Err(missing);
        };
        let (between, mut found) = (here.token..end.token, None);
        let mut visit = |end| {
            let count = self.in_document(end - here.token).len() as u64;
            if found.is_none() && index < here.window + count {
                found = Some(here.token + (index - here.window) * self.windows.stride as u64);
            }
            here = Sample { token: end, window: here.window + count };
        };
        for_each_boundary(between, &mut visit)?;
        visit(end.token);
        found.ok_or(missing)
    }

    fn in_document(&self, num_tokens: u64) -> Windows {
        Windows { num_tokens: num_tokens as usize, ..self.windows }
    }
}

impl DocumentCounter {
    /// Counts the document that ends at `end`, and starts where the one before ended.
    pub fn add(&mut self, end: u64) {
        let document = self.found.in_document(end - self.here.token);
        self.found.dropped_tokens += document.dropped_tokens() as u64;
        self.here = Sample { token: end, window: self.here.window + document.len() as u64 };
        self.num_documents += 1;
        if self.num_documents.is_multiple_of(DOCUMENTS_BETWEEN_SAMPLES) {
            self.found.samples.push(self.here);
        }
    }

    /// What was counted. Tokens behind the last end are a document too.
    pub fn finish(mut self) -> DocumentWindows {
        self.add(self.found.windows.num_tokens as u64);
        self.found.samples.push(self.here);
        self.found
    }
}
