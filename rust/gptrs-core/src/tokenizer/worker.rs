//! One thread's use of a tokenizer.

use super::encode::EncodeSegment;
use super::merge::Merger;
use super::simd::dispatch;
use super::vocab::{GPT2, Vocab};
use super::words::Words;
use super::{BYTES_BETWEEN_CHECKS, Check, Ordinary, Tokenizer, special};
use crate::Result;

/// Encodes texts on one thread.
pub struct Worker<'t> {
    tokenizer: &'t Tokenizer,
    words: Words<'t>,
    merger: Merger,
    /// How much was encoded since the last check.
    unchecked: usize,
}

impl<'t> Worker<'t> {
    pub fn new(tokenizer: &'t Tokenizer) -> Self {
        Self {
            tokenizer,
            words: Words::new(&tokenizer.words),
            merger: Merger::default(),
            unchecked: 0,
        }
    }

    /// Makes room at once for the words of a text of this size, which comes in parts.
    pub fn expect(&mut self, text_bytes: usize) {
        self.words.expect(text_bytes);
    }

    /// Hands the ids of `text` to `sink`, portion by portion.
    pub fn encode(
        &mut self,
        text: &str,
        allowed_special: &[&str],
        sink: &mut dyn FnMut(&[u16]),
        check: Check<'_>,
    ) -> Result<()> {
        let tokenizer = self.tokenizer;
        // What is no special token stays ordinary text.
        let is_special = |token: &&str| tokenizer.special_id(token).is_some();
        let allowed: Vec<&str> = allowed_special.iter().copied().filter(is_special).collect();
        for (start, segment, end) in special::segments(text, &allowed) {
            self.encode_segment(segment, sink, check).map_err(|error| error.moved_by(start))?;
            if let Some(id) = end.and_then(|token| tokenizer.special_id(token)) {
                sink(&[id]);
            }
            // Short segments and texts end before they ask; an empty one takes time, too.
            self.unchecked += segment.len() + 1;
            if self.unchecked >= BYTES_BETWEEN_CHECKS {
                self.unchecked = 0;
                check()?;
            }
        }
        Ok(())
    }

    fn encode_segment(
        &mut self,
        text: &str,
        sink: &mut dyn FnMut(&[u16]),
        check: Check<'_>,
    ) -> Result<()> {
        let vocab = match &self.tokenizer.ordinary {
            Ordinary::Gpt2 => GPT2,
            Ordinary::Bpe(tables) => Vocab::of(tables),
            Ordinary::Char(chars) => return chars.encode(text, sink, check),
        };
        let (isa, words, merger) = (self.tokenizer.isa, &mut self.words, &mut self.merger);
        dispatch(isa, EncodeSegment { vocab, text, isa, words, merger, sink, check })
    }
}
