//! Tokens by their bytes, their bytes by id, and what two neighbours merge into.

use super::layout::{
    BYTES, NO_RANK, NUM_BYTES, ends, pair_group, pair_hash, pair_slot, top_bits, unpack,
    unpack_pair, word_hash,
};
use super::pack::Tables;
use super::simd::prefetch;
use super::tables;
use crate::{Error, Result};

/// A view of a vocabulary's tables: GPT-2's, which the program carries, or built ones.
///
/// Ids 0 to 255 are the single bytes, id 256 + r is what merge number r makes.
#[derive(Clone, Copy)]
pub struct Vocab<'a> {
    words: &'a [[u8; 4]],
    pairs: &'a [[u8; 4]],
    pair_steps: &'a [[u8; 2]],
    byte_pairs: &'a [[u8; 2]],
    neighbours: &'a [[u8; NUM_BYTES / 8]],
    merges: &'a [[u8; 4]],
    token_bytes: &'a [u8],
    token_ends: &'a [[u8; 4]],
}

/// GPT-2's tokens but for `<|endoftext|>`.
pub static GPT2: Vocab<'static> = Vocab {
    words: tables::WORDS,
    pairs: tables::PAIRS,
    pair_steps: tables::PAIR_STEPS,
    byte_pairs: tables::BYTE_PAIRS,
    neighbours: tables::NEIGHBOURS,
    merges: tables::MERGES,
    token_bytes: tables::TOKEN_BYTES,
    token_ends: tables::TOKEN_ENDS,
};

impl<'a> Vocab<'a> {
    /// A view of tables that were built.
    pub fn of(tables: &'a Tables) -> Self {
        Self {
            words: &tables.words,
            pairs: &tables.pairs,
            pair_steps: &tables.pair_steps,
            byte_pairs: &tables.byte_pairs,
            neighbours: &tables.neighbours,
            merges: &tables.merges,
            token_bytes: &tables.token_bytes,
            token_ends: &tables.token_ends,
        }
    }

    /// The number of tokens.
    pub fn len(self) -> usize {
        self.token_ends.len()
    }

    /// The id of the token whose bytes are `word`, if there is one.
    pub fn find(self, word: &[u8]) -> Option<u16> {
        self.find_hashed(word_hash(word), word)
    }

    /// Asks for the slot of a word's hash, which is to be looked for soon.
    #[inline(always)]
    pub fn prefetch(self, hash: u64) {
        prefetch(&self.words[top_bits(hash, self.words.len())]);
    }

    /// `find`, for who has the word's hash.
    #[inline]
    pub fn find_hashed(self, hash: u64, word: &[u8]) -> Option<u16> {
        probe(self.words, hash, |id| self.bytes(id).is_some_and(|other| equal(other, word)))
    }

    /// The bytes of a token, if there is one with this id.
    pub fn bytes(self, id: u16) -> Option<&'a [u8]> {
        let index = usize::from(id);
        let end = u32::from_le_bytes(*self.token_ends.get(index)?);
        let start = match index.checked_sub(1) {
            Some(before) => u32::from_le_bytes(self.token_ends[before]),
            None => 0,
        };
        self.token_bytes.get(start as usize..end as usize)
    }

    /// The rank of the merge of two neighbouring tokens, or `NO_RANK`.
    #[inline(always)]
    pub fn rank(self, left: u16, right: u16) -> u16 {
        let hash = pair_hash(left, right);
        let step = u16::from_le_bytes(self.pair_steps[pair_group(hash)]);
        let slot = self.pairs[pair_slot(hash, step, self.pairs.len())];
        unpack_pair(u32::from_le_bytes(slot), hash)
    }

    /// The rank of the merge of two neighbouring bytes, or `NO_RANK`.
    #[inline(always)]
    pub fn rank_of_bytes(self, left: u8, right: u8) -> u16 {
        u16::from_le_bytes(self.byte_pairs[usize::from(left) * NUM_BYTES + usize::from(right)])
    }

    /// Whether any token has these two bytes next to each other. Where none has, no merge ever
    /// crosses, and the bytes on either side merge as if they were alone.
    #[inline(always)]
    pub fn are_neighbours(self, left: u8, right: u8) -> bool {
        self.neighbours[usize::from(left)][usize::from(right / 8)] >> (right % 8) & 1 == 1
    }

    /// The two tokens that the merge of this rank joins.
    pub fn merge(self, rank: u16) -> (u16, u16) {
        let pair = u32::from_le_bytes(self.merges[usize::from(rank)]);
        (pair as u16, (pair >> 16) as u16)
    }

    /// Whether the bytes of two tokens, one after the other, merge into these two again.
    #[inline]
    pub fn stay_apart(self, left: u16, right: u16) -> bool {
        self.meet(left, right, NO_RANK)
    }

    /// Whether merges below rank `limit` alone make these two tokens of their bytes.
    ///
    /// Takes the merges that made them back, the last first. What then meets at the seam would
    /// have merged if that pair's turn had come earlier: by rank, and to the left of an equal.
    fn meet(self, mut left: u16, mut right: u16, limit: u16) -> bool {
        // The rank that a pair at the seam must be below to come first.
        let mut limit = u32::from(limit);
        loop {
            if u32::from(self.rank(left, right)) < limit {
                return false;
            }
            // Of two equal tokens the right one is made last.
            if left > right {
                let Some(rank) = rank_of_id(left) else { return true };
                limit = u32::from(rank);
                left = self.merge(rank).1;
            } else {
                let Some(rank) = rank_of_id(right) else { return true };
                limit = u32::from(rank) + 1;
                right = self.merge(rank).0;
            }
        }
    }

    /// Refuses merges that never come to pass, because others take their tokens first: tiktoken,
    /// which merges whatever makes a token, would give other ids.
    ///
    /// # Errors
    /// `Error::TokenizerDescription`
    pub fn refuse_unreachable_tokens(self) -> Result<()> {
        let unreachable =
            self.merges().zip(0..).find(|(pair, rank)| !self.meet(pair.0, pair.1, *rank));
        match unreachable {
            None => Ok(()),
            Some(((left, right), rank)) => Err(Error::TokenizerDescription(format!(
                "merge {rank} joins ids {left} and {right}, which never meet: earlier merges take \
                 their parts"
            ))),
        }
    }

    /// Every merge, in order of rank: the two tokens that it joins.
    pub fn merges(self) -> impl Iterator<Item = (u16, u16)> {
        (0..self.merges.len()).map(move |rank| self.merge(rank as u16))
    }
}

/// Whether two words are equal: a few loads for short ones, where a call of `memcmp` costs more.
#[inline]
fn equal(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && ends(one) == ends(other) && (one.len() <= 16 || one == other)
}

/// The number in a table that this hash leads to and that is the right one.
#[inline(always)]
fn probe(table: &[[u8; 4]], hash: u64, is_it: impl Fn(u16) -> bool) -> Option<u16> {
    let mut at = top_bits(hash, table.len());
    loop {
        let slot = u32::from_le_bytes(table[at]);
        if slot == 0 {
            return None;
        }
        if let Some(number) = unpack(slot, hash).filter(|number| is_it(*number)) {
            return Some(number);
        }
        at = (at + 1) % table.len();
    }
}

/// What the merge of this rank makes.
#[inline(always)]
pub fn merged_id(rank: u16) -> u16 {
    rank + NUM_BYTES as u16
}

/// The rank of the merge that makes this token; `None` for a single byte.
pub fn rank_of_id(id: u16) -> Option<u16> {
    id.checked_sub(NUM_BYTES as u16)
}

/// The id of a single byte.
#[inline(always)]
pub fn byte_id(byte: u8) -> u16 {
    BYTE_IDS[usize::from(byte)]
}

static BYTE_IDS: [u16; NUM_BYTES] = {
    let mut ids = [0; NUM_BYTES];
    let mut id = 0;
    while id < NUM_BYTES {
        ids[BYTES[id] as usize] = id as u16;
        id += 1;
    }
    ids
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_is_found_by_its_bytes_and_the_special_one_is_not() {
        assert_eq!(GPT2.len(), 50_256);
        for id in 0..GPT2.len() as u16 {
            assert_eq!(GPT2.find(GPT2.bytes(id).unwrap()), Some(id));
        }
        assert_eq!(GPT2.find(b"<|endoftext|>"), None);
        assert_eq!(GPT2.bytes(50_256), None);
    }

    #[test]
    fn a_word_padded_with_nul_bytes_is_not_the_word() {
        assert_eq!(GPT2.find(b"the\0"), None);
        assert_eq!(GPT2.find(b"\0\0"), None);
    }

    #[test]
    fn single_bytes_are_the_first_256_ids() {
        for byte in 0..=u8::MAX {
            assert!(byte_id(byte) < 256);
            assert_eq!(GPT2.bytes(byte_id(byte)), Some([byte].as_slice()));
        }
    }

    #[test]
    fn every_merge_joins_the_bytes_of_its_two_tokens() {
        let merges: Vec<_> = GPT2.merges().collect();
        assert_eq!(merges.len(), 50_000);
        for (rank, &(left, right)) in (0..).zip(&merges) {
            let (left_bytes, right_bytes) = (GPT2.bytes(left).unwrap(), GPT2.bytes(right).unwrap());
            let joined = [left_bytes, right_bytes].concat();
            assert_eq!(GPT2.bytes(merged_id(rank)).unwrap(), joined);
            assert_eq!(GPT2.rank(left, right), rank);
            if let (&[left], &[right]) = (left_bytes, right_bytes) {
                assert_eq!(GPT2.rank_of_bytes(left, right), rank);
            }
        }
    }

    #[test]
    fn bytes_are_neighbours_just_if_a_token_has_them_so() {
        let mut found = vec![false; NUM_BYTES * NUM_BYTES];
        for id in 0..GPT2.len() as u16 {
            for pair in GPT2.bytes(id).unwrap().windows(2) {
                found[usize::from(pair[0]) * NUM_BYTES + usize::from(pair[1])] = true;
            }
        }
        for left in 0..=u8::MAX {
            for right in 0..=u8::MAX {
                let expected = found[usize::from(left) * NUM_BYTES + usize::from(right)];
                assert_eq!(GPT2.are_neighbours(left, right), expected, "{left} {right}");
            }
        }
    }

    #[test]
    fn tokens_that_no_merge_joins_are_not_merged() {
        assert_eq!(GPT2.rank(220, 220), NO_RANK);
        assert_eq!(GPT2.rank(50_255, 50_255), NO_RANK);
        assert_eq!(GPT2.rank_of_bytes(0xff, 0xff), NO_RANK);
    }
}
