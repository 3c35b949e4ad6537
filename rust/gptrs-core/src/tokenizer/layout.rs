//! How the read-only tables are laid out. Compiled into `build.rs` as well, so that the code that
//! writes them and the code that reads them cannot disagree.

#![allow(dead_code, reason = "the build script packs what the crate unpacks")]

/// Tokens that merging can reach: all of GPT-2's but `<|endoftext|>`.
pub const NUM_RANKS: usize = 50_256;

/// No token: larger than every id.
pub const NO_ID: u16 = u16::MAX;

/// No token has more bytes than this.
pub const LONGEST_TOKEN: usize = 128;

/// Pieces of up to this many bytes are their own key in the table of words.
pub const WORD_BYTES: usize = 13;

const WORD_SLOT_BITS: u32 = 17;
const LONG_SLOT_BITS: u32 = 13;
const PAIR_SLOT_BITS: u32 = 17;

/// Slots in the table of words, about 2.7 a token.
pub const WORD_SLOTS: usize = 1 << WORD_SLOT_BITS;
/// Slots in the table of longer words, about 4 a token.
pub const LONG_SLOTS: usize = 1 << LONG_SLOT_BITS;
/// Slots in the table of merges, about 2.6 a merge.
pub const PAIR_SLOTS: usize = 1 << PAIR_SLOT_BITS;

/// Code points in a block of the Unicode table.
pub const CLASS_BLOCK: usize = 256;
/// Class codes in the Unicode table. Whatever is none of the others is a symbol.
pub const SYMBOL: u8 = 0;
/// `\p{L}`
pub const LETTER: u8 = 1;
/// `\p{N}`
pub const NUMBER: u8 = 2;
/// `\s`, that is `White_Space`
pub const SPACE: u8 = 3;

// A word's key:  bytes 0 to 12 the word, padded with zeros; byte 13 its length.
// A word's slot: its key, and bytes 14 and 15 its id. No length is 0, so a zero slot is empty.
const LEN_SHIFT: u32 = 8 * WORD_BYTES as u32;
const ID_SHIFT: u32 = LEN_SHIFT + 8;

/// The key of a word, or `None` if it has more than `WORD_BYTES` bytes.
pub fn word_key(word: &[u8]) -> Option<u128> {
    let mut window = [0; 16];
    window.get_mut(..WORD_BYTES)?.get_mut(..word.len())?.copy_from_slice(word);
    Some(word_key_in_window(window, word.len()))
}

/// The key of the first `len` bytes of `window`, `len` at most `WORD_BYTES`.
pub fn word_key_in_window(window: [u8; 16], len: usize) -> u128 {
    let kept = u128::from_le_bytes(window) & ((1 << (8 * len)) - 1);
    kept | (len as u128) << LEN_SHIFT
}

/// Where to start looking for a word.
pub fn word_slot(key: u128) -> usize {
    (mix(key as u64, (key >> 64) as u64) >> (64 - WORD_SLOT_BITS)) as usize
}

/// A full slot of the table of words.
pub fn pack_word(key: u128, id: u16) -> u128 {
    key | u128::from(id) << ID_SHIFT
}

/// The key and the id in a slot of the table of words.
pub fn unpack_word(slot: u128) -> (u128, u16) {
    (slot & ((1 << ID_SHIFT) - 1), (slot >> ID_SHIFT) as u16)
}

/// Where to start looking for a word of more than `WORD_BYTES` bytes.
pub fn long_word_slot(word: &[u8]) -> usize {
    let first = word.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let last = word.last_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let hash = mix(first ^ word.len() as u64, last);
    (hash >> (64 - LONG_SLOT_BITS)) as usize
}

/// Where to start looking for a pair.
pub fn pair_slot(left: u16, right: u16) -> usize {
    let key = u64::from(left) << 16 | u64::from(right);
    (key.wrapping_mul(MULTIPLIER) >> (64 - PAIR_SLOT_BITS)) as usize
}

/// A full slot of the table of merges; never 0, as no merge makes token 0.
pub fn pack_pair(left: u16, right: u16, merged: u16) -> u64 {
    u64::from(left) << 32 | u64::from(right) << 16 | u64::from(merged)
}

// 2^64 divided by the golden ratio (Knuth's multiplicative hashing), and the fraction of pi.
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
const SALT: u64 = 0x243f_6a88_85a3_08d3;

/// Both halves of a 64 x 64-bit product, folded: every bit of the input reaches the top bits.
fn mix(low: u64, high: u64) -> u64 {
    let product = u128::from(low ^ SALT) * u128::from(high ^ MULTIPLIER);
    product as u64 ^ (product >> 64) as u64
}
