//! The class of a character in GPT-2's pattern: letter, number, whitespace or none of them.

use super::layout::{CLASS_BLOCK, LETTER, NUMBER, SPACE, SYMBOL};
use super::tables::{CLASS_BLOCKS, CLASS_INDEX};

/// The class of any character.
#[inline]
pub fn class_of(char: char) -> u8 {
    class_of_code(char as usize)
}

/// The class of the character with this code point.
#[inline(always)]
pub fn class_of_code(code: usize) -> u8 {
    let (block, offset) = (code / CLASS_BLOCK, code % CLASS_BLOCK);
    CLASS_BLOCKS[usize::from(CLASS_INDEX[block][0]) * CLASS_BLOCK + offset]
}

/// The class of the ASCII character with this code; `SYMBOL` for what is not ASCII.
pub const fn class_of_ascii(byte: u8) -> u8 {
    match byte {
        b'A'..=b'Z' | b'a'..=b'z' => LETTER,
        b'0'..=b'9' => NUMBER,
        b'\t'..=b'\r' | b' ' => SPACE,
        _ => SYMBOL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ascii_characters_have_the_class_that_unicode_gives_them() {
        for byte in 0..128u8 {
            assert_eq!(class_of_ascii(byte), class_of(char::from(byte)), "{byte}");
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
}
