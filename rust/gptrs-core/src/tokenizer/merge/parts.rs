//! Pieces of any length, merged in parts of up to `SHORT` bytes, several at a time.
//!
//! A part ends where no token has both bytes, so that no merge crosses: in most scripts other than
//! Latin such places are as close as characters. Where there is none, the next part begins early:
//!
//! ```text
//!   part 1   …│ib│erat│ion│wh
//!   part 2           e│r│ation│wh│o│…         a token in both is where they are joined: what comes
//!   tokens   …│ib│erat│ion│wh│o│…             before is of part 1, what comes after of part 2
//! ```
//!
//! Then each two neighbours stand next to each other in a part, and that is all it takes (`long`
//! says why). Parts without a common token, and what comes after them, are left to `long`.

use std::ops::Range;

use super::super::simd::{Found, dispatch};
use super::super::vocab::Vocab;
use super::super::{BYTES_BETWEEN_CHECKS, Check};
use super::long::LongMerger;
use super::{MOST, MergeTogether, SHORT, Short, Tiny};
use crate::Result;

/// How many bytes two parts may share.
const OVERLAP: usize = 14;

/// How many bytes are merged between two checks: that takes longer than to know words again.
const BYTES_BETWEEN: usize = BYTES_BETWEEN_CHECKS / 8;

/// So many tokens are handed on as soon as no merge can change them.
const PORTION: usize = 1 << 8;

/// Merges pieces of any length, with what it needs for that.
#[derive(Debug)]
pub struct Merger {
    /// For pieces, or parts, that are merged together.
    pub tiny: [Tiny; MOST],
    pub short: [Short; MOST],
    /// Tokens that may still merge with what follows, or are few.
    tokens: Vec<u16>,
    /// Buffers, when they were needed.
    long: Option<Box<LongMerger>>,
}

impl Default for Merger {
    fn default() -> Self {
        Self {
            tiny: [Tiny::EMPTY; MOST],
            short: [Short::EMPTY; MOST],
            tokens: Vec::new(),
            long: None,
        }
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
        let Self { short: parts, tokens, long, .. } = self;
        tokens.clear();
        // The places of the parts that wait, and up to where the tokens are there.
        let (mut places, mut waiting, mut done) = ([const { 0..0 }; MOST], 0, 0);
        let (mut next, mut next_check) = (0, BYTES_BETWEEN);
        loop {
            while waiting < MOST && next < piece.len() {
                let (place, after) = next_part(vocab, piece, next);
                parts[waiting].begin(vocab, &piece[place.clone()]);
                (places[waiting], next) = (place, after);
                waiting += 1;
            }
            dispatch(isa, MergeTogether { vocab, pieces: &mut parts[..waiting] });
            for (pair, place) in parts[..waiting].windows(2).zip(places.windows(2)) {
                let Some(end) = seam(pair, place) else {
                    let long = long.get_or_insert_default();
                    long.merge(vocab, &piece[done..], tokens, check)?;
                    sink(tokens);
                    return Ok(());
                };
                tokens.extend(pair[0].tokens_within(done - place[0].start..end - place[0].start));
                done = end;
                if place[0].end == place[1].start && tokens.len() >= PORTION {
                    sink(tokens);
                    tokens.clear();
                }
            }
            let Some(last) = waiting.checked_sub(1) else { return Ok(()) };
            if next == piece.len() {
                let start = places[last].start;
                tokens.extend(parts[last].tokens_within(done - start..next - start));
                sink(tokens);
                return Ok(());
            }
            parts.swap(0, last);
            places.swap(0, last);
            waiting = 1;
            if next >= next_check {
                next_check = next + BYTES_BETWEEN;
                check()?;
            }
        }
    }
}

/// Where the part that starts at `start` stands, and where the next one starts.
#[inline(always)]
fn next_part(vocab: Vocab<'_>, piece: &[u8], start: usize) -> (Range<usize>, usize) {
    if piece.len() - start <= SHORT {
        return (start..piece.len(), piece.len());
    }
    let (next, end) = (start + SHORT - OVERLAP, start + SHORT);
    let is_cut = |at: &usize| !vocab.are_neighbours(piece[at - 1], piece[*at]);
    match (next..=end).rev().find(is_cut) {
        Some(cut) => (start..cut, cut),
        None => (start..end, next),
    }
}

/// Up to where the first part's tokens are the piece's, and from where on the second's.
#[inline(always)]
fn seam(parts: &[Short], places: &[Range<usize>]) -> Option<usize> {
    let (start, end) = (places[1].start, places[0].end);
    if start == end {
        return Some(start);
    }
    let first = parts[0].bounds() >> (start - places[0].start);
    let second = parts[1].bounds() & (u64::MAX >> (63 - (end - start)));
    let (both, any) = (first & second, first | second);
    let mut rest = both;
    while rest != 0 {
        let at = rest.trailing_zeros();
        rest &= rest - 1;
        let after = any & (u64::MAX << at << 1);
        if after & after.wrapping_neg() & both != 0 {
            return Some(start + at as usize);
        }
    }
    None
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
    fn a_part_ends_where_no_token_goes_on_or_the_next_begins_in_it() {
        let places = |text: &str| {
            let (mut next, mut places) = (0, Vec::new());
            while next < text.len() {
                let (place, after) = next_part(GPT2, text.as_bytes(), next);
                places.push(place);
                next = after;
            }
            places
        };
        assert_eq!(places("a few letters"), [Range { start: 0, end: 13 }]);
        assert_eq!(places(&"\u{1f600}".repeat(20)), [0..60, 60..80]);
        assert_eq!(places(&"a".repeat(100)), [0..62, 48..100]);
        assert_eq!(places(&("a".repeat(60) + "\u{1f600}")), [0..60, 60..64]);
    }

    #[test]
    fn parts_without_a_common_token_are_merged_at_once() {
        for (piece, is_long) in
            [("some different letters ".repeat(20), false), ("=".repeat(200), true)]
        {
            let (mut merger, mut tokens) = (Merger::default(), Vec::new());
            let (bytes, isa) = (piece.as_bytes(), Isa::Portable.found());
            let mut sink = |ids: &[u16]| tokens.extend_from_slice(ids);
            merger.merge(GPT2, isa, bytes, &mut sink, &mut || Ok(())).unwrap();
            assert_eq!(tokens, slowly(GPT2, bytes));
            assert_eq!(merger.long.is_some(), is_long, "{piece:?}");
        }
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
        let long = "\u{1f600}".to_owned() + &"=".repeat(200);
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
                "([a-e]{1,20}|[-=]{1,30}|=*|[0-9]{50,90}|estin|[éü]{1,9}|[中文字\u{1f600}-\u{1f640}]{1,9}|\\PC){0,30}"
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
