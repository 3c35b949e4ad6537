//! A folder of ours, built beside its place and renamed.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;
use xxhash_rust::xxh3::xxh3_64;

use super::Sink;
use super::part::{refuse_existing, temporary};
use crate::Result;
use crate::store::files::{failed, remove_file, sync_folder, write_whole};
use crate::store::manifest::{self, Dtype, Manifest};
use crate::store::reader::TokenStore;
use crate::store::tokens::Ids;
use crate::store::writer::{LEDGER, Layout, Mark, StoreWriter};
use crate::tokenizer::Check;

/// The folder, and what its manifest will say.
pub struct Folder {
    writer: Option<StoreWriter>,
    manifest: Manifest,
    tokenizer_json: Option<Vec<u8>>,
    out: PathBuf,
    temporary: PathBuf,
}

impl Folder {
    pub fn new(
        source: &TokenStore,
        out: &Path,
        tokenizer_json: Option<&[u8]>,
        shard_tokens: u64,
        check: Check<'_>,
    ) -> Result<Self> {
        refuse_existing(out)?;
        let temporary = temporary(out);
        if temporary.exists() {
            // What an earlier conversion was killed over.
            fs::remove_dir_all(&temporary)
                .map_err(|error| failed(&temporary, "removed", &error))?;
        }
        let manifest = manifest(source, tokenizer_json);
        let layout = Layout { dtype: manifest.dtype, shard_tokens, hashes: false };
        let writer = Some(StoreWriter::open(&temporary, layout, Mark::default(), check)?);
        let tokenizer_json = tokenizer_json.map(<[u8]>::to_vec);
        Ok(Self { writer, manifest, tokenizer_json, out: out.to_owned(), temporary })
    }

    fn write(&mut self, f: impl FnOnce(&mut StoreWriter) -> Result<()>) -> Result<()> {
        self.writer.as_mut().map_or(Ok(()), f)
    }
}

impl Sink for Folder {
    fn append(&mut self, ids: Ids<'_>) -> Result<()> {
        self.write(|writer| match ids {
            Ids::U16(ids) => writer.append(ids),
            Ids::U32(ids) => writer.append_u32(ids),
        })
    }

    fn end_document(&mut self) -> Result<()> {
        self.write(|writer| writer.end_document(0))
    }

    fn finish(mut self: Box<Self>, num_empty: u64) -> Result<()> {
        let dir = self.temporary.clone();
        let shards = self.writer.take().map_or(Ok(vec![]), StoreWriter::finish)?;
        remove_file(&dir.join(LEDGER))?;
        if let Some(json) = &self.tokenizer_json {
            write_whole(&dir.join(manifest::TOKENIZER_FILE), json)?;
        }
        let manifest = &mut self.manifest;
        manifest.num_tokens = shards.iter().map(|shard| shard.num_tokens).sum();
        manifest.num_documents = shards.iter().map(|shard| shard.num_documents).sum();
        manifest.shards = shards;
        manifest.dropped.empty += num_empty;
        write_whole(&dir.join(manifest::FILE_NAME), manifest.to_json().as_bytes())?;
        fs::rename(&dir, &self.out).map_err(|error| failed(&self.out, "written", &error))?;
        sync_folder(self.out.parent().unwrap_or(Path::new("")))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(self.writer.take());
        let _ = fs::remove_dir_all(&self.temporary); // Renamed already, if it is whole.
    }
}

/// What the manifest says from the start.
fn manifest(source: &TokenStore, tokenizer_json: Option<&[u8]>) -> Manifest {
    let mut manifest = source.manifest().clone();
    if manifest.format != manifest::FORMAT {
        manifest.settings.insert("converted_from".to_owned(), json!(manifest.format));
    }
    manifest::FORMAT.clone_into(&mut manifest.format);
    manifest.version = manifest::VERSION;
    manifest.dtype = Dtype::holding(manifest.tokenizer.n_vocab);
    manifest.tokenizer.json_xxh3 = tokenizer_json.map_or(0, xxh3_64);
    manifest
}
