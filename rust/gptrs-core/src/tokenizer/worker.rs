//! One thread's use of a tokenizer: the words that it has seen, borrowed from the tokenizer and given
//! back at the end.

use std::sync::{Mutex, MutexGuard};

use super::encode::{EncodeSegment, Scratch};
use super::simd::dispatch;
use super::vocab::{GPT2, Vocab};
use super::{BYTES_BETWEEN_CHECKS, Check, Ordinary, Tokenizer, special};
use crate::Result;

/// What no thread uses right now, and gaps where one does.
pub type Pool = Mutex<Vec<Option<Scratch>>>;

/// Encodes texts on one thread.
pub struct Worker<'t> {
    tokenizer: &'t Tokenizer,
    scratch: Scratch,
    /// Its place in the pool, if it has one.
    place: Option<usize>,
    /// How much was encoded since the last check.
    unchecked: usize,
}

impl<'t> Worker<'t> {
    /// Takes the first scratch that is free, so that a thread that works alone always gets the
    /// same.
    pub fn new(tokenizer: &'t Tokenizer) -> Self {
        let Some(mut pool) = lock(&tokenizer.pool) else {
            return Self { tokenizer, scratch: Scratch::default(), place: None, unchecked: 0 };
        };
        let place = pool.iter().position(Option::is_some).unwrap_or_else(|| {
            pool.push(Some(Scratch::default()));
            pool.len() - 1
        });
        let scratch = pool[place].take().unwrap_or_default();
        Self { tokenizer, scratch, place: Some(place), unchecked: 0 }
    }

    /// Makes room at once for the words of a text of this size, which comes in parts.
    pub fn expect(&mut self, text_bytes: usize) {
        self.scratch.expect(text_bytes);
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
        let (isa, scratch) = (self.tokenizer.isa, &mut self.scratch);
        dispatch(isa, EncodeSegment { vocab, text, isa, scratch, sink, check })
    }
}

impl Drop for Worker<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.place
            && let Some(mut pool) = lock(&self.tokenizer.pool)
        {
            pool[place] = Some(std::mem::take(&mut self.scratch));
        }
    }
}

/// The pool, which others hold for less than a microsecond. Does not wait forever: a fork may have
/// left the lock to nobody.
fn lock(pool: &Pool) -> Option<MutexGuard<'_, Vec<Option<Scratch>>>> {
    (0..MOST_TRIES).find_map(|_| {
        std::hint::spin_loop();
        pool.try_lock().ok()
    })
}

const MOST_TRIES: usize = 100_000;
