//! Text to token ids and back: GPT-2's byte-pair encoding, or a vocabulary that was trained.
//!
//! ```text
//!   "It's hot<|endoftext|>"
//!     │ special    "It's hot" │ <|endoftext|>        a special token ends a segment
//!     │ split      It │ 's │ ␣hot                    GPT-2's pattern, 64 bytes at a time
//!     │ probe      1026  338   3024                  a piece that was seen before
//!     ▼ merge      (none here)                       any other: pairs, by lowest rank
//!   [1026, 338, 3024, 50256]
//! ```
//!
//! Ids of `Tokenizer::gpt2` equal those of tiktoken's `gpt2` for every input. Its vocabulary and the
//! Unicode tables are read-only data that `build.rs` made: there is nothing to load. No input
//! panics, overflows the stack or takes quadratic time.
//!
//! ```
//! use gptrs_core::tokenizer::{END_OF_TEXT, Tokenizer};
//!
//! let tokenizer = Tokenizer::gpt2();
//! let ids = tokenizer.encode_ordinary("Hello, I am")?;
//! assert_eq!(ids, [15496, 11, 314, 716]);
//! assert_eq!(tokenizer.decode(&ids)?, b"Hello, I am");
//!
//! // A special token in the text is refused unless it is allowed …
//! let text = "first<|endoftext|>second";
//! let error = tokenizer.encode(text, &[], &[END_OF_TEXT]).unwrap_err();
//! assert!(error.to_string().starts_with("the text has the special token"));
//! assert_eq!(tokenizer.encode(text, &[END_OF_TEXT], &[])?, [11085, 50256, 12227]);
//!
//! // … or encoded like any other text.
//! assert_eq!(tokenizer.encode(text, &[], &[])?.len(), 9);
//! # Ok::<(), gptrs_core::Error>(())
//! ```

mod cache;
mod chars;
mod classes;
pub(crate) mod cuts;
pub mod description;
mod encode;
pub mod file;
mod layout;
mod memory;
mod merge;
mod pack;
mod parallel;
pub(crate) mod simd;
mod special;
mod split;
mod tables;
mod text_file;
pub mod train;
mod vocab;
mod words;
pub(crate) mod worker;

pub use simd::Isa;
pub use special::refuse_special;
pub use split::split;
pub(crate) use text_file::unreadable;
pub use text_file::{OnInvalid, TextFile};

use crate::{Error, Result};
use chars::Chars;
use description::{Description, Model};
use memory::room_for_ids;
use pack::Tables;
use vocab::{GPT2, Vocab};
use words::SharedWords;
use worker::Worker;

/// GPT-2's one special token, as it is written in a text.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// A run of text without a break may have this many bytes.
pub const LONGEST_PIECE: usize = 1 << 26;

/// How much text to encode between two calls of a `check`: a few milliseconds' work.
const BYTES_BETWEEN_CHECKS: usize = 1 << 18;

/// Called every few milliseconds of a long work: an error that it returns ends the work.
pub type Check<'a> = &'a mut dyn FnMut() -> Result<()>;

/// A vocabulary, ready to encode and decode. Threads may share it.
#[derive(Debug)]
pub struct Tokenizer {
    ordinary: Ordinary,
    special_tokens: Vec<String>,
    isa: simd::Found,
    words: SharedWords,
}

#[derive(Debug)]
enum Ordinary {
    Gpt2,
    Bpe(Box<Tables>),
    Char(Box<Chars>),
}

impl Tokenizer {
    /// GPT-2's tokenizer: 50,257 ids, of which the last is `END_OF_TEXT`.
    pub fn gpt2() -> Self {
        Self::with(Ordinary::Gpt2, vec![END_OF_TEXT.to_owned()])
    }

    /// The tokenizer that a description describes.
    ///
    /// # Errors
    /// `Error::TokenizerDescription`: it describes none.
    pub fn new(description: Description) -> Result<Self> {
        description.check()?;
        let ordinary = match description.model {
            Model::Bpe { merges } => {
                let tables = Box::new(Tables::of(&merges));
                Vocab::of(&tables).refuse_unreachable_tokens()?;
                Ordinary::Bpe(tables)
            }
            Model::Char { chars } => Ordinary::Char(Box::new(Chars::new(chars))),
        };
        Ok(Self::with(ordinary, description.special_tokens))
    }

    fn with(ordinary: Ordinary, special_tokens: Vec<String>) -> Self {
        Self { ordinary, special_tokens, isa: Isa::best().found(), words: SharedWords::default() }
    }

    /// The same tokenizer with other machine code, for comparison. What is not one of
    /// `Isa::available` becomes `Isa::Portable`.
    #[must_use]
    pub fn on(mut self, isa: Isa) -> Self {
        self.isa = isa.found();
        self
    }

    /// What `new` makes this tokenizer from.
    pub fn description(&self) -> Description {
        let model = match &self.ordinary {
            Ordinary::Gpt2 => Model::Bpe { merges: GPT2.merges().collect() },
            Ordinary::Bpe(tables) => Model::Bpe { merges: Vocab::of(tables).merges().collect() },
            Ordinary::Char(chars) => Model::Char { chars: chars.all().to_vec() },
        };
        Description { model, special_tokens: self.special_tokens.clone() }
    }

    /// Whether each token is a character, not a pair of others.
    pub fn is_char_level(&self) -> bool {
        matches!(self.ordinary, Ordinary::Char(_))
    }

    /// The number of ids.
    pub fn n_vocab(&self) -> usize {
        self.num_ordinary() + self.special_tokens.len()
    }

    /// The number of ids that are no special token's.
    fn num_ordinary(&self) -> usize {
        match &self.ordinary {
            Ordinary::Gpt2 => GPT2.len(),
            Ordinary::Bpe(tables) => Vocab::of(tables).len(),
            Ordinary::Char(chars) => chars.all().len(),
        }
    }

    /// The special tokens in order of their ids, which are the last.
    pub fn special_tokens(&self) -> &[String] {
        &self.special_tokens
    }

    /// The id of a special token.
    pub fn special_id(&self, token: &str) -> Option<u16> {
        let index = self.special_tokens.iter().position(|special| special == token)?;
        Some((self.num_ordinary() + index) as u16)
    }

    /// The bytes of one token, or `None` if there is no such id.
    pub fn token_bytes(&self, id: u16) -> Option<&[u8]> {
        let ordinary = match &self.ordinary {
            Ordinary::Gpt2 => GPT2.bytes(id),
            Ordinary::Bpe(tables) => Vocab::of(tables).bytes(id),
            Ordinary::Char(chars) => chars.bytes(id),
        };
        let special = || {
            let index = usize::from(id).checked_sub(self.num_ordinary())?;
            self.special_tokens.get(index).map(String::as_bytes)
        };
        ordinary.or_else(special)
    }

    /// The bytes that `ids` stand for; they need not be UTF-8.
    ///
    /// # Errors
    /// `Error::TokenIdOutOfVocabulary`: an id is `n_vocab` or more.
    pub fn decode(&self, ids: &[u16]) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(4 * ids.len());
        for (index, id) in ids.iter().enumerate() {
            bytes.extend_from_slice(self.bytes_at(*id, index)?);
        }
        Ok(bytes)
    }

    /// What `decode` gives, and for each id the number of the character that its bytes begin in.
    ///
    /// # Errors
    /// As `decode`.
    pub fn decode_with_offsets(&self, ids: &[u16]) -> Result<(Vec<u8>, Vec<usize>)> {
        let (mut bytes, mut offsets) = (Vec::new(), Vec::with_capacity(ids.len()));
        let mut num_chars = 0_usize;
        for (index, id) in ids.iter().enumerate() {
            let token = self.bytes_at(*id, index)?;
            let is_first = |byte: &u8| byte & 0xc0 != 0x80;
            let goes_on = token.first().is_some_and(|byte| !is_first(byte));
            offsets.push(num_chars.saturating_sub(usize::from(goes_on)));
            num_chars += token.iter().filter(|byte| is_first(byte)).count();
            bytes.extend_from_slice(token);
        }
        Ok((bytes, offsets))
    }

    fn bytes_at(&self, id: u16, index: usize) -> Result<&[u8]> {
        self.token_bytes(id).ok_or_else(|| Error::TokenIdOutOfVocabulary {
            id: id.to_string(),
            index,
            last: self.n_vocab() - 1,
        })
    }

    /// The ids of `text`, in which no special token is special.
    ///
    /// # Errors
    /// `Error::PieceTooLong`; `Error::UnknownCharacter`, if this is a tokenizer of characters.
    pub fn encode_ordinary(&self, text: &str) -> Result<Vec<u16>> {
        self.encode(text, &[], &[])
    }

    /// The ids of `text`. Special tokens that are allowed and written out in it are one id each,
    /// the others are ordinary text.
    ///
    /// # Errors
    /// As `encode_ordinary`; and `Error::DisallowedSpecial`: the text has one of
    /// `disallowed_special`, which may be any strings.
    pub fn encode(
        &self,
        text: &str,
        allowed_special: &[&str],
        disallowed_special: &[&str],
    ) -> Result<Vec<u16>> {
        refuse_special(text, disallowed_special)?;
        let mut ids = room_for_ids(text.len());
        let mut sink = |new: &[u16]| ids.extend_from_slice(new);
        self.encode_to(text, allowed_special, &mut sink, &mut || Ok(()))?;
        Ok(ids)
    }

    /// The ids of many texts one after the other, and where each text's ids end, encoded on
    /// `threads` threads; also the way to encode one text on many.
    ///
    /// # Errors
    /// As `encode`, and those of `check`.
    pub fn encode_batch(
        &self,
        texts: &[&str],
        allowed_special: &[&str],
        threads: usize,
        check: Check<'_>,
    ) -> Result<(Vec<u16>, Vec<usize>)> {
        parallel::encode(self, texts, allowed_special, threads, check)
    }

    /// The number of ids that `encode` gives.
    ///
    /// # Errors
    /// As `encode`, and those of `check`.
    pub fn count(&self, text: &str, allowed_special: &[&str], check: Check<'_>) -> Result<usize> {
        let mut count = 0;
        self.encode_to(text, allowed_special, &mut |ids| count += ids.len(), check)?;
        Ok(count)
    }

    /// Hands the ids of `text` to `sink`, portion by portion.
    ///
    /// # Errors
    /// As `encode_ordinary`, and those of `check`. The sink has the ids up to there.
    pub fn encode_to(
        &self,
        text: &str,
        allowed_special: &[&str],
        sink: &mut dyn FnMut(&[u16]),
        check: Check<'_>,
    ) -> Result<()> {
        Worker::new(self).encode(text, allowed_special, sink, check)
    }
}

#[cfg(test)]
mod tests;
