//! Writes the tokenizer's read-only tables, so that a program starts with its vocabulary in place.
//!
//! ```text
//!   tiktoken-rs ──► ranks ──► pack ──► words.bin                    a whole piece -> its id
//!                    │             ├─► pairs.bin, pair_steps.bin   two neighbours -> a merge's rank
//!                    │             ├─► byte_pairs.bin              two bytes -> the same
//!                    │             ├─► neighbours.bin              two bytes -> whether a token has both
//!                    │             ├─► merges.bin                  a rank -> the two it joins
//!                    │             └─► token_bytes.bin, token_ends.bin        an id -> its bytes
//!                    └ SHA-256 asserted
//!   regex-syntax ──► classes ──► class_blocks.bin, class_index.bin   a char -> letter, number, …
//! ```
//!
//! Plain little-endian files under `OUT_DIR`: `src/tokenizer/tables.rs` includes them.

#[path = "build/classes.rs"]
mod classes;
#[path = "build/ranks.rs"]
mod ranks;
/// Those of the crate's modules that write the tables.
#[path = "src/tokenizer"]
mod tokenizer {
    pub mod layout;
    pub mod pack;
}

use std::error::Error;
use std::path::Path;
use std::{env, fs};

use tokenizer::pack::{self, Tables};

fn main() -> Result<(), Box<dyn Error>> {
    for path in ["build.rs", "build", "src/tokenizer/layout.rs", "src/tokenizer/pack.rs"] {
        println!("cargo::rerun-if-changed={path}");
    }
    let out_dir = env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR for build scripts")?;
    let write = |name: &str, bytes: &[u8]| fs::write(Path::new(&out_dir).join(name), bytes);

    let tokens = ranks::tokens()?;
    let merges = ranks::merges(&tokens)?;
    if pack::tokens(&merges) != tokens {
        return Err(
            "GPT-2's single bytes are not its first ids in the order of layout::BYTES".into()
        );
    }
    let tables = Tables::of(&merges);
    write("words.bin", tables.words.as_flattened())?;
    write("pairs.bin", tables.pairs.as_flattened())?;
    write("pair_steps.bin", tables.pair_steps.as_flattened())?;
    write("byte_pairs.bin", tables.byte_pairs.as_flattened())?;
    write("neighbours.bin", tables.neighbours.as_flattened())?;
    write("merges.bin", tables.merges.as_flattened())?;
    write("token_bytes.bin", &tables.token_bytes)?;
    write("token_ends.bin", tables.token_ends.as_flattened())?;

    let (class_index, class_blocks) = classes::two_stage_table()?;
    write("class_index.bin", &class_index)?;
    write("class_blocks.bin", &class_blocks)?;
    Ok(())
}
