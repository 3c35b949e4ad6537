//! GPT-2's pattern, by hand: text -> the pieces that are encoded one by one.
//!
//! ```text
//!   '(?:[sdmt]|ll|ve|re)    a contraction: lower-case, and only where a piece starts
//!    ?\p{L}+                letters  ┐
//!    ?\p{N}+                numbers  ├ each with at most one U+0020 before it
//!    ?[^\s\p{L}\p{N}]+      symbols  ┘
//!   \s+(?!\S)               whitespace, but for its last character if something follows
//!   \s+                     that last character, where no U+0020 prefixes what follows
//! ```
//!
//! The alternatives are tried in this order where a piece starts, so `!'s` is `!'` and `s`.

use super::layout::{CLASS_BLOCK, LETTER, NUMBER, SPACE, SYMBOL};
use super::tables::{CLASS_BLOCKS, CLASS_INDEX};

/// Splits `text` into GPT-2's pieces; one after the other they are the text.
///
/// ```
/// let pieces: Vec<&str> = gptrs_core::tokenizer::split("I'd say  it's 42!").collect();
/// assert_eq!(pieces, ["I", "'d", " say", " ", " it", "'s", " 42", "!"]);
/// ```
pub fn split(text: &str) -> impl Iterator<Item = &str> {
    let mut start = 0;
    std::iter::from_fn(move || {
        (start < text.len()).then(|| {
            let end = piece_end(text, start);
            let piece = &text[start..end];
            start = end;
            piece
        })
    })
}

/// Where the piece that starts at byte `start` ends. `start` is the end of the piece before it (or
/// 0), and less than the text's length.
pub fn piece_end(text: &str, start: usize) -> usize {
    let bytes = text.as_bytes();
    match bytes[start] {
        b'\'' => contraction_end(bytes, start).unwrap_or_else(|| run_end(text, start + 1, SYMBOL)),
        b' ' => match class_at(text, start + 1) {
            Some((class, len)) if class != SPACE => run_end(text, start + 1 + len, class),
            _ => whitespace_end(text, start),
        },
        _ => match class_at(text, start) {
            Some((class, len)) if class != SPACE => run_end(text, start + len, class),
            _ => whitespace_end(text, start),
        },
    }
}

/// The end of the contraction whose apostrophe is at `start`, if it is one.
fn contraction_end(bytes: &[u8], start: usize) -> Option<usize> {
    match bytes[start + 1..] {
        [b's' | b'd' | b'm' | b't', ..] => Some(start + 2),
        [b'l', b'l', ..] | [b'v' | b'r', b'e', ..] => Some(start + 3),
        _ => None,
    }
}

/// The end of the run of `class` that goes on at `at`.
fn run_end(text: &str, mut at: usize, class: u8) -> usize {
    while let Some((_, len)) = class_at(text, at).filter(|(found, _)| *found == class) {
        at += len;
    }
    at
}

/// The end of the whitespace piece at `start`: the whole run at the end of the text; otherwise the
/// run without its last character, unless that is all there is.
fn whitespace_end(text: &str, start: usize) -> usize {
    let (mut at, mut last) = (start, start);
    while let Some((_, len)) = class_at(text, at).filter(|(found, _)| *found == SPACE) {
        last = at;
        at += len;
    }
    if at == text.len() || last == start { at } else { last }
}

/// The class of the character at byte `at`, and its length in bytes; `None` at the end.
fn class_at(text: &str, at: usize) -> Option<(u8, usize)> {
    let byte = *text.as_bytes().get(at)?;
    if byte.is_ascii() {
        return Some((ASCII_CLASSES[usize::from(byte)], 1));
    }
    let char = text[at..].chars().next()?;
    Some((class_of(char), char.len_utf8()))
}

/// The class of any character.
fn class_of(char: char) -> u8 {
    let (block, offset) = (char as usize / CLASS_BLOCK, char as usize % CLASS_BLOCK);
    CLASS_BLOCKS[usize::from(CLASS_INDEX[block][0]) * CLASS_BLOCK + offset]
}

/// The classes of U+0000 to U+007F, in four cache lines that stay hot. A byte that is not ASCII
/// has an entry too, so that no index is out of range; nothing reads it.
static ASCII_CLASSES: [u8; 256] = {
    let mut classes = [SYMBOL; 256];
    let mut byte = 0;
    while byte < 128 {
        classes[byte] = match byte as u8 {
            b'A'..=b'Z' | b'a'..=b'z' => LETTER,
            b'0'..=b'9' => NUMBER,
            b'\t'..=b'\r' | b' ' => SPACE,
            _ => SYMBOL,
        };
        byte += 1;
    }
    classes
};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pieces(text: &str) -> Vec<&str> {
        split(text).collect()
    }

    #[test]
    fn ascii_characters_have_the_class_that_unicode_gives_them() {
        for byte in 0..128u8 {
            assert_eq!(ASCII_CLASSES[usize::from(byte)], class_of(char::from(byte)), "{byte}");
        }
    }

    #[test]
    fn whitespace_is_the_white_space_property_and_nothing_else() {
        for char in
            "\t\n\u{b}\u{c}\r \u{85}\u{a0}\u{1680}\u{2000}\u{2028}\u{2029}\u{202f}\u{3000}".chars()
        {
            assert_eq!(class_of(char), SPACE, "{char:?}");
        }
        for char in "\u{1c}\u{1f}\u{180e}\u{200b}\u{feff}".chars() {
            assert_eq!(class_of(char), SYMBOL, "{char:?}");
        }
    }

    #[test]
    fn letters_are_general_category_l_not_alphabetic() {
        assert!('\u{24b6}'.is_alphabetic() && class_of('\u{24b6}') == SYMBOL);
        assert!('\u{345}'.is_alphabetic() && class_of('\u{345}') == SYMBOL);
        assert!('\u{2160}'.is_alphabetic() && class_of('\u{2160}') == NUMBER);
        assert_eq!(class_of('中'), LETTER);
        assert_eq!(class_of(char::MAX), SYMBOL);
    }

    #[test]
    fn contractions_are_lower_case_and_lose_to_a_symbol_or_space_before_them() {
        assert_eq!(pieces("we'll"), ["we", "'ll"]);
        assert_eq!(pieces("'sam"), ["'s", "am"]);
        assert_eq!(pieces("WE'LL"), ["WE", "'", "LL"]);
        assert_eq!(pieces("!'s"), ["!'", "s"]);
        assert_eq!(pieces(" 's"), [" '", "s"]);
        assert_eq!(pieces("''s"), ["''", "s"]);
        assert_eq!(pieces("'l"), ["'", "l"]);
    }

    #[test]
    fn whitespace_gives_up_its_last_character_except_at_the_end() {
        assert_eq!(pieces("a   b"), ["a", "  ", " b"]);
        assert_eq!(pieces("a \n\nb"), ["a", " \n", "\n", "b"]);
        assert_eq!(pieces("a\nb"), ["a", "\n", "b"]);
        assert_eq!(pieces("a  "), ["a", "  "]);
        assert_eq!(pieces("\u{3000}\u{3000}b"), ["\u{3000}", "\u{3000}", "b"]);
        assert_eq!(pieces("\u{a0}b"), ["\u{a0}", "b"]);
        assert_eq!(pieces(" "), [" "]);
        assert_eq!(pieces(""), [""; 0]);
    }

    proptest! {
        #[test]
        fn pieces_concatenate_to_the_text(text in any::<String>()) {
            prop_assert_eq!(split(&text).collect::<String>(), text);
        }

        #[test]
        fn text_may_be_cut_before_whitespace_that_follows_anything_else(
            text in r"([a-c'\P{C}]{0,4}[\s]{0,3}){0,8}",
        ) {
            let chars: Vec<(usize, char)> = text.char_indices().collect();
            for pair in chars.windows(2) {
                let cut = pair[1].0;
                if class_of(pair[0].1) != SPACE && class_of(pair[1].1) == SPACE {
                    let (before, after) = text.split_at(cut);
                    let parts: Vec<&str> = split(before).chain(split(after)).collect();
                    prop_assert_eq!(parts, pieces(&text));
                }
            }
        }
    }
}
