//! Pieces of any length: cut where no token has both bytes, then merged part by part.
//!
//! ```text
//!   "\u{1f600}中"   f0 9f 98 80│e4 b8 ad      no token has 80 e4, so no merge ever crosses
//! ```
//!
//! In English there are few such places; in most other scripts they are as close as characters.

use super::super::simd::{Found, dispatch};
use super::super::vocab::Vocab;
use super::super::{BYTES_BETWEEN_CHECKS, Check};
use super::long::LongMerger;
use super::{MergeShort, MergeTogether, SHORT, TINY, Tiny};
use crate::Result;

/// How many tiny parts are merged together.
const MOST: usize = 8;

/// Merges pieces of any length, with what it needs for that.
#[derive(Debug)]
pub struct Merger {
    tiny: [Tiny; MOST],
    num_tiny: usize,
    /// Buffers, when they were needed.
    long: Option<Box<LongMerger>>,
}

impl Default for Merger {
    fn default() -> Self {
        Self { tiny: [Tiny::EMPTY; MOST], num_tiny: 0, long: None }
    }
}

impl Merger {
    /// Hands the tokens of a piece to `sink`, in portions. Calls `check` now and then; its error
    /// ends the work.
    pub fn merge(
        &mut self,
        vocab: Vocab<'_>,
        isa: Found,
        piece: &[u8],
        sink: &mut dyn FnMut(&[u16]),
        check: Check<'_>,
    ) -> Result<()> {
        self.num_tiny = 0;
        let (mut rest, mut unchecked) = (piece, 0);
        while !rest.is_empty() {
            let (part, others) = rest.split_at(part_len(vocab, rest));
            rest = others;
            if part.len() <= TINY {
                self.tiny[self.num_tiny].begin(vocab, part);
                self.num_tiny += 1;
                if self.num_tiny == MOST {
                    self.merge_tiny(vocab, isa, sink);
                }
            } else {
                self.merge_tiny(vocab, isa, sink);
                if part.len() <= SHORT {
                    let mut ids = [0; SHORT];
                    let len = dispatch(isa, MergeShort { vocab, piece: part, ids: &mut ids });
                    sink(&ids[..len]);
                } else {
                    self.long.get_or_insert_default().merge(vocab, part, sink, check)?;
                }
            }
            unchecked += part.len();
            if unchecked >= BYTES_BETWEEN_CHECKS {
                unchecked = 0;
                check()?;
            }
        }
        self.merge_tiny(vocab, isa, sink);
        Ok(())
    }

    /// Merges the tiny parts that wait.
    fn merge_tiny(&mut self, vocab: Vocab<'_>, isa: Found, sink: &mut dyn FnMut(&[u16])) {
        let pieces = &mut self.tiny[..std::mem::take(&mut self.num_tiny)];
        dispatch(isa, MergeTogether { vocab, pieces });
        let mut ids = [0; MOST * TINY];
        let mut len = 0;
        for piece in pieces {
            len += piece.tokens(&mut ids[len..]);
        }
        sink(&ids[..len]);
    }
}

/// Where the first part ends: after as many tiny ones as are tiny together, else after one.
#[inline(always)]
fn part_len(vocab: Vocab<'_>, bytes: &[u8]) -> usize {
    if bytes.len() <= TINY {
        return bytes.len();
    }
    let is_seam = |at: &usize| !vocab.are_neighbours(bytes[at - 1], bytes[*at]);
    let tiny = (1..=TINY).rev().find(is_seam);
    tiny.or_else(|| (TINY + 1..bytes.len()).find(is_seam)).unwrap_or(bytes.len())
}

#[cfg(test)]
mod tests {
    use super::super::super::simd::Isa;
    use super::super::super::vocab::GPT2;
    use super::super::tests::slowly;
    use super::*;
    use crate::Error;
    use proptest::prelude::*;

    fn merge(piece: &[u8], isa: Isa) -> Vec<u16> {
        let mut tokens = Vec::new();
        let mut sink = |ids: &[u16]| tokens.extend_from_slice(ids);
        Merger::default().merge(GPT2, isa.found(), piece, &mut sink, &mut || Ok(())).unwrap();
        tokens
    }

    #[test]
    fn a_part_ends_where_no_token_goes_on() {
        let lens = |text: &str| {
            let (mut rest, mut lens) = (text.as_bytes(), Vec::new());
            while !rest.is_empty() {
                let len = part_len(GPT2, rest);
                lens.push(len);
                rest = &rest[len..];
            }
            lens
        };
        assert_eq!(lens("a few letters"), [13]);
        assert_eq!(lens(&"\u{1f600}".repeat(8)), [12, 12, 8]);
        assert_eq!(lens(&"a".repeat(100)), [100]);
        assert_eq!(lens(&("a".repeat(100) + "\u{1f600}")), [100, 4]);
    }

    #[test]
    fn a_merge_of_many_parts_stops_when_the_check_fails() {
        let piece = "\u{1f600}".repeat(BYTES_BETWEEN_CHECKS);
        let (mut calls, mut num_ids) = (0, 0);
        let mut check = || {
            calls += 1;
            if calls == 2 { Err(Error::Stopped) } else { Ok(()) }
        };
        let mut sink = |ids: &[u16]| num_ids += ids.len();
        let (bytes, isa) = (piece.as_bytes(), Isa::Portable.found());
        let stopped = Merger::default().merge(GPT2, isa, bytes, &mut sink, &mut check);
        assert_eq!((stopped, calls), (Err(Error::Stopped), 2));
        assert!(num_ids <= 2 * BYTES_BETWEEN_CHECKS);
    }

    #[test]
    fn what_an_error_left_behind_is_not_in_the_next_piece() {
        let mut merger = Merger::default();
        let isa = Isa::Portable.found();
        let long = "\u{1f600}".to_owned() + &"a".repeat(100);
        let stop = &mut || Err(Error::Stopped);
        for piece in [long.as_bytes(), b"tokens"] {
            let mut tokens = Vec::new();
            let mut sink = |ids: &[u16]| tokens.extend_from_slice(ids);
            match merger.merge(GPT2, isa, piece, &mut sink, stop) {
                Ok(()) => assert_eq!(tokens, slowly(GPT2, piece)),
                Err(error) => assert_eq!((error, piece), (Error::Stopped, long.as_bytes())),
            }
        }
    }

    proptest! {
        #[test]
        fn pieces_of_any_length_merge_as_defined(
            piece in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..300),
                "([a-e]{1,20}|[-=]{1,30}|estin|[éü]{1,9}|[中文字\u{1f600}-\u{1f640}]{1,9}|\\PC){0,30}"
                    .prop_map(String::into_bytes),
            ],
        ) {
            let expected = slowly(GPT2, &piece);
            for isa in Isa::available() {
                prop_assert_eq!(&merge(&piece, isa), &expected, "{:?}", isa);
            }
        }
    }
}
