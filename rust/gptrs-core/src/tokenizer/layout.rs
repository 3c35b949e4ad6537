//! How the tables of a vocabulary are laid out. Compiled into `build.rs` as well, so that the code
//! that writes them and the code that reads them cannot disagree.

#![allow(dead_code, reason = "the build script packs what the crate unpacks")]

/// The single bytes are ids 0 to 255; merge number r, whose rank is r, makes id 256 + r.
pub const NUM_BYTES: usize = 256;

/// The byte of each of these ids: GPT-2's order, in which what prints as itself in Latin-1 (U+0021
/// to U+007E, U+00A1 to U+00AC, U+00AE to U+00FF) comes before the rest.
pub const BYTES: [u8; NUM_BYTES] = {
    let mut bytes = [0; NUM_BYTES];
    let (mut id, mut pass) = (0, 0);
    while pass < 2 {
        let mut byte = 0;
        while byte < NUM_BYTES {
            let visible = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
            if visible == (pass == 0) {
                bytes[id] = byte as u8;
                id += 1;
            }
            byte += 1;
        }
        pass += 1;
    }
    bytes
};

/// No merge: larger than every rank.
pub const NO_RANK: u16 = u16::MAX;

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
/// How many classes there are.
pub const NUM_CLASSES: usize = 4;

// A slot of the tables of words and merges: a number plus 1, and above it the lowest bits of the
// hash, which tell most other entries apart. What it is the number of is looked up elsewhere.
const NUMBER_BITS: u32 = 17;

/// A full slot.
pub fn pack(hash: u64, number: u16) -> u32 {
    (hash as u32) << NUMBER_BITS | (u32::from(number) + 1)
}

/// The number in a full slot, if its entry may be the one that was hashed.
#[inline(always)]
pub fn unpack(slot: u32, hash: u64) -> Option<u16> {
    let is_same = (slot >> NUMBER_BITS) ^ (hash as u32) & (u32::MAX >> NUMBER_BITS) == 0;
    is_same.then(|| (slot.wrapping_sub(1)) as u16)
}

/// The hash of a word. Words of more than 16 bytes may share one.
#[inline]
pub fn word_hash(word: &[u8]) -> u64 {
    let [first, last] = ends(word);
    mix(first ^ word.len() as u64, last)
}

/// A word's first 8 bytes and its last 8. Of a word of up to 16 bytes that is everything.
#[inline]
pub fn ends(word: &[u8]) -> [u64; 2] {
    if let (Some(first), Some(last)) = (word.first_chunk::<8>(), word.last_chunk::<8>()) {
        [u64::from_le_bytes(*first), u64::from_le_bytes(*last)]
    } else if let (Some(first), Some(last)) = (word.first_chunk::<4>(), word.last_chunk::<4>()) {
        [u32::from_le_bytes(*first).into(), u32::from_le_bytes(*last).into()]
    } else {
        [word.iter().fold(0, |all, byte| all << 8 | u64::from(*byte)), 0]
    }
}

/// The hash of a pair of ids: another for each pair, since each step can be undone.
#[inline(always)]
pub fn pair_hash(left: u16, right: u16) -> u32 {
    let product = (u32::from(left) << 16 | u32::from(right)).wrapping_mul(PAIR_MULTIPLIER);
    // The low bits of a product depend on few of its factor's.
    product ^ product >> 16
}

/// How many groups of pairs there are, each with a step of its own.
pub const PAIR_GROUPS: usize = 1 << 13;

/// The group of a pair's hash.
#[inline(always)]
pub fn pair_group(hash: u32) -> usize {
    (hash as u16 >> 3).into()
}

/// The slot of a pair's hash, whose group has this step; there are `slots`, a power of two. The
/// slot and the low half of the hash tell the high half, so to keep the low half there is enough.
#[inline(always)]
pub fn pair_slot(hash: u32, step: u16, slots: usize) -> usize {
    let stride = 2 * u32::from(hash as u16) + 1;
    (hash >> 16).wrapping_add(u32::from(step).wrapping_mul(stride)) as usize & (slots - 1)
}

/// A slot of the table of pairs: the low half of the pair's hash, and its rank.
pub fn pack_pair(hash: u32, rank: u16) -> u32 {
    hash << 16 | u32::from(rank)
}

/// The rank in a slot if it is that of this hash, else `NO_RANK`.
#[inline(always)]
pub fn unpack_pair(slot: u32, hash: u32) -> u16 {
    let is_same = (slot >> 16) as u16 == hash as u16;
    std::hint::select_unpredictable(is_same, slot as u16, NO_RANK)
}

/// How many slots a table of `len` entries gets: at most half are full.
pub fn slots_for(len: usize) -> usize {
    (2 * len).next_power_of_two().max(2)
}

/// The number, 0 to `slots` - 1, that a hash begins with. `slots` is a power of two, at least 2.
#[inline(always)]
pub fn top_bits(hash: u64, slots: usize) -> usize {
    (hash >> (64 - slots.trailing_zeros())) as usize
}

// 2^32 divided by the golden ratio, made odd.
const PAIR_MULTIPLIER: u32 = 0x9e37_79b9;
// 2^64 divided by the golden ratio (Knuth's multiplicative hashing), and the fraction of pi.
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
const SALT: u64 = 0x243f_6a88_85a3_08d3;

/// Both halves of a 64 x 64-bit product, folded: every bit of the input reaches the top bits.
#[inline(always)]
pub fn mix(low: u64, high: u64) -> u64 {
    let product = u128::from(low ^ SALT) * u128::from(high ^ MULTIPLIER);
    product as u64 ^ (product >> 64) as u64
}
