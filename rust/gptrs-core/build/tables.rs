//! The vocabulary as bytes on disk: hash tables with linear probing, zero where a slot is empty.

use crate::layout::{
    LONG_SLOTS, LONGEST_TOKEN, NO_ID, PAIR_SLOTS, WORD_SLOTS, long_word_slot, pack_pair, pack_word,
    pair_slot, word_key, word_slot,
};
use crate::ranks::Merge;

/// All tokens' bytes end to end, and a u32 for each token: where its bytes end.
pub fn token_bytes(tokens: &[Vec<u8>]) -> (Vec<u8>, Vec<u8>) {
    let bytes = tokens.concat();
    let ends = tokens.iter().scan(0u32, |end, token| {
        *end += token.len() as u32;
        Some(end.to_le_bytes())
    });
    (bytes, ends.flatten().collect())
}

/// Tokens short enough to be a key themselves: u128 slots of `pack_word`.
pub fn words(tokens: &[Vec<u8>]) -> Vec<u8> {
    let mut slots = vec![0u128; WORD_SLOTS];
    for (token, id) in tokens.iter().zip(0u16..) {
        if let Some(key) = word_key(token) {
            let slot = first_free(&slots, word_slot(key), |&slot| slot == 0);
            slots[slot] = pack_word(key, id);
        }
    }
    slots.into_iter().flat_map(u128::to_le_bytes).collect()
}

/// The tokens that are longer: u16 ids, to be compared with the token's bytes.
pub fn long_words(tokens: &[Vec<u8>]) -> Vec<u8> {
    let mut slots = vec![NO_ID; LONG_SLOTS];
    for (token, id) in tokens.iter().zip(0u16..) {
        assert!(token.len() <= LONGEST_TOKEN, "token {id} has {} bytes", token.len());
        if word_key(token).is_none() {
            let slot = first_free(&slots, long_word_slot(token), |&slot| slot == NO_ID);
            slots[slot] = id;
        }
    }
    slots.into_iter().flat_map(u16::to_le_bytes).collect()
}

/// Every merge: u64 slots of `pack_pair`.
pub fn pairs(merges: &[Merge]) -> Vec<u8> {
    let mut slots = vec![0u64; PAIR_SLOTS];
    for merge in merges {
        let start = pair_slot(merge.left, merge.right);
        let slot = first_free(&slots, start, |&slot| slot == 0);
        slots[slot] = pack_pair(merge.left, merge.right, merge.merged);
    }
    slots.into_iter().flat_map(u64::to_le_bytes).collect()
}

/// The merges of two single bytes once more: a u16 id for each pair, at `left * 256 + right`.
pub fn byte_pairs(tokens: &[Vec<u8>], merges: &[Merge]) -> Vec<u8> {
    let mut ids = vec![NO_ID; 256 * 256];
    for merge in merges {
        let (left, right) = (&tokens[usize::from(merge.left)], &tokens[usize::from(merge.right)]);
        if let (&[left], &[right]) = (left.as_slice(), right.as_slice()) {
            ids[usize::from(left) * 256 + usize::from(right)] = merge.merged;
        }
    }
    ids.into_iter().flat_map(u16::to_le_bytes).collect()
}

/// The first free slot at or after `start`, going round at the end.
fn first_free<T>(slots: &[T], start: usize, is_free: impl Fn(&T) -> bool) -> usize {
    let mut slot = start;
    while !is_free(&slots[slot]) {
        slot = (slot + 1) % slots.len();
    }
    slot
}
