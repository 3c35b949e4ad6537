//! Megatron's `.bin` and `.idx`: each document is one sequence.

use std::path::{Path, PathBuf};

use super::Sink;
use super::part::{Part, refuse_existing};
use crate::Result;
use crate::store::files::refused;
use crate::store::foreign::megatron::{DTYPE_INT32, DTYPE_UINT16, HEADER_BYTES, MAGIC, VERSION};
use crate::store::manifest::Dtype;
use crate::store::tokens::Ids;

/// How many documents' places to work out at a time.
const PORTION: u64 = 1 << 16;

/// The pair of files.
pub struct Megatron {
    bin: Part,
    /// The header's room and the lengths; the rest comes at the end.
    idx: Part,
    dtype: Dtype,
    num_documents: u64,
    document_tokens: u64,
}

impl Megatron {
    /// Writes to `path`, or beside it, with the endings `.bin` and `.idx`.
    pub fn new(path: &Path, n_vocab: usize) -> Result<Self> {
        let prefix = match path.extension().and_then(|extension| extension.to_str()) {
            Some("bin" | "idx") => path.with_extension(""),
            _ => path.to_owned(),
        };
        let [bin, idx] = [".bin", ".idx"].map(|ending| {
            let mut name = prefix.clone().into_os_string();
            name.push(ending);
            PathBuf::from(name)
        });
        refuse_existing(&bin)?;
        let (bin, mut idx) = (Part::new(&bin)?, Part::new(&idx)?);
        idx.write(&[0; HEADER_BYTES])?;
        let dtype = Dtype::holding(n_vocab);
        Ok(Self { bin, idx, dtype, num_documents: 0, document_tokens: 0 })
    }

    /// Where each sequence starts, in bytes, from the lengths that are written already.
    fn write_starts(&mut self) -> Result<()> {
        let mut start = 0_i64;
        for first in (0..self.num_documents).step_by(PORTION as usize) {
            let count = PORTION.min(self.num_documents - first) as usize;
            let mut lengths = vec![0_i32; count];
            let at = HEADER_BYTES as u64 + 4 * first;
            self.idx.read_at(at, bytemuck::cast_slice_mut(&mut lengths))?;
            let starts: Vec<i64> = lengths
                .iter()
                .map(|&length| {
                    let this = start;
                    start += i64::from(length) * self.dtype.size() as i64;
                    this
                })
                .collect();
            self.idx.write(bytemuck::cast_slice(&starts))?;
        }
        Ok(())
    }

    /// Where each document starts, in sequences; and last, how many there are.
    fn write_bounds(&mut self) -> Result<()> {
        let end = self.num_documents as i64 + 1;
        for first in (0..end).step_by(PORTION as usize) {
            let bounds: Vec<i64> = (first..end.min(first + PORTION as i64)).collect();
            self.idx.write(bytemuck::cast_slice(&bounds))?;
        }
        Ok(())
    }

    fn header(&self) -> Vec<u8> {
        let code = if self.dtype == Dtype::Uint16 { DTYPE_UINT16 } else { DTYPE_INT32 };
        let mut header = MAGIC.to_vec();
        header.extend(VERSION.to_le_bytes());
        header.push(code);
        header.extend(self.num_documents.to_le_bytes());
        header.extend((self.num_documents + 1).to_le_bytes());
        header
    }
}

impl Sink for Megatron {
    fn append(&mut self, ids: Ids<'_>) -> Result<()> {
        self.document_tokens += ids.len() as u64;
        self.bin.write_ids(ids, self.dtype)
    }

    fn end_document(&mut self) -> Result<()> {
        let length = i32::try_from(self.document_tokens).map_err(|_| {
            let reason = format!(
                "a document has {} tokens: Megatron counts a sequence's in 31 bits",
                self.document_tokens
            );
            refused(self.idx.path(), reason)
        })?;
        (self.num_documents, self.document_tokens) = (self.num_documents + 1, 0);
        self.idx.write(&length.to_le_bytes())
    }

    fn finish(mut self: Box<Self>, _num_empty: u64) -> Result<()> {
        self.write_starts()?;
        self.write_bounds()?;
        let header = self.header();
        self.idx.write_at(0, &header)?;
        // Ids without their index would be taken for nanoGPT's: the index comes first.
        self.idx.finish()?;
        self.bin.finish()
    }
}
