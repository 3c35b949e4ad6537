//! Reads a store through the memory map: opening looks at sizes, a shard is mapped at first touch.

use std::ops::Range;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::documents::{Documents, Ends};
use super::files::{failed, refused};
use super::foreign::{self, Foreign};
use super::manifest::{
    self, Dropped, Dtype, Manifest, Shard, TokenizerInfo, ends_name, tokens_name,
};
use super::region::{Header, Region};
use super::tokens::{BLOCK, Ids, OwnedIds, Tokens};
use crate::Result;
use crate::tokenizer::Check;

/// A store that is open: ours, or a file of nanoGPT, llm.c or Megatron. Threads may share it.
///
/// A file that is missing, damaged or not what it should be is an `Error::Store` that names it, as
/// soon as it is touched.
#[derive(Debug)]
pub struct TokenStore {
    path: PathBuf,
    manifest: Manifest,
    fingerprint: u64,
    pub(super) tokens: Tokens,
    pub(super) documents: Documents,
}

impl TokenStore {
    /// Opens a folder of ours, a `.bin` of nanoGPT or llm.c, or Megatron's `.bin` and `.idx`.
    ///
    /// `tokenizer` is what made the ids of another program's file, by default GPT-2's, or Llama 3's
    /// for llm.c's files of uint32. A folder of ours must have been made by the same, if it is given.
    ///
    /// # Errors
    /// `Error::Store`: there is no such store, or a file of it is missing or has another size.
    pub fn open(path: &Path, tokenizer: Option<&TokenizerInfo>) -> Result<Self> {
        if path.is_dir() {
            Self::open_folder(path, tokenizer)
        } else {
            Self::open_foreign(path, tokenizer)
        }
    }

    fn open_folder(dir: &Path, tokenizer: Option<&TokenizerInfo>) -> Result<Self> {
        let file = dir.join(manifest::FILE_NAME);
        if !file.exists() {
            return Err(no_manifest(dir));
        }
        let manifest = Manifest::read(dir)?;
        let found = &manifest.tokenizer;
        if let Some(given) = tokenizer.filter(|given| !are_equal(given, found)) {
            let reason = format!(
                "was made with the tokenizer {:?} of {} ids, not with {:?} of {}",
                found.name, found.n_vocab, given.name, given.n_vocab
            );
            return Err(refused(dir, reason));
        }
        let text = std::fs::read(&file).map_err(|error| failed(&file, "read", &error))?;
        let dtype = manifest.dtype;
        let npy = |name, descr, count, width| {
            let region = Region::new(dir.join(name), Header::Npy(descr), count, width);
            region.check_size().map(|()| region)
        };
        let shards = manifest.shards.iter().enumerate();
        let tokens = |(index, shard): (usize, &Shard)| {
            let count = shard.num_tokens;
            Ok((npy(tokens_name(index), dtype.descr(), count, dtype.size())?, count))
        };
        let tokens = shards.clone().map(tokens).collect::<Result<_>>()?;
        let ends = |(index, shard): (usize, &Shard)| {
            npy(ends_name(index), "<u8", shard.num_documents, size_of::<u64>())
        };
        let ends = shards.map(ends).collect::<Result<_>>()?;
        Ok(Self {
            path: dir.to_owned(),
            fingerprint: xxh3_64(&text),
            tokens: Tokens::new(tokens, dtype, found.n_vocab),
            documents: Documents::Ends(Ends::new(ends, &manifest.shards)),
            manifest,
        })
    }

    fn open_foreign(path: &Path, tokenizer: Option<&TokenizerInfo>) -> Result<Self> {
        let Foreign { format, dtype, tokens, num_tokens, documents, tokenizer } =
            foreign::open(path, tokenizer)?;
        let manifest = description(format, dtype, num_tokens, tokenizer);
        let fingerprint = sampled_hash(format, &tokens, &documents)?;
        let n_vocab = manifest.tokenizer.n_vocab;
        let tokens = Tokens::new(vec![(tokens, num_tokens)], dtype, n_vocab);
        Ok(Self { path: path.to_owned(), manifest, fingerprint, tokens, documents })
    }

    /// What was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The manifest; for another program's files, what it would be. That has their format's name, no
    /// checksums, and 0 for what the files do not say: documents and bytes of text.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// What tells this store from every other: XXH3-64 of the manifest. For another program's files,
    /// of their sizes and of samples of their content.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// How ids are stored.
    pub fn dtype(&self) -> Dtype {
        self.tokens.dtype()
    }

    /// The number of tokens.
    pub fn len(&self) -> u64 {
        self.tokens.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The tokens in `range`, shard by shard, as they lie in memory. Ids are not checked.
    ///
    /// # Errors
    /// Those of all that reads: `Error::Store`; `Error::Setting`, if there is no such range.
    pub fn for_each(&self, range: Range<u64>, f: &mut dyn FnMut(Ids<'_>)) -> Result<()> {
        self.tokens.for_each(range, |_, ids| {
            f(ids);
            Ok(())
        })
    }

    /// The tokens in `range` where they lie, if that is within one shard; ids are checked.
    pub fn slice(&self, range: Range<u64>, check: Check<'_>) -> Result<Option<Ids<'_>>> {
        let Some(ids) = self.tokens.slice(range.clone())? else { return Ok(None) };
        let shard = self.tokens.shard_of(range.start);
        for start in (0..ids.len()).step_by(BLOCK as usize) {
            let end = ids.len().min(start + BLOCK as usize);
            self.tokens.check_ids(shard, ids.slice(start..end))?;
            check()?;
        }
        Ok(Some(ids))
    }

    /// The tokens in `range`, copied; ids are checked.
    pub fn copied(&self, range: Range<u64>, check: Check<'_>) -> Result<OwnedIds> {
        self.tokens.copied(range, check)
    }

    /// Copies tokens from `start` on into `out`, and checks them: an id outside the vocabulary is an
    /// error that names the file.
    pub fn copy_to(&self, start: u64, out: &mut [i64]) -> Result<()> {
        self.tokens.copy_to(start, out)
    }

    /// The number of documents. Another program's file is searched for them the first time.
    pub fn num_documents(&self, check: Check<'_>) -> Result<u64> {
        self.documents.count(&self.tokens, check)
    }

    /// Where document `index` lies, its end-of-text included.
    pub fn document(&self, index: u64, check: Check<'_>) -> Result<Range<u64>> {
        self.documents.range(index, &self.tokens, check)
    }

    /// Calls `f` with the places strictly inside `range` at which a document ends and the next
    /// starts, in order; a place at which an empty document lies comes more than once.
    pub fn for_each_boundary(&self, range: Range<u64>, f: &mut dyn FnMut(u64)) -> Result<()> {
        self.documents.for_each_boundary(range, &self.tokens, f)
    }

    /// Calls `f` with every document's end, in order: the last is `len` if the last document is whole.
    pub fn for_each_end(&self, check: Check<'_>, f: &mut dyn FnMut(u64)) -> Result<()> {
        let mut each = |end| {
            f(end);
            Ok(())
        };
        self.documents.for_each_end(&self.tokens, check, &mut each)
    }
}

/// Whether both are the same, as far as can be told: some have no fingerprint.
fn are_equal(one: &TokenizerInfo, other: &TokenizerInfo) -> bool {
    one.n_vocab == other.n_vocab
        && (one.fingerprint == other.fingerprint
            || one.fingerprint.is_empty()
            || other.fingerprint.is_empty())
}

/// What a manifest would say of another program's file.
fn description(format: &str, dtype: Dtype, num_tokens: u64, tokenizer: TokenizerInfo) -> Manifest {
    Manifest {
        format: format.to_owned(),
        version: 0,
        tokenizer,
        dtype,
        num_tokens,
        num_documents: 0,
        text_bytes: 0,
        dropped: Dropped::default(),
        settings: serde_json::Map::new(),
        shards: vec![Shard {
            num_tokens,
            num_documents: 0,
            tokens_xxh3: 0,
            ends_xxh3: 0,
            hashes_xxh3: None,
        }],
    }
}

/// Why a folder is no store.
fn no_manifest(dir: &Path) -> crate::Error {
    let is_store = |part: &&str| dir.join(part).join(manifest::FILE_NAME).exists();
    let parts: Vec<&str> = ["train", "val"].into_iter().filter(is_store).collect();
    if !parts.is_empty() {
        let paths = parts.iter().map(|part| dir.join(part).display().to_string());
        let paths = paths.collect::<Vec<_>>().join(" or ");
        return refused(dir, format!("holds stores and is none itself: open {paths}"));
    }
    if dir.join(".building").exists() {
        return refused(
            dir,
            "is not finished: the same build, started again, goes on with it".to_owned(),
        );
    }
    refused(dir, "is no token store: it has no manifest.json".to_owned())
}

/// Tells files apart by their sizes and a few pages of their content, spread evenly.
fn sampled_hash(format: &str, tokens: &Region, documents: &Documents) -> Result<u64> {
    /// How many pages, and the bytes of one.
    const PAGES: usize = 16;
    const PAGE_BYTES: usize = 4096;

    let index = if let Documents::Indexed(index) = documents { Some(index.file()) } else { None };
    let mut hash = Xxh3::new();
    hash.update(format.as_bytes());
    for file in [Some(tokens), index].into_iter().flatten() {
        let bytes = file.bytes()?;
        hash.update(&(bytes.len() as u64).to_le_bytes());
        for page in 0..PAGES {
            let start = (bytes.len().saturating_sub(PAGE_BYTES) as u128 * page as u128
                / (PAGES as u128 - 1)) as usize;
            hash.update(&bytes[start..bytes.len().min(start + PAGE_BYTES)]);
        }
    }
    Ok(hash.digest())
}

#[cfg(test)]
mod tests;
