//! Documents that a token separates: nanoGPT writes it after each, llm.c before each.
//!
//! ```text
//!   nanoGPT   a b | c d e | f |        `|` is the token; its documents: "a b|", "c d e|", "f|"
//!   llm.c   | a b | c d e | f                                          "|a b", "|c d e", "|f"
//! ```
//!
//! What a file begins or ends with, cut off from the rest of a document, counts as a document too.

use std::ops::Range;
use std::sync::OnceLock;

use crate::Result;
use crate::store::tokens::{Ids, Tokens};
use crate::tokenizer::Check;

/// The token, and what was found out about its places.
#[derive(Debug)]
pub struct Marked {
    /// None: all is one document.
    token: Option<u32>,
    /// How far behind the token's place the border between documents is: 1 where the token ends one.
    shift: u64,
    /// How many borders come before each block of `SPAN` tokens; and last, how many there are.
    before: OnceLock<Vec<u64>>,
}

/// Tokens a block: 8 bytes are kept for each block.
const SPAN: u64 = 1 << 15;

impl Marked {
    /// A token that ends each document.
    pub fn ends(token: Option<u32>) -> Self {
        Self { token, shift: 1, before: OnceLock::new() }
    }

    /// A token that starts each document.
    pub fn starts(token: Option<u32>) -> Self {
        Self { token, shift: 0, before: OnceLock::new() }
    }

    /// Whether the token is the first of a document, not the last.
    pub fn is_first(&self) -> bool {
        self.shift == 0
    }

    pub fn count(&self, tokens: &Tokens, check: Check<'_>) -> Result<u64> {
        let borders = self.before(tokens, check)?.last().copied().unwrap_or_default();
        Ok(if tokens.len() == 0 { 0 } else { borders + 1 })
    }

    /// Where document `index` ends; there is such a document.
    pub fn end(&self, index: u64, tokens: &Tokens, check: Check<'_>) -> Result<u64> {
        let before = self.before(tokens, check)?;
        let block = before.partition_point(|&count| count <= index) - 1;
        if block + 1 == before.len() {
            return Ok(tokens.len()); // The last document's end is no border.
        }
        let searched = self.searched(tokens);
        let start = searched.start + block as u64 * SPAN;
        let (mut left, mut found) = (index - before[block], tokens.len());
        self.for_each_mark(start..searched.end.min(start + SPAN), tokens, &mut |place| {
            if left == 0 {
                found = found.min(place + self.shift);
            }
            left = left.saturating_sub(1);
        })?;
        Ok(found)
    }

    pub fn for_each_in(
        &self,
        range: Range<u64>,
        tokens: &Tokens,
        f: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let places =
            (range.start + 1).saturating_sub(self.shift)..range.end.saturating_sub(self.shift);
        self.for_each_mark(places, tokens, &mut |place| f(place + self.shift))
    }

    pub fn for_each(
        &self,
        tokens: &Tokens,
        check: Check<'_>,
        f: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<()> {
        let searched = self.searched(tokens);
        let mut ends = Vec::new();
        for start in searched.clone().step_by(SPAN as usize) {
            check()?;
            ends.clear();
            let span = start..searched.end.min(start + SPAN);
            self.for_each_mark(span, tokens, &mut |place| ends.push(place + self.shift))?;
            ends.iter().try_for_each(|&end| f(end))?;
        }
        if tokens.len() > 0 { f(tokens.len()) } else { Ok(()) }
    }

    /// Where a token may stand that has a document before it and one after it.
    fn searched(&self, tokens: &Tokens) -> Range<u64> {
        (1 - self.shift)..(tokens.len().saturating_sub(self.shift)).max(1 - self.shift)
    }

    /// Counts the borders, the first time.
    fn before(&self, tokens: &Tokens, check: Check<'_>) -> Result<&[u64]> {
        if let Some(before) = self.before.get() {
            return Ok(before);
        }
        let (searched, mut before, mut count) = (self.searched(tokens), vec![0], 0);
        for start in searched.clone().step_by(SPAN as usize) {
            check()?;
            if let Some(token) = self.token {
                tokens.for_each(start..searched.end.min(start + SPAN), |_, ids| {
                    count += count_of(token, ids);
                    Ok(())
                })?;
            }
            before.push(count);
        }
        Ok(self.before.get_or_init(|| before))
    }

    /// Calls `f` with the places in `range` at which the token stands.
    fn for_each_mark(
        &self,
        range: Range<u64>,
        tokens: &Tokens,
        f: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let (Some(token), false) = (self.token, range.is_empty()) else { return Ok(()) };
        let mut start = range.start;
        tokens.for_each(range, |_, ids| {
            let mut at = |index: usize| f(start + index as u64);
            match (ids, u16::try_from(token)) {
                (Ids::U16(ids), Ok(token)) => find_all(token, ids, &mut at),
                (Ids::U16(_), Err(_)) => {}
                (Ids::U32(ids), _) => find_all(token, ids, &mut at),
            }
            start += ids.len() as u64;
            Ok(())
        })
    }
}

/// Calls `f` with every index at which `token` is.
fn find_all<T: PartialEq + Copy>(token: T, ids: &[T], f: &mut dyn FnMut(usize)) {
    /// Few portions have the token at all, which vector instructions tell.
    const PORTION: usize = 64;
    for (portion, ids) in ids.chunks(PORTION).enumerate() {
        if ids.contains(&token) {
            let places = ids.iter().enumerate().filter(|&(_, &id)| id == token);
            places.for_each(|(index, _)| f(portion * PORTION + index));
        }
    }
}

/// How often `token` is among `ids`.
fn count_of(token: u32, ids: Ids<'_>) -> u64 {
    match ids {
        Ids::U16(ids) => u16::try_from(token).map_or(0, |token| count_equal(token, ids)),
        Ids::U32(ids) => count_equal(token, ids),
    }
}

fn count_equal<T: PartialEq + Copy>(token: T, ids: &[T]) -> u64 {
    // Short sums stay in vectors of 16 bits.
    let short = |ids: &[T]| ids.iter().map(|&id| u16::from(id == token)).sum::<u16>();
    ids.chunks(1 << 15).map(|ids| u64::from(short(ids))).sum()
}
