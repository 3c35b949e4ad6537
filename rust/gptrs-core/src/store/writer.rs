//! Writes the shards of a store into a folder that is not a store yet.
//!
//! ```text
//!   tokens-00000.npy  header │ 11 262 50256 2061 50256 … │     a shard is full: sealed
//!     ends-00000.npy  header │        3          5     … │
//!   tokens-00001.npy  (room) │ 318 428 …                       tokens go to the last shard
//!     ends-00001.npy  (room) │
//!        shards.json  counts and checksums of the sealed shards, for a writer that goes on
//! ```
//!
//! With `hashes`, a third file has a hash for each end: what was seen before can be told from it.

mod ledger;
mod open_shard;

use std::path::{Path, PathBuf};

pub use ledger::LEDGER;
use open_shard::OpenShard;
use serde::{Deserialize, Serialize};

use super::column::{Column, Sealed, for_each_part};
use super::files::{create_folder, refused, sync_folder};
use super::manifest::hashes_name;
use super::{Dtype, Shard};
use crate::tokenizer::Check;
use crate::{Error, Result};

/// How many sealed files may wait to be synced.
const MOST_UNSYNCED: usize = 12;

/// How many ids to widen or to narrow at a time.
const PORTION: usize = 1 << 12;

/// How a stream is cut and what is kept of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// How ids are stored.
    pub dtype: Dtype,
    /// The tokens of a full shard; 1 or more.
    pub shard_tokens: u64,
    /// Whether the hashes of documents are kept.
    pub hashes: bool,
}

/// A place in the stream that a writer can go back to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Tokens before it, in all shards.
    pub num_tokens: u64,
    /// Documents before it.
    pub num_documents: u64,
    /// Documents before it that end in the shard it is in.
    pub documents_in_shard: u64,
}

/// Where among ids a document ends, and its hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DocumentEnd {
    /// The first id that is not the document's.
    pub end: usize,
    /// Looked at only where hashes are kept.
    pub hash: u128,
}

/// Appends tokens and ends to shards. After an error nothing more is written: what was synced can
/// be gone on from.
pub struct StoreWriter {
    dir: PathBuf,
    layout: Layout,
    /// The shards before the last: all of them full.
    sealed: Vec<Shard>,
    /// The last; none before the first token.
    shard: Option<OpenShard>,
    num_documents: u64,
    unsynced: Vec<Sealed>,
    /// Whether the folder has names, and the ledger lacks shards, that a sync has to care for.
    new_files: bool,
    /// What went wrong first.
    failure: Option<Error>,
    /// Buffers to be used again.
    ends: Vec<u64>,
    hashes: Vec<u128>,
}

impl StoreWriter {
    /// Starts at `mark`: at the default one in an empty folder, which is made; else goes on, removing
    /// what lies beyond and hashing again what the unfinished shard has.
    ///
    /// # Errors
    /// `Error::Store`: something before `mark` is missing, or cannot be read or written.
    /// `Error::Setting`: a shard of no tokens. Those of `check`.
    pub fn open(dir: &Path, layout: Layout, mark: Mark, check: Check<'_>) -> Result<Self> {
        if layout.shard_tokens == 0 {
            return Err(Error::Setting("shard_tokens is 1 or more, found 0".to_owned()));
        }
        create_folder(dir)?;
        let mut writer = Self {
            dir: dir.to_owned(),
            layout,
            sealed: Vec::new(),
            shard: None,
            num_documents: mark.num_documents,
            unsynced: Vec::new(),
            new_files: true,
            failure: None,
            ends: Vec::new(),
            hashes: Vec::new(),
        };
        writer.sealed = ledger::read(dir, writer.index_of(mark), layout.shard_tokens)?;
        writer.reopen(mark, check)?;
        Ok(writer)
    }

    /// Appends ids, which a store of uint32 widens.
    ///
    /// # Errors
    /// `Error::Store`: they cannot be written.
    pub fn append(&mut self, ids: &[u16]) -> Result<()> {
        self.append_documents(ids, &[])
    }

    /// Appends ids, each of which has to fit.
    ///
    /// # Errors
    /// `Error::Store`: they cannot be written, or this is a store of uint16 and one is larger.
    pub fn append_u32(&mut self, ids: &[u32]) -> Result<()> {
        if self.layout.dtype == Dtype::Uint32 {
            return self.attempt(|writer| writer.append_values(ids, &[]));
        }
        for portion in ids.chunks(PORTION) {
            let narrow: std::result::Result<Vec<u16>, _> =
                portion.iter().map(|id| u16::try_from(*id).map_err(|_| id)).collect();
            let narrow = narrow.map_err(|id| {
                refused(&self.dir, format!("token id {id} does not fit in a store of uint16"))
            })?;
            self.append(&narrow)?;
        }
        Ok(())
    }

    /// Appends the ids of many documents. What is behind the last end belongs to a document that goes
    /// on.
    ///
    /// # Errors
    /// `Error::Store`: they cannot be written.
    pub fn append_documents(&mut self, ids: &[u16], documents: &[DocumentEnd]) -> Result<()> {
        if self.layout.dtype == Dtype::Uint16 {
            return self.attempt(|writer| writer.append_values(ids, documents));
        }
        let wide: Vec<u32> = ids.iter().map(|id| u32::from(*id)).collect();
        self.attempt(|writer| writer.append_values(&wide, documents))
    }

    /// Ends a document here. `hash` is looked at only where hashes are kept.
    ///
    /// # Errors
    /// `Error::Store`: the end cannot be written.
    pub fn end_document(&mut self, hash: u128) -> Result<()> {
        self.append_documents(&[], &[DocumentEnd { end: 0, hash }])
    }

    /// Where the stream is.
    pub fn mark(&self) -> Mark {
        Mark {
            num_tokens: self.num_tokens(),
            num_documents: self.num_documents,
            documents_in_shard: self.shard.as_ref().map_or(0, |shard| shard.num_documents),
        }
    }

    /// Goes back to an earlier place: what was appended since is gone from the disk as well. If a
    /// later mark was saved to go on from, an earlier one has to be saved before this. To the end of
    /// the last document it is cheap within a shard; elsewhere a part of a shard is hashed again.
    ///
    /// # Errors
    /// `Error::Store`. Those of `check`, after which nothing more can be written.
    pub fn rewind(&mut self, mark: Mark, check: Check<'_>) -> Result<()> {
        self.attempt(|writer| {
            let index = writer.index_of(mark);
            writer.num_documents = mark.num_documents;
            if index < writer.sealed.len() {
                writer.sealed.truncate(index);
                writer.unsynced.clear();
                writer.shard = None;
                return writer.reopen(mark, check);
            }
            if mark == Mark::default() {
                writer.shard = None;
                return writer.reopen(mark, check);
            }
            let first = index as u64 * writer.layout.shard_tokens;
            let Some(shard) = &mut writer.shard else { return Ok(()) };
            shard.num_tokens = mark.num_tokens - first;
            shard.num_documents = mark.documents_in_shard;
            shard.truncate(writer.layout, check)
        })
    }

    /// Brings all that was appended to the disk: from now on the mark can be gone on from.
    ///
    /// # Errors
    /// `Error::Store`.
    pub fn sync(&mut self) -> Result<()> {
        self.attempt(Self::sync_all)
    }

    /// Headers, checksums and a last sync.
    ///
    /// # Errors
    /// `Error::Store`.
    pub fn finish(mut self) -> Result<Vec<Shard>> {
        self.attempt(|writer| {
            writer.seal()?;
            writer.sync_all()
        })?;
        Ok(self.sealed)
    }

    /// Calls `f` with the hash of every document so far, in order.
    ///
    /// # Errors
    /// `Error::Store`. Those of `check` and `f`.
    pub fn for_each_hash(
        &mut self,
        check: Check<'_>,
        f: &mut dyn FnMut(u128) -> Result<()>,
    ) -> Result<()> {
        if let Some(hashes) = self.shard.as_mut().and_then(|shard| shard.hashes.as_mut()) {
            hashes.flush()?;
        }
        let open = self.shard.as_ref().map(|shard| shard.num_documents);
        let counts = self.sealed.iter().map(|shard| shard.num_documents).chain(open);
        for (index, num_documents) in counts.enumerate() {
            let path = self.dir.join(hashes_name(index));
            for_each_part(&path, num_documents * 16, check, &mut |part| {
                part.as_chunks().0.iter().try_for_each(|hash| f(u128::from_le_bytes(*hash)))
            })?;
        }
        Ok(())
    }

    /// Does `work`, unless something went wrong before: then the files are not what is counted.
    fn attempt(&mut self, work: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        let done = work(self);
        self.failure = done.clone().err();
        done
    }

    fn num_tokens(&self) -> u64 {
        let open = self.shard.as_ref().map_or(0, |shard| shard.num_tokens);
        self.sealed.len() as u64 * self.layout.shard_tokens + open
    }

    /// The shard that `mark` is in: an end at a shard's last token is that shard's.
    fn index_of(&self, mark: Mark) -> usize {
        (mark.num_tokens.saturating_sub(1) / self.layout.shard_tokens) as usize
    }

    fn append_values<T: bytemuck::Pod>(
        &mut self,
        ids: &[T],
        mut documents: &[DocumentEnd],
    ) -> Result<()> {
        let mut done = 0;
        loop {
            let ended = documents.partition_point(|document| document.end <= done);
            let (now, later) = documents.split_at(ended);
            self.end_documents(now, done)?;
            documents = later;
            if done == ids.len() {
                break;
            }
            let shard_tokens = self.layout.shard_tokens;
            let shard = self.shard_with_room()?;
            let room = usize::try_from(shard_tokens - shard.num_tokens).unwrap_or(usize::MAX);
            let end = ids.len().min(done.saturating_add(room));
            shard.tokens.append(bytemuck::cast_slice(&ids[done..end]))?;
            shard.num_tokens += (end - done) as u64;
            done = end;
        }
        let what = "the ids up to a document's end";
        documents.first().map_or(Ok(()), |document| {
            Err(Error::WrongLength { what, found: ids.len(), expected: document.end })
        })
    }

    /// Notes the ends of documents, all of them in the last shard; `done` is what `end` would be here.
    fn end_documents(&mut self, documents: &[DocumentEnd], done: usize) -> Result<()> {
        let Some(last) = documents.last() else { return Ok(()) };
        let (mut ends, mut hashes) =
            (std::mem::take(&mut self.ends), std::mem::take(&mut self.hashes));
        let shard = self.last_shard()?;
        let start = shard.num_tokens.wrapping_sub(done as u64);
        ends.clear();
        ends.extend(documents.iter().map(|document| start.wrapping_add(document.end as u64)));
        shard.ends.append(bytemuck::cast_slice(&ends))?;
        if let Some(column) = &mut shard.hashes {
            hashes.clear();
            hashes.extend(documents.iter().map(|document| document.hash));
            column.append(bytemuck::cast_slice(&hashes))?;
        }
        if last.end == done {
            shard.tokens.remember();
        }
        shard.num_documents += documents.len() as u64;
        self.num_documents += documents.len() as u64;
        (self.ends, self.hashes) = (ends, hashes);
        Ok(())
    }

    /// The last shard, or the one after it if that is full.
    fn shard_with_room(&mut self) -> Result<&mut OpenShard> {
        let full = |shard: &OpenShard| shard.num_tokens == self.layout.shard_tokens;
        if self.shard.as_ref().is_some_and(full) {
            self.seal()?;
        }
        self.last_shard()
    }

    fn last_shard(&mut self) -> Result<&mut OpenShard> {
        let shard = if let Some(shard) = self.shard.take() {
            shard
        } else {
            self.new_files = true;
            OpenShard::create(&self.dir, self.sealed.len(), self.layout.hashes)?
        };
        Ok(self.shard.insert(shard))
    }

    /// Gives the last shard its headers.
    fn seal(&mut self) -> Result<()> {
        if let Some(shard) = self.shard.take() {
            if self.unsynced.len() >= MOST_UNSYNCED {
                self.unsynced.drain(..).try_for_each(|file| file.sync())?;
            }
            self.sealed.push(shard.seal(self.layout.dtype, &mut self.unsynced)?);
            self.new_files = true;
        }
        Ok(())
    }

    fn sync_all(&mut self) -> Result<()> {
        self.unsynced.drain(..).try_for_each(|file| file.sync())?;
        if let Some(shard) = &mut self.shard {
            shard.columns().try_for_each(Column::sync)?;
        }
        if self.new_files {
            sync_folder(&self.dir)?;
            ledger::write(&self.dir, &self.sealed)?;
            self.new_files = false;
        }
        Ok(())
    }

    /// Opens the shard that `mark` is in and removes those behind it.
    fn reopen(&mut self, mark: Mark, check: Check<'_>) -> Result<()> {
        let first = self.sealed.len() as u64 * self.layout.shard_tokens;
        if mark != Mark::default() {
            let (num_tokens, num_documents) = (mark.num_tokens - first, mark.documents_in_shard);
            let counts = (num_tokens, num_documents);
            let shard = OpenShard::reopen(&self.dir, self.sealed.len(), self.layout, counts, check);
            self.shard = Some(shard?);
        }
        self.new_files = true;
        ledger::remove_shards(&self.dir, self.sealed.len() + usize::from(self.shard.is_some()))
    }
}

#[cfg(test)]
mod tests;
