//! GPT-2's tokens in order of rank, checked against the file that tiktoken downloads, and the pair
//! of tokens that each one is merged from.

use std::collections::HashMap;
use std::fmt::Write;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest, Sha256};

use crate::tokenizer::layout::{BYTES, NUM_BYTES};

/// Tokens that merging can reach: all of GPT-2's but `<|endoftext|>`.
const NUM_RANKS: usize = 50_256;

/// SHA-256 of `r50k_base.tiktoken`, the value that tiktoken itself expects.
const RANKS_SHA256: &str = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930";

/// The bytes of every token; a token's index is its rank, and its id.
pub fn tokens() -> Result<Vec<Vec<u8>>, String> {
    let bpe = tiktoken_rs::r50k_base_singleton();
    let tokens = (0..NUM_RANKS as u32)
        .map(|rank| bpe.decode_bytes(&[rank]).map_err(|e| e.to_string()))
        .collect::<Result<Vec<_>, _>>()?;

    let mut file = String::new();
    for (rank, token) in tokens.iter().enumerate() {
        writeln!(file, "{} {rank}", BASE64_STANDARD.encode(token)).map_err(|e| e.to_string())?;
    }
    let found = format!("{:x}", Sha256::digest(file));
    if found == RANKS_SHA256 {
        Ok(tokens)
    } else {
        Err(format!("tiktoken-rs carries ranks with SHA-256 {found}, not GPT-2's {RANKS_SHA256}"))
    }
}

/// The pair of ids that each token but the single bytes is merged from, in order of rank.
///
/// tiktoken merges any two neighbours whose bytes together are a token. It suffices to know, for
/// each token, the one pair that merging by lowest rank reaches: were another pair of tokens to
/// stand side by side with the same bytes, merging those bytes alone would reach it too.
pub fn merges(tokens: &[Vec<u8>]) -> Result<Vec<(u16, u16)>, String> {
    let mut ids: HashMap<(u16, u16), u16> = HashMap::new();
    let mut merges = Vec::new();
    for (token, merged) in tokens.iter().zip(0u16..).skip(NUM_BYTES) {
        let mut parts: Vec<u16> = token.iter().map(|byte| byte_id(*byte)).collect();
        merge_fully(&mut parts, &ids);
        let &[left, right] = parts.as_slice() else {
            return Err(format!("token {merged} is not a merge of two earlier tokens: {parts:?}"));
        };
        ids.insert((left, right), merged);
        merges.push((left, right));
    }
    Ok(merges)
}

fn byte_id(byte: u8) -> u16 {
    BYTES.iter().zip(0..).find_map(|(other, id)| (*other == byte).then_some(id)).unwrap_or(0)
}

/// Merges the leftmost pair of lowest rank until no neighbours are a pair in `ids`.
fn merge_fully(parts: &mut Vec<u16>, ids: &HashMap<(u16, u16), u16>) {
    while let Some((merged, at)) = parts
        .windows(2)
        .enumerate()
        .filter_map(|(at, pair)| Some((*ids.get(&(pair[0], pair[1]))?, at)))
        .min()
    {
        parts[at] = merged;
        parts.remove(at + 1);
    }
}
