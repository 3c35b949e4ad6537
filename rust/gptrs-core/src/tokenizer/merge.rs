//! Byte-pair merging: the bytes of a piece -> its tokens.
//!
//! The pair of lowest rank is merged first, the leftmost of equals, until none is left.
//!
//! ```text
//!   h  u  g  s      hu 13159, ug 762, gs 14286: ug is the lowest
//!   h  ug    s      hug is no token, ugs 10083
//!   h  ugs          hugs is no token: done
//! ```
//!
//! Short pieces are merged in small arrays, several at a time. Long ones are merged in short parts
//! (`parts`), or, where these do not fit together, in linear time by rank (`long`).

mod long;
mod parts;

pub use parts::Merger;

use std::ops::Range;

use super::layout::NO_RANK;
use super::simd::{Simd, Work};
use super::vocab::{Vocab, byte_id, merged_id};

/// A piece that is being merged, with a place for each byte, counted from 1, and one on either
/// side: N - 2 bytes at most. N is a power of two, 64 at most.
///
/// Nothing here branches on what was looked up, so that steps of several pieces can overlap.
#[derive(Debug, Clone, Copy)]
pub struct Merging<const N: usize> {
    /// pairs[i] is the pair of the token that starts at place i with the next, as `rank << 8 | i`:
    /// the least of them is the leftmost of lowest rank.
    pairs: [u32; N],
    ids: [u16; N],
    /// Bit i: a token starts at place i. What stands on either side is a token here.
    starts: u64,
}

/// Pieces of up to this many bytes are short.
pub const SHORT: usize = 62;

/// How many pieces are merged together.
pub const MOST: usize = 8;

/// Pieces of up to this many bytes are tiny: they need less room, which is looked through sooner.
pub const TINY: usize = 14;

pub type Tiny = Merging<{ TINY + 2 }>;
pub type Short = Merging<{ SHORT + 2 }>;

/// What stands on either side of a piece: the highest id is in no merge.
const NO_ID: u16 = u16::MAX;

const NO_PAIR: u32 = pair(NO_RANK, 0);

const fn pair(rank: u16, place: usize) -> u32 {
    (rank as u32) << 8 | place as u32
}

impl<const N: usize> Merging<N> {
    pub const EMPTY: Self = Self { pairs: [NO_PAIR; N], ids: [NO_ID; N], starts: 0b11 };

    /// Begins with the bytes of `piece`, whatever was there.
    #[inline(always)]
    pub fn begin(&mut self, vocab: Vocab<'_>, piece: &[u8]) {
        self.pairs = [NO_PAIR; N];
        self.ids[piece.len() + 1] = NO_ID;
        for (id, byte) in self.ids[1..N - 1].iter_mut().zip(piece) {
            *id = byte_id(*byte);
        }
        for (place, bytes) in (1..N - 2).zip(piece.windows(2)) {
            self.pairs[place] = pair(vocab.rank_of_bytes(bytes[0], bytes[1]), place);
        }
        self.starts = u64::MAX >> (u64::BITS as usize - 2 - piece.len());
    }

    /// Merges one pair. Says whether there was one.
    #[inline(always)]
    fn step(&mut self, vocab: Vocab<'_>) -> bool {
        let Self { pairs, ids, starts } = self;
        let lowest = pairs.iter().copied().min().unwrap_or(NO_PAIR);
        if lowest >= NO_PAIR {
            return false;
        }
        let (id, at) = (merged_id((lowest >> 8) as u16), lowest as usize % N);
        let after = *starts & u64::MAX << at << 1;
        let right = after.trailing_zeros() as usize % N;
        let next = (after & (after - 1)).trailing_zeros() as usize % N;
        *starts &= !(1 << right);
        let left = (*starts & !(u64::MAX << at)).ilog2() as usize % N;
        ids[at] = id;
        pairs[right] = NO_PAIR;
        pairs[at] = pair(vocab.rank(id, ids[next]), at);
        pairs[left] = pair(vocab.rank(ids[left], id), left);
        true
    }

    /// Writes the tokens to `ids`, and returns how many there are.
    #[inline(always)]
    pub fn tokens(&self, ids: &mut [u16]) -> usize {
        let mut starts = self.starts & !1;
        let mut len = 0;
        while starts & (starts - 1) != 0 {
            ids[len] = self.ids[starts.trailing_zeros() as usize % N];
            len += 1;
            starts &= starts - 1;
        }
        len
    }

    /// Bit i: a token starts at byte i of the piece, or the piece ends there.
    #[inline(always)]
    pub fn bounds(&self) -> u64 {
        self.starts >> 1
    }

    /// The tokens that start at these bytes.
    #[inline(always)]
    pub fn tokens_within(&self, place: Range<usize>) -> impl Iterator<Item = u16> {
        let before = |place: usize| (1 << place << 1) - 1;
        let mut starts = self.starts & before(place.end) & !before(place.start);
        std::iter::from_fn(move || {
            let place = starts.trailing_zeros() as usize;
            (starts != 0).then(|| {
                starts &= starts - 1;
                self.ids[place % N]
            })
        })
    }
}

/// Merges pieces that have begun: a step of each, then the next of each that goes on. A step
/// waits for what the one before it looked up; those of other pieces fill that time.
pub struct MergeTogether<'a, const N: usize> {
    pub vocab: Vocab<'a>,
    pub pieces: &'a mut [Merging<N>],
}

impl<const N: usize> Work for MergeTogether<'_, N> {
    type Output = ();

    #[inline(always)]
    fn run(self, _: impl Simd) {
        let mut unfinished = (1_u32 << self.pieces.len()) - 1;
        while unfinished != 0 {
            let mut rest = unfinished;
            while rest != 0 {
                let number = rest.trailing_zeros();
                rest &= rest - 1;
                let more = self.pieces[number as usize].step(self.vocab);
                unfinished &= !(u32::from(!more) << number);
            }
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::super::simd::{Isa, dispatch};
    use super::super::vocab::GPT2;
    use super::*;
    use proptest::prelude::*;

    /// The definition: the leftmost pair of lowest rank is merged, until there is none.
    pub fn slowly(vocab: Vocab<'_>, piece: &[u8]) -> Vec<u16> {
        let mut ids: Vec<u16> = piece.iter().map(|byte| byte_id(*byte)).collect();
        loop {
            let ranks = ids.windows(2).map(|pair| vocab.rank(pair[0], pair[1]));
            let Some((rank, at)) = ranks.zip(0..).min().filter(|(rank, _)| *rank != NO_RANK) else {
                return ids;
            };
            ids[at] = merged_id(rank);
            ids.remove(at + 1);
        }
    }

    /// The tokens of pieces that are merged together.
    fn together<const N: usize>(isa: Isa, pieces: &[Vec<u8>]) -> Vec<Vec<u16>> {
        let mut merging = [Merging::<N>::EMPTY; MOST];
        let together = &mut merging[..pieces.len()];
        // Of what was there before, nothing is left.
        for pieces in [pieces.iter().rev().collect::<Vec<_>>(), pieces.iter().collect()] {
            for (merging, piece) in together.iter_mut().zip(pieces) {
                merging.begin(GPT2, piece);
            }
        }
        dispatch(isa.found(), MergeTogether { vocab: GPT2, pieces: together });
        let tokens = |merging: &Merging<N>| {
            let mut ids = [0; N];
            let len = merging.tokens(&mut ids);
            ids[..len].to_vec()
        };
        together.iter().map(tokens).collect()
    }

    #[test]
    fn every_token_merges_into_itself() {
        for id in 0..GPT2.len() as u16 {
            let token = GPT2.bytes(id).unwrap();
            if token.len() <= SHORT {
                let merged = together::<{ SHORT + 2 }>(Isa::Portable, &[token.to_vec()]);
                assert_eq!(merged, [[id]]);
            }
        }
    }

    /// Up to `MOST` pieces of up to so many bytes.
    fn pieces(longest: usize) -> impl Strategy<Value = Vec<Vec<u8>>> {
        let letter = prop::sample::select(b" estinaolr".to_vec());
        let piece = prop_oneof![
            prop::collection::vec(any::<u8>(), 1..=longest),
            prop::collection::vec(letter, 1..=longest),
        ];
        prop::collection::vec(piece, 0..=MOST)
    }

    proptest! {
        #[test]
        fn pieces_that_are_merged_together_merge_as_defined(
            (tiny, short) in (pieces(TINY), pieces(SHORT)),
        ) {
            let slowly = |pieces: &[Vec<u8>]| -> Vec<Vec<u16>> {
                pieces.iter().map(|piece| slowly(GPT2, piece)).collect()
            };
            for isa in Isa::available() {
                prop_assert_eq!(together::<{ TINY + 2 }>(isa, &tiny), slowly(&tiny), "{:?}", isa);
                prop_assert_eq!(together::<{ SHORT + 2 }>(isa, &short), slowly(&short), "{:?}", isa);
            }
        }
    }
}
