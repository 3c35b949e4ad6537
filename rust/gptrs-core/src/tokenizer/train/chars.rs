//! The characters of a text: a vocabulary of one id a character.

use crate::Error;
use crate::tokenizer::cuts::parts;
use crate::tokenizer::description::{Description, MAX_IDS, Model};
use crate::tokenizer::special::segments;

/// How much text to look at between two calls of a `check`.
const PART_BYTES: usize = 1 << 20;

/// Collects the distinct characters of texts.
///
/// ```
/// use gptrs_core::{Error, tokenizer::description::Model, tokenizer::train::CharTrainer};
///
/// let mut trainer = CharTrainer::new(None, vec!["<|endoftext|>".to_owned()])?;
/// trainer.add("hello<|endoftext|>", &mut || Ok::<_, Error>(()))?;
/// assert_eq!(trainer.learn()?.model, Model::Char { chars: vec!['e', 'h', 'l', 'o'] });
/// # Ok::<(), Error>(())
/// ```
#[derive(Debug)]
pub struct CharTrainer {
    vocab_size: usize,
    special_tokens: Vec<String>,
    /// Whether each code point was seen, up to the greatest that was.
    seen: Vec<bool>,
}

impl CharTrainer {
    /// `vocab_size` is the most ids that there may be, special tokens included: 65,536 if `None`.
    /// Special tokens that are written in a text are not taken for characters of it.
    ///
    /// # Errors
    /// `Error::VocabSize`: `vocab_size` has no room for the special tokens and one character, or
    /// is over 65,536. `Error::TokenizerDescription`: these are no special tokens.
    pub fn new(vocab_size: Option<usize>, special_tokens: Vec<String>) -> Result<Self, Error> {
        // A space is no special token, so that only the special tokens can be wrong here.
        let with_space = Description { model: Model::Char { chars: vec![' '] }, special_tokens };
        with_space.check()?;
        let (vocab_size, least) = (vocab_size.unwrap_or(MAX_IDS), with_space.num_ids());
        if !(least..=MAX_IDS).contains(&vocab_size) {
            return Err(Error::VocabSize { found: vocab_size, least, most: MAX_IDS });
        }
        Ok(Self { vocab_size, special_tokens: with_space.special_tokens, seen: Vec::new() })
    }

    /// Adds the characters of `text`, which may come in parts as for `BpeTrainer::add`.
    pub fn add<E>(
        &mut self,
        text: &str,
        check: &mut impl FnMut() -> Result<(), E>,
    ) -> Result<(), E> {
        for part in parts(text, PART_BYTES) {
            let segments = segments(part, &self.special_tokens);
            for char in segments.flat_map(|(_, segment, _)| segment.chars()) {
                let code_point = char as usize;
                if code_point >= self.seen.len() {
                    self.seen.resize(code_point + 1, false);
                }
                self.seen[code_point] = true;
            }
            check()?;
        }
        Ok(())
    }

    /// The characters in order of code point.
    ///
    /// # Errors
    /// `Error::TooManyChars`: there are more of them than ids.
    pub fn learn(self) -> Result<Description, Error> {
        let Self { vocab_size, special_tokens, seen, .. } = self;
        let code_points = (0..).zip(seen).filter(|(_, seen)| *seen);
        let chars: Vec<char> = code_points.filter_map(|(code, _)| char::from_u32(code)).collect();
        let room = vocab_size - special_tokens.len();
        if chars.len() > room {
            return Err(Error::TooManyChars { found: chars.len(), room });
        }
        Ok(Description { model: Model::Char { chars }, special_tokens })
    }
}
