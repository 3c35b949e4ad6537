//! Where a text may be cut: before whitespace that follows anything else. There a piece starts
//! whatever comes before, so the parts' pieces are the whole text's.

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
pub fn safe_cut(text: &str, from: usize) -> usize {
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
    use super::super::split;
    use super::*;
    use proptest::prelude::*;

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
