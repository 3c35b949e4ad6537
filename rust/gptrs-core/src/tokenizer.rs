//! GPT-2's byte-pair encoding. Ids equal those of tiktoken's `gpt2` for every input.
//!
//! ```text
//!   "It's hot<|endoftext|>"
//!     │ special    "It's hot" │ <|endoftext|>        a special token ends a segment
//!     │ split      It │ 's │ ␣hot                     GPT-2's pattern, by hand
//!     │ vocab      1026  338   3024                  a whole piece that is a token
//!     ▼ merge      (none here)                       any other piece: pairs, by lowest rank
//!   [1026, 338, 3024, 50256]
//! ```
//!
//! The vocabulary and the Unicode tables are read-only data that `build.rs` made: there is nothing
//! to load, so a tokenizer has no state, and every thread may use it. No input panics, overflows
//! the stack or takes quadratic time.
//!
//! ```
//! use gptrs_core::tokenizer::{self, END_OF_TEXT, END_OF_TEXT_ID};
//!
//! let ids = tokenizer::encode_ordinary("Hello, I am");
//! assert_eq!(ids, [15496, 11, 314, 716]);
//! assert_eq!(tokenizer::decode(ids.iter().copied())?, b"Hello, I am");
//!
//! // A special token in the text is refused unless it is allowed …
//! let text = "first<|endoftext|>second";
//! let error = tokenizer::encode(text, &[], &[END_OF_TEXT]).unwrap_err();
//! assert!(error.to_string().starts_with("the text has the special token"));
//! let ids = tokenizer::encode(text, &[END_OF_TEXT], &[])?;
//! assert_eq!(ids, [11085, END_OF_TEXT_ID, 12227]);
//!
//! // … or encoded like any other text.
//! assert_eq!(tokenizer::encode(text, &[], &[])?.len(), 9);
//! # Ok::<(), gptrs_core::Error>(())
//! ```

mod layout;
mod merge;
mod split;
mod tables;
mod vocab;

use memchr::memmem;

pub use split::split;
pub use vocab::merges;

use crate::{Error, Result};

/// How many ids there are: 50,000 merges, 256 single bytes and one special token.
pub const N_VOCAB: usize = layout::NUM_RANKS + 1;

/// GPT-2's one special token, as it is written in a text.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// The id of `END_OF_TEXT`, which no other text has.
pub const END_OF_TEXT_ID: u16 = layout::NUM_RANKS as u16;

/// How much text to encode between two calls of a `check`: a few milliseconds' work.
const BYTES_BETWEEN_CHECKS: usize = 1 << 18;

/// The ids of `text`, in which `<|endoftext|>` is nothing special.
pub fn encode_ordinary(text: &str) -> Vec<u16> {
    let mut ids = Vec::new();
    match encode_segment::<std::convert::Infallible>(text, &mut ids, &mut || Ok(())) {
        Ok(()) => ids,
    }
}

/// The ids of `text`. Special tokens that are allowed and written out in it are one id each, the
/// others are ordinary text.
///
/// # Errors
/// `Error::DisallowedSpecial`: the text has one of `disallowed_special`, which may be any strings.
pub fn encode(
    text: &str,
    allowed_special: &[&str],
    disallowed_special: &[&str],
) -> Result<Vec<u16>> {
    encode_with(text, allowed_special, disallowed_special, &mut || Ok(()))
}

/// As `encode`, calling `check` every few milliseconds: an error that it returns ends the work.
pub fn encode_with<E: From<Error>>(
    text: &str,
    allowed_special: &[&str],
    disallowed_special: &[&str],
    check: &mut impl FnMut() -> std::result::Result<(), E>,
) -> std::result::Result<Vec<u16>, E> {
    refuse_special(text, disallowed_special)?;
    let mut ids = Vec::new();
    let mut start = 0;
    if allowed_special.contains(&END_OF_TEXT) {
        for end in memmem::find_iter(text.as_bytes(), END_OF_TEXT) {
            encode_segment(&text[start..end], &mut ids, check)?;
            ids.push(END_OF_TEXT_ID);
            start = end + END_OF_TEXT.len();
        }
    }
    encode_segment(&text[start..], &mut ids, check)?;
    Ok(ids)
}

/// The bytes that `ids` stand for; they need not be UTF-8.
///
/// # Errors
/// `Error::TokenIdOutOfVocabulary`: an id is `N_VOCAB` or more.
pub fn decode(ids: impl IntoIterator<Item = u16>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for (index, id) in ids.into_iter().enumerate() {
        let token = token_bytes(id).ok_or_else(|| Error::TokenIdOutOfVocabulary {
            id: id.to_string(),
            index,
            last: END_OF_TEXT_ID,
        })?;
        bytes.extend_from_slice(token);
    }
    Ok(bytes)
}

/// The bytes of one token, or `None` if there is no such id.
pub fn token_bytes(id: u16) -> Option<&'static [u8]> {
    if id == END_OF_TEXT_ID { Some(END_OF_TEXT.as_bytes()) } else { vocab::bytes(id) }
}

/// Appends the ids of text that has no special tokens in it.
fn encode_segment<E>(
    text: &str,
    ids: &mut Vec<u16>,
    check: &mut impl FnMut() -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let bytes = text.as_bytes();
    let (mut start, mut next_check) = (0, BYTES_BETWEEN_CHECKS);
    while start < bytes.len() {
        let end = split::piece_end(text, start);
        match vocab::find(bytes, start, end) {
            Some(id) => ids.push(id),
            None => merge::merge(&bytes[start..end], ids, check)?,
        }
        start = end;
        if start >= next_check {
            check()?;
            next_check = start + BYTES_BETWEEN_CHECKS;
        }
    }
    Ok(())
}

/// Refuses the leftmost of the special tokens in `text`.
fn refuse_special(text: &str, disallowed: &[&str]) -> Result<()> {
    let found = disallowed
        .iter()
        .filter_map(|token| Some((memmem::find(text.as_bytes(), token.as_bytes())?, token)))
        .min();
    match found {
        None => Ok(()),
        Some((offset, token)) => Err(Error::DisallowedSpecial {
            token: (*token).to_owned(),
            offset: text[..offset].chars().count(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Letters, digits, contractions, every kind of whitespace, and what is none of them.
    const TEXT: &str = r"([a-eA-E'0-9 \t\n]|'(s|t|re|ve|ll)|\s|\pL|\pN|\PC|<\|endoftext\|>){0,60}";

    fn encode_allowing(text: &str) -> Vec<u16> {
        encode(text, &[END_OF_TEXT], &[]).unwrap()
    }

    #[test]
    fn ids_are_those_that_openai_published() {
        assert_eq!(encode_ordinary("hello world"), [31373, 995]);
        assert_eq!(encode_ordinary("<|endoftext|>"), [27, 91, 437, 1659, 5239, 91, 29]);
        assert_eq!(encode_ordinary("I HAD always thought"), [40, 367, 2885, 1464, 1807]);
        assert_eq!(encode_ordinary(""), [0; 0]);
    }

    #[test]
    fn a_special_token_ends_a_segment_so_whitespace_before_it_stays_whole() {
        let with_token = encode_allowing("a\n\n<|endoftext|>");
        assert_eq!(with_token[..2], encode_ordinary("a\n\n"));
        assert_eq!(encode_ordinary("a\n\n<").len(), 4);
    }

    #[test]
    fn the_leftmost_disallowed_token_is_named_with_its_character_offset() {
        let error = encode("ééx<|endoftext|>é", &[END_OF_TEXT], &["é<", "x<", END_OF_TEXT]);
        assert_eq!(error, Err(Error::DisallowedSpecial { token: "x<".to_owned(), offset: 2 }));
    }

    #[test]
    fn ids_outside_the_vocabulary_are_refused() {
        assert_eq!(
            decode([0, 50_257]).unwrap_err().to_string(),
            "token id 50257 at index 1 is outside 0..50256"
        );
        assert_eq!(decode([END_OF_TEXT_ID]).unwrap(), END_OF_TEXT.as_bytes());
    }

    #[test]
    fn a_word_or_a_run_of_spaces_of_a_million_bytes_is_encoded_whole() {
        for unit in ["a", " ", "\n", "=", "é", "hugs"] {
            let text = unit.repeat(1_000_000 / unit.len()) + "b";
            assert_eq!(decode(encode_ordinary(&text)).unwrap(), text.as_bytes());
        }
    }

    #[test]
    fn an_error_of_the_check_ends_the_work_and_arrives_unchanged() {
        let text = "word ".repeat(200_000);
        let stopped = encode_with(&text, &[], &[], &mut || Err(Error::NothingToDraw));
        assert_eq!(stopped, Err(Error::NothingToDraw));
    }

    proptest! {
        #[test]
        fn decoding_gives_the_text_back(text in TEXT) {
            prop_assert_eq!(decode(encode_ordinary(&text)).unwrap(), text.as_bytes());
            prop_assert_eq!(decode(encode_allowing(&text)).unwrap(), text.as_bytes());
        }

        #[test]
        fn text_may_be_cut_before_whitespace_that_follows_anything_else(text in TEXT) {
            let mut previous = ' ';
            for (cut, char) in text.char_indices() {
                // char::is_whitespace is the White_Space property, as `\s` is.
                if char.is_whitespace() && !previous.is_whitespace() {
                    let (before, after) = text.split_at(cut);
                    let ids = [encode_allowing(before), encode_allowing(after)].concat();
                    prop_assert_eq!(ids, encode_allowing(&text));
                }
                previous = char;
            }
        }
    }
}
