//! The writing end: blocks come in order; documents are kept or dropped, go to their side, and how
//! far all this is gets saved now and then.
//!
//! ```text
//!   documents of a block    a   b   ""  a   c      ""  empty, dropped; the second a: a duplicate
//!   kept, in two runs       a   b           c      of which each is one write
//!   chunk of a large one    written as it comes; taken back should all of it prove a duplicate
//! ```

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::encoding::{Document, Encoded, Verdict, chained};
use super::folder::Folder;
use super::progress::{
    Counts, LargeDocument, Position, Progress, StreamProgress, halves, rows_digest, whole,
};
use super::seen::Seen;
use crate::source::{Block, Failure, Layout};
use crate::store::{self, DocumentEnd, Dtype, Shard, StoreWriter};
use crate::tokenizer::Check;
use crate::{Error, Result};

/// A block's place among all: what is to be known of it but for its ids.
pub struct Place {
    pub input: usize,
    pub is_rows: bool,
    pub layout: Layout,
    pub end: u64,
    pub is_last: bool,
    pub digest: Option<u64>,
    pub file_bytes: u64,
}

impl Place {
    /// Takes a block apart: its bytes, and all else.
    pub fn of(block: Block, input: usize, is_rows: bool) -> (Vec<u8>, Self) {
        let Block { bytes, layout, end, is_last, file_bytes, digest, .. } = block;
        (bytes, Self { input, is_rows, layout, end, is_last, digest, file_bytes })
    }

    /// The place of a block that could not be read.
    pub fn failed(input: usize) -> Self {
        let (layout, end, is_last, file_bytes, digest) = (Layout::Lines, 0, false, 0, None);
        Self { input, is_rows: false, layout, end, is_last, digest, file_bytes }
    }
}

/// How the output is made.
#[derive(Debug, Clone)]
pub struct OutputSettings {
    pub shard_tokens: u64,
    pub deduplicate: bool,
    pub min_chars: u64,
    pub end_of_text: Option<u16>,
    /// The names of the streams' folders.
    pub streams: Vec<&'static str>,
    pub seen_bytes: usize,
    pub save_every: Duration,
    /// For each input, how many bytes those before it have, and how many all have; of this part.
    pub bytes_before: Vec<u64>,
}

/// Where blocks go, in order.
pub struct Output {
    folder: Folder,
    settings: OutputSettings,
    progress: Progress,
    writers: Vec<StoreWriter>,
    seen: Option<Seen>,
    /// The last marks that were saved.
    saved: Vec<StreamProgress>,
    saved_at: Instant,
    /// A block is written in part: what is counted is not what was written.
    broken: bool,
    ends: Vec<DocumentEnd>,
    counts: Arc<Mutex<Counts>>,
}

impl Output {
    /// Goes on from `progress`.
    ///
    /// # Errors
    /// `Error::Store`: something is missing or cannot be written. Those of `check`.
    pub fn open(
        folder: Folder,
        settings: OutputSettings,
        mut progress: Progress,
        check: Check<'_>,
    ) -> Result<Self> {
        let layout = store::Layout {
            dtype: Dtype::Uint16,
            shard_tokens: settings.shard_tokens,
            hashes: settings.deduplicate,
        };
        progress.streams.resize(settings.streams.len(), StreamProgress::default());
        let mut writers = Vec::new();
        for (name, stream) in settings.streams.iter().zip(&progress.streams) {
            let dir = folder.path().join(name);
            writers.push(StoreWriter::open(&dir, layout, stream.mark, check)?);
        }
        let mut seen = None;
        if settings.deduplicate {
            let mut hashes = Seen::new(folder.path(), settings.seen_bytes)?;
            for writer in &mut writers {
                writer.for_each_hash(check, &mut |hash| {
                    hashes.insert(hash, &mut || Ok(())).map(drop)
                })?;
            }
            seen = Some(hashes);
        }
        let mut output = Self {
            saved: progress.streams.clone(),
            folder,
            settings,
            progress,
            writers,
            seen,
            saved_at: Instant::now(),
            broken: false,
            ends: Vec::new(),
            counts: Arc::default(),
        };
        output.count(0);
        Ok(output)
    }

    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Appends what is to be kept of the next block.
    ///
    /// # Errors
    /// `Error::Store`: it cannot be written; from then on nothing is. Those of `check`.
    pub fn write(&mut self, place: &Place, block: &Encoded, check: Check<'_>) -> Result<()> {
        self.broken = true;
        if let Layout::Chunk { is_first, ends_document } = place.layout {
            self.write_chunk(is_first, block)?;
            self.advance(place, block);
            if ends_document {
                self.end_large(check)?;
            }
        } else {
            self.write_documents(block, check)?;
            self.advance(place, block);
        }
        self.broken = false;
        self.count(place.file_bytes);
        if self.saved_at.elapsed() >= self.settings.save_every { self.save() } else { Ok(()) }
    }

    /// Appends the documents that are to be kept, each run of neighbours at once.
    fn write_documents(&mut self, block: &Encoded, check: Check<'_>) -> Result<()> {
        if let Some(seen) = &self.seen {
            seen.prepare(block.documents.iter().map(|document| document.hash));
        }
        let (mut run, mut start, mut ended) = (0, 0, 0);
        for document in &block.documents {
            let kept = self.stream_for(document, check)?;
            if document.end > ended && kept != Some(run) {
                self.write_run(run, &block.ids[start..ended])?;
                start = if kept.is_some() { ended } else { document.end };
                run = kept.unwrap_or(run);
            }
            ended = document.end;
            if kept.is_some() {
                self.ends.push(DocumentEnd { end: ended - start, hash: document.hash });
                self.progress.streams[run].text_bytes += document.text_bytes;
            }
        }
        self.write_run(run, &block.ids[start..ended])
    }

    fn write_run(&mut self, stream: usize, ids: &[u16]) -> Result<()> {
        self.writers[stream].append_documents(ids, &self.ends)?;
        self.ends.clear();
        Ok(())
    }

    /// The stream that a document goes to, if it is kept.
    fn stream_for(&mut self, document: &Document, check: Check<'_>) -> Result<Option<usize>> {
        let dropped = &mut self.progress.dropped;
        match document.verdict {
            Verdict::Empty => dropped.empty += 1,
            Verdict::Short => dropped.short += 1,
            Verdict::Invalid => dropped.invalid += 1,
            Verdict::Keep => {
                let is_new = self.seen.as_mut().map(|seen| seen.insert(document.hash, check));
                if is_new.transpose()? != Some(false) {
                    return Ok(Some(usize::from(document.is_val)));
                }
                dropped.duplicate += 1;
            }
        }
        Ok(None)
    }

    fn write_chunk(&mut self, is_first: bool, block: &Encoded) -> Result<()> {
        let Some(chunk) = block.documents.first() else { return Ok(()) };
        let before = self.progress.document.filter(|_| !is_first);
        let mut large = before.unwrap_or_else(|| {
            let stream = usize::from(chunk.is_val);
            let (mark, hash) = (self.writers[stream].mark(), halves(chunk.hash));
            LargeDocument { stream, mark, hash, chars: 0, text_bytes: 0 }
        });
        if before.is_some() {
            large.hash = halves(chained(whole(large.hash), chunk.hash));
        }
        large.chars += block.chars;
        large.text_bytes += chunk.text_bytes;
        self.progress.document = Some(large);
        self.writers[large.stream].append(&block.ids)
    }

    /// Ends a large document, or takes it back.
    fn end_large(&mut self, check: Check<'_>) -> Result<()> {
        let Some(large) = self.progress.document.take() else { return Ok(()) };
        let hash = whole(large.hash);
        let dropped = &mut self.progress.dropped;
        if large.chars < self.settings.min_chars {
            dropped.short += 1;
        } else if let Some(seen) = &mut self.seen
            && !seen.insert(hash, check)?
        {
            dropped.duplicate += 1;
        } else {
            let writer = &mut self.writers[large.stream];
            if let Some(end_of_text) = self.settings.end_of_text {
                writer.append(&[end_of_text])?;
            }
            writer.end_document(hash)?;
            self.progress.streams[large.stream].text_bytes += large.text_bytes;
            return Ok(());
        }
        self.take_back(large, check)
    }

    /// Goes back to where a large document starts. A mark that lies behind must not be what a build
    /// would go on from.
    fn take_back(&mut self, large: LargeDocument, check: Check<'_>) -> Result<()> {
        if self.saved[large.stream].mark.num_tokens > large.mark.num_tokens {
            self.sync()?;
            self.progress.streams[large.stream].mark = large.mark;
            self.write_progress()?;
        }
        self.writers[large.stream].rewind(large.mark, check)
    }

    /// Moves on to the place behind a block.
    fn advance(&mut self, place: &Place, block: &Encoded) {
        let position = &mut self.progress.position;
        if position.input != place.input {
            *position = Position { input: place.input, ..Position::default() };
        }
        position.offset = place.end;
        position.lines += block.lines;
        if place.is_rows {
            let ended = match place.layout {
                Layout::Chunk { ends_document, .. } => {
                    let large = self.progress.document.filter(|_| ends_document);
                    position.lines += u64::from(ends_document);
                    large.map(|large| whole(large.hash)).into_iter().collect()
                }
                _ => block.documents.iter().map(|document| document.hash).collect::<Vec<_>>(),
            };
            let before = position.digest.unwrap_or_default();
            position.digest = Some(ended.into_iter().fold(before, rows_digest));
        } else {
            position.digest = place.digest;
        }
        if place.is_last {
            *position = Position { input: place.input + 1, ..Position::default() };
        }
    }

    /// The input that rows were handed over for has no more of them.
    pub fn end_input(&mut self) {
        let position = &mut self.progress.position;
        *position = Position { input: position.input + 1, ..Position::default() };
        self.count(0);
    }

    /// Begins an input, unless it was begun before.
    pub fn begin_input(&mut self, input: usize) {
        if self.progress.position.input < input {
            self.progress.position = Position { input, ..Position::default() };
        }
    }

    /// What a reader's or an encoder's failure at the next block is called.
    pub fn error(&self, input: usize, path: &str, failure: Failure) -> Error {
        match failure {
            Failure::Other(error) => error,
            Failure::Row { line, reason } => {
                let position = &self.progress.position;
                let before = if position.input == input { position.lines } else { 0 };
                Error::Row { path: path.to_owned(), line: before + line + 1, reason }
            }
        }
    }

    /// Brings all to the disk, so that a build can go on from here.
    ///
    /// # Errors
    /// `Error::Store`.
    pub fn save(&mut self) -> Result<()> {
        if self.broken {
            return Ok(());
        }
        self.sync()?;
        self.write_progress()
    }

    fn sync(&mut self) -> Result<()> {
        for (writer, stream) in self.writers.iter_mut().zip(&mut self.progress.streams) {
            writer.sync()?;
            stream.mark = writer.mark();
        }
        Ok(())
    }

    fn write_progress(&mut self) -> Result<()> {
        self.folder.write_progress(&self.progress)?;
        self.saved.clone_from(&self.progress.streams);
        self.saved_at = Instant::now();
        Ok(())
    }

    /// What can be watched while this is written to.
    pub fn counts(&self) -> Arc<Mutex<Counts>> {
        Arc::clone(&self.counts)
    }

    fn count(&mut self, file_bytes: u64) {
        let (mut tokens, mut documents) = (0, 0);
        for mark in self.writers.iter().map(StoreWriter::mark) {
            tokens += mark.num_tokens;
            documents += mark.num_documents;
        }
        let bytes_before = &self.settings.bytes_before;
        let input = self.progress.position.input.min(bytes_before.len() - 1);
        let is_inside = self.progress.position.offset > 0;
        let counts = Counts {
            bytes: bytes_before[input] + if is_inside { file_bytes } else { 0 },
            text_bytes: self.progress.streams.iter().map(|stream| stream.text_bytes).sum(),
            tokens,
            documents,
            dropped: self.progress.dropped,
        };
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner) = counts;
    }

    /// The shards of each stream, all of them final.
    ///
    /// # Errors
    /// `Error::Store`.
    pub fn finish(mut self) -> Result<(Folder, Progress, Vec<Vec<Shard>>)> {
        self.save()?;
        let shards = self.writers.into_iter().map(StoreWriter::finish).collect::<Result<_>>()?;
        Ok((self.folder, self.progress, shards))
    }
}
