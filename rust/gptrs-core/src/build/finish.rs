//! The end of a build: manifests, and every file to where it belongs, the manifest last.

use std::fs;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::folder::Folder;
use super::plan::Plan;
use super::progress::{Counts, Progress};
use crate::Result;
use crate::store::files::{create_folder, failed, refused, sync_folder, write_whole};
use crate::store::manifest::{self, FORMAT, VERSION, ends_name, hashes_name, tokens_name};
use crate::store::{Dtype, Manifest, Shard};

/// A stream's folder when there is one stream alone: its files go to the store's folder itself.
pub const ALL: &str = "all";

/// The streams' folders when some documents are kept for validation.
pub const SIDES: [&str; 2] = ["train", "val"];

/// A stream whose shards are final.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Finished {
    pub name: String,
    pub manifest: Manifest,
}

/// The manifests of all streams. What was dropped is counted in the first.
pub fn manifests(
    plan: &Plan,
    names: &[&str],
    progress: &Progress,
    shards: Vec<Vec<Shard>>,
) -> Vec<Finished> {
    // A part keeps its hashes, for other parts may have the same documents.
    let setting = |key: &str| plan.settings.get(key);
    let keeps_hashes = setting("task").is_some() && setting("deduplicate") == Some(&true.into());
    let mut dropped = Some(progress.dropped);
    let streams = names.iter().zip(&progress.streams).zip(shards);
    let finished = streams.map(|((name, stream), mut shards)| {
        let mut settings = plan.settings.clone();
        if *name != ALL {
            settings.insert("subset".to_owned(), Value::from(*name));
        }
        if !keeps_hashes {
            for shard in &mut shards {
                shard.hashes_xxh3 = None;
            }
        }
        let manifest = Manifest {
            format: FORMAT.to_owned(),
            version: VERSION,
            tokenizer: plan.tokenizer.clone(),
            dtype: Dtype::Uint16,
            num_tokens: stream.mark.num_tokens,
            num_documents: stream.mark.num_documents,
            text_bytes: stream.text_bytes,
            dropped: dropped.take().unwrap_or_default(),
            settings,
            shards,
        };
        Finished { name: (*name).to_owned(), manifest }
    });
    finished.collect()
}

/// What a build has done whose shards are final.
pub fn counts(streams: &[Finished], bytes: u64) -> Counts {
    let sum = |count: fn(&Manifest) -> u64| -> u64 {
        streams.iter().map(|stream| count(&stream.manifest)).sum()
    };
    Counts {
        bytes,
        text_bytes: sum(|manifest| manifest.text_bytes),
        tokens: sum(|manifest| manifest.num_tokens),
        documents: sum(|manifest| manifest.num_documents),
        dropped: streams.first().map(|stream| stream.manifest.dropped).unwrap_or_default(),
    }
}

/// Moves all files to their places. However often this is interrupted and begun anew, the manifests
/// come last, and that of the first stream last of all.
///
/// # Errors
/// `Error::Store`: a file is missing, or cannot be moved or written.
pub fn publish(folder: &Folder, streams: &[Finished], tokenizer_json: &str) -> Result<()> {
    for stream in streams {
        publish_shards(folder, stream, tokenizer_json)?;
    }
    for stream in streams.iter().rev() {
        let path = place_of(folder, stream).join(manifest::FILE_NAME);
        write_whole(&path, stream.manifest.to_json().as_bytes())?;
    }
    sync_folder(folder.out())?;
    folder.remove()
}

fn place_of(folder: &Folder, stream: &Finished) -> PathBuf {
    if stream.name == ALL { folder.out().to_owned() } else { folder.out().join(&stream.name) }
}

fn publish_shards(folder: &Folder, stream: &Finished, tokenizer_json: &str) -> Result<()> {
    let (from, to) = (folder.path().join(&stream.name), place_of(folder, stream));
    create_folder(&to)?;
    for (number, shard) in stream.manifest.shards.iter().enumerate() {
        let hashes = shard.hashes_xxh3.map(|_| hashes_name(number));
        for name in [tokens_name(number), ends_name(number)].into_iter().chain(hashes) {
            let (old, new) = (from.join(&name), to.join(&name));
            if old.exists() {
                fs::rename(&old, &new).map_err(|error| failed(&new, "moved here", &error))?;
            } else if !new.exists() {
                return Err(refused(&old, "is missing".to_owned()));
            }
        }
    }
    write_whole(&to.join(manifest::TOKENIZER_FILE), tokenizer_json.as_bytes())?;
    sync_folder(&to)
}
