//! The tables that `build.rs` wrote, in the program's read-only data: nothing is built or loaded
//! when it starts. `pack::Tables` says what is in them.

/// Keeps a table's slots from straddling two cache lines.
#[repr(align(64))]
struct Aligned<T>(T);

/// Includes `OUT_DIR/$file` as little-endian records of `$size` bytes each.
macro_rules! table {
    ($(#[$doc:meta])* $name:ident: [u8; $size:literal] = $file:literal) => {
        $(#[$doc])*
        pub static $name: &[[u8; $size]] = {
            const LEN: usize = include_bytes!(concat!(env!("OUT_DIR"), "/", $file)).len();
            static FILE: Aligned<[u8; LEN]> =
                Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/", $file)));
            FILE.0.as_chunks().0
        };
    };
}

table!(WORDS: [u8; 4] = "words.bin");
table!(PAIRS: [u8; 4] = "pairs.bin");
table!(PAIR_STEPS: [u8; 2] = "pair_steps.bin");
table!(BYTE_PAIRS: [u8; 2] = "byte_pairs.bin");
table!(NEIGHBOURS: [u8; 32] = "neighbours.bin");
table!(MERGES: [u8; 4] = "merges.bin");
table!(TOKEN_ENDS: [u8; 4] = "token_ends.bin");
table!(
    /// The number, in `CLASS_BLOCKS`, of each block of code points.
    CLASS_INDEX: [u8; 1] = "class_index.bin"
);

/// All tokens' bytes.
pub static TOKEN_BYTES: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/token_bytes.bin"));

/// Class codes of the distinct blocks of code points.
pub static CLASS_BLOCKS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/class_blocks.bin"));
