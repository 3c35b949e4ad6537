use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use proptest::prelude::*;

use super::{BpeTrainer, CharTrainer};
use crate::tokenizer::description::{Description, Model};
use crate::tokenizer::{split, vocab};
use crate::{Error, Result};

/// Few letters and long runs of them, so that many pairs are as frequent as others and overlap;
/// and some of everything else.
const TEXT: &str = r"(a{1,9}|[ab]|(ab){1,5}| |[a-e ]{1,20}|'s|[0-9]|\s|é|\PC){0,40}";

fn train(
    vocab_size: usize,
    special: &[&str],
    threads: usize,
    texts: &[&str],
) -> Result<Description> {
    let special_tokens = special.iter().map(|&token| token.to_owned()).collect();
    let mut trainer = BpeTrainer::new(vocab_size, special_tokens, threads)?;
    for text in texts {
        trainer.add(text, &mut || Ok::<_, Error>(()))?;
    }
    trainer.learn(&mut |_| Ok(()))
}

/// Trains with no special tokens. If the text has too few pairs, merges them all.
fn merges(num_merges: usize, threads: usize, texts: &[&str]) -> Vec<(u16, u16)> {
    let description = train(256 + num_merges, &[], threads, texts).or_else(|error| match error {
        Error::TooFewPairs { found, .. } => train(found, &[], threads, texts),
        other => Err(other),
    });
    match description.unwrap().model {
        Model::Bpe { merges } => merges,
        Model::Char { .. } => panic!("a byte-pair encoding was asked for"),
    }
}

/// What training means: every word of the text as tokens; in each round, counts all pairs again.
fn merges_by_recounting(num_merges: usize, texts: &[&str]) -> Vec<(u16, u16)> {
    let words = texts.iter().flat_map(|text| split(text));
    let ids = |word: &str| word.bytes().map(vocab::byte_id).collect::<Vec<u16>>();
    let mut words: Vec<Vec<u16>> = words.map(ids).collect();
    let mut merges = Vec::new();
    while merges.len() < num_merges {
        let mut counts = BTreeMap::new();
        for pair in words.iter().flat_map(|word| word.windows(2)) {
            *counts.entry((pair[0], pair[1])).or_insert(0) += 1;
        }
        // The last of the greatest, so the first pair of them when reversed.
        let Some((pair, _)) = counts.into_iter().rev().max_by_key(|(_, count)| *count) else {
            break;
        };
        let new = 256 + merges.len() as u16;
        for word in &mut words {
            *word = merged(word, pair, new);
        }
        merges.push(pair);
    }
    merges
}

fn merged(word: &[u16], pair: (u16, u16), new: u16) -> Vec<u16> {
    let mut tokens = Vec::new();
    let mut rest = word;
    while let [left, after @ ..] = rest {
        if after.first() == Some(&pair.1) && *left == pair.0 {
            tokens.push(new);
            rest = &after[1..];
        } else {
            tokens.push(*left);
            rest = after;
        }
    }
    tokens
}

/// Words of 2 to 12 letters that hardly repeat.
fn random_words(lens: Range<usize>, num_bytes: usize) -> String {
    let mut state = 1_u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as usize % below
    };
    let mut text = String::new();
    while text.len() < num_bytes {
        let len = lens.start + random(lens.len());
        text.extend((0..len).map(|_| char::from(b'a' + random(26) as u8)));
        text.push(' ');
    }
    text
}

#[test]
fn an_overlapping_pair_counts_at_every_place_and_merges_from_the_left() {
    // "aaa" has (a, a) twice, which beats " b" and its one pair; then (aa, a) and (space, b) tie,
    // and the space is the byte with the higher id.
    let [a, b, space] = [b'a', b'b', b' '].map(vocab::byte_id);
    assert_eq!(merges(9, 1, &["aaa b"]), [(a, a), (space, b), (256, a)]);
    assert!(space < 256 && a < space);
}

#[test]
fn threads_that_share_a_long_text_learn_what_one_learns() {
    let text = random_words(2..12, 800_000);
    let one = merges(100, 1, &[&text]);
    assert_eq!(one.len(), 100);
    assert_eq!(merges(100, 2, &[&text]), one);
    assert_eq!(merges(100, 5, &[&text]), one);
}

#[test]
fn special_tokens_are_cut_out_and_nothing_merges_across_them() {
    let (cut, whole) = (["ab<s>ab\n\n", "\n\n", "ab"], "ab<s>ab\n\n<s>\n\n<|t|>ab<|t|>");
    let special = ["<|t|>", "<s>"];
    let expected = Model::Bpe { merges: merges_by_recounting(2, &["ab", "ab\n\n", "\n\n", "ab"]) };
    for texts in [&cut[..], &[whole]] {
        let learned = train(260, &special, 1, texts).unwrap();
        assert_eq!(learned.model, expected);
        assert_eq!(learned.special_tokens, special);
    }
}

#[test]
fn a_text_with_too_few_pairs_is_refused_with_the_vocabulary_that_it_supports() {
    let error = train(300, &["<s>"], 1, &["abc abc d"]).unwrap_err();
    assert_eq!(error, Error::TooFewPairs { asked: 300, found: 256 + 1 + 4 });
    assert_eq!(train(261, &["<s>"], 1, &["abc abc d"]).unwrap().num_ids(), 261);
    assert_eq!(train(257, &["<s>"], 1, &[]).unwrap().num_ids(), 257);
}

#[test]
fn vocabularies_that_no_ids_fit_are_refused_before_any_text_is_read() {
    for (vocab_size, special) in [(256, &["<s>"][..]), (255, &[]), (65_537, &["<s>"]), (0, &[])] {
        let least = 256 + special.len();
        let error = train(vocab_size, special, 1, &[]).unwrap_err();
        assert_eq!(error, Error::VocabSize { found: vocab_size, least, most: 65_536 });
    }
    assert!(matches!(train(300, &[""], 1, &[]), Err(Error::TokenizerDescription(_))));
    assert!(matches!(train(300, &["a b"], 1, &[]), Err(Error::TokenizerDescription(_))));
}

#[test]
fn all_ids_of_16_bits_can_be_learned() {
    let text = random_words(6..12, 400_000);
    let learned = merges(65_280, 1, &[&text]);
    assert_eq!(learned.len(), 65_280);
    for (index, (left, right)) in learned.iter().enumerate() {
        assert!(usize::from(*left.max(right)) < 256 + index);
    }
    assert_eq!(learned.iter().collect::<BTreeSet<_>>().len(), learned.len());
}

#[test]
fn a_word_of_a_megabyte_takes_linear_time() {
    // Merge by merge through the whole word, this would be 10 billion steps.
    let text = random_words(1 << 20..(1 << 20) + 1, 1 << 20);
    assert_eq!(merges(10_000, 1, &[text.trim_end()]).len(), 10_000);
    let (a, b) = (vocab::byte_id(b'a'), vocab::byte_id(b'b'));
    let doubling = merges(100, 1, &["ab".repeat(1 << 19).as_str()]);
    assert_eq!(doubling.len(), 20);
    assert_eq!(doubling[..3], [(a, b), (256, 256), (257, 257)]);
}

#[test]
fn an_error_of_the_check_ends_the_work_and_arrives_unchanged() {
    let text = random_words(2..12, 800_000);
    for threads in [1, 3] {
        let mut trainer = BpeTrainer::new(2000, vec![], threads).unwrap();
        let stopped = trainer.add(&text, &mut || Err(Error::NothingToDraw));
        // Other threads may have done all before this one asked.
        assert!(stopped == Err(Error::NothingToDraw) || threads > 1 && stopped.is_ok());
        trainer.add(&text, &mut || Ok::<_, Error>(())).unwrap();
        let mut seen = Vec::new();
        let stopped = trainer.learn(&mut |num_merges| {
            seen.push(num_merges);
            if num_merges < 10 { Ok(()) } else { Err(Error::NothingToDraw) }
        });
        assert_eq!(stopped, Err(Error::NothingToDraw));
        assert!(seen.is_sorted() && seen[0] == 0 && seen[seen.len() - 1] < 2000);
    }
    let mut trainer = CharTrainer::new(None, vec![]).unwrap();
    assert_eq!(trainer.add("a", &mut || Err(Error::NothingToDraw)), Err(Error::NothingToDraw));
}

fn chars(vocab_size: Option<usize>, special: &[&str], text: &str) -> Result<Vec<char>> {
    let special_tokens = special.iter().map(|&token| token.to_owned()).collect();
    let mut trainer = CharTrainer::new(vocab_size, special_tokens)?;
    trainer.add(text, &mut || Ok::<_, Error>(()))?;
    match trainer.learn()?.model {
        Model::Char { chars } => Ok(chars),
        Model::Bpe { .. } => panic!("characters were asked for"),
    }
}

#[test]
fn characters_are_at_most_as_many_as_there_is_room_for() {
    let all: String = ('\0'..).take(65_536).collect();
    assert_eq!(chars(None, &[], &all).unwrap().len(), 65_536);
    let error = chars(None, &["<s>"], &all).unwrap_err();
    assert_eq!(error, Error::TooManyChars { found: 65_536, room: 65_535 });
    assert_eq!(chars(Some(4), &["<s>"], "cab<s>").unwrap(), ['a', 'b', 'c']);
    let error = chars(Some(3), &["<s>"], "cab<s>").unwrap_err();
    assert_eq!(error, Error::TooManyChars { found: 3, room: 2 });
    let error = chars(Some(1), &["<s>"], "").unwrap_err();
    assert_eq!(error, Error::VocabSize { found: 1, least: 2, most: 65_536 });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn merges_are_those_of_counting_all_pairs_again_after_every_merge(
        texts in prop::collection::vec(TEXT, 1..4),
        num_merges in 0usize..60,
        threads in 1usize..3,
    ) {
        let mut texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let expected = merges_by_recounting(num_merges, &texts);
        prop_assert_eq!(&merges(num_merges, threads, &texts), &expected);
        texts.reverse();
        prop_assert_eq!(&merges(num_merges, threads, &texts), &expected);
    }

    #[test]
    fn characters_are_the_distinct_ones_in_order(text in r"[\x00-\u{ff}]{0,40}[中🤖é]{0,3}") {
        let expected: Vec<char> = text.chars().collect::<BTreeSet<_>>().into_iter().collect();
        prop_assert_eq!(chars(None, &[], &text).unwrap(), expected);
    }
}
