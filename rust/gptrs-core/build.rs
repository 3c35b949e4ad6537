//! Writes the tokenizer's read-only tables, so that a program starts with its vocabulary in place.
//!
//! ```text
//!   tiktoken-rs ──► ranks ──► words.bin, long_words.bin   a whole piece -> its id
//!                     │  ├──► pairs.bin, byte_pairs.bin   two neighbours -> the id they merge into
//!                     │  └──► token_bytes.bin, token_ends.bin          an id -> its bytes
//!                     └ SHA-256 asserted
//!   regex-syntax ──► classes ──► class_blocks.bin, class_index.bin     a char -> letter, number, …
//! ```
//!
//! Plain little-endian files under `OUT_DIR`: `src/tokenizer/tables.rs` includes them, and
//! `src/tokenizer/layout.rs`, compiled here too, says where in them a key lives.

#[path = "build/classes.rs"]
mod classes;
#[path = "src/tokenizer/layout.rs"]
mod layout;
#[path = "build/ranks.rs"]
mod ranks;
#[path = "build/tables.rs"]
mod tables;

use std::error::Error;
use std::path::Path;
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    for path in ["build.rs", "build", "src/tokenizer/layout.rs"] {
        println!("cargo::rerun-if-changed={path}");
    }
    let out_dir = env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR for build scripts")?;
    let write = |name: &str, bytes: Vec<u8>| fs::write(Path::new(&out_dir).join(name), bytes);

    let tokens = ranks::tokens()?;
    let merges = ranks::merges(&tokens)?;
    let (token_bytes, token_ends) = tables::token_bytes(&tokens);
    write("token_bytes.bin", token_bytes)?;
    write("token_ends.bin", token_ends)?;
    write("words.bin", tables::words(&tokens))?;
    write("long_words.bin", tables::long_words(&tokens))?;
    write("pairs.bin", tables::pairs(&merges))?;
    write("byte_pairs.bin", tables::byte_pairs(&tokens, &merges))?;

    let (class_index, class_blocks) = classes::two_stage_table()?;
    write("class_index.bin", class_index)?;
    write("class_blocks.bin", class_blocks)?;
    Ok(())
}
