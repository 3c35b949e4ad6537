//! The bytes of an input, decompressed: from anywhere in a file, from the start of a pipe.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};

use flate2::read::MultiGzDecoder;
use xxhash_rust::xxh3::Xxh3;

use super::stream::Stream;
use super::{Packing, Stat, change};
use crate::tokenizer::{Check, unreadable};
use crate::{Error, Result};

/// How much of a compressed file is read, and of any skipped, at a time.
const PORTION_BYTES: usize = 1 << 17;

/// An input that is open.
pub struct Bytes {
    path: String,
    from: From,
    /// What the file should be, now and when all of it has been read.
    expected: Option<Stat>,
    ended: bool,
}

enum From {
    Plain(File),
    Gzip(Box<MultiGzDecoder<BufReader<File>>>),
    Zstd(zstd::Decoder<'static, BufReader<File>>),
    /// Standard input or a pipe.
    Stream(Stream),
}

impl Bytes {
    /// Opens an input that should be as `expected`; `None` if it is no regular file.
    pub fn open(path: &str, expected: Option<Stat>) -> Result<Self> {
        let from = Self::open_from(path, expected)?;
        let bytes = Self { path: path.to_owned(), from, expected, ended: false };
        bytes.refuse_changes()?;
        Ok(bytes)
    }

    fn open_from(path: &str, expected: Option<Stat>) -> Result<From> {
        let refused = |error: &io::Error| unreadable(path.as_ref(), error);
        let is_file = Stat::of(path)?.is_some();
        if !is_file && Packing::of(path) == Packing::None {
            return Ok(From::Stream(Stream::open(path)));
        }
        let file = File::open(path).map_err(|error| refused(&error))?;
        // Nothing in no bytes can be damaged.
        let is_empty = expected.is_some_and(|stat| stat.size == 0);
        Ok(match Packing::of(path) {
            _ if is_empty => From::Plain(file),
            Packing::None => From::Plain(file),
            Packing::Gzip => {
                let buffered = BufReader::with_capacity(PORTION_BYTES, file);
                From::Gzip(Box::new(MultiGzDecoder::new(buffered)))
            }
            Packing::Zstd => {
                let buffered = BufReader::with_capacity(PORTION_BYTES, file);
                let decoder = zstd::Decoder::with_buffer(buffered);
                From::Zstd(decoder.map_err(|error| refused(&error))?)
            }
        })
    }

    /// Whether the bytes come once only.
    pub fn is_stream(&self) -> bool {
        matches!(self.from, From::Stream(_))
    }

    pub fn ended(&self) -> bool {
        self.ended
    }

    /// How much of the file has been read, as it lies on the disk.
    pub fn file_bytes(&self) -> u64 {
        self.file().and_then(|mut file| file.stream_position().ok()).unwrap_or(0)
    }

    fn file(&self) -> Option<&File> {
        match &self.from {
            From::Plain(file) => Some(file),
            From::Gzip(decoder) => Some(decoder.get_ref().get_ref()),
            From::Zstd(decoder) => Some(decoder.get_ref().get_ref()),
            From::Stream(_) => None,
        }
    }

    /// Reads until `buffer` has `len` bytes, or the input has ended.
    ///
    /// # Errors
    /// `Error::File`: the input cannot be read or decompressed, or has changed. Those of `check`.
    pub fn fill(&mut self, buffer: &mut Vec<u8>, len: usize, check: Check<'_>) -> Result<()> {
        while !self.ended && buffer.len() < len {
            let wanted = len - buffer.len();
            let read = match &mut self.from {
                From::Plain(file) => append(file, wanted, buffer),
                From::Gzip(decoder) => append(decoder, wanted, buffer),
                From::Zstd(decoder) => append(decoder, wanted, buffer),
                From::Stream(stream) => stream.append(wanted, buffer, check)?,
            };
            let is_packed = matches!(self.from, From::Gzip(_) | From::Zstd(_));
            self.ended = match read {
                Ok(read) => read == 0 || read < wanted && !self.is_stream(),
                Err(error) if is_packed => return Err(self.damaged(&error)),
                Err(error) => return Err(unreadable(self.path.as_ref(), &error)),
            };
        }
        if self.ended { self.refuse_changes() } else { Ok(()) }
    }

    /// Skips `count` bytes. Returns the hash of those of a stream.
    ///
    /// # Errors
    /// As `fill`; and the input has fewer bytes.
    pub fn skip(&mut self, count: u64, check: Check<'_>) -> Result<Xxh3> {
        let mut hash = Xxh3::new();
        if let From::Plain(file) = &mut self.from {
            let sought = file.seek(SeekFrom::Start(count));
            sought.map_err(|error| unreadable(self.path.as_ref(), &error))?;
            return Ok(hash);
        }
        let (mut left, mut portion) = (count, Vec::new());
        while left > 0 {
            check()?;
            portion.clear();
            let wanted = left.min(PORTION_BYTES as u64);
            self.fill(&mut portion, wanted as usize, check)?;
            if (portion.len() as u64) < wanted {
                return Err(self.changed(&format!(
                    "it has {} bytes, of which the build had read {count}",
                    count - left + portion.len() as u64
                )));
            }
            if self.is_stream() {
                hash.update(&portion);
            }
            left -= wanted;
        }
        Ok(hash)
    }

    fn refuse_changes(&self) -> Result<()> {
        let (Some(expected), Some(file)) = (self.expected, self.file()) else { return Ok(()) };
        let metadata = file.metadata().map_err(|error| unreadable(self.path.as_ref(), &error))?;
        let found = Stat::from(&metadata);
        if found == expected {
            return Ok(());
        }
        Err(self.changed(&change(Some(expected), Some(found))))
    }

    fn changed(&self, how: &str) -> Error {
        let reason = format!("has changed since this build began: {how}");
        Error::File { path: self.path.clone(), reason }
    }

    fn damaged(&self, error: &io::Error) -> Error {
        let reason = format!("cannot be decompressed, it is cut off or damaged: {error}");
        Error::File { path: self.path.clone(), reason }
    }
}

/// Appends up to `wanted` bytes; fewer at the end alone.
fn append(from: &mut impl Read, wanted: usize, buffer: &mut Vec<u8>) -> io::Result<usize> {
    buffer.reserve(wanted);
    from.take(wanted as u64).read_to_end(buffer)
}
