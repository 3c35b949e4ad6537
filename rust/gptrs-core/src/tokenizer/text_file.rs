//! A file of UTF-8, read in parts that may be encoded one by one: files larger than memory.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use super::classes::class_of;
use super::layout::SPACE;
use super::{Check, LONGEST_PIECE};
use crate::{Error, Result};

/// How much to read at a time: the threads that encode it have a few jobs each.
const PART_BYTES: usize = 1 << 22;

/// What to do with bytes that are not UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnInvalid {
    /// Refuse the file.
    Refuse,
    /// Put U+FFFD in their place, as Python's `errors="replace"` does.
    Replace,
}

/// A text file and what of it has been read. A byte order mark at its start is dropped.
#[derive(Debug)]
pub struct TextFile {
    path: PathBuf,
    file: File,
    on_invalid: OnInvalid,
    /// How much to read at a time.
    part_bytes: usize,
    /// Bytes that were read; the first `handed_out` are done with.
    buffer: Vec<u8>,
    handed_out: usize,
    /// Where in the file the buffer starts.
    offset: usize,
    ended: bool,
    /// A part with replacement characters in it.
    repaired: String,
}

impl TextFile {
    /// Opens a file.
    ///
    /// # Errors
    /// `Error::File`: it cannot be opened.
    pub fn open(path: &Path, on_invalid: OnInvalid) -> Result<Self> {
        let file = File::open(path).map_err(|error| unreadable(path, &error))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            on_invalid,
            part_bytes: PART_BYTES,
            buffer: Vec::new(),
            handed_out: 0,
            offset: 0,
            ended: false,
            repaired: String::new(),
        })
    }

    /// The next part of the text and where in the file it starts; `None` after the last. A part
    /// ends before whitespace that follows anything else, so no piece goes on in the next.
    ///
    /// # Errors
    /// `Error::File`: it cannot be read. `Error::NotUtf8`. `Error::PieceTooLong`: there is no place
    /// to cut. Those of `check`, which is called while it reads.
    pub fn next_part(&mut self, check: Check<'_>) -> Result<Option<(usize, &str)>> {
        self.buffer.drain(..self.handed_out);
        self.offset += self.handed_out;
        self.handed_out = 0;
        let mut end = None;
        while end.is_none() && !self.ended {
            let searched = self.buffer.len();
            if searched > LONGEST_PIECE {
                let offset = self.offset + first_word(&self.buffer);
                return Err(Error::PieceTooLong { offset, longest: LONGEST_PIECE });
            }
            self.read_more(check)?;
            end = last_cut(&self.buffer, searched);
        }
        let end = if self.ended { self.buffer.len() } else { end.unwrap_or_default() };
        self.handed_out = end;
        if end == 0 {
            return Ok(None);
        }
        let mark = if self.offset == 0 && self.buffer.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
        let start = self.offset + mark;
        let bytes = &self.buffer[mark..end];
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(Some((start, text))),
            Err(error) if self.on_invalid == OnInvalid::Refuse => Err(Error::NotUtf8 {
                path: self.path.display().to_string(),
                byte: bytes[error.valid_up_to()],
                offset: start + error.valid_up_to(),
            }),
            Err(_) => {
                self.repaired = String::from_utf8_lossy(bytes).into_owned();
                Ok(Some((start, &self.repaired)))
            }
        }
    }

    fn read_more(&mut self, check: Check<'_>) -> Result<()> {
        check()?;
        self.buffer.reserve_exact(self.part_bytes);
        let read = self
            .file
            .by_ref()
            .take(self.part_bytes as u64)
            .read_to_end(&mut self.buffer)
            .map_err(|error| unreadable(&self.path, &error))?;
        self.ended = read < self.part_bytes;
        Ok(())
    }
}

/// The last place in `bytes` before which the text may be cut; not before `from`.
fn last_cut(bytes: &[u8], from: usize) -> Option<usize> {
    (from.max(1)..bytes.len()).rev().find(|&at| {
        is_space(bytes[at]) && last_char(&bytes[..at]).is_some_and(|char| class_of(char) != SPACE)
    })
}

/// Where in `bytes`, which may be cut nowhere, the piece behind their first whitespace starts.
fn first_word(bytes: &[u8]) -> usize {
    let word = bytes.iter().position(|byte| !is_space(*byte)).unwrap_or(0);
    if bytes[..word].ends_with(b" ") { word - 1 } else { word }
}

/// Whether this is ASCII whitespace, as `\s` has it.
fn is_space(byte: u8) -> bool {
    matches!(byte, b'\t'..=b'\r' | b' ')
}

/// The last character of `bytes`; `None` where they end with what is no UTF-8.
fn last_char(bytes: &[u8]) -> Option<char> {
    let start = bytes.iter().rposition(|byte| byte & 0xc0 != 0x80)?;
    std::str::from_utf8(&bytes[start..]).ok()?.chars().next()
}

/// Why a file cannot be opened or read.
pub(crate) fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    let reason = match error.kind() {
        ErrorKind::NotFound => "no such file".to_owned(),
        ErrorKind::IsADirectory => "is a folder, not a file".to_owned(),
        _ => format!("cannot be read: {error}"),
    };
    Error::File { path: path.display().to_string(), reason }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use proptest::prelude::*;

    use super::super::description::{Description, Model};
    use super::super::{END_OF_TEXT, Tokenizer};
    use super::*;

    /// Words, whitespace of every length, and what is not whole UTF-8.
    const BYTES: &str = r"(?s-u)(\xef\xbb\xbf)?([a-z]{1,5}|[ \n]{1,3}|\xc2\xa0|\xe4\xb8\xad|\xf0\x9f\x98\x80|[\x80-\xff]){0,20}";

    /// The same in whole UTF-8, with a special token.
    const TEXT: &str = r"(\u{feff})?([a-z]{1,5}|[ \n]{1,3}|\s|\pL|\PC|<\|endoftext\|>){0,20}";

    /// A file that is there as long as this is.
    struct Saved(PathBuf);

    impl Saved {
        fn new(content: &[u8]) -> Self {
            static NUMBER: AtomicUsize = AtomicUsize::new(0);
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let name = format!("gptrs_text_file_{}_{number}.txt", std::process::id());
            let path = std::env::temp_dir().join(name);
            fs::write(&path, content).unwrap();
            Self(path)
        }

        fn open(&self, on_invalid: OnInvalid, part_bytes: usize) -> TextFile {
            TextFile { part_bytes, ..TextFile::open(&self.0, on_invalid).unwrap() }
        }

        fn name(&self) -> String {
            self.0.display().to_string()
        }
    }

    impl Drop for Saved {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    /// Every part and where it starts.
    fn parts(mut file: TextFile) -> Result<Vec<(usize, String)>> {
        let mut parts = Vec::new();
        while let Some((start, part)) = file.next_part(&mut || Ok(()))? {
            parts.push((start, part.to_owned()));
        }
        Ok(parts)
    }

    #[test]
    fn a_file_of_any_length_is_read_to_its_end() {
        for len in 0..20 {
            let content = &b"a bc def g\n\n hi jkl mn"[..len];
            let saved = Saved::new(content);
            for part_bytes in 1..20 {
                let parts = parts(saved.open(OnInvalid::Refuse, part_bytes)).unwrap();
                let whole: String = parts.into_iter().map(|(_, part)| part).collect();
                assert_eq!(whole.as_bytes(), content, "{part_bytes}");
            }
        }
    }

    #[test]
    fn after_the_last_part_there_is_none_again_and_again() {
        let saved = Saved::new(b"a b");
        let mut file = saved.open(OnInvalid::Refuse, PART_BYTES);
        let check: Check<'_> = &mut || Ok(());
        assert_eq!(file.next_part(check), Ok(Some((0, "a b"))));
        assert_eq!(file.next_part(check), Ok(None));
        assert_eq!(file.next_part(check), Ok(None));
    }

    #[test]
    fn a_byte_order_mark_is_dropped_at_the_start_alone() {
        let saved = Saved::new("\u{feff}a \u{feff}b".as_bytes());
        for part_bytes in 1..12 {
            let parts = parts(saved.open(OnInvalid::Refuse, part_bytes)).unwrap();
            let whole: String = parts.iter().map(|(_, part)| part.as_str()).collect();
            assert_eq!((parts[0].0, whole.as_str()), (3, "a \u{feff}b"), "{part_bytes}");
        }
        let mark_alone = Saved::new("\u{feff}".as_bytes());
        assert_eq!(parts(mark_alone.open(OnInvalid::Refuse, 2)), Ok(vec![(3, String::new())]));
    }

    #[test]
    fn a_file_that_is_not_there_or_is_a_folder_is_refused_by_name() {
        let missing = Path::new("no/such.txt");
        let error = TextFile::open(missing, OnInvalid::Refuse).unwrap_err();
        assert_eq!(error.to_string(), "no/such.txt: no such file");
        let folder = std::env::temp_dir();
        let read = TextFile::open(&folder, OnInvalid::Refuse).and_then(parts);
        assert!(
            matches!(read, Err(Error::File { path, .. }) if path == folder.display().to_string())
        );
    }

    #[test]
    fn an_error_of_the_check_ends_the_reading_and_arrives_unchanged() {
        let saved = Saved::new(b"word word word word");
        let mut file = saved.open(OnInvalid::Refuse, 6);
        let mut calls = 0;
        let mut check = || {
            calls += 1;
            if calls == 3 { Err(Error::NothingToDraw) } else { Ok(()) }
        };
        assert_eq!(file.next_part(&mut check), Ok(Some((0, "word"))));
        assert_eq!(file.next_part(&mut check), Ok(Some((4, " word"))));
        assert_eq!(file.next_part(&mut check), Err(Error::NothingToDraw));
    }

    #[test]
    fn a_piece_that_is_too_long_is_refused_where_it_starts() {
        let saved = Saved::new(b"word\n\n");
        // Bytes that no one writes take no room on the disk; NUL is a symbol.
        let file = File::options().append(true).open(&saved.0).unwrap();
        file.set_len((LONGEST_PIECE + 2 * PART_BYTES) as u64).unwrap();
        let refused = parts(saved.open(OnInvalid::Refuse, PART_BYTES));
        assert_eq!(refused, Err(Error::PieceTooLong { offset: 6, longest: LONGEST_PIECE }));
    }

    #[test]
    fn a_word_starts_with_the_one_space_that_it_may_have() {
        let words = [("word", 0), (" word", 0), ("\n\nword", 2), ("\n  word", 2), ("   ", 0)];
        for (bytes, start) in words {
            assert_eq!(first_word(bytes.as_bytes()), start, "{bytes:?}");
        }
    }

    #[test]
    fn an_unknown_character_is_named_with_its_offset_in_the_file() {
        let model = Model::Char { chars: vec![' ', 'a', '中'] };
        let tokenizer = Tokenizer::new(Description { model, special_tokens: vec![] }).unwrap();
        let saved = Saved::new("\u{feff}a 中 aaa 中 a é".as_bytes());
        for part_bytes in 1..30 {
            let mut file = saved.open(OnInvalid::Refuse, part_bytes);
            let error = loop {
                let (start, part) = file.next_part(&mut || Ok(())).unwrap().unwrap();
                if let Err(error) = tokenizer.encode_batch(&[part], &[], 2, &mut || Ok(())) {
                    break error.moved_by(start);
                }
            };
            assert_eq!(error, Error::UnknownCharacter { char: 'é', offset: 19 });
        }
    }

    proptest! {
        #[test]
        fn the_ids_of_the_parts_are_those_of_the_whole_text(
            text in TEXT,
            part_bytes in 1usize..40,
            special in any::<bool>(),
        ) {
            let allowed: &[&str] = if special { &[END_OF_TEXT] } else { &[] };
            let (tokenizer, saved) = (Tokenizer::gpt2(), Saved::new(text.as_bytes()));
            let parts = parts(saved.open(OnInvalid::Refuse, part_bytes)).unwrap();
            let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
            prop_assert_eq!(parts.iter().map(|(_, part)| &**part).collect::<String>(), text);
            let ids = |text: &str| tokenizer.encode(text, allowed, &[]).unwrap();
            let found: Vec<u16> = parts.iter().flat_map(|(_, part)| ids(part)).collect();
            prop_assert_eq!(found, ids(text));
        }

        #[test]
        fn bytes_that_are_not_utf_8_are_replaced_as_in_the_whole_file(
            content in prop::string::bytes_regex(BYTES).unwrap(),
            part_bytes in 1usize..40,
        ) {
            let saved = Saved::new(&content);
            let parts = parts(saved.open(OnInvalid::Replace, part_bytes)).unwrap();
            for (start, part) in &parts {
                let valid = part.split(char::REPLACEMENT_CHARACTER).next().unwrap();
                prop_assert!(content[*start..].starts_with(valid.as_bytes()));
            }
            let whole: String = parts.into_iter().map(|(_, part)| part).collect();
            let text = content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&content);
            prop_assert_eq!(whole, String::from_utf8_lossy(text));
        }

        #[test]
        fn the_first_byte_that_is_not_utf_8_is_named_with_its_offset(
            content in prop::string::bytes_regex(BYTES).unwrap(),
            part_bytes in 1usize..40,
        ) {
            let saved = Saved::new(&content);
            let found = parts(saved.open(OnInvalid::Refuse, part_bytes));
            match std::str::from_utf8(&content) {
                Ok(_) => prop_assert!(found.is_ok()),
                Err(error) => {
                    let offset = error.valid_up_to();
                    let expected =
                        Error::NotUtf8 { path: saved.name(), byte: content[offset], offset };
                    prop_assert_eq!(found, Err(expected));
                }
            }
        }
    }
}
