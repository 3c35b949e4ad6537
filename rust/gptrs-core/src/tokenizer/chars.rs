//! A token a character: the simplest tokenizer there is.

use super::{BYTES_BETWEEN_CHECKS, Check};
use crate::{Error, Result};

/// The characters of a vocabulary; each one's id is its index.
#[derive(Debug)]
pub struct Chars {
    all: Vec<char>,
    /// All of them, and where each ends.
    text: String,
    ends: Vec<usize>,
    /// The ids of the characters up to U+00FF, plus 1; 0 where there is none.
    latin: [u32; 256],
}

impl Chars {
    /// `chars` sorted and distinct.
    pub fn new(chars: Vec<char>) -> Self {
        let mut latin = [0; 256];
        for (char, id_plus_1) in chars.iter().zip(1..) {
            if let Some(place) = latin.get_mut(*char as usize) {
                *place = id_plus_1;
            }
        }
        let ends = chars.iter().scan(0, |end, char| {
            *end += char.len_utf8();
            Some(*end)
        });
        Self { text: chars.iter().collect(), ends: ends.collect(), latin, all: chars }
    }

    pub fn all(&self) -> &[char] {
        &self.all
    }

    /// The UTF-8 of the character with this id.
    pub fn bytes(&self, id: u16) -> Option<&[u8]> {
        let index = usize::from(id);
        let start =
            index.checked_sub(1).map_or(Some(0), |before| self.ends.get(before).copied())?;
        self.text.as_bytes().get(start..*self.ends.get(index)?)
    }

    /// Hands the ids of a text's characters to `sink`.
    pub fn encode(&self, text: &str, sink: &mut dyn FnMut(&[u16]), check: Check<'_>) -> Result<()> {
        let mut ids = Vec::with_capacity(text.len().min(BYTES_BETWEEN_CHECKS));
        for (offset, char) in text.char_indices() {
            let Some(id) = self.id(char) else {
                sink(&ids);
                return Err(Error::UnknownCharacter { char, offset });
            };
            ids.push(id);
            if ids.len() == BYTES_BETWEEN_CHECKS {
                sink(&ids);
                ids.clear();
                check()?;
            }
        }
        sink(&ids);
        Ok(())
    }

    fn id(&self, char: char) -> Option<u16> {
        match self.latin.get(char as usize) {
            Some(id_plus_1) => id_plus_1.checked_sub(1).map(|id| id as u16),
            None => self.all.binary_search(&char).ok().map(|id| id as u16),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// One to four bytes a character; the last of Latin-1 and the first after it.
    const CHARS: &str = "\0\n az\u{7f}\u{80}ÿĀ中\u{ffff}😀\u{10ffff}";

    fn chars() -> Chars {
        Chars::new(CHARS.chars().collect())
    }

    /// All ids that the sink got, and how it ended.
    fn encode(text: &str) -> (Vec<u16>, Result<()>) {
        let mut ids = Vec::new();
        let done = chars().encode(text, &mut |new| ids.extend_from_slice(new), &mut || Ok(()));
        (ids, done)
    }

    #[test]
    fn the_id_of_a_character_is_its_index_and_its_bytes_are_its_utf_8() {
        let last = CHARS.chars().count() as u16;
        assert_eq!(encode(CHARS), ((0..last).collect(), Ok(())));
        for (id, char) in (0..).zip(CHARS.chars()) {
            assert_eq!(chars().bytes(id), Some(char.to_string().as_bytes()));
        }
        assert_eq!(chars().bytes(last), None);
        assert_eq!(chars().bytes(u16::MAX), None);
    }

    #[test]
    fn a_text_of_many_portions_is_encoded_whole() {
        let len = 2 * BYTES_BETWEEN_CHECKS + 1;
        let (ids, done) = encode(&"zĀ".repeat(len));
        assert_eq!(done, Ok(()));
        assert_eq!(ids.len(), 2 * len);
        assert!(ids.as_chunks().0.iter().all(|pair| pair == &[4, 8]));
    }

    #[test]
    fn an_error_of_the_check_ends_the_work_after_the_first_portion() {
        let mut num_ids = 0;
        let text = "a".repeat(3 * BYTES_BETWEEN_CHECKS);
        let stopped =
            chars().encode(&text, &mut |ids| num_ids += ids.len(), &mut || Err(Error::Stopped));
        assert_eq!((stopped, num_ids), (Err(Error::Stopped), BYTES_BETWEEN_CHECKS));
    }

    proptest! {
        #[test]
        fn the_first_unknown_character_is_named_and_what_is_before_it_is_encoded(
            before in "[\0az中😀]{0,20}",
            unknown in "[^\0\n az\u{7f}\u{80}ÿĀ中\u{ffff}😀\u{10ffff}]",
            after in any::<String>(),
        ) {
            let (ids, error) = encode(&format!("{before}{unknown}{after}"));
            let char = unknown.chars().next().unwrap();
            prop_assert_eq!(error, Err(Error::UnknownCharacter { char, offset: before.len() }));
            let known: String = ids.iter().filter_map(|id| CHARS.chars().nth((*id).into())).collect();
            prop_assert_eq!(known, before);
        }
    }
}
