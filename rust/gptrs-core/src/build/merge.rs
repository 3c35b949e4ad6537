//! Stores become one store: the documents of the first, then those of the second, and so on.
//!
//! ```text
//!   a/tokens-00000.npy ──────────────► out/tokens-00000.npy     the same file, under one more name
//!   a/tokens-00001.npy ──────────────► out/tokens-00001.npy
//!   b/tokens-00000.npy ── rewritten ─► out/tokens-00002.npy     it had a document that a has, too
//!   b/tokens-00001.npy ──────────────► out/tokens-00003.npy
//! ```
//!
//! Equal documents are told by the hashes that parts of a larger build keep, in their order: the
//! earliest stays.

mod files;
mod parts;
mod shards;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64;

use super::finish::{Finished, publish};
use super::folder::{Folder, holds_store_already};
use super::seen::Seen;
use crate::store::Manifest;
use crate::store::files::{create_folder, failed, sync_folder};
use crate::store::manifest::TOKENIZER_FILE;
use crate::tokenizer::{Check, Tokenizer, file};
use crate::{Error, Result};

use files::check_digest;
use parts::{Part, streams_of};
use shards::Joined;

/// How a merge is done, and how far it is.
#[derive(Debug)]
pub struct Merge<'a> {
    /// Whether to leave out documents that equal an earlier one.
    pub deduplicate: bool,
    /// How much memory the hashes of documents may take.
    pub memory_bytes: usize,
    /// Counts along.
    pub progress: &'a Progress,
}

/// How far a merge is.
#[derive(Debug, Default)]
pub struct Progress {
    /// The tokens of the parts so far.
    pub tokens: AtomicU64,
    /// Their bytes.
    pub bytes: AtomicU64,
    /// The bytes of all tokens; known soon after the start.
    pub bytes_total: AtomicU64,
}

impl Progress {
    fn add(&self, tokens: u64, bytes: u64) {
        self.tokens.fetch_add(tokens, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// What a merge that was interrupted was to do.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Plan {
    deduplicate: bool,
    /// XXH3-64 of the manifests of all parts.
    merge: Vec<String>,
}

/// A stream's name, and what the parts have of it.
type Stream = (&'static str, Vec<Part>);

impl Merge<'_> {
    /// Joins the stores in `parts` in this order: `out` becomes a store, or nothing does. Started
    /// again after a kill, it ends with the same bytes.
    ///
    /// # Errors
    /// `Error::Store`: a part is missing, damaged or no store; parts differ in what made them, or are
    /// not all parts of one build in order; a part lacks the hashes that `deduplicate` needs; `out`
    /// holds a store or a build, or cannot be written. Those of `check`.
    pub fn run(&self, parts: &[PathBuf], out: &Path, check: Check<'_>) -> Result<()> {
        let [first, ..] = parts else {
            return Err(Error::Setting(
                "there is nothing to merge: no parts were given".to_owned(),
            ));
        };
        let mut streams = Vec::new();
        for name in streams_of(first) {
            streams.push((*name, parts::read(parts, name, self.deduplicate)?));
        }
        let all = || streams.iter().flat_map(|(_, parts)| parts);
        let num_tokens = all().map(|part| part.manifest.num_tokens).sum();
        let num_bytes = all().map(Part::num_bytes).sum();
        self.progress.bytes_total.store(num_bytes, Ordering::Relaxed);
        let tokenizer = tokenizer_json(&streams[0].1[0])?;
        let folder = Folder::open(out)?;
        self.begin(&folder, &streams)?;
        let finished = if let Some(finished) = folder.read_finished()? {
            self.progress.add(num_tokens, num_bytes);
            finished
        } else {
            let joined = self.join_all(&folder, &streams, &tokenizer, check);
            joined.inspect_err(|_| drop(folder.remove()))?
        };
        publish(&folder, &finished, &tokenizer)
    }

    /// Notes what is to be done, or finds that it was begun already.
    fn begin(&self, folder: &Folder, streams: &[Stream]) -> Result<()> {
        let parts = streams.iter().flat_map(|(_, parts)| parts);
        let plan = Plan {
            deduplicate: self.deduplicate,
            merge: parts
                .map(|part| format!("{:016x}", xxh3_64(part.manifest.to_json().as_bytes())))
                .collect(),
        };
        match folder.read_plan::<Plan>()? {
            Some(begun) if begun == plan => Ok(()),
            Some(_) => Err(folder.differs("it merges other parts, or otherwise")),
            None if folder.holds_store() => {
                folder.remove()?;
                Err(holds_store_already(folder.out()))
            }
            None => folder.write_plan(&plan),
        }
    }

    fn join_all(
        &self,
        folder: &Folder,
        streams: &[Stream],
        tokenizer: &str,
        check: Check<'_>,
    ) -> Result<Vec<Finished>> {
        let mut finished = Vec::new();
        for (name, parts) in streams {
            let dir = folder.path().join(name);
            if dir.exists() {
                std::fs::remove_dir_all(&dir).map_err(|error| failed(&dir, "removed", &error))?;
            }
            create_folder(&dir)?;
            let manifest = self.join(folder, name, parts, tokenizer, check)?;
            sync_folder(&dir)?;
            finished.push(Finished { name: (*name).to_owned(), manifest });
        }
        folder.write_finished(&finished)?;
        Ok(finished)
    }

    /// Makes the shards of one stream.
    fn join(
        &self,
        folder: &Folder,
        name: &str,
        parts: &[Part],
        tokenizer: &str,
        check: Check<'_>,
    ) -> Result<Manifest> {
        let mut manifest = parts::joined_manifest(parts, self.deduplicate);
        let dir = folder.path().join(name);
        let mut joined = Joined::new(&dir, &manifest, self.progress);
        let mut seen = None;
        if self.deduplicate {
            // A document of one stream is in no other: equal documents go to the same side.
            seen = Some(Seen::new(folder.path(), self.memory_bytes)?);
            joined.token_bytes = Some(token_bytes(tokenizer)?);
        }
        for part in parts {
            match &mut seen {
                Some(seen) => joined.append_new(part, seen, check)?,
                None => joined.append_all(part, check)?,
            }
        }
        manifest.dropped.duplicate += joined.dropped;
        manifest.text_bytes = match manifest.text_bytes {
            0 => 0,
            text_bytes => text_bytes.saturating_sub(joined.dropped_bytes),
        };
        manifest.shards = joined.shards;
        manifest.num_tokens = manifest.shards.iter().map(|shard| shard.num_tokens).sum();
        manifest.num_documents = manifest.shards.iter().map(|shard| shard.num_documents).sum();
        Ok(manifest)
    }
}

/// A part's `tokenizer.json`, which is that of all.
fn tokenizer_json(part: &Part) -> Result<String> {
    let path = part.dir.join(TOKENIZER_FILE);
    let json = std::fs::read_to_string(&path).map_err(|error| failed(&path, "read", &error))?;
    check_digest(&path, xxh3_64(json.as_bytes()), part.manifest.tokenizer.json_xxh3)?;
    Ok(json)
}

/// How many bytes of text each id stands for.
fn token_bytes(tokenizer_json: &str) -> Result<Vec<u64>> {
    let tokenizer = Tokenizer::new(file::from_json(tokenizer_json.as_bytes())?)?;
    let bytes = |id| tokenizer.token_bytes(id as u16).map_or(0, |bytes| bytes.len() as u64);
    Ok((0..tokenizer.n_vocab()).map(bytes).collect())
}

/// What a setting is, in words.
fn shown(value: Option<&Value>) -> String {
    value.map_or("not set".to_owned(), Value::to_string)
}

#[cfg(test)]
mod tests;
