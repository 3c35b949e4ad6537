//! The text between special tokens, and where a text may be cut into parts.

use std::cmp::Reverse;

use memchr::memmem::Finder;

/// Finds special tokens in a text: the leftmost, and of those that start there the longest.
#[derive(Debug)]
pub struct SpecialTokens(Vec<Finder<'static>>);

impl SpecialTokens {
    pub fn new(special_tokens: &[String]) -> Self {
        Self(special_tokens.iter().map(|token| Finder::new(token).into_owned()).collect())
    }

    /// What stands between the special tokens of `text`.
    pub fn segments<'a>(&'a self, text: &'a str) -> impl Iterator<Item = &'a str> {
        let mut start = 0;
        let mut hits = vec![Some(0); self.0.len()];
        std::iter::from_fn(move || {
            let rest = text.get(start..)?;
            // Each token is searched for once in each part of the text.
            for (hit, finder) in hits.iter_mut().zip(&self.0) {
                if hit.is_some_and(|hit| hit <= start) {
                    *hit = finder.find(rest.as_bytes()).map(|offset| start + offset);
                }
            }
            let lens = self.0.iter().map(|finder| finder.needle().len());
            let found =
                hits.iter().zip(lens).filter_map(|(hit, len)| Some(((*hit)?, Reverse(len))));
            let (end, Reverse(len)) = found.min().unwrap_or((text.len(), Reverse(1)));
            let segment = &text[start..end];
            start = end + len;
            Some(segment)
        })
    }
}

/// Cuts `text` into parts of at least `part_bytes` whose words are those of the whole: before
/// whitespace that follows anything else. No special token is cut, for none has whitespace in it.
pub fn parts(text: &str, part_bytes: usize) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (part, after) = rest.split_at(safe_cut(rest, part_bytes));
        rest = after;
        (!part.is_empty()).then_some(part)
    })
}

/// The first place at or after `from` where `text` may be cut, or its end.
fn safe_cut(text: &str, from: usize) -> usize {
    let is_boundary = |at: &usize| text.is_char_boundary(*at);
    let from = (from..text.len()).find(is_boundary).unwrap_or(text.len());
    let mut after_word = false;
    let cut = text[from..].char_indices().find(|(_, char)| {
        let is_cut = after_word && char.is_whitespace();
        after_word = !char.is_whitespace();
        is_cut
    });
    cut.map_or(text.len(), |(offset, _)| from + offset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::split;
    use proptest::prelude::*;

    #[test]
    fn special_tokens_end_a_segment_and_the_leftmost_and_longest_wins() {
        let tokens = SpecialTokens::new(&["<a>", "<a><b>", "><"].map(str::to_owned));
        let segments = |text| tokens.segments(text).collect::<Vec<_>>();
        assert_eq!(segments("x <a><b><a>y ><<a>"), ["x ", "", "y ", "", ""]);
        assert_eq!(segments("no token < a>"), ["no token < a>"]);
        assert_eq!(SpecialTokens::new(&[]).segments("x").collect::<Vec<_>>(), ["x"]);
    }

    proptest! {
        #[test]
        fn the_words_of_the_parts_are_the_words_of_the_text(
            text in r"([ab'!\u{e9}\u{a0} \n]|\s|\PC){0,60}",
            part_bytes in 1usize..20,
        ) {
            let words: Vec<&str> = parts(&text, part_bytes).flat_map(split).collect();
            prop_assert_eq!(words, split(&text).collect::<Vec<_>>());
        }
    }
}
