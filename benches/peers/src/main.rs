//! Encodes one file several times with the crate `bpe` and prints the seconds as one line of JSON.
//!
//!   bench-peers RANKS TEXT REPEATS [IDS]
//!
//! The same protocol as `tokenizer_worker.py`: a tiny text first, then the file, cold; then again.
//! RANKS is a `.tiktoken` file. IDS is where the ids go, as little-endian u32.

use std::error::Error;
use std::time::Instant;
use std::{env, fs};

use bpe_openai::Tokenizer;
use bpe_openai::byte_pair_encoding::BytePairEncoding;

/// A multiplier with which the hashes of no two tokens collide; `bpe-openai` has it in its build script.
const HASH_FACTOR: u64 = 17_846_336_922_010_275_747;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [ranks, text, repeats, ids_file @ ..] = arguments.as_slice() else {
        return Err("usage: bench-peers RANKS TEXT REPEATS [IDS]".into());
    };
    let text = fs::read_to_string(text)?;
    let tokenizer = gpt2(&fs::read_to_string(ranks)?)?;
    tokenizer.encode("Hello there");

    forget_peak_memory();
    let bytes_before = status_bytes("VmRSS:");
    let mut bytes_peak = bytes_before;
    let mut seconds = Vec::new();
    for repeat in 0..repeats.parse()? {
        let start = Instant::now();
        let ids = tokenizer.encode(text.as_str());
        seconds.push(start.elapsed().as_secs_f64());
        if repeat == 0 {
            bytes_peak = status_bytes("VmHWM:");
            if let [path] = ids_file {
                let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
                fs::write(path, bytes)?;
            }
        }
    }
    let memory_bytes = bytes_peak.saturating_sub(bytes_before);
    println!("{{\"seconds\": {seconds:?}, \"memory_bytes\": {memory_bytes}}}");
    Ok(())
}

/// GPT-2's pattern the way `bpe-openai` writes such patterns: its regex engine has no look-ahead, so
/// the second one takes one white space too many, and gives it back.
fn gpt2(ranks: &str) -> Result<Tokenizer, Box<dyn Error>> {
    let pieces = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+$";
    let patterns = [(pieces, false), (r"\s+\s", true), (r"\s+", false)];
    let bpe = BytePairEncoding::from_tiktoken(ranks, Some(HASH_FACTOR))?;
    Ok(Tokenizer::new_lookahead(bpe, &patterns, false)?)
}

/// Sets the peak that Linux keeps of a process's memory to what it has now; elsewhere does nothing.
fn forget_peak_memory() {
    let _ = fs::write("/proc/self/clear_refs", "5");
}

/// A size from Linux's description of this process; 0 elsewhere.
fn status_bytes(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(field));
    let kilobytes = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}
