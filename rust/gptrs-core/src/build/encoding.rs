//! One thread's work on a block: text out of its bytes, documents out of the text, ids out of them.

use std::borrow::Cow;
use std::ops::Range;

use memchr::memchr;
use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128, xxh3_128_with_seed};

use crate::Error;
use crate::source::{Block, Failure, Layout, chunk_end, text_of_line};
use crate::tokenizer::worker::Worker;
use crate::tokenizer::{Check, Tokenizer};

/// Mixed into a document's hash before it decides where the document goes, so that this does not
/// depend on what else hashes are used for.
pub const SIDE_SEED: u64 = 0x6770_7472_735f_7661;

/// Mixed into the hash of what has been seen of a large document.
const CHAIN_SEED: u64 = 0x6770_7472_735f_6368;

/// What a row that is no document has instead of a hash.
const NO_DOCUMENT: u128 = 0;

/// How documents become ids.
#[derive(Debug, Clone)]
pub struct Rules {
    pub text_key: String,
    pub replace_invalid: bool,
    pub skip_invalid: bool,
    /// Special tokens that are special in a text.
    pub special: Vec<String>,
    pub end_of_text: Option<u16>,
    pub min_chars: u64,
    /// Documents whose hash is below this are for validation.
    pub val_below: u64,
    /// Whether anybody asks for the documents' hashes.
    pub hashes: bool,
    pub block_bytes: usize,
}

/// What is to be done with a document, as far as it alone tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Keep,
    Empty,
    Short,
    /// It is no document.
    Invalid,
}

/// A document, or a chunk of one, whose ids end at `end`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Document {
    pub verdict: Verdict,
    pub end: usize,
    pub hash: u128,
    pub is_val: bool,
    pub text_bytes: u64,
}

/// A block's ids.
#[derive(Debug, Default)]
pub struct Encoded {
    /// Each whole document's end-of-text included.
    pub ids: Vec<u16>,
    pub documents: Vec<Document>,
    /// Lines or rows that end in the block.
    pub lines: u64,
    /// Characters of a chunk, if anybody asks.
    pub chars: u64,
}

impl Encoded {
    pub fn clear(&mut self) {
        self.ids.clear();
        self.documents.clear();
        (self.lines, self.chars) = (0, 0);
    }

    /// What this takes in memory.
    pub fn cost(&self) -> usize {
        size_of::<u16>() * self.ids.capacity() + size_of::<Document>() * self.documents.capacity()
    }
}

/// The hash of a large document, from the hashes of what came before and of its next chunk.
pub fn chained(before: u128, chunk: u128) -> u128 {
    let mut both = [0; 32];
    both[..16].copy_from_slice(&before.to_le_bytes());
    both[16..].copy_from_slice(&chunk.to_le_bytes());
    xxh3_128_with_seed(&both, CHAIN_SEED)
}

/// The hashes of a document's first chunk and of all of it.
fn hashes(text: &str, block_bytes: usize) -> (u128, u128) {
    let (chunk, mut rest) = text.split_at(chunk_end(text, block_bytes));
    let first = xxh3_128(chunk.as_bytes());
    let mut hash = first;
    while !rest.is_empty() {
        let (chunk, after) = rest.split_at(chunk_end(rest, block_bytes));
        hash = chained(hash, xxh3_128(chunk.as_bytes()));
        rest = after;
    }
    (first, hash)
}

/// The hash of a row, which may be no text.
pub fn row_hash(text: Option<&str>, block_bytes: usize) -> u128 {
    text.map_or(NO_DOCUMENT, |text| hashes(text, block_bytes).1)
}

/// Encodes blocks on one thread.
pub struct Encoder<'a> {
    rules: &'a Rules,
    worker: Worker<'a>,
    special: Vec<&'a str>,
    /// The text of a line whose JSON had escapes.
    decoded: String,
}

impl<'a> Encoder<'a> {
    pub fn new(tokenizer: &'a Tokenizer, rules: &'a Rules) -> Self {
        let special = rules.special.iter().map(String::as_str).collect();
        Self { rules, worker: Worker::new(tokenizer), special, decoded: String::new() }
    }

    /// The ids of a block of the input `path`, into `out`, which is empty.
    ///
    /// # Errors
    /// The first row that is no document, if those are not to be skipped; text that is not UTF-8;
    /// text that the tokenizer refuses. Those of `check`.
    pub fn encode(
        &mut self,
        path: &str,
        block: &Block,
        out: &mut Encoded,
        check: Check<'_>,
    ) -> Result<(), Failure> {
        let Block { bytes, layout, start, .. } = block;
        match layout {
            Layout::Lines => self.encode_lines(bytes, out, check),
            Layout::Rows { ends } => self.encode_rows(path, bytes, ends, out, check),
            Layout::Documents { ends, gap } => {
                let whole = self.valid(path, bytes, *start)?;
                let mut from = 0;
                for &end in ends {
                    let text = part(whole, bytes, from..end);
                    self.encode_document(&text, out, check)
                        .map_err(|error| in_file(path, start + from as u64, error))?;
                    from = end + gap;
                }
                Ok(())
            }
            Layout::Chunk { .. } => {
                let text = part(self.valid(path, bytes, *start)?, bytes, 0..bytes.len());
                let encoded = self.encode_chunk(&text, out, check);
                Ok(encoded.map_err(|error| in_file(path, *start, error))?)
            }
        }
    }

    /// The text in `bytes`; `None` where bytes are to be replaced.
    fn valid<'b>(&self, path: &str, bytes: &'b [u8], start: u64) -> Result<Option<&'b str>, Error> {
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(Some(text)),
            Err(_) if self.rules.replace_invalid => Ok(None),
            Err(error) => Err(Error::NotUtf8 {
                path: path.to_owned(),
                byte: bytes[error.valid_up_to()],
                offset: start as usize + error.valid_up_to(),
            }),
        }
    }

    fn encode_lines(
        &mut self,
        bytes: &[u8],
        out: &mut Encoded,
        check: Check<'_>,
    ) -> Result<(), Failure> {
        let whole = std::str::from_utf8(bytes).ok();
        let mut decoded = std::mem::take(&mut self.decoded);
        let mut start = 0;
        while start < bytes.len() {
            let end = memchr(b'\n', &bytes[start..]).map_or(bytes.len(), |at| start + at);
            let is_blank = bytes[start..end].trim_ascii().is_empty();
            if !is_blank
                && let Err(refusal) =
                    self.encode_line(whole, bytes, start..end, &mut decoded, out, check)
            {
                self.settle(refusal, NO_DOCUMENT, out)?;
            }
            out.lines += 1;
            start = end + 1;
        }
        self.decoded = decoded;
        Ok(())
    }

    fn encode_line(
        &mut self,
        whole: Option<&str>,
        bytes: &[u8],
        place: Range<usize>,
        decoded: &mut String,
        out: &mut Encoded,
        check: Check<'_>,
    ) -> Result<(), Refusal> {
        let line = match whole {
            Some(text) => Cow::Borrowed(&text[place]),
            None if self.rules.replace_invalid => String::from_utf8_lossy(&bytes[place]),
            None => Cow::Borrowed(std::str::from_utf8(&bytes[place]).map_err(|error| {
                Refusal::Row(format!("is not UTF-8 behind its first {} bytes", error.valid_up_to()))
            })?),
        };
        let (key, replace) = (&self.rules.text_key, self.rules.replace_invalid);
        let text = text_of_line(&line, key, replace, decoded).map_err(Refusal::Row)?;
        Ok(self.encode_document(text, out, check)?)
    }

    fn encode_rows(
        &mut self,
        path: &str,
        bytes: &[u8],
        ends: &[Option<usize>],
        out: &mut Encoded,
        check: Check<'_>,
    ) -> Result<(), Failure> {
        let whole = self.valid(path, bytes, 0)?;
        let mut start = 0;
        for end in ends {
            let text = end.map(|end| part(whole, bytes, std::mem::replace(&mut start, end)..end));
            let encoded = match &text {
                Some(text) => self.encode_document(text, out, check).map_err(Refusal::from),
                None => Err(Refusal::Row("is no string".to_owned())),
            };
            if let Err(refusal) = encoded {
                let hash = row_hash(text.as_deref(), self.rules.block_bytes);
                self.settle(refusal, hash, out)?;
            }
            out.lines += 1;
        }
        Ok(())
    }

    /// Passes over a row that is no document, or refuses it.
    fn settle(&self, row: Refusal, hash: u128, out: &mut Encoded) -> Result<(), Failure> {
        let reason = match row {
            Refusal::Other(error) => return Err(error.into()),
            Refusal::Row(reason) => reason,
        };
        if !self.rules.skip_invalid {
            return Err(Failure::Row { line: out.lines, reason });
        }
        let end = out.documents.last().map_or(0, |document| document.end);
        out.ids.truncate(end);
        let verdict = Verdict::Invalid;
        out.documents.push(Document { verdict, end, hash, is_val: false, text_bytes: 0 });
        Ok(())
    }

    /// Appends a whole document.
    fn encode_document(
        &mut self,
        text: &str,
        out: &mut Encoded,
        check: Check<'_>,
    ) -> Result<(), Error> {
        let (first, hash) = if self.rules.hashes {
            hashes(text, self.rules.block_bytes)
        } else {
            (NO_DOCUMENT, NO_DOCUMENT)
        };
        let verdict = if text.is_empty() {
            Verdict::Empty
        } else if self.is_short(text) {
            Verdict::Short
        } else {
            Verdict::Keep
        };
        if verdict == Verdict::Keep {
            let ids = &mut out.ids;
            self.worker.encode(
                text,
                &self.special,
                &mut |new| ids.extend_from_slice(new),
                check,
            )?;
            ids.extend(self.rules.end_of_text);
        }
        let (end, is_val) = (out.ids.len(), self.is_val(first));
        let text_bytes = text.len() as u64;
        out.documents.push(Document { verdict, end, hash, is_val, text_bytes });
        Ok(())
    }

    /// Appends a chunk of a large document.
    fn encode_chunk(
        &mut self,
        text: &str,
        out: &mut Encoded,
        check: Check<'_>,
    ) -> Result<(), Error> {
        let hash = if self.rules.hashes { xxh3_128(text.as_bytes()) } else { NO_DOCUMENT };
        out.chars = if self.rules.min_chars > 0 { text.chars().count() as u64 } else { 0 };
        let ids = &mut out.ids;
        self.worker.encode(text, &self.special, &mut |new| ids.extend_from_slice(new), check)?;
        out.documents.push(Document {
            verdict: Verdict::Keep,
            end: out.ids.len(),
            hash,
            is_val: self.is_val(hash),
            text_bytes: text.len() as u64,
        });
        Ok(())
    }

    fn is_val(&self, first: u128) -> bool {
        self.rules.val_below > 0
            && xxh3_64_with_seed(&first.to_le_bytes(), SIDE_SEED) < self.rules.val_below
    }

    fn is_short(&self, text: &str) -> bool {
        let (bytes, least) = (text.len() as u64, self.rules.min_chars);
        bytes < least.saturating_mul(4) && (bytes < least || (text.chars().count() as u64) < least)
    }
}

/// Why a row is not encoded.
enum Refusal {
    /// It is no document.
    Row(String),
    Other(Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        if is_of_the_text(&error) { Self::Row(error.to_string()) } else { Self::Other(error) }
    }
}

/// Whether the tokenizer refuses the text, not somebody else the work.
fn is_of_the_text(error: &Error) -> bool {
    matches!(error, Error::PieceTooLong { .. } | Error::UnknownCharacter { .. })
}

/// An error of text that starts at `offset` of a file, with the file's name.
fn in_file(path: &str, offset: u64, error: Error) -> Error {
    if is_of_the_text(&error) {
        let reason = error.moved_by(offset as usize).to_string();
        return Error::File { path: path.to_owned(), reason };
    }
    error
}

/// A part of a text; where bytes are to be replaced, of the bytes that should have been one.
fn part<'b>(whole: Option<&'b str>, bytes: &'b [u8], place: Range<usize>) -> Cow<'b, str> {
    match whole {
        Some(text) => Cow::Borrowed(&text[place]),
        None => String::from_utf8_lossy(&bytes[place]),
    }
}
