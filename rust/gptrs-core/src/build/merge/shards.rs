//! The shards of parts under new numbers: the same files where nothing is left out, else rewritten.

use std::ops::Range;
use std::path::Path;

use xxhash_rust::xxh3::Xxh3;

use super::Progress;
use super::files::{Documents, check_digest, link_or_copy};
use super::parts::Part;
use crate::Result;
use crate::build::seen::Seen;
use crate::store::column::{Column, for_each_part};
use crate::store::files::{refused, remove_file};
use crate::store::manifest::{ends_name, tokens_name};
use crate::store::npy::header;
use crate::store::{Dtype, Manifest, Shard};
use crate::tokenizer::Check;

/// How many documents to look at between two checks.
const DOCUMENTS_A_CHECK: u64 = 1 << 12;

/// The shards so far, and what was left out of them.
pub struct Joined<'a> {
    dir: &'a Path,
    dtype: Dtype,
    end_of_text: Option<u32>,
    progress: &'a Progress,
    /// How many bytes of text each id stands for, if that is to be counted.
    pub token_bytes: Option<Vec<u64>>,
    pub shards: Vec<Shard>,
    /// Documents that were left out, and the bytes of their text.
    pub dropped: u64,
    pub dropped_bytes: u64,
}

/// What is left out of a shard.
#[derive(Default)]
struct Cuts {
    /// Tokens, in order and apart.
    ranges: Vec<Range<u64>>,
    /// The numbers of the documents that end there.
    documents: Vec<u64>,
    /// Where the document starts that goes on in the next shard.
    tail: u64,
}

impl<'a> Joined<'a> {
    pub fn new(dir: &'a Path, manifest: &Manifest, progress: &'a Progress) -> Self {
        Self {
            dir,
            dtype: manifest.dtype,
            end_of_text: manifest.tokenizer.end_of_text,
            progress,
            token_bytes: None,
            shards: Vec::new(),
            dropped: 0,
            dropped_bytes: 0,
        }
    }

    /// Appends a part as it is.
    pub fn append_all(&mut self, part: &Part, check: Check<'_>) -> Result<()> {
        (0..part.manifest.shards.len()).try_for_each(|shard| self.link(part, shard, check))
    }

    /// Appends the documents of a part that have not been seen. A shard's last document may end in a
    /// later one: until then the shard waits.
    pub fn append_new(&mut self, part: &Part, seen: &mut Seen, check: Check<'_>) -> Result<()> {
        let mut waiting: Vec<(usize, Cuts)> = Vec::new();
        for (number, shard) in part.manifest.shards.iter().enumerate() {
            let mut documents = Documents::open(part, number)?;
            let (mut cuts, mut start) = (Cuts::default(), 0);
            for document in 0..shard.num_documents {
                if document % DOCUMENTS_A_CHECK == 0 {
                    check()?;
                }
                let (end, hash) = documents.next(start)?;
                let is_new = seen.insert(hash, check)?;
                for (number, mut cuts) in waiting.drain(..) {
                    let len = part.manifest.shards[number].num_tokens;
                    cuts.ranges.extend((!is_new).then_some(cuts.tail..len));
                    self.append(part, number, &cuts, check)?;
                }
                if !is_new {
                    cuts.leave_out(start..end, document);
                }
                start = end;
            }
            documents.check()?;
            cuts.tail = start;
            if start == shard.num_tokens {
                self.append(part, number, &cuts, check)?;
            } else {
                waiting.push((number, cuts));
            }
        }
        waiting.iter().try_for_each(|(number, cuts)| self.append(part, *number, cuts, check))
    }

    fn append(&mut self, part: &Part, number: usize, cuts: &Cuts, check: Check<'_>) -> Result<()> {
        if cuts.ranges.is_empty() && cuts.documents.is_empty() {
            return self.link(part, number, check);
        }
        self.rewrite(part, number, cuts, check)
    }

    /// Gives a shard one more name, or copies it where the disk cannot do that.
    fn link(&mut self, part: &Part, number: usize, check: Check<'_>) -> Result<()> {
        let mut shard = part.manifest.shards[number];
        shard.hashes_xxh3 = None;
        let (tokens, count) = (header(self.dtype.descr(), shard.num_tokens), shard.num_tokens);
        let token_bytes = count * self.dtype.size() as u64;
        let to = self.dir.join(tokens_name(self.shards.len()));
        let from = part.dir.join(tokens_name(number));
        link_or_copy(&from, &to, &tokens, token_bytes, shard.tokens_xxh3, check)?;
        let (ends, count) = (header("<u8", shard.num_documents), shard.num_documents);
        let to = self.dir.join(ends_name(self.shards.len()));
        let from = part.dir.join(ends_name(number));
        link_or_copy(&from, &to, &ends, count * 8, shard.ends_xxh3, check)?;
        self.shards.push(shard);
        self.progress.add(shard.num_tokens, shard.num_tokens * self.dtype.size() as u64);
        Ok(())
    }

    /// Writes what is left of a shard, if anything is.
    fn rewrite(&mut self, part: &Part, number: usize, cuts: &Cuts, check: Check<'_>) -> Result<()> {
        let shard = part.manifest.shards[number];
        let cut: u64 = cuts.ranges.iter().map(|range| range.end - range.start).sum();
        let num_tokens = shard.num_tokens - cut;
        let num_documents = shard.num_documents - cuts.documents.len() as u64;
        let mut tokens = Column::create(self.dir.join(tokens_name(self.shards.len())))?;
        self.rewrite_tokens(part, number, cuts, &mut tokens, check)?;
        let mut ends = Column::create(self.dir.join(ends_name(self.shards.len())))?;
        rewrite_ends(part, number, cuts, &mut ends, check)?;
        let (tokens_xxh3, file) = tokens.seal(&header(self.dtype.descr(), num_tokens))?;
        file.sync()?;
        let (ends_xxh3, file) = ends.seal(&header("<u8", num_documents))?;
        file.sync()?;
        self.dropped += cuts.documents.len() as u64;
        self.progress.add(shard.num_tokens, shard.num_tokens * self.dtype.size() as u64);
        if num_tokens == 0 && num_documents == 0 {
            remove_file(&self.dir.join(tokens_name(self.shards.len())))?;
            return remove_file(&self.dir.join(ends_name(self.shards.len())));
        }
        let hashes_xxh3 = None;
        self.shards.push(Shard { num_tokens, num_documents, tokens_xxh3, ends_xxh3, hashes_xxh3 });
        Ok(())
    }

    fn rewrite_tokens(
        &mut self,
        part: &Part,
        number: usize,
        cuts: &Cuts,
        tokens: &mut Column,
        check: Check<'_>,
    ) -> Result<()> {
        let (shard, size) = (part.manifest.shards[number], self.dtype.size() as u64);
        let path = part.dir.join(tokens_name(number));
        let (mut at, mut hash, mut ranges) = (0, Xxh3::new(), cuts.ranges.as_slice());
        for_each_part(&path, shard.num_tokens * size, check, &mut |mut bytes| {
            hash.update(bytes);
            while !bytes.is_empty() {
                while let [range, later @ ..] = ranges
                    && range.end <= at
                {
                    ranges = later;
                }
                let (is_cut, until) = match ranges {
                    [range, ..] if range.start <= at => (true, range.end),
                    [range, ..] => (false, range.start),
                    [] => (false, shard.num_tokens),
                };
                let len = bytes.len().min(((until - at) * size) as usize);
                let (now, later) = bytes.split_at(len);
                if is_cut {
                    self.count_text(now, &path)?;
                } else {
                    tokens.append(now)?;
                }
                at += len as u64 / size;
                bytes = later;
            }
            Ok(())
        })?;
        check_digest(&path, hash.digest(), shard.tokens_xxh3)?;
        if let (Some(token_bytes), Some(end_of_text)) = (&self.token_bytes, self.end_of_text) {
            let bytes = token_bytes.get(end_of_text as usize).copied().unwrap_or_default();
            let ends = bytes * cuts.documents.len() as u64;
            self.dropped_bytes = self.dropped_bytes.saturating_sub(ends);
        }
        Ok(())
    }

    /// Counts the bytes of text that ids stand for.
    fn count_text(&mut self, ids: &[u8], path: &Path) -> Result<()> {
        let Some(token_bytes) = &self.token_bytes else { return Ok(()) };
        for id in ids.chunks_exact(self.dtype.size()) {
            let id = id.iter().rev().fold(0, |id, byte| id << 8 | usize::from(*byte));
            let bytes = token_bytes.get(id).ok_or_else(|| {
                let last = token_bytes.len() - 1;
                refused(path, format!("has token id {id}, which is outside 0..{last}"))
            })?;
            self.dropped_bytes += bytes;
        }
        Ok(())
    }
}

impl Cuts {
    fn leave_out(&mut self, range: Range<u64>, document: u64) {
        self.documents.push(document);
        match self.ranges.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ if range.is_empty() => {}
            _ => self.ranges.push(range),
        }
    }
}

/// The ends of the documents that stay, less what was cut before them.
fn rewrite_ends(
    part: &Part,
    number: usize,
    cuts: &Cuts,
    ends: &mut Column,
    check: Check<'_>,
) -> Result<()> {
    let shard = part.manifest.shards[number];
    let (mut ranges, mut documents) = (cuts.ranges.as_slice(), cuts.documents.as_slice());
    let (mut document, mut cut) = (0, 0);
    let path = part.dir.join(ends_name(number));
    let mut hash = Xxh3::new();
    for_each_part(&path, shard.num_documents * 8, check, &mut |bytes| {
        hash.update(bytes);
        for end in bytes.as_chunks().0 {
            let end = u64::from_le_bytes(*end);
            while let [range, later @ ..] = ranges
                && range.end <= end
            {
                cut += range.end - range.start;
                ranges = later;
            }
            match documents {
                [first, later @ ..] if *first == document => documents = later,
                _ => ends.append(&(end - cut).to_le_bytes())?,
            }
            document += 1;
        }
        Ok(())
    })?;
    check_digest(&path, hash.digest(), shard.ends_xxh3)
}
