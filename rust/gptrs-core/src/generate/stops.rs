//! Stop strings: found across tokens, and never let out in part.
//!
//! ```text
//! stop "\n\n"    tokens      "One."  " Two"  ".\n"   "\nQ:"
//!                let out     "One."  " Two"  "."     ""       and stopped: 3 tokens are kept
//!                held back                   "\n"
//! ```
//!
//! The text is cut where the whole text would be: at the earliest start of any stop string in it,
//! however it falls into tokens. So a stop string that was found has to wait while the text before it
//! may still become an earlier one: of "abcd" and "bc", "abc" decides nothing.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::constraint::TokenBytes;
use crate::{Error, Result};

/// Texts that end a sequence, for one vocabulary.
#[derive(Debug, PartialEq, Eq)]
pub struct StopStrings {
    stops: Vec<Stop>,
    tokens: Arc<TokenBytes>,
}

/// A stop string, as Knuth, Morris and Pratt search for it.
#[derive(Debug, PartialEq, Eq)]
struct Stop {
    bytes: Vec<u8>,
    /// After `n + 1` bytes that match, how many of the first match the last: where to go on when
    /// the next one does not.
    borders: Vec<usize>,
}

impl Stop {
    fn new(text: &str) -> Self {
        let bytes = text.as_bytes().to_vec();
        let mut stop = Self { borders: vec![0], bytes };
        for at in 1..stop.bytes.len() {
            let border = stop.advance(stop.borders[at - 1], stop.bytes[at]);
            stop.borders.push(border);
        }
        stop
    }

    /// How many of the first bytes the text ends with after `byte`, if it ended with `matched`,
    /// fewer than all, before.
    fn advance(&self, mut matched: usize, byte: u8) -> usize {
        while matched > 0 && self.bytes[matched] != byte {
            matched = self.borders[matched - 1];
        }
        matched + usize::from(self.bytes[matched] == byte)
    }
}

impl StopStrings {
    /// Refuses an empty list and an empty text.
    pub fn new(stops: &[String], tokens: Arc<TokenBytes>) -> Result<Self> {
        if stops.is_empty() {
            return Err(Error::Setting("stop strings: at least one is needed, found none".into()));
        }
        if let Some(index) = stops.iter().position(String::is_empty) {
            return Err(Error::Setting(format!(
                "stop string {index} is empty: it would end every text before its first token"
            )));
        }
        Ok(Self { stops: stops.iter().map(|stop| Stop::new(stop)).collect(), tokens })
    }

    /// A watch over a new sequence.
    pub fn watch(self: &Arc<Self>) -> StopWatch {
        StopWatch {
            matched: vec![0; self.stops.len()],
            stops: Arc::clone(self),
            held_back: Vec::new(),
            num_released: 0,
            begins: VecDeque::new(),
            tokens_kept: 0,
            found: None,
            has_stopped: false,
        }
    }
}

/// One sequence's text, as far as it is held back.
#[derive(Debug, Clone)]
pub struct StopWatch {
    stops: Arc<StopStrings>,
    /// Of each stop string, how many of its first bytes the text ends with.
    matched: Vec<usize>,
    held_back: Vec<u8>,
    /// How many bytes come before those held back.
    num_released: usize,
    /// Where the tokens begin that are not among the `tokens_kept`, in bytes of the text.
    begins: VecDeque<usize>,
    tokens_kept: usize,
    /// Where the earliest stop string starts that the text has in full.
    found: Option<usize>,
    has_stopped: bool,
}

/// What a token, or the end of the sequence, did to the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Released {
    /// Bytes that no stop string can take back any more.
    pub text: Vec<u8>,
    /// Whether a stop string was found: the text ends before it, and the sequence is over.
    pub stopped: bool,
    /// How many tokens, counted from the start of the sequence, begin before the end of the text let
    /// out so far. After a stop these are the tokens of the result: the last of them may hold the
    /// first bytes of the stop string too. At the end of a sequence that was not stopped: all.
    pub tokens_kept: usize,
}

impl StopWatch {
    /// Takes a new token. After a stop nothing is let out any more.
    pub fn push(&mut self, token: u32) -> Released {
        let stops = Arc::clone(&self.stops);
        if !self.has_stopped {
            self.begins.push_back(self.num_bytes());
            for &byte in stops.tokens.get(token) {
                self.held_back.push(byte);
                if let Some(start) = self.look_for(&stops.stops, byte) {
                    return self.release(start, true);
                }
            }
        }
        self.release(self.earliest_start(), self.has_stopped)
    }

    /// What is still held back, when the sequence ends for another reason. A stop string may have
    /// been found all the same: one that waited for an earlier one that did not come.
    pub fn finish(&mut self) -> Released {
        if let Some(start) = self.found {
            return self.release(start, true);
        }
        let mut released = self.release(self.num_bytes(), false);
        // Tokens without bytes at the very end begin where the text ends, and belong to it.
        self.tokens_kept += self.begins.len();
        self.begins.clear();
        released.tokens_kept = self.tokens_kept;
        released
    }

    /// Where a stop string starts that ends or decides the text at this byte.
    fn look_for(&mut self, stops: &[Stop], byte: u8) -> Option<usize> {
        let end = self.num_bytes();
        for (stop, matched) in stops.iter().zip(&mut self.matched) {
            *matched = stop.advance(*matched, byte);
            if *matched == stop.bytes.len() {
                let start = end - *matched;
                self.found = Some(self.found.map_or(start, |found| found.min(start)));
                *matched = stop.borders[*matched - 1];
            }
        }
        self.found.filter(|&found| found <= self.earliest_start())
    }

    /// The first byte that may belong to a stop string that is not complete.
    fn earliest_start(&self) -> usize {
        self.num_bytes() - self.matched.iter().max().copied().unwrap_or(0)
    }

    /// The bytes of the text so far.
    fn num_bytes(&self) -> usize {
        self.num_released + self.held_back.len()
    }

    /// Lets out the text up to byte `end`; drops the rest if it is a stop string's.
    fn release(&mut self, end: usize, stopped: bool) -> Released {
        if stopped && self.has_stopped {
            return Released { text: Vec::new(), stopped, tokens_kept: self.tokens_kept };
        }
        let text: Vec<u8> = self.held_back.drain(..end - self.num_released).collect();
        self.num_released = end;
        let num_before = self.begins.iter().take_while(|&&begin| begin < end).count();
        self.begins.drain(..num_before);
        self.tokens_kept += num_before;
        self.has_stopped = stopped;
        Released { text, stopped, tokens_kept: self.tokens_kept }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A watch over a vocabulary of these tokens.
    fn watch(stops: &[&str], tokens: &[&[u8]]) -> StopWatch {
        let stops: Vec<String> = stops.iter().map(|&stop| stop.into()).collect();
        let tokens = tokens.iter().map(|&bytes| bytes.into()).collect();
        Arc::new(StopStrings::new(&stops, Arc::new(TokenBytes::new(tokens))).unwrap()).watch()
    }

    fn released(text: &[u8], stopped: bool, tokens_kept: usize) -> Released {
        Released { text: text.into(), stopped, tokens_kept }
    }

    #[test]
    fn a_stop_string_over_three_tokens_is_never_let_out_in_part() {
        let mut watch = watch(&["\n\nQ:"], &[b"One.", b" Two.\n", b"\nQ", b":", b"x"]);
        assert_eq!(watch.push(0), released(b"One.", false, 1));
        assert_eq!(watch.push(1), released(b" Two.", false, 2));
        assert_eq!(watch.push(2), released(b"", false, 2));
        assert_eq!(watch.push(3), released(b"", true, 2));
        assert_eq!(watch.push(4), released(b"", true, 2));
        assert_eq!(watch.finish(), released(b"", true, 2));
    }

    #[test]
    fn what_only_looked_like_a_stop_string_is_let_out() {
        let mut watch = watch(&["END"], &[b"EN", b"EN", b"D", b"G"]);
        assert_eq!(watch.push(0), released(b"", false, 0));
        assert_eq!(watch.push(1), released(b"EN", false, 1));
        assert_eq!(watch.push(3), released(b"ENG", false, 3));
        assert_eq!(watch.push(0), released(b"", false, 3));
        assert_eq!(watch.finish(), released(b"EN", false, 4));
    }

    #[test]
    fn a_stop_string_waits_while_an_earlier_one_may_still_come() {
        let vocabulary: [&[u8]; 3] = [b"xabc", b"d", b"e"];
        for (last, text, tokens_kept) in [(1, &b"x"[..], 1), (2, b"xa", 1)] {
            let mut watch = watch(&["abcd", "bc"], &vocabulary);
            assert_eq!(watch.push(0), released(b"x", false, 1));
            assert_eq!(watch.push(last), released(&text[1..], true, tokens_kept));
        }
        let mut watch = watch(&["abcd", "bc"], &vocabulary);
        watch.push(0);
        assert_eq!(watch.finish(), released(b"a", true, 1));
    }

    #[test]
    fn no_stop_string_and_an_empty_one_are_refused() {
        let tokens = Arc::new(TokenBytes::new(vec![]));
        let refusal = |stops: &[String]| StopStrings::new(stops, Arc::clone(&tokens)).unwrap_err();
        assert!(refusal(&[]).to_string().contains("found none"));
        assert!(refusal(&["a".into(), String::new()]).to_string().contains("stop string 1"));
    }

    /// Where the whole text is cut, by looking at every position.
    fn cut(text: &[u8], stops: &[String]) -> Option<usize> {
        (0..text.len())
            .find(|&start| stops.iter().any(|stop| text[start..].starts_with(stop.as_bytes())))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn any_tokens_of_a_text_are_cut_where_the_whole_text_is(
            stops in prop::collection::vec("[ab\u{e9}]{1,5}", 1..4),
            tokens in prop::collection::vec(
                prop::collection::vec(prop::sample::select(b"abab\xc3\xa9".to_vec()), 0..5),
                0..14,
            ),
        ) {
            let text = tokens.concat();
            let cut = cut(&text, &stops);
            let end = cut.unwrap_or(text.len());
            let vocabulary = tokens.iter().map(|bytes| bytes.clone().into()).collect();
            let stops = StopStrings::new(&stops, Arc::new(TokenBytes::new(vocabulary))).unwrap();
            let mut watch = Arc::new(stops).watch();

            let mut let_out = Vec::new();
            let mut last = released(b"", false, 0);
            for token in 0..tokens.len() {
                last = watch.push(token as u32);
                let_out.extend_from_slice(&last.text);
                prop_assert!(text[..end].starts_with(&let_out));
                if last.stopped {
                    break;
                }
            }
            if !last.stopped {
                last = watch.finish();
                let_out.extend_from_slice(&last.text);
            }
            prop_assert_eq!(&let_out, &text[..end]);
            prop_assert_eq!(last.stopped, cut.is_some());
            let begins = tokens.iter().scan(0, |at, bytes| {
                *at += bytes.len();
                Some(*at - bytes.len())
            });
            let kept = begins.filter(|&begin| cut.is_none_or(|cut| begin < cut)).count();
            prop_assert_eq!(last.tokens_kept, kept);
        }
    }
}
