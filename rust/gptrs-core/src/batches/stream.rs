//! What batches read: a store, or anything else that has tokens and documents.

use std::fmt::Debug;
use std::ops::Range;

use crate::Result;
use crate::store::{Ids, TokenStore};
use crate::tokenizer::Check;

/// A stream of tokens that threads may share. Ranges lie within 0..`len`.
pub trait TokenStream: Debug + Send + Sync {
    /// The number of tokens.
    fn len(&self) -> u64;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of ids there are.
    fn n_vocab(&self) -> usize;

    /// The tokens in `range`, part by part, as they lie in memory. Ids are not checked.
    fn for_each(&self, range: Range<u64>, f: &mut dyn FnMut(Ids<'_>)) -> Result<()>;

    /// Copies tokens from `start` on into `out`. An id outside the vocabulary is an error.
    fn copy_to(&self, start: u64, out: &mut [i64]) -> Result<()>;

    /// Looks for the documents, where that takes a search.
    fn find_documents(&self, check: Check<'_>) -> Result<()>;

    /// Calls `f` with the places strictly inside `range` at which documents end, in order.
    fn for_each_boundary(&self, range: Range<u64>, f: &mut dyn FnMut(u64)) -> Result<()>;

    /// Calls `f` with every document's end, in order.
    fn for_each_end(&self, check: Check<'_>, f: &mut dyn FnMut(u64)) -> Result<()>;
}

impl TokenStream for TokenStore {
    fn len(&self) -> u64 {
        self.len()
    }

    fn n_vocab(&self) -> usize {
        self.manifest().tokenizer.n_vocab
    }

    fn for_each(&self, range: Range<u64>, f: &mut dyn FnMut(Ids<'_>)) -> Result<()> {
        self.for_each(range, f)
    }

    fn copy_to(&self, start: u64, out: &mut [i64]) -> Result<()> {
        self.copy_to(start, out)
    }

    fn find_documents(&self, check: Check<'_>) -> Result<()> {
        self.num_documents(check).map(drop)
    }

    fn for_each_boundary(&self, range: Range<u64>, f: &mut dyn FnMut(u64)) -> Result<()> {
        self.for_each_boundary(range, f)
    }

    fn for_each_end(&self, check: Check<'_>, f: &mut dyn FnMut(u64)) -> Result<()> {
        self.for_each_end(check, f)
    }
}
