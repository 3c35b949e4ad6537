//! The tables that `build.rs` wrote, in the program's read-only data: nothing is built or loaded
//! when it starts.

use super::layout::{CLASS_BLOCK, LONG_SLOTS, NUM_RANKS, PAIR_SLOTS, WORD_SLOTS};

/// Keeps a table's slots from straddling two cache lines.
#[repr(align(64))]
struct Aligned<T>(T);

/// Includes `OUT_DIR/$file` as an array of little-endian records of `$size` bytes each.
macro_rules! table {
    ($(#[$doc:meta])* $name:ident: [[u8; $size:literal]; $len:expr] = $file:literal) => {
        $(#[$doc])*
        pub static $name: &[[u8; $size]; $len] = {
            static FILE: Aligned<[u8; $size * $len]> =
                Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/", $file)));
            match FILE.0.as_chunks::<$size>().0.first_chunk() {
                Some(records) => records,
                None => panic!("the file has as many bytes as its type says"),
            }
        };
    };
}

table!(
    /// `layout::pack_word` of every token of up to 13 bytes.
    WORDS: [[u8; 16]; WORD_SLOTS] = "words.bin"
);
table!(
    /// The ids of the longer tokens.
    LONG_WORDS: [[u8; 2]; LONG_SLOTS] = "long_words.bin"
);
table!(
    /// `layout::pack_pair` of every merge.
    PAIRS: [[u8; 8]; PAIR_SLOTS] = "pairs.bin"
);
table!(
    /// What two single bytes merge into, at `left * 256 + right`.
    BYTE_PAIRS: [[u8; 2]; 256 * 256] = "byte_pairs.bin"
);
table!(
    /// Where each token's bytes end in `TOKEN_BYTES`.
    TOKEN_ENDS: [[u8; 4]; NUM_RANKS] = "token_ends.bin"
);
table!(
    /// The number, in `CLASS_BLOCKS`, of each block of code points.
    CLASS_INDEX: [[u8; 1]; (char::MAX as usize + 1) / CLASS_BLOCK] = "class_index.bin"
);

/// All tokens' bytes, in order of id, with nothing between them.
pub static TOKEN_BYTES: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/token_bytes.bin"));

/// Class codes of the distinct blocks of code points.
pub static CLASS_BLOCKS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/class_blocks.bin"));
