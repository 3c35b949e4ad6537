//! A store as another program's files, and theirs as a store. Streams, so that any size will do;
//! what it writes gets its name when it is whole.
//!
//! Documents are handed on with their end-of-text behind them. llm.c's stand behind it: the first one
//! of a file goes to the file's end, and back, and all others stay where they are.

mod folder;
mod megatron;
mod part;
mod raw;

use std::cell::RefCell;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::documents::Documents;
use super::files::refused;
use super::manifest::Dtype;
use super::reader::TokenStore;
use super::tokens::Ids;
use crate::tokenizer::Check;
use crate::{Error, Result};

/// What to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target<'a> {
    /// A folder of ours.
    Folder {
        /// The tokenizer that made the ids, as the content of its file.
        tokenizer_json: Option<&'a [u8]>,
        /// Tokens a shard.
        shard_tokens: u64,
    },
    /// nanoGPT's `.bin`.
    NanoGpt,
    /// llm.c's `.bin`.
    LlmC,
    /// Megatron's `.bin` and `.idx`.
    Megatron,
}

/// Takes documents, token by token, and writes them in some format.
trait Sink {
    /// Appends tokens to the present document.
    fn append(&mut self, ids: Ids<'_>) -> Result<()>;

    /// The present document is whole. It has a token or more.
    fn end_document(&mut self) -> Result<()>;

    /// All documents are whole, and `num_empty` that had no token were left out.
    fn finish(self: Box<Self>, num_empty: u64) -> Result<()>;
}

/// Writes `source` to `out`, which must not be there yet. `tokens_done` counts along.
///
/// # Errors
/// `Error::Store`: a file cannot be read or written, there is something at `out`, or the format cannot
/// hold the tokens. `Error::Setting`: `out` is no name for such a file. Those of `check`. Then nothing
/// is at `out`.
pub fn convert(
    source: &TokenStore,
    out: &Path,
    target: Target<'_>,
    tokens_done: &AtomicU64,
    check: Check<'_>,
) -> Result<()> {
    let stream = Stream::of(source)?;
    let mut sink: Box<dyn Sink> = match target {
        Target::Folder { tokenizer_json, shard_tokens } => {
            Box::new(folder::Folder::new(source, out, tokenizer_json, shard_tokens, check)?)
        }
        Target::NanoGpt => Box::new(raw::NanoGpt::new(out, stream.mark)?),
        Target::LlmC => {
            let dtype = Dtype::holding(source.manifest().tokenizer.n_vocab);
            Box::new(raw::LlmC::new(out, dtype, stream.mark, stream.ends_with_mark)?)
        }
        Target::Megatron => {
            Box::new(megatron::Megatron::new(out, source.manifest().tokenizer.n_vocab)?)
        }
    };
    let num_empty = stream.write_to(&mut *sink, tokens_done, check)?;
    sink.finish(num_empty)
}

/// A store's documents, each with the end-of-text behind it that it has.
struct Stream<'a> {
    source: &'a TokenStore,
    /// The end-of-text.
    mark: Option<u32>,
    /// Whether each mark is the first token of a document.
    starts: bool,
    /// Whether the stream begins with a mark, which then goes to its end.
    rotated: bool,
    /// Whether the last document has a mark behind it, at last.
    ends_with_mark: bool,
}

impl<'a> Stream<'a> {
    fn of(source: &'a TokenStore) -> Result<Self> {
        let mark = source.manifest().tokenizer.end_of_text;
        let starts = matches!(&source.documents, Documents::Marked(marked) if marked.is_first());
        let is_mark = |index: u64| {
            let mut found = false;
            source.for_each(index..index + 1, &mut |ids| found = ids.iter().next() == mark)?;
            Ok::<_, Error>(found && mark.is_some())
        };
        let rotated = starts && !source.is_empty() && is_mark(0)?;
        let ends_with_mark = rotated || !source.is_empty() && is_mark(source.len() - 1)?;
        Ok(Self { source, mark, starts, rotated, ends_with_mark })
    }

    /// Hands all documents on, and counts those without a token.
    fn write_to(
        &self,
        sink: &mut dyn Sink,
        tokens_done: &AtomicU64,
        check: Check<'_>,
    ) -> Result<u64> {
        let (source, len) = (self.source, self.source.len());
        let (mut start, mut num_empty) = (u64::from(self.rotated), 0);
        let check = RefCell::new(check); // Called between documents, and within long ones.
        let copy = |start: u64, end: u64, sink: &mut dyn Sink| {
            source.tokens.for_each_block(start..end, |_, shard, ids| {
                source.tokens.check_ids(shard, ids)?;
                sink.append(ids)?;
                tokens_done.fetch_add(ids.len() as u64, Ordering::Relaxed);
                if ids.len() > FEW { (check.borrow_mut())() } else { Ok(()) }
            })
        };
        let mut each = |end: u64| {
            if end >= len {
                return Ok(()); // The last one is to come.
            }
            let end = end + u64::from(self.starts);
            if end < start {
                let reason = format!("a document ends at token {end}, before it starts at {start}");
                return Err(refused(source.path(), reason));
            }
            if end == start {
                num_empty += 1;
                return Ok(());
            }
            copy(start, end, sink)?;
            start = end;
            sink.end_document()
        };
        source.documents.for_each_end(&source.tokens, &mut || (check.borrow_mut())(), &mut each)?;
        if start < len || self.rotated {
            copy(start, len, sink)?;
            if let (true, Some(mark)) = (self.rotated, self.mark) {
                sink.append(Ids::U32(&[mark]))?;
            }
            sink.end_document()?;
        }
        Ok(num_empty)
    }
}

/// Documents of fewer tokens need no check of their own.
const FEW: usize = 1 << 14;
