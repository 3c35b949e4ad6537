//! The shard that grows: a file for its tokens, one for the ends of documents, perhaps one for hashes.

use std::path::Path;

use super::Layout;
use crate::Result;
use crate::store::column::{Column, Sealed};
use crate::store::manifest::{ends_name, hashes_name, tokens_name};
use crate::store::npy::{HEADER_BYTES, header, pairs_header};
use crate::store::{Dtype, Shard};
use crate::tokenizer::Check;

/// Its files and how much they have.
pub struct OpenShard {
    pub tokens: Column,
    pub ends: Column,
    pub hashes: Option<Column>,
    pub num_tokens: u64,
    pub num_documents: u64,
}

impl OpenShard {
    /// A shard without tokens.
    pub fn create(dir: &Path, index: usize, hashes: bool) -> Result<Self> {
        let hashes = hashes.then(|| Column::create(dir.join(hashes_name(index)))).transpose()?;
        Ok(Self {
            tokens: Column::create(dir.join(tokens_name(index)))?,
            ends: Column::create(dir.join(ends_name(index)))?,
            hashes,
            num_tokens: 0,
            num_documents: 0,
        })
    }

    /// One that was begun, with these counts of tokens and documents.
    pub fn reopen(
        dir: &Path,
        index: usize,
        layout: Layout,
        (num_tokens, num_documents): (u64, u64),
        check: Check<'_>,
    ) -> Result<Self> {
        let hashes = layout.hashes.then(|| dir.join(hashes_name(index)));
        let hashes = hashes.map(|path| Column::reopen(path, num_documents * 16, check));
        let token_bytes = num_tokens * layout.dtype.size() as u64;
        Ok(Self {
            hashes: hashes.transpose()?,
            tokens: Column::reopen(dir.join(tokens_name(index)), token_bytes, check)?,
            ends: Column::reopen(dir.join(ends_name(index)), num_documents * 8, check)?,
            num_tokens,
            num_documents,
        })
    }

    /// Cuts off what is beyond the counts.
    pub fn truncate(&mut self, layout: Layout, check: Check<'_>) -> Result<()> {
        self.tokens.truncate(self.num_tokens * layout.dtype.size() as u64, check)?;
        self.ends.truncate(self.num_documents * 8, check)?;
        let hashes = self.hashes.as_mut();
        hashes.map_or(Ok(()), |hashes| hashes.truncate(self.num_documents * 16, check))
    }

    /// Its files.
    pub fn columns(&mut self) -> impl Iterator<Item = &mut Column> {
        [&mut self.tokens, &mut self.ends].into_iter().chain(&mut self.hashes)
    }

    /// Gives it its headers; `unsynced` gets its files.
    pub fn seal(self, dtype: Dtype, unsynced: &mut Vec<Sealed>) -> Result<Shard> {
        let (num_tokens, num_documents) = (self.num_tokens, self.num_documents);
        let mut seal = |column: Column, header: [u8; HEADER_BYTES]| {
            let (digest, file) = column.seal(&header)?;
            unsynced.push(file);
            Ok(digest)
        };
        Ok(Shard {
            num_tokens,
            num_documents,
            tokens_xxh3: seal(self.tokens, header(dtype.descr(), num_tokens))?,
            ends_xxh3: seal(self.ends, header("<u8", num_documents))?,
            hashes_xxh3: self
                .hashes
                .map(|hashes| seal(hashes, pairs_header("<u8", num_documents)))
                .transpose()?,
        })
    }
}
