//! Reads all of a store and compares it with what its manifest, or its format, says.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::documents::{Documents, Ends};
use super::files::{failed, refused};
use super::manifest::{FILE_NAME, Manifest, TOKENIZER_FILE, hashes_name};
use super::npy;
use super::reader::TokenStore;
use super::region::{Header, Region};
use super::tokens::{ids_of, out_of_range};
use crate::tokenizer::Check;
use crate::{Result, threads};

/// How many bytes to read between two calls of a check.
const PORTION_BYTES: usize = 1 << 22;

impl TokenStore {
    /// Reads every file anew, on `threads` threads: sizes, headers and checksums, ids, document ends.
    /// `tokens_done` counts along.
    ///
    /// # Errors
    /// `Error::Store`: names the first file in which something is wrong, and what it is. Those of
    /// `check`.
    pub fn verify(&self, threads: usize, tokens_done: &AtomicU64, check: Check<'_>) -> Result<()> {
        match &self.documents {
            Documents::Ends(ends) => {
                self.verify_manifest()?;
                threads::for_each(ends.shards().len(), threads, check, |shard, check| {
                    self.verify_shard(shard, ends, tokens_done, check)
                })
            }
            Documents::Marked(_) => self.verify_ids(0, tokens_done, check).map(drop),
            Documents::Indexed(index) => {
                index.verify(check)?;
                self.verify_ids(0, tokens_done, check).map(drop)
            }
        }
    }

    /// The manifest is what it was when the store was opened, and the tokenizer's file is its.
    fn verify_manifest(&self) -> Result<()> {
        let dir = self.path();
        if Manifest::read(dir)? != *self.manifest() {
            let reason = "is another one than when the store was opened".to_owned();
            return Err(refused(&dir.join(FILE_NAME), reason));
        }
        let expected = self.manifest().tokenizer.json_xxh3;
        if expected == 0 {
            return Ok(());
        }
        let file = dir.join(TOKENIZER_FILE);
        let json = std::fs::read(&file).map_err(|error| failed(&file, "read", &error))?;
        compare(&file, xxh3_64(&json), expected)
    }

    fn verify_shard(
        &self,
        shard: usize,
        ends: &Ends,
        tokens_done: &AtomicU64,
        check: Check<'_>,
    ) -> Result<()> {
        let expected = &self.manifest().shards[shard];
        let found = self.verify_ids(shard, tokens_done, check)?;
        compare(self.tokens.shards()[shard].path(), found, expected.tokens_xxh3)?;
        let region = ends.shards()[shard].reopened();
        compare(region.path(), hash(region.bytes()?, check)?, expected.ends_xxh3)?;
        verify_ends(&region, expected.num_tokens)?;
        let Some(hashes_xxh3) = expected.hashes_xxh3 else { return Ok(()) };
        let header = Header::Bytes(npy::pairs_header("<u8", expected.num_documents).to_vec());
        let path = self.path().join(hashes_name(shard));
        let hashes = Region::new(path, header, 2 * expected.num_documents, size_of::<u64>());
        compare(hashes.path(), hash(hashes.bytes()?, check)?, hashes_xxh3)
    }

    /// Checks the ids of a shard and gives the hash of its bytes.
    fn verify_ids(&self, shard: usize, tokens_done: &AtomicU64, check: Check<'_>) -> Result<u64> {
        let region = self.tokens.shards()[shard].reopened();
        let (ids, bytes) = (ids_of(&region, self.dtype())?, region.bytes()?);
        let (n_vocab, mut hash) = (self.manifest().tokenizer.n_vocab, Xxh3::new());
        let portion = PORTION_BYTES / region.width();
        let mut highest = None;
        for (index, bytes) in bytes.chunks(PORTION_BYTES).enumerate() {
            check()?;
            let start = index * portion;
            let end = ids.len().min(start + portion);
            highest = highest.max(ids.slice(start..end).max());
            hash.update(bytes);
            tokens_done.fetch_add((end - start) as u64, Ordering::Relaxed);
        }
        match highest {
            Some(max) if max as usize >= n_vocab => Err(out_of_range(region.path(), max, n_vocab)),
            _ => Ok(hash.digest()),
        }
    }
}

/// The ends of a shard ascend, and the last is within it.
fn verify_ends(region: &Region, num_tokens: u64) -> Result<()> {
    let ends = region.values::<u64>()?;
    if let Some(index) = ends.windows(2).position(|pair| pair[0] >= pair[1]) {
        let reason = format!("the ends {} and {} do not ascend", ends[index], ends[index + 1]);
        return Err(refused(region.path(), reason));
    }
    match ends.last() {
        Some(&last) if last > num_tokens => {
            let reason = format!("a document ends at {last}, and the shard at {num_tokens}");
            Err(refused(region.path(), reason))
        }
        _ => Ok(()),
    }
}

fn compare(path: &Path, found: u64, expected: u64) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    let reason = format!(
        "is damaged: the XXH3 checksum of its content is {found:016x}, expected {expected:016x}"
    );
    Err(refused(path, reason))
}

fn hash(bytes: &[u8], check: Check<'_>) -> Result<u64> {
    let mut hash = Xxh3::new();
    for portion in bytes.chunks(PORTION_BYTES) {
        check()?;
        hash.update(portion);
    }
    Ok(hash.digest())
}
