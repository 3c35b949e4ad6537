//! Where sentences come from: lines of text files, texts of JSON lines, documents of a token store.
//!
//! Threads take one part after the other, of some hundred kilobytes, and cut it into sentences
//! themselves. When all parts of an epoch are taken, those of the next follow.

mod parts;

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use self::parts::Content;
pub use self::parts::{Part, Parts};
use super::words::WordSplitter;
use crate::source::{Block, Input, Kind, Layout, Stat, text_of_line};
use crate::store::{OwnedIds, TokenStore};
use crate::tokenizer::{Check, Tokenizer};
use crate::{Error, Result};

/// What is learned from, again and again.
#[derive(Debug)]
pub struct Corpus {
    from: From,
    units: Units,
}

#[derive(Debug)]
enum From {
    Files { inputs: Vec<(Input, Stat)>, text_key: String, replace_invalid: bool },
    Store(Arc<TokenStore>),
}

/// What gets a vector each.
#[derive(Debug)]
pub enum Units {
    /// Words of text.
    Words(WordSplitter),
    /// Tokens of text.
    Tokens(Arc<Tokenizer>),
    /// Tokens that a store has.
    Ids {
        /// How many there are.
        n_vocab: usize,
    },
}

/// What windows stay in.
pub enum Sentence<'a> {
    Text(&'a str),
    Ids(&'a [u32]),
}

impl Corpus {
    /// Files of text or of JSON Lines, which are opened later.
    ///
    /// # Errors
    /// `Error::File`: a file is missing, a folder, or can be read only once.
    pub fn files(
        inputs: Vec<Input>,
        text_key: String,
        replace_invalid: bool,
        units: Units,
    ) -> Result<Self> {
        let with_stat = |input: Input| {
            let stat = if input.kind == Kind::Rows { None } else { Stat::of(&input.path)? };
            let Some(stat) = stat else {
                let reason = "can be read once only, and is needed once an epoch".to_owned();
                return Err(Error::File { path: input.path, reason });
            };
            Ok((input, stat))
        };
        let inputs = inputs.into_iter().map(with_stat).collect::<Result<_>>()?;
        Ok(Self { from: From::Files { inputs, text_key, replace_invalid }, units })
    }

    /// A token store; the end-of-text between its documents is no word.
    pub fn store(store: Arc<TokenStore>) -> Self {
        let n_vocab = store.manifest().tokenizer.n_vocab;
        Self { from: From::Store(store), units: Units::Ids { n_vocab } }
    }

    /// What gets a vector each.
    pub fn units(&self) -> &Units {
        &self.units
    }

    /// How much there is to read: bytes of files, tokens of a store.
    pub fn size(&self) -> u64 {
        match &self.from {
            From::Files { inputs, .. } => inputs.iter().map(|(_, stat)| stat.size).sum(),
            From::Store(store) => store.len(),
        }
    }

    /// Calls `each` with the sentences of a part, in order.
    ///
    /// # Errors
    /// `Error::NotUtf8`; `Error::Row`: a line of JSON has no text; `Error::File`: a text cannot be
    /// tokenized; `Error::Store`; those of `check` and of `each`.
    pub fn for_each_sentence(
        &self,
        part: &Part,
        check: Check<'_>,
        each: &mut dyn FnMut(Sentence<'_>, Check<'_>) -> Result<()>,
    ) -> Result<()> {
        match (&part.content, &self.from) {
            (Content::Block(block), From::Files { inputs, text_key, replace_invalid }) => {
                let path = &inputs[part.input].0.path;
                let file = TextBlock {
                    path,
                    block,
                    first_line: part.first_line,
                    text_key,
                    replace_invalid: *replace_invalid,
                };
                file.for_each_line(check, &mut |line, offset, check| match &self.units {
                    Units::Tokens(tokenizer) => {
                        let mut ids = Vec::new();
                        let mut sink =
                            |new: &[u16]| ids.extend(new.iter().map(|&id| u32::from(id)));
                        tokenizer
                            .encode_to(line, &[], &mut sink, check)
                            .map_err(|error| in_file(path, offset, error))?;
                        each(Sentence::Ids(&ids), check)
                    }
                    _ => each(Sentence::Text(line), check),
                })
            }
            (Content::Tokens(range), From::Store(store)) => {
                documents_in(store, range.clone(), check, each)
            }
            _ => Ok(()), // A part of another corpus.
        }
    }
}

/// An error of text that starts `offset` bytes into a file.
fn in_file(path: &str, offset: usize, error: Error) -> Error {
    match error {
        Error::PieceTooLong { .. } | Error::UnknownCharacter { .. } => {
            Error::File { path: path.to_owned(), reason: error.moved_by(offset).to_string() }
        }
        other => other,
    }
}

/// Calls `each` with the documents, or parts of them, that `range` has.
fn documents_in(
    store: &TokenStore,
    range: Range<u64>,
    check: Check<'_>,
    each: &mut dyn FnMut(Sentence<'_>, Check<'_>) -> Result<()>,
) -> Result<()> {
    let ids: Vec<u32> = match store.copied(range.clone(), check)? {
        OwnedIds::U16(ids) => ids.into_iter().map(u32::from).collect(),
        OwnedIds::U32(ids) => ids,
    };
    let mut ends = Vec::new();
    let start = range.start;
    store.for_each_boundary(range, &mut |end| ends.push((end - start) as usize))?;
    ends.push(ids.len());
    let end_of_text = store.manifest().tokenizer.end_of_text;
    let mut from = 0;
    for end in ends {
        let document = &ids[from..end];
        let is_ended = document.last().copied() == end_of_text && !document.is_empty();
        each(Sentence::Ids(&document[..document.len() - usize::from(is_ended)]), check)?;
        from = end;
    }
    Ok(())
}

/// A block of a file, and what is needed to read its lines.
struct TextBlock<'a> {
    path: &'a str,
    block: &'a Block,
    first_line: u64,
    text_key: &'a str,
    replace_invalid: bool,
}

/// Is called with a line, and where in the file it starts.
type EachLine<'a> = &'a mut dyn FnMut(&str, usize, Check<'_>) -> Result<()>;

impl TextBlock<'_> {
    /// Calls `each` with every line of text.
    fn for_each_line(&self, check: Check<'_>, each: EachLine<'_>) -> Result<()> {
        match &self.block.layout {
            Layout::Documents { ends, gap } => {
                let mut from = 0;
                for &end in ends {
                    each(&self.text(from..end)?, self.offset(from), check)?;
                    from = end + gap;
                }
                Ok(())
            }
            Layout::Chunk { .. } => {
                each(&self.text(0..self.block.bytes.len())?, self.offset(0), check)
            }
            Layout::Lines => self.for_each_text_of_json(check, each),
            Layout::Rows { .. } => Ok(()), // A file has none.
        }
    }

    fn for_each_text_of_json(&self, check: Check<'_>, each: EachLine<'_>) -> Result<()> {
        let (mut from, mut decoded) = (0, String::new());
        for (number, line) in self.block.bytes.split(|&byte| byte == b'\n').enumerate() {
            if !line.trim_ascii().is_empty() {
                let line = self.text(from..from + line.len())?;
                let text = text_of_line(&line, self.text_key, self.replace_invalid, &mut decoded);
                let text = text.map_err(|reason| {
                    let line = self.first_line + number as u64 + 1;
                    Error::Row { path: self.path.to_owned(), line, reason }
                })?;
                for line in text.lines() {
                    each(line, self.offset(from), check)?;
                }
            }
            from += line.len() + 1;
        }
        Ok(())
    }

    fn text(&self, place: Range<usize>) -> Result<Cow<'_, str>> {
        let bytes = &self.block.bytes[place.clone()];
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(Cow::Borrowed(text)),
            Err(_) if self.replace_invalid => Ok(String::from_utf8_lossy(bytes)),
            Err(error) => Err(Error::NotUtf8 {
                path: self.path.to_owned(),
                byte: bytes[error.valid_up_to()],
                offset: self.offset(place.start) + error.valid_up_to(),
            }),
        }
    }

    fn offset(&self, place: usize) -> usize {
        self.block.start as usize + place
    }
}
