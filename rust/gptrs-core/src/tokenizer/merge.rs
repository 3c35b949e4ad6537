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
//! Two ways: short pieces in arrays on the stack, long ones in parts (`long`).

mod long;

pub use long::LongMerger;

use super::layout::NO_RANK;
use super::simd::{Simd, Work};
use super::vocab::{Vocab, byte_id, merged_id};

/// Pieces of up to this many bytes are short: 64 bits say where tokens start.
pub const SHORT: usize = 64;

/// Merges a piece of at most `SHORT` bytes: writes its tokens to `ids`, and returns them.
pub struct MergeShort<'a> {
    pub vocab: Vocab<'a>,
    pub piece: &'a [u8],
    pub ids: &'a mut [u16; SHORT],
}

impl<'a> Work for MergeShort<'a> {
    type Output = &'a [u16];

    #[inline(always)]
    fn run(self, _: impl Simd) -> &'a [u16] {
        let Self { vocab, piece, ids } = self;
        match piece.len() {
            0..=16 => merge_lanes::<16>(vocab, piece, ids),
            17..=32 => merge_lanes::<32>(vocab, piece, ids),
            _ => merge_lanes::<SHORT>(vocab, piece, ids),
        }
    }
}

/// No pair: larger than every `rank << 8 | place`.
const NO_PAIR: u32 = u32::MAX;

#[inline(always)]
fn merge_lanes<'a, const N: usize>(
    vocab: Vocab<'_>,
    piece: &[u8],
    ids: &'a mut [u16; SHORT],
) -> &'a [u16] {
    let pair = |rank: u16, place: usize| {
        if rank == NO_RANK { NO_PAIR } else { u32::from(rank) << 8 | place as u32 }
    };
    // pairs[i] is the pair of the token that starts at byte i with the next: the least of them is
    // the leftmost of lowest rank.
    let mut pairs = [NO_PAIR; N];
    for (place, (id, byte)) in ids.iter_mut().zip(piece).enumerate() {
        *id = byte_id(*byte);
        if let Some(next) = piece.get(place + 1) {
            pairs[place] = pair(vocab.rank_of_bytes(*byte, *next), place);
        }
    }
    // Bit i: a token starts at byte i.
    let mut starts = u64::MAX >> (SHORT - piece.len());
    loop {
        let lowest = pairs.iter().copied().min().unwrap_or(NO_PAIR);
        if lowest == NO_PAIR {
            break;
        }
        let (rank, at) = ((lowest >> 8) as u16, (lowest & 0xff) as usize);
        let after = starts & (u64::MAX << at << 1);
        let right = after.trailing_zeros() as usize;
        starts &= !(1 << right);
        ids[at] = merged_id(rank);
        pairs[right] = NO_PAIR;
        let next = (after & (after - 1)).trailing_zeros() as usize;
        pairs[at] = match ids.get(next) {
            Some(next) => pair(vocab.rank(ids[at], *next), at),
            None => NO_PAIR,
        };
        let before = starts & !(u64::MAX << at);
        if before != 0 {
            let left = SHORT - 1 - before.leading_zeros() as usize;
            pairs[left] = pair(vocab.rank(ids[left], ids[at]), left);
        }
    }
    let mut len = 0;
    while starts != 0 {
        ids[len] = ids[starts.trailing_zeros() as usize];
        len += 1;
        starts &= starts - 1;
    }
    &ids[..len]
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

    fn short(piece: &[u8]) -> Vec<u16> {
        let merge = |isa: Isa| {
            let mut ids = [0; SHORT];
            dispatch(isa.found(), MergeShort { vocab: GPT2, piece, ids: &mut ids }).to_vec()
        };
        let merged = merge(Isa::Portable);
        for isa in Isa::available() {
            assert_eq!(merge(isa), merged);
        }
        merged
    }

    #[test]
    fn every_token_merges_into_itself() {
        for id in 0..GPT2.len() as u16 {
            let token = GPT2.bytes(id).unwrap();
            if token.len() <= SHORT {
                assert_eq!(short(token), [id]);
            }
        }
    }

    proptest! {
        #[test]
        fn short_pieces_merge_as_defined(piece in prop::collection::vec(any::<u8>(), 1..=SHORT)) {
            prop_assert_eq!(short(&piece), slowly(GPT2, &piece));
        }

        #[test]
        fn short_pieces_of_few_letters_merge_as_defined(piece in "[ estin]{1,64}") {
            prop_assert_eq!(short(piece.as_bytes()), slowly(GPT2, piece.as_bytes()));
        }
    }
}
