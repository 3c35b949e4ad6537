//! The loop that everything is encoded by: text -> pieces -> ids.
//!
//! ```text
//!   text ──split──► up to 255 pieces ──key──► cache ──hit──► ids
//!                                   prefetch    │ miss
//!                                    whole piece is a token? ──► id ──┐
//!                                               │ no                  ├─► cache
//!                                             merge ──► ids ──────────┘
//! ```
//!
//! Pieces are taken in batches, step by step: when the ids of the first are asked for, the cache
//! lines of all are already on their way. Of those that miss, several short ones are merged at a
//! time (`misses`).

mod misses;

use std::ops::Range;

use super::cache::{Key, LONGEST, MOST_IDS};
use super::merge::{Merger, SHORT};
use super::simd::{Found, Simd, Work};
use super::split::{Splitter, Starts};
use super::vocab::Vocab;
use super::words::Words;
use super::{BYTES_BETWEEN_CHECKS, Check, LONGEST_PIECE};
use crate::{Error, Result};
use misses::Misses;

/// Encodes text in which nothing is special; ids go to `sink` in portions.
pub struct EncodeSegment<'a, 't> {
    pub vocab: Vocab<'a>,
    pub text: &'a str,
    pub isa: Found,
    pub words: &'a mut Words<'t>,
    pub merger: &'a mut Merger,
    pub sink: &'a mut dyn FnMut(&[u16]),
    pub check: Check<'a>,
}

impl Work for EncodeSegment<'_, '_> {
    type Output = Result<()>;

    #[inline(always)]
    fn run(mut self, simd: impl Simd) -> Result<()> {
        self.words.expect(self.text.len());
        let mut splitter = Splitter::new(self.text);
        let mut starts = Starts::default();
        let mut batch = Batch::default();
        let mut next_check = BYTES_BETWEEN_CHECKS;
        while splitter.more() {
            while splitter.more() && starts.has_room() && splitter.position() < next_check {
                splitter.next_block(simd, &mut starts);
            }
            self.encode_pieces(&starts, &mut batch)?;
            starts.keep_last();
            if splitter.position() >= next_check {
                next_check = splitter.position() + BYTES_BETWEEN_CHECKS;
                (self.check)()?;
                refuse_long_piece(starts.base(), splitter.position())?;
            }
        }
        Ok(())
    }
}

/// Room for the keys of a batch, and for ids that have not been handed on.
struct Batch {
    keys: [Key; Starts::CAPACITY],
    ids: [u16; CAPACITY],
    misses: Misses,
}

/// What a batch may need: a long piece's ids, and as many as the others can have.
const CAPACITY: usize = SPARE + LONGEST + MOST_IDS * Starts::CAPACITY;

/// With more ids than this, those that are there are handed on before a long piece's come.
const SPARE: usize = 1 << 10;

impl Default for Batch {
    fn default() -> Self {
        Self {
            keys: [Key::default(); Starts::CAPACITY],
            ids: [0; CAPACITY],
            misses: Misses::default(),
        }
    }
}

impl EncodeSegment<'_, '_> {
    /// Encodes the pieces between neighbouring `starts`.
    #[inline(always)]
    fn encode_pieces(&mut self, starts: &Starts, batch: &mut Batch) -> Result<()> {
        let cache = self.words.with_room();
        let Batch { keys, ids, misses } = batch;
        let (base, starts) = (starts.base(), starts.all());
        let text = &self.text.as_bytes()[base..];
        let keys = &mut keys[..starts.len().saturating_sub(1)];
        cache.make_keys(text, starts, keys);
        let (mut next, mut len) = (0, 0);
        loop {
            let (hits, end) = self.words.known().append(&keys[next..], ids, len);
            (next, len) = (next + hits, end);
            let (Some(key), [start, end, ..]) = (keys.get(next), &starts[next..]) else { break };
            let place = base + *start as usize..base + *end as usize;
            if place.len() <= SHORT {
                len = self.encode_short(misses, *key, place, ids, len);
            } else {
                self.hand_on(misses, ids, len);
                len = self.encode_other(*key, place, ids)?;
            }
            next += 1;
        }
        self.hand_on(misses, ids, len);
        Ok(())
    }

    /// Hands all ids on. Returns how many are left.
    #[inline(always)]
    fn hand_on(&mut self, misses: &mut Misses, ids: &mut [u16; CAPACITY], len: usize) -> usize {
        let len = self.encode_misses(misses, ids, len);
        (self.sink)(&ids[..len]);
        0
    }

    /// Encodes a piece of more than `SHORT` bytes to `ids`, and returns how many there are.
    #[inline(never)]
    fn encode_other(
        &mut self,
        key: Key,
        place: Range<usize>,
        ids: &mut [u16; CAPACITY],
    ) -> Result<usize> {
        let start = place.start;
        let piece = &self.text.as_bytes()[place];
        if piece.len() > LONGEST {
            self.encode_long(piece, start)?;
            return Ok(0);
        }
        if let Some(known) = self.words.known().get_other(key, piece, ids) {
            return Ok(known);
        }
        let new = self.encode_new(piece, ids)?;
        self.words.put(key, piece, &ids[..new]);
        Ok(new)
    }

    /// Encodes a piece of at most `LONGEST` bytes to `room`, and returns the number of its ids.
    fn encode_new(&mut self, piece: &[u8], room: &mut [u16]) -> Result<usize> {
        if let Some(id) = self.vocab.find(piece) {
            room[0] = id;
            return Ok(1);
        }
        let mut len = 0;
        let mut sink = |ids: &[u16]| {
            room[len..len + ids.len()].copy_from_slice(ids);
            len += ids.len();
        };
        self.merger.merge(self.vocab, self.isa, piece, &mut sink, self.check)?;
        Ok(len)
    }

    /// Encodes a piece that no cache takes.
    #[cold]
    fn encode_long(&mut self, piece: &[u8], offset: usize) -> Result<()> {
        if piece.len() > LONGEST_PIECE {
            return Err(Error::PieceTooLong { offset, longest: LONGEST_PIECE });
        }
        if let Some(id) = self.vocab.find(piece) {
            (self.sink)(&[id]);
            return Ok(());
        }
        self.merger.merge(self.vocab, self.isa, piece, self.sink, self.check)
    }
}

/// Refuses a piece that has not ended yet and already is too long, before all of it is read.
fn refuse_long_piece(start: usize, position: usize) -> Result<()> {
    if position - start > LONGEST_PIECE {
        return Err(Error::PieceTooLong { offset: start, longest: LONGEST_PIECE });
    }
    Ok(())
}
