//! Tokens by their bytes, their bytes by id, and what two neighbours merge into.

use super::layout::{
    LONG_SLOTS, LONGEST_TOKEN, NO_ID, NUM_RANKS, PAIR_SLOTS, WORD_BYTES, WORD_SLOTS,
    long_word_slot, pack_pair, pair_slot, unpack_word, word_key, word_key_in_window, word_slot,
};
use super::tables::{BYTE_PAIRS, LONG_WORDS, PAIRS, TOKEN_BYTES, TOKEN_ENDS, WORDS};

/// The id of the token whose bytes are `text[start..end]`, if there is one.
///
/// Takes the whole text, not the piece alone: a key is read with one 16-byte load that may run on
/// into what follows.
pub fn find(text: &[u8], start: usize, end: usize) -> Option<u16> {
    let len = end - start;
    if len > WORD_BYTES {
        return find_long(&text[start..end]);
    }
    let key = match text[start..].first_chunk() {
        Some(window) => word_key_in_window(*window, len),
        None => word_key(&text[start..end])?,
    };
    let mut at = word_slot(key);
    loop {
        let slot = u128::from_le_bytes(WORDS[at]);
        let (found, id) = unpack_word(slot);
        if found == key {
            return Some(id);
        }
        if slot == 0 {
            return None;
        }
        at = (at + 1) % WORD_SLOTS;
    }
}

fn find_long(word: &[u8]) -> Option<u16> {
    if word.len() > LONGEST_TOKEN {
        return None;
    }
    let mut at = long_word_slot(word);
    loop {
        let id = u16::from_le_bytes(LONG_WORDS[at]);
        if id == NO_ID {
            return None;
        }
        if bytes(id) == Some(word) {
            return Some(id);
        }
        at = (at + 1) % LONG_SLOTS;
    }
}

/// The bytes of an ordinary token, if there is one with this id.
pub fn bytes(id: u16) -> Option<&'static [u8]> {
    let index = usize::from(id);
    let end = u32::from_le_bytes(*TOKEN_ENDS.get(index)?);
    let start = match index.checked_sub(1) {
        Some(before) => u32::from_le_bytes(TOKEN_ENDS[before]),
        None => 0,
    };
    TOKEN_BYTES.get(start as usize..end as usize)
}

/// The id of a single byte.
pub fn byte_id(byte: u8) -> u16 {
    BYTE_IDS[usize::from(byte)]
}

/// What two neighbouring tokens merge into, or `NO_ID`. The id is also the merge's rank.
pub fn merged(left: u16, right: u16) -> u16 {
    let key = pack_pair(left, right, 0);
    let mut at = pair_slot(left, right);
    loop {
        let slot = u64::from_le_bytes(PAIRS[at]);
        if slot & !0xffff == key && slot != 0 {
            return slot as u16;
        }
        if slot == 0 {
            return NO_ID;
        }
        at = (at + 1) % PAIR_SLOTS;
    }
}

/// What two neighbouring bytes merge into, or `NO_ID`.
pub fn merged_bytes(left: u8, right: u8) -> u16 {
    u16::from_le_bytes(BYTE_PAIRS[usize::from(left) * 256 + usize::from(right)])
}

/// Every merge, in order of rank: the two tokens, and the token they become.
pub fn merges() -> Vec<(u16, u16, u16)> {
    let mut merges: Vec<_> = PAIRS
        .iter()
        .map(|slot| u64::from_le_bytes(*slot))
        .filter(|slot| *slot != 0)
        .map(|slot| ((slot >> 32) as u16, (slot >> 16) as u16, slot as u16))
        .collect();
    merges.sort_unstable_by_key(|&(_, _, merged)| merged);
    merges
}

/// GPT-2 numbers the single bytes 0 to 255, but not in their own order.
static BYTE_IDS: [u16; 256] = {
    let mut ids = [0; 256];
    let mut id = 0;
    while id < 256 {
        ids[TOKEN_BYTES[id] as usize] = id as u16;
        id += 1;
    }
    ids
};

const _: () = assert!(NUM_RANKS < NO_ID as usize);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_is_found_by_its_bytes_and_the_special_one_is_not() {
        for id in 0..NUM_RANKS as u16 {
            let token = bytes(id).unwrap();
            assert_eq!(find(token, 0, token.len()), Some(id));
            let followed = [token, b"0123456789abcdef"].concat();
            assert_eq!(find(&followed, 0, token.len()), Some(id));
        }
        assert_eq!(find(b"<|endoftext|>", 0, 13), None);
        assert_eq!(bytes(NUM_RANKS as u16), None);
    }

    #[test]
    fn a_word_padded_with_nul_bytes_is_not_the_word() {
        assert_eq!(find(b"the\0", 0, 4), None);
        assert_eq!(find(b"\0\0", 0, 2), None);
    }

    #[test]
    fn single_bytes_are_the_first_256_ids() {
        for byte in 0..=u8::MAX {
            assert!(byte_id(byte) < 256);
            assert_eq!(bytes(byte_id(byte)), Some([byte].as_slice()));
        }
    }

    #[test]
    fn every_merge_joins_the_bytes_of_its_two_tokens() {
        let merges = merges();
        assert_eq!(merges.len(), NUM_RANKS - 256);
        for (left, right, joined) in merges {
            let (left_bytes, right_bytes) = (bytes(left).unwrap(), bytes(right).unwrap());
            assert_eq!(bytes(joined).unwrap(), [left_bytes, right_bytes].concat());
            assert_eq!(merged(left, right), joined);
            if let (&[left], &[right]) = (left_bytes, right_bytes) {
                assert_eq!(merged_bytes(left, right), joined);
            }
        }
    }

    #[test]
    fn tokens_that_no_merge_joins_are_not_merged() {
        assert_eq!(merged(220, 220), NO_ID);
        assert_eq!(merged(50_255, 50_255), NO_ID);
        assert_eq!(merged_bytes(0xff, 0xff), NO_ID);
    }
}
