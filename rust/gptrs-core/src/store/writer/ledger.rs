//! What a writer that goes on has to know of the shards that are sealed.

use std::path::Path;

use crate::Result;
use crate::store::Shard;
use crate::store::files::{failed, refused, remove_file, write_whole};
use crate::store::manifest::{ends_name, hashes_name, tokens_name};

/// The counts and checksums of the shards that are sealed, beside them while they are written.
pub const LEDGER: &str = "shards.json";

/// The first `len` shards, all of them full.
pub fn read(dir: &Path, len: usize, shard_tokens: u64) -> Result<Vec<Shard>> {
    if len == 0 {
        return Ok(Vec::new());
    }
    let path = dir.join(LEDGER);
    let content = std::fs::read(&path).map_err(|error| failed(&path, "read", &error))?;
    let mut shards: Vec<Shard> = serde_json::from_slice(&content)
        .map_err(|error| refused(&path, format!("is damaged: {error}")))?;
    shards.truncate(len);
    let full = shards.iter().filter(|shard| shard.num_tokens == shard_tokens).count();
    if full < len {
        return Err(refused(&path, format!("has {full} full shards, expected {len}")));
    }
    Ok(shards)
}

pub fn write(dir: &Path, shards: &[Shard]) -> Result<()> {
    let path = dir.join(LEDGER);
    let json = serde_json::to_vec(shards);
    let json = json.map_err(|error| refused(&path, format!("cannot be written: {error}")))?;
    write_whole(&path, &json)
}

/// Removes shard `from` and those behind it.
pub fn remove_shards(dir: &Path, from: usize) -> Result<()> {
    let unreadable = |error| failed(dir, "read", &error);
    for entry in std::fs::read_dir(dir).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if shard_of(&name).is_some_and(|shard| shard >= from) {
            remove_file(&path)?;
        }
    }
    Ok(())
}

/// The number of the shard that a file of this name belongs to.
fn shard_of(name: &str) -> Option<usize> {
    let (_, number) = name.strip_suffix(".npy")?.split_once('-')?;
    let shard = number.parse().ok()?;
    let ours = [tokens_name(shard), ends_name(shard), hashes_name(shard)];
    ours.iter().any(|ours| ours == name).then_some(shard)
}
