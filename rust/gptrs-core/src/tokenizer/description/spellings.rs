//! How tokens are written in a `tokenizer.json`: visibly, with a letter for each byte.
//!
//! ```text
//!   id        0 to 93    94 to 105    106 to 187    188 to 255
//!   letter    ! to ~     ¡ to ¬       ® to ÿ        Ā to Ń
//!   byte      21 to 7e   a1 to ac     ae to ff      the others, in order
//! ```
//!
//! So `Ġ` is a space and `Ċ` a line feed.

use std::ops::Range;

use super::{Description, Model};

/// The letters of the ids 0 to 255.
pub fn byte_letters() -> impl Iterator<Item = char> {
    ('!'..='~').chain('¡'..='¬').chain('®'..='ÿ').chain('Ā'..='Ń')
}

/// The spellings of all tokens, the special ones last, in one string.
pub struct Spellings {
    text: String,
    ends: Vec<usize>,
}

impl Spellings {
    /// Of a description whose merges join earlier ids only: `Description::check` says so.
    pub fn of(description: &Description) -> Self {
        let mut spellings =
            Self { text: String::new(), ends: Vec::with_capacity(description.num_ids()) };
        match &description.model {
            Model::Bpe { merges } => {
                spellings.extend(byte_letters());
                for &(left, right) in merges {
                    for id in [left, right] {
                        let part = spellings.range(id.into());
                        spellings.text.extend_from_within(part);
                    }
                    spellings.ends.push(spellings.text.len());
                }
            }
            Model::Char { chars } => spellings.extend(chars.iter().copied()),
        }
        for token in &description.special_tokens {
            spellings.text.push_str(token);
            spellings.ends.push(spellings.text.len());
        }
        spellings
    }

    /// In order of id.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        (0..self.ends.len()).map(|id| self.get(id))
    }

    /// Of one token.
    pub fn get(&self, id: usize) -> &str {
        &self.text[self.range(id)]
    }

    fn range(&self, id: usize) -> Range<usize> {
        let start = id.checked_sub(1).map_or(0, |before| self.ends[before]);
        start..self.ends[id]
    }

    /// Adds tokens of one character.
    fn extend(&mut self, chars: impl Iterator<Item = char>) {
        for char in chars {
            self.text.push(char);
            self.ends.push(self.text.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_written_as_in_gpt2s_own_vocabulary() {
        let letters: Vec<char> = byte_letters().collect();
        assert_eq!(letters.len(), 256);
        // The first ids of OpenAI's encoder.json, and its space and line feed.
        assert_eq!(letters[..4], ['!', '"', '#', '$']);
        assert_eq!((letters[220], letters[198]), ('Ġ', 'Ċ'));
        assert_eq!((letters[187], letters[188], letters[255]), ('ÿ', 'Ā', 'Ń'));
    }

    #[test]
    fn a_merge_is_written_as_what_it_joins() {
        let model = Model::Bpe { merges: vec![(220, 83), (256, 71)] };
        let description = Description { model, special_tokens: vec!["<|語|>".to_owned()] };
        let spellings = Spellings::of(&description);
        let last: Vec<&str> = spellings.iter().skip(255).collect();
        assert_eq!(last, ["Ń", "Ġt", "Ġth", "<|語|>"]);
    }
}
