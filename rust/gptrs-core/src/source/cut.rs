//! Where a block ends: behind a whole document or line, or where a large document may be cut.

use memchr::{memchr, memrchr};

use super::{Failure, LONGEST_LINE};
use crate::Error;
use crate::tokenizer::LONGEST_PIECE;

/// As much of a text as is looked at when it may be cut anywhere soon.
const FIRST_WINDOW: usize = 1 << 8;

/// The first place at or after `from` where the text in `bytes` may be cut: what
/// `tokenizer::cuts::safe_cut` finds in the same text. Bytes that are not UTF-8 are no whitespace.
fn safe_cut(bytes: &[u8], from: usize) -> Option<usize> {
    let goes_on = |byte: &u8| byte & 0xc0 == 0x80;
    let from = from + bytes.get(from..)?.iter().take_while(|byte| goes_on(byte)).count();
    let mut window = FIRST_WINDOW;
    loop {
        let end = bytes.len().min(from.saturating_add(window));
        let (mut at, mut after_word) = (from, false);
        for part in bytes[from..end].utf8_chunks() {
            for (offset, char) in part.valid().char_indices() {
                if after_word && char.is_whitespace() {
                    return Some(at + offset);
                }
                after_word = !char.is_whitespace();
            }
            at += part.valid().len() + part.invalid().len();
            // A character that the window cuts off looks like one of these, but nothing follows.
            after_word |= !part.invalid().is_empty();
        }
        if end == bytes.len() {
            return None;
        }
        window *= 16;
    }
}

/// Where a whole text's first chunk ends.
pub fn chunk_end(text: &str, block_bytes: usize) -> usize {
    if text.len() <= block_bytes {
        return text.len();
    }
    safe_cut(text.as_bytes(), block_bytes).unwrap_or(text.len())
}

/// What is known of a large document's next chunk.
#[derive(Debug, PartialEq, Eq)]
pub enum Chunk {
    /// The chunk ends here; the document goes on.
    Cut(usize),
    /// The chunk and the document end here.
    End(usize),
    /// More bytes are needed to tell.
    Unknown,
}

/// Looks for the end of a chunk that starts with `bytes`, more of which may follow.
pub struct ChunkSearch {
    block_bytes: usize,
    /// No cut comes before this.
    from: usize,
}

impl ChunkSearch {
    pub fn new(block_bytes: usize) -> Self {
        Self { block_bytes, from: block_bytes }
    }

    /// `end`: where the document ends, if that is known. `lookahead`: how many bytes behind a cut
    /// must be known, lest the document end before it.
    ///
    /// # Errors
    /// `Error::PieceTooLong`, whose offset is within `bytes`.
    pub fn search(
        &mut self,
        bytes: &[u8],
        end: Option<usize>,
        lookahead: usize,
    ) -> Result<Chunk, Error> {
        let text = &bytes[..end.unwrap_or(bytes.len())];
        if end.is_some() && text.len() <= self.block_bytes {
            return Ok(Chunk::End(text.len()));
        }
        let cut = safe_cut(text, self.from);
        if cut.unwrap_or(text.len()) > self.block_bytes + LONGEST_PIECE {
            let offset = last_piece(text, self.block_bytes);
            return Err(Error::PieceTooLong { offset, longest: LONGEST_PIECE });
        }
        match (cut, end) {
            (Some(cut), _) if end.is_some() || cut + lookahead <= text.len() => Ok(Chunk::Cut(cut)),
            (None, Some(end)) => Ok(Chunk::End(end)),
            (Some(_), _) => Ok(Chunk::Unknown),
            (None, None) => {
                // The last characters may have been cut off. A place to cut before them, whose
                // neighbours were all there, would have been found.
                self.from = self.from.max(text.len().saturating_sub(8));
                Ok(Chunk::Unknown)
            }
        }
    }
}

/// Where the piece starts that goes on at `from` and that nothing ends.
fn last_piece(text: &[u8], from: usize) -> usize {
    let text_before = &text[..from.min(text.len())];
    let (mut cut, mut next) = (0, 0);
    while let Some(at) = safe_cut(text_before, next) {
        (cut, next) = (at, at + 1);
    }
    let is_space = |byte: &u8| byte.is_ascii_whitespace();
    let spaces = text[cut..].iter().take_while(|byte| is_space(byte)).count();
    let word = cut + spaces;
    // A word has the one space that is before it.
    if spaces > 0 && text[word - 1] == b' ' { word - 1 } else { word }
}

/// Where the last whole line in `bytes` ends, if one does behind the first `searched` bytes.
///
/// # Errors
/// The first line is longer than any may be.
pub fn last_line_end(bytes: &[u8], searched: usize) -> Result<Option<usize>, Failure> {
    let end = memrchr(b'\n', &bytes[searched..]).map(|at| searched + at + 1);
    if bytes.len() > LONGEST_LINE {
        let first_line = memchr(b'\n', bytes).unwrap_or(bytes.len());
        if first_line > LONGEST_LINE {
            let reason = format!("the line has more than {LONGEST_LINE} bytes");
            return Err(Failure::Row { line: 0, reason });
        }
    }
    Ok(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::cuts;
    use proptest::prelude::*;

    const TEXT: &str = r"([ab]{1,3}|[ \n]{1,2}|é|中|\u{3000}|\u{a0}){0,40}";

    proptest! {
        #[test]
        fn bytes_are_cut_where_their_text_is(text in TEXT, from in 0_usize..80, long in 0_usize..300) {
            let text = "x".repeat(long) + &text;
            let expected = cuts::safe_cut(&text, from);
            let found = safe_cut(text.as_bytes(), from).unwrap_or(text.len());
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn a_cut_in_what_is_no_utf_8_is_before_whitespace_behind_something_else(
            bytes in prop::collection::vec(prop::sample::select(&b"a \n\xe4\xb8\xad\xff\xc2\xa0"[..]), 0..40),
            from in 0_usize..40,
        ) {
            if let Some(cut) = safe_cut(&bytes, from) {
                let [before, after] = [&bytes[..cut], &bytes[cut..]].map(String::from_utf8_lossy);
                prop_assert!(cut > from && after.starts_with(char::is_whitespace));
                prop_assert!(!before.ends_with(char::is_whitespace));
                prop_assert_eq!(format!("{before}{after}"), String::from_utf8_lossy(&bytes));
            }
        }

        #[test]
        fn a_chunk_ends_at_the_same_place_however_much_of_the_text_is_read_at_a_time(
            text in TEXT,
            block_bytes in 1_usize..30,
            reads in prop::collection::vec(1_usize..20, 1..9),
            lookahead in 0_usize..4,
        ) {
            let bytes = text.as_bytes();
            let whole = ChunkSearch::new(block_bytes).search(bytes, Some(bytes.len()), lookahead);
            let (mut search, mut read) = (ChunkSearch::new(block_bytes), 0);
            for step in reads.into_iter().cycle() {
                read = bytes.len().min(read + step);
                let end = (read == bytes.len()).then_some(read);
                let found = search.search(&bytes[..read], end, lookahead);
                if found != Ok(Chunk::Unknown) {
                    prop_assert_eq!(found, whole);
                    break;
                }
            }
        }

        #[test]
        fn the_chunks_of_a_text_are_its_parts(text in TEXT, block_bytes in 1_usize..30) {
            let mut rest = &*text;
            for part in cuts::parts(&text, block_bytes) {
                prop_assert_eq!(&rest[..chunk_end(rest, block_bytes)], part);
                rest = &rest[part.len()..];
            }
            prop_assert_eq!(rest, "");
        }
    }
}
