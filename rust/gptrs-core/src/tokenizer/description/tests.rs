//! What is a tokenizer and what is none, and tokenizers of all kinds for the tests of others.

use super::*;
use proptest::prelude::*;

pub fn bpe(merges: &[(u16, u16)], special_tokens: &[&str]) -> Description {
    described(Model::Bpe { merges: merges.to_vec() }, special_tokens)
}

pub fn char_level(chars: &str, special_tokens: &[&str]) -> Description {
    described(Model::Char { chars: chars.chars().collect() }, special_tokens)
}

fn described(model: Model, special_tokens: &[&str]) -> Description {
    let special_tokens = special_tokens.iter().map(|&token| token.to_owned()).collect();
    Description { model, special_tokens }
}

/// Tokenizers of either kind: merges of merges, characters of every script, special tokens
/// that look like the others.
pub fn any_description() -> impl Strategy<Value = Description> {
    let pairs = prop::collection::vec(any::<(prop::sample::Index, prop::sample::Index)>(), 0..40);
    let bpe = pairs.prop_map(|pairs| {
        let mut merges = Vec::new();
        let mut tokens: Vec<Vec<usize>> = (0..NUM_BYTES).map(|byte| vec![byte]).collect();
        for (left, right) in pairs {
            // Most tokens are bytes, but half of what is joined has been joined before.
            let id = |index: prop::sample::Index| {
                let at = index.index(2 * tokens.len());
                let recent = at.is_multiple_of(2) && !merges.is_empty();
                if recent { NUM_BYTES + at / 2 % merges.len() } else { at / 2 }
            };
            let (left, right) = (id(left), id(right));
            let token = [&tokens[left][..], &tokens[right]].concat();
            if token.len() < 100 && !tokens.contains(&token) {
                merges.push((left as u16, right as u16));
                tokens.push(token);
            }
        }
        Model::Bpe { merges }
    });
    let chars = prop::collection::btree_set(any::<char>(), 1..40);
    let chars = chars.prop_map(|chars| Model::Char { chars: chars.into_iter().collect() });
    let special = prop::collection::btree_set(r"[!-~éĠ🤖]{1,9}", 0..4);
    (prop_oneof![bpe, chars], special).prop_map(|(model, special)| {
        let mut description = Description { model, special_tokens: vec![] };
        for token in special {
            description.special_tokens.push(token);
            if description.check().is_err() {
                description.special_tokens.pop();
            }
        }
        description
    })
}

#[track_caller]
fn assert_refused(description: &Description, reason: &str) {
    let message = description.check().unwrap_err().to_string();
    assert!(message.contains(reason), "{message}");
}

#[test]
fn what_is_no_tokenizer_is_refused_with_what_was_found() {
    assert_refused(&bpe(&[(0, 1), (257, 0)], &[]), "merge 1 joins ids 257 and 0");
    assert_refused(&bpe(&[(0, 1), (2, 3), (0, 1)], &[]), "ids 256 and 258 are both written");
    let same_bytes = [(0, 1), (1, 2), (256, 2), (0, 257)];
    assert_refused(&bpe(&same_bytes, &[]), r##"ids 258 and 259 are both written "!\"#""##);
    assert_refused(&bpe(&[], &["!"]), "ids 0 and 256 are both written \"!\"");
    assert_refused(&bpe(&[], &["<é>"]), "made of the letters that stand for bytes");
    assert_refused(&bpe(&[], &["<a>", "<a>"]), "ids 256 and 257");
    assert_refused(&bpe(&[], &[""]), "the special token \"\" is empty");
    assert_refused(&bpe(&[], &["<a\u{3000}b>"]), "has whitespace in it");
    assert_refused(&char_level("", &["<a>"]), "no characters");
    assert_refused(&char_level("ba", &[]), "the character 'a' comes after 'b'");
    assert_refused(&char_level("aa", &[]), "the character 'a' comes after 'a'");
    assert_refused(&char_level("ab", &["b"]), "ids 1 and 2 are both written \"b\"");
}

#[test]
fn there_are_at_most_as_many_ids_as_16_bits_tell_apart() {
    let chars: String = ('\0'..).take(MAX_IDS - 1).collect();
    assert_eq!(char_level(&chars, &["<a>"]).check(), Ok(()));
    assert_refused(&char_level(&chars, &["<a>", "<b>"]), "65537 ids");
}

#[test]
fn merges_that_double_a_token_again_and_again_fill_no_memory() {
    let merges: Vec<_> =
        (0..10_000).map(|i| if i == 0 { (0, 0) } else { (255 + i, 255 + i) }).collect();
    assert_refused(&bpe(&merges, &[]), "bytes in all, at most 67108864 fit");
}

#[test]
fn a_fingerprint_is_the_sha256_of_the_documented_lines() {
    // printf 'bpe\n220 83\n256 71\n\n<|endoftext|>\n' | sha256sum, and so on.
    for (description, expected) in [
        (
            bpe(&[(220, 83), (256, 71)], &["<|endoftext|>"]),
            "4313a94435af4abd636464db650056921e29832541f6eb780ca6c96a65ac408c",
        ),
        (
            char_level("\nAé", &["<a>", "<b>"]),
            "cb2d909c4f94bc9a201d5ec92509c81205f26f5b5909eaeeb4f430b7f8a7a2ad",
        ),
    ] {
        assert_eq!(description.fingerprint(), expected);
    }
}

proptest! {
    #[test]
    fn only_equal_tokenizers_have_one_fingerprint(a in any_description(), b in any_description()) {
        prop_assert_eq!(a.check(), Ok(()));
        prop_assert_eq!(a.fingerprint() == b.fingerprint(), a == b);
    }
}
