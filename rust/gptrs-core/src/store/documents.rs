//! Where documents end: as our folders and Megatron's index say it, or by the token between them.

mod ends;
mod marked;

use std::ops::Range;

use super::foreign::megatron;
use super::tokens::Tokens;
use crate::tokenizer::Check;
use crate::{Error, Result};

pub use ends::Ends;
pub use marked::Marked;

/// The documents of a stream, one after the other. A document's range has its end-of-text too.
#[derive(Debug)]
pub enum Documents {
    /// Ends in files beside the tokens.
    Ends(Ends),
    /// A token that stands between documents, and is searched for.
    Marked(Marked),
    /// Megatron's index.
    Indexed(megatron::Index),
}

impl Documents {
    /// How many there are.
    pub fn count(&self, tokens: &Tokens, check: Check<'_>) -> Result<u64> {
        match self {
            Self::Ends(ends) => Ok(ends.count()),
            Self::Marked(marked) => marked.count(tokens, check),
            Self::Indexed(index) => Ok(index.num_documents()),
        }
    }

    /// Where document `index` lies.
    pub fn range(&self, index: u64, tokens: &Tokens, check: Check<'_>) -> Result<Range<u64>> {
        let count = self.count(tokens, check)?;
        if index >= count {
            let reason = format!("document {index} was asked for, and there are {count}");
            return Err(Error::Setting(reason));
        }
        let mut end = |index| match self {
            Self::Ends(ends) => ends.end(index),
            Self::Marked(marked) => marked.end(index, tokens, check),
            Self::Indexed(documents) => documents.end(index),
        };
        Ok(if index == 0 { 0 } else { end(index - 1)? }..end(index)?)
    }

    /// Calls `f` with the ends that lie strictly inside `range`, in order. An empty document's is
    /// there twice.
    pub fn for_each_boundary(
        &self,
        range: Range<u64>,
        tokens: &Tokens,
        f: &mut dyn FnMut(u64),
    ) -> Result<()> {
        tokens.check_range(&range)?;
        match self {
            Self::Ends(ends) => ends.for_each_in(range, f),
            Self::Marked(marked) => marked.for_each_in(range, tokens, f),
            Self::Indexed(index) => index.for_each_in(range, f),
        }
    }

    /// Calls `f` with all ends in order.
    pub fn for_each_end(
        &self,
        tokens: &Tokens,
        check: Check<'_>,
        f: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<()> {
        match self {
            Self::Ends(ends) => ends.for_each(check, f),
            Self::Marked(marked) => marked.for_each(tokens, check, f),
            Self::Indexed(index) => index.for_each(check, f),
        }
    }
}

/// How many ends to give between two calls of a check.
const ENDS_BETWEEN_CHECKS: usize = 1 << 16;

/// Calls `f` with every end, and `check` now and then.
pub fn each_checked(
    ends: impl Iterator<Item = Result<u64>>,
    check: Check<'_>,
    f: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<()> {
    for (index, end) in ends.enumerate() {
        if index % ENDS_BETWEEN_CHECKS == 0 {
            check()?;
        }
        f(end?)?;
    }
    Ok(())
}
