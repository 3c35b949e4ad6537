//! Short pieces that the cache does not have, several at a time: what one of them waits for, memory
//! or a merge before, takes no time from the others.
//!
//! ```text
//!   ids   It│ hot│················│,│ isn│················│it      a gap for each piece that waits
//!                  └ Thermidor                └ Brumaire
//!   ids   It│ hot│ Therm│idor│,│ isn│ Br│uma│ire│it               merged, and the gaps closed
//! ```

use std::ops::Range;

use super::super::cache::{Key, MOST_IDS};
use super::super::layout::word_hash;
use super::super::merge::{MOST, MergeTogether, Merger, SHORT, TINY};
use super::super::simd::dispatch;
use super::{CAPACITY, EncodeSegment, SPARE};

/// The pieces that wait.
#[derive(Default)]
pub struct Misses {
    all: [Miss; MOST],
    len: usize,
}

#[derive(Default, Clone, Copy)]
struct Miss {
    key: Key,
    start: usize,
    len: usize,
    /// Where in the ids its gap begins.
    gap: usize,
    /// Up to there.
    gap_end: usize,
    /// How many ids it turned out to have; 0 as long as that is not known.
    num_ids: usize,
}

impl EncodeSegment<'_, '_> {
    /// Encodes a piece of at most `SHORT` bytes that `append` did not find: leaves a gap at `len`
    /// for its ids, if they are not to be had at once. Returns the new length.
    #[inline(never)]
    pub fn encode_short(
        &mut self,
        misses: &mut Misses,
        key: Key,
        place: Range<usize>,
        ids: &mut [u16; CAPACITY],
        mut len: usize,
    ) -> usize {
        let (start, piece) = (place.start, &self.text.as_bytes()[place]);
        let mut most_ids = MOST_IDS;
        if piece.len() > MOST_IDS {
            most_ids = SHORT;
            if len > SPARE {
                len = self.hand_on(misses, ids, len);
            }
        }
        if let Some(known) = self.words.known().get_other(key, piece, &mut ids[len..]) {
            return len + known;
        }
        let gap_end = len + most_ids;
        misses.all[misses.len] =
            Miss { key, start, len: piece.len(), gap: len, gap_end, num_ids: 0 };
        misses.len += 1;
        if misses.len == MOST { self.encode_waiting(misses, ids, gap_end) } else { gap_end }
    }

    /// Encodes the pieces that wait, if any do, and closes their gaps. Returns the new length.
    #[inline(always)]
    pub fn encode_misses(
        &mut self,
        misses: &mut Misses,
        ids: &mut [u16; CAPACITY],
        len: usize,
    ) -> usize {
        if misses.len == 0 { len } else { self.encode_waiting(misses, ids, len) }
    }

    #[inline(never)]
    fn encode_waiting(
        &mut self,
        misses: &mut Misses,
        ids: &mut [u16; CAPACITY],
        len: usize,
    ) -> usize {
        let (vocab, text) = (self.vocab, self.text.as_bytes());
        let misses = &mut misses.all[..std::mem::take(&mut misses.len)];
        let piece = |miss: &Miss| &text[miss.start..][..miss.len];
        let mut hashes = [0; MOST];
        for (hash, miss) in hashes.iter_mut().zip(&*misses) {
            *hash = word_hash(piece(miss));
            vocab.prefetch(*hash);
        }
        let Merger { tiny, short, .. } = self.merger;
        let (mut num_tiny, mut num_short) = (0, 0);
        for (miss, hash) in misses.iter_mut().zip(hashes) {
            let (piece, room) = (piece(miss), &mut ids[miss.gap..]);
            // Another of these pieces may have been the same.
            if let Some(known) = self.words.known().get_other(miss.key, piece, room) {
                miss.num_ids = known;
            } else if let Some(id) = vocab.find_hashed(hash, piece) {
                (room[0], miss.num_ids) = (id, 1);
                self.words.put(miss.key, piece, &[id]);
            } else if piece.len() <= TINY {
                tiny[num_tiny].begin(vocab, piece);
                num_tiny += 1;
            } else {
                short[num_short].begin(vocab, piece);
                num_short += 1;
            }
        }
        dispatch(self.isa, MergeTogether { vocab, pieces: &mut tiny[..num_tiny] });
        dispatch(self.isa, MergeTogether { vocab, pieces: &mut short[..num_short] });
        let (mut tiny, mut short) = (tiny.iter(), short.iter());
        for miss in misses.iter_mut().filter(|miss| miss.num_ids == 0) {
            let room = &mut ids[miss.gap..];
            let merged = if miss.len <= TINY {
                tiny.next().map(|tiny| tiny.tokens(room))
            } else {
                short.next().map(|short| short.tokens(room))
            };
            miss.num_ids = merged.unwrap_or_default();
            self.words.put(miss.key, piece(miss), &room[..miss.num_ids]);
        }
        close_gaps(misses, ids, len)
    }
}

/// Moves the ids of the pieces and what is between them together. Returns the new length.
fn close_gaps(misses: &[Miss], ids: &mut [u16], len: usize) -> usize {
    let Some(first) = misses.first() else { return len };
    let mut end = first.gap;
    let next_gaps = misses.iter().skip(1).map(|miss| miss.gap).chain([len]);
    for (miss, next_gap) in misses.iter().zip(next_gaps) {
        ids.copy_within(miss.gap..miss.gap + miss.num_ids, end);
        end += miss.num_ids;
        let between = miss.gap_end..next_gap;
        ids.copy_within(between.clone(), end);
        end += between.len();
    }
    end
}

#[cfg(test)]
mod tests {
    use super::super::super::Tokenizer;
    use super::super::super::merge::tests::slowly;
    use super::super::super::split;
    use super::super::super::vocab::GPT2;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn new_words_that_recur_at_once_have_their_ids_wherever_they_stand(
            words in prop::collection::vec("[ \n]?[a-eé中]{1,17}|, |[0-9]{1,15}| [a-z]{50,70}| {14,18}|=é{60,70}", 1..12),
            order in prop::collection::vec(any::<prop::sample::Index>(), 0..600),
        ) {
            let text: String = order.iter().map(|index| &*words[index.index(words.len())]).collect();
            let expected: Vec<u16> =
                split(&text).flat_map(|piece| slowly(GPT2, piece.as_bytes())).collect();
            let tokenizer = Tokenizer::gpt2();
            for _ in 0..2 {
                prop_assert_eq!(&tokenizer.encode_ordinary(&text).unwrap(), &expected);
            }
        }
    }
}
