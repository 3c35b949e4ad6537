//! Special tokens in a text: where they stand, and whether they may.

use std::cmp::Reverse;

use memchr::memmem;

use crate::{Error, Result};

/// Cuts `text` at the special tokens in `allowed`: (where a segment starts, the segment, the token
/// that ends it, if one does). Where several start at one place the longest counts.
pub fn segments<'t, 's>(
    text: &'t str,
    allowed: &'s [impl AsRef<str>],
) -> impl Iterator<Item = (usize, &'t str, Option<&'s str>)> {
    let mut places: Vec<_> = allowed
        .iter()
        .map(AsRef::as_ref)
        .filter(|token| !token.is_empty())
        .map(|token| (token, memmem::Finder::new(token)))
        .map(|(token, finder)| (token, finder.find(text.as_bytes()), finder))
        .collect();
    let mut start = Some(0);
    std::iter::from_fn(move || {
        let from = start?;
        let found = places
            .iter_mut()
            .filter_map(|(token, place, finder)| {
                if place.is_some_and(|place| place < from) {
                    *place = finder.find(&text.as_bytes()[from..]).map(|offset| from + offset);
                }
                Some(((*place)?, Reverse(token.len()), *token))
            })
            .min();
        let Some((end, _, token)) = found else {
            start = None;
            return Some((from, &text[from..], None));
        };
        start = Some(end + token.len());
        Some((from, &text[from..end], Some(token)))
    })
}

/// Refuses a text that has one of the strings in `disallowed`.
///
/// # Errors
/// `Error::DisallowedSpecial` names the leftmost.
pub fn refuse_special(text: &str, disallowed: &[&str]) -> Result<()> {
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

    type Segment<'a> = (usize, &'a str, Option<&'a str>);

    fn found<'a>(text: &'a str, allowed: &'a [&'a str]) -> Vec<Segment<'a>> {
        segments(text, allowed).collect()
    }

    /// The definition: at every character, the longest token that starts there.
    fn slowly<'a>(text: &'a str, allowed: &[&'a str]) -> Vec<Segment<'a>> {
        let (mut segments, mut start, mut at) = (Vec::new(), 0, 0);
        while let Some(char) = text[at..].chars().next() {
            let here = allowed.iter().filter(|token| text[at..].starts_with(**token));
            if let Some(token) = here.max_by_key(|token| token.len()) {
                segments.push((start, &text[start..at], Some(*token)));
                at += token.len();
                start = at;
            } else {
                at += char.len_utf8();
            }
        }
        segments.push((start, &text[start..], None));
        segments
    }

    #[test]
    fn the_leftmost_and_of_those_the_longest_token_ends_a_segment() {
        let allowed = ["<a>", "<a><b>", "a><b><b>"];
        let expected = [(0, "x", Some("<a><b>")), (7, "<b>", None)];
        assert_eq!(found("x<a><b><b>", &allowed), expected);
    }

    #[test]
    fn special_tokens_end_a_segment_and_the_leftmost_and_longest_wins() {
        let between = |text, tokens: &[&str]| {
            let found: Vec<String> =
                segments(text, tokens).map(|(_, segment, _)| segment.to_owned()).collect();
            found
        };
        let tokens = ["<a>", "<a><b>", "><"];
        assert_eq!(between("x <a><b><a>y ><<a>", &tokens), ["x ", "", "y ", "", ""]);
        assert_eq!(between("no token < a>", &tokens), ["no token < a>"]);
        assert_eq!(between("x", &[]), ["x"]);
    }

    #[test]
    fn a_token_is_found_where_it_overlaps_an_earlier_place_that_another_token_took() {
        let expected = [(0, "", Some("ba")), (2, "", Some("aa")), (4, "", None)];
        assert_eq!(found("baaa", &["ba", "aa"]), expected);
    }

    #[test]
    fn tokens_that_touch_have_empty_segments_between_them() {
        let expected = [(0, "", Some("<>")), (2, "", Some("<>")), (4, "", None)];
        assert_eq!(found("<><>", &["<>"]), expected);
        assert_eq!(found("", &["<>"]), [(0, "", None)]);
    }

    #[test]
    fn an_empty_token_is_nowhere() {
        assert_eq!(found("ab", &[""]), [(0, "ab", None)]);
    }

    #[test]
    fn the_leftmost_disallowed_string_is_named_with_its_character_offset() {
        let refused =
            |token: &str, offset| Err(Error::DisallowedSpecial { token: token.to_owned(), offset });
        let text = "ééx<|endoftext|>é";
        assert_eq!(refuse_special(text, &["<|endoftext|>", "é<", "x<"]), refused("x<", 2));
        assert_eq!(refuse_special(text, &["<|endoftext|>é"]), refused("<|endoftext|>é", 3));
        assert_eq!(refuse_special(text, &["<|endoftext|>e", "É"]), Ok(()));
        assert_eq!(refuse_special(text, &[]), Ok(()));
    }

    proptest! {
        #[test]
        fn segments_and_tokens_are_those_of_the_definition(
            tokens in prop::collection::vec("[abé]{2,4}", 0..6),
            text in "[abé]{0,40}",
        ) {
            let allowed: Vec<&str> = tokens.iter().map(String::as_str).collect();
            let segments = found(&text, &allowed);
            prop_assert_eq!(&segments, &slowly(&text, &allowed));
            let whole: String =
                segments.iter().flat_map(|(_, segment, end)| [*segment, end.unwrap_or("")]).collect();
            prop_assert_eq!(whole, text);
        }
    }
}
