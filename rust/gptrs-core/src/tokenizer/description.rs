//! What a tokenizer is: the one form in which it is trained, saved, compared and built.
//!
//! ```text
//!   Bpe    0 to 255      the bytes      256 + i, what merges[i] makes      special tokens
//!   Char   0 to n - 1    the characters, in order of code point            special tokens
//! ```
//!
//! `check` knows what can be told from the numbers alone. Whether merging ever reaches a token is
//! not among it: that takes the vocabulary.

mod spellings;

use sha2::{Digest, Sha256};
use std::collections::{HashMap, HashSet};

pub use super::layout::NUM_BYTES;
pub(super) use spellings::{Spellings, byte_letters};

use crate::{Error, Result};

/// The most ids a vocabulary may have: as many as 16 bits tell apart.
pub const MAX_IDS: usize = 1 << 16;

/// The most bytes that a vocabulary's tokens may have in all. GPT-2's have 320,000; merges that
/// double a token again and again would fill any memory.
const MAX_BYTES: u64 = 1 << 26;

/// A tokenizer, but for the tables that make it fast.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// What its ordinary tokens are.
    pub model: Model,
    /// The tokens that only a caller can ask for; their ids follow the ordinary ones.
    pub special_tokens: Vec<String>,
}

/// How text becomes ordinary tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Model {
    /// Byte-pair encoding of the pieces that GPT-2's pattern makes.
    Bpe {
        /// The pairs of ids that become one, the first to be merged first. The first 256 ids are
        /// the bytes in GPT-2's order: those with a printable Latin-1 character, then the rest.
        merges: Vec<(u16, u16)>,
    },
    /// A token a character.
    Char {
        /// The characters, sorted and distinct.
        chars: Vec<char>,
    },
}

impl Description {
    /// How many ids there are.
    pub fn num_ids(&self) -> usize {
        self.num_ordinary() + self.special_tokens.len()
    }

    /// How many ids are no special token's: the first special token's id.
    pub fn num_ordinary(&self) -> usize {
        match &self.model {
            Model::Bpe { merges } => NUM_BYTES + merges.len(),
            Model::Char { chars } => chars.len(),
        }
    }

    /// Refuses what is no tokenizer, or one that no file can hold.
    ///
    /// # Errors
    /// `Error::TokenizerDescription`: there are too many ids or none; a merge joins ids that are
    /// not there yet; the characters are out of order; a special token is empty or has whitespace
    /// in it, or would be decoded as bytes; two tokens are alike; the tokens are too long.
    pub fn check(&self) -> Result<()> {
        if self.num_ids() > MAX_IDS {
            return refuse(format!("it has {} ids, at most {MAX_IDS} fit", self.num_ids()));
        }
        match &self.model {
            Model::Bpe { merges } => check_merges(merges)?,
            Model::Char { chars } => check_chars(chars)?,
        }
        self.check_special_tokens()?;
        self.check_distinct()
    }

    fn check_special_tokens(&self) -> Result<()> {
        let letters: HashSet<char> = byte_letters().collect();
        for token in &self.special_tokens {
            let shown = shortened(token);
            if token.is_empty() || token.contains(char::is_whitespace) {
                return refuse(format!(
                    "the special token {shown:?} is empty or has whitespace in it"
                ));
            }
            // Hugging Face's decoder takes such a token for the bytes of its letters.
            let is_bpe = matches!(self.model, Model::Bpe { .. });
            if is_bpe && !token.is_ascii() && token.chars().all(|char| letters.contains(&char)) {
                return refuse(format!(
                    "the special token {shown:?} is made of the letters that stand for bytes, \
                     expected ASCII alone, or a character that is no such letter"
                ));
            }
        }
        Ok(())
    }

    /// Two tokens that are written alike could not both stand in a file. This also keeps merges
    /// from making the same bytes twice, which tiktoken's ranks cannot express.
    fn check_distinct(&self) -> Result<()> {
        let spellings = Spellings::of(self);
        let mut ids = HashMap::with_capacity(self.num_ids());
        for (id, spelling) in spellings.iter().enumerate() {
            if let Some(other) = ids.insert(spelling, id) {
                return refuse(format!(
                    "ids {other} and {id} are both written {:?}, but each token is written in its \
                     own way",
                    shortened(spelling)
                ));
            }
        }
        Ok(())
    }

    /// What tells this tokenizer from every other: the SHA-256, in hexadecimal, of these lines,
    /// each ended by a line feed.
    ///
    /// ```text
    ///   bpe                      char
    ///   220 83                   10
    ///   ...  a merge's two ids   ...  a character's code point, in decimal
    ///
    ///   <|endoftext|>            <|endoftext|>
    ///   ...  an empty line, then the special tokens
    /// ```
    pub fn fingerprint(&self) -> String {
        format!("{:x}", Sha256::digest(self.canonical()))
    }

    fn canonical(&self) -> Vec<u8> {
        let mut lines = Vec::with_capacity(LINE_BYTES * self.num_ids());
        match &self.model {
            Model::Bpe { merges } => {
                lines.extend(b"bpe\n");
                for (left, right) in merges {
                    push_number(&mut lines, u32::from(*left), b' ');
                    push_number(&mut lines, u32::from(*right), b'\n');
                }
            }
            Model::Char { chars } => {
                lines.extend(b"char\n");
                for char in chars {
                    push_number(&mut lines, u32::from(*char), b'\n');
                }
            }
        }
        lines.push(b'\n');
        for token in &self.special_tokens {
            lines.extend(token.as_bytes());
            lines.push(b'\n');
        }
        lines
    }
}

/// About as long is a line of a description.
const LINE_BYTES: usize = 12;

/// Appends a number and what follows it. There are 100,000 of them, and formatting takes several
/// times as long.
fn push_number(lines: &mut Vec<u8>, mut number: u32, then: u8) {
    let mut digits = [then; 11];
    let mut first = digits.len() - 1;
    loop {
        first -= 1;
        digits[first] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    lines.extend_from_slice(&digits[first..]);
}

/// Every merge joins tokens that are there before it, and all tokens together fit in memory.
fn check_merges(merges: &[(u16, u16)]) -> Result<()> {
    let mut lens = vec![1_u64; NUM_BYTES];
    let mut total = NUM_BYTES as u64;
    for (index, &(left, right)) in merges.iter().enumerate() {
        let len_of = |id: u16| lens.get(usize::from(id)).copied();
        let (Some(left_len), Some(right_len)) = (len_of(left), len_of(right)) else {
            return refuse(format!(
                "merge {index} joins ids {left} and {right}, expected ids below {}",
                lens.len()
            ));
        };
        let len = left_len + right_len;
        total += len;
        if total > MAX_BYTES {
            return refuse(format!(
                "the tokens up to id {} have {total} bytes in all, at most {MAX_BYTES} fit",
                lens.len()
            ));
        }
        lens.push(len);
    }
    Ok(())
}

fn check_chars(chars: &[char]) -> Result<()> {
    if chars.is_empty() {
        return refuse("it has no characters, expected at least one".to_owned());
    }
    match chars.windows(2).find(|pair| pair[0] >= pair[1]) {
        None => Ok(()),
        Some(pair) => refuse(format!(
            "the character {:?} comes after {:?}, expected each once, in order of code point",
            pair[1], pair[0]
        )),
    }
}

fn refuse<T>(reason: String) -> Result<T> {
    Err(Error::TokenizerDescription(reason))
}

/// As much of a text from elsewhere as belongs into a message.
pub(super) fn shortened(text: &str) -> String {
    match text.char_indices().nth(80) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}...", &text[..end]),
    }
}

#[cfg(test)]
pub(super) mod tests;
