//! The tokenizer gives the ids of a reference that is the pattern and the ranks, and no more.
//!
//! A smoke run of what `make fuzz` does for longer, with the same texts every time.

mod reference;
mod texts;

use std::cell::Cell;
use std::ops::Range;

use gptrs_core::tokenizer::description::{Description, Model};
use gptrs_core::tokenizer::train::BpeTrainer;
use gptrs_core::tokenizer::{END_OF_TEXT, Tokenizer};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::RngSeed;

use reference::agreement::SideBySide;
use texts::{long_words, many_words, texts};

/// Where a splitter decides or looks ahead: what comes out must not depend on where it stands.
const TRICKY: &[&str] = &[
    "we'll'd 'sam",
    "WE'LL!'s",
    "we'll中 it's𝒜'ré",
    "a  Mb  `c",
    "é'ré\u{2019}s",
    "a  b   ",
    "a \n\n\tb",
    "中\u{a0}\u{85}\u{3000}x",
    " \u{2003}\u{1680} 's",
    "😀 😀\u{10ffff}",
    "𝒜𐐀 𝟘½12 34",
    "\u{1c}\u{180e} \u{200b}\u{feff}a",
    "<|endoftext|>  <|endoftext|",
    " internationally incomprehensibilities",
];

/// The same draws in every run; a failure is made as small as can be.
fn smoke(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        rng_seed: RngSeed::Fixed(4),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

#[test]
fn any_text_gets_the_pieces_and_ids_of_the_reference() {
    let gpt2 = SideBySide::gpt2();
    proptest!(smoke(2_500), |(text in texts(gpt2.reference().tokens()))| {
        gpt2.agree_on_text(&text);
        gpt2.agree_on_pieces(&text);
    });
}

#[test]
fn hundreds_of_words_get_the_pieces_and_ids_of_the_reference() {
    let gpt2 = SideBySide::gpt2();
    proptest!(smoke(60), |(text in many_words())| {
        gpt2.agree_on_text(&text);
        gpt2.agree_on_pieces(&text);
    });
}

#[test]
fn a_text_gets_the_pieces_and_ids_of_the_reference_at_every_offset() {
    let gpt2 = SideBySide::gpt2();
    let fillers = ["a", " ", "!", "7", "'s", "é", "\u{3000}", "😀", "word "];
    for (first, filler) in fillers.iter().enumerate() {
        // Another of them stands at the text's end each time.
        let (last, rest) = TRICKY.split_at(first);
        let tricky = [rest, last].concat().join(filler);
        for offset in 0..=130 {
            let before = "x".repeat(offset % filler.len()) + &filler.repeat(offset / filler.len());
            let text = before + &tricky;
            gpt2.agree_on_text(&text);
            gpt2.agree_on_pieces(&text);
        }
    }
}

#[test]
fn words_that_differ_only_in_their_length_are_told_apart() {
    let gpt2 = SideBySide::gpt2();
    for unit in ["\0", "a", "0", "=", "é", "中"] {
        for start in ["", " ", "!", "q"] {
            for len in 1..=40 {
                gpt2.agree_on_text(&(start.to_owned() + &unit.repeat(len)));
            }
        }
    }
}

#[test]
fn a_word_of_thousands_of_bytes_gets_the_ids_of_the_reference() {
    let gpt2 = SideBySide::gpt2();
    proptest!(smoke(6), |(word in long_words())| gpt2.agree_on_text(&word));
}

#[test]
fn ids_do_not_depend_on_what_was_encoded_before() {
    let gpt2 = SideBySide::gpt2();
    let texts: Vec<String> = (0..20).map(|text| unknown_words(text * 50..text * 50 + 50)).collect();
    let many = unknown_words(1_000..50_000);
    for _ in ["nothing", "these texts", "more words than small caches hold"] {
        for text in &texts {
            gpt2.agree_on_text(text);
        }
        for tokenizer in gpt2.tokenizers() {
            let ids = tokenizer.encode_ordinary(&many).unwrap();
            assert_eq!(tokenizer.decode(&ids).unwrap(), many.as_bytes());
        }
    }
}

/// Words that are no tokens, each another: a letter for each decimal digit of its number.
fn unknown_words(numbers: Range<usize>) -> String {
    let words = numbers.flat_map(|number| format!(" {number:07}").into_bytes());
    words.map(|byte| if byte == b' ' { ' ' } else { char::from(byte - b'0' + b'q') }).collect()
}

#[test]
fn a_text_on_many_threads_gets_the_same_ids() {
    let tokenizer = Tokenizer::gpt2();
    let line_feeds = "word".to_owned() + &"\n".repeat(300);
    // Two line feeds are a token: an odd or an even number of them before a cut makes a difference.
    for (start, unit) in [("", &TRICKY.join(" \n")), ("", &line_feeds), ("x", &line_feeds)] {
        // More than a thread takes at a time.
        let text = start.to_owned() + &unit.repeat((3 << 19) / unit.len());
        let ids = tokenizer.encode(&text, &[END_OF_TEXT], &[]).unwrap();
        let texts = ["", &text, "a"];
        let (found, ends) =
            tokenizer.encode_batch(&texts, &[END_OF_TEXT], 3, &mut || Ok(())).unwrap();
        assert_eq!(ends, [0, ids.len(), ids.len() + 1]);
        assert!(found[..ids.len()] == ids, "other ids for {unit:?} again and again");
    }
}

#[test]
fn any_ids_are_the_bytes_of_their_tokens_or_refused() {
    let gpt2 = SideBySide::gpt2();
    proptest!(smoke(500), |(ids in prop::collection::vec(any::<u16>(), 0..20))| {
        gpt2.agree_on_ids(&ids);
    });
}

#[test]
fn any_merges_make_a_tokenizer_with_the_ids_of_the_reference_or_are_refused() {
    let (made, refused) = (Cell::new(0), Cell::new(0));
    proptest!(smoke(100), |(merges in merges(), text in r"(!{1,9}|[!-$]|&!){0,20}")| {
        // They overlap each other and themselves.
        let special_tokens = vec!["!".repeat(3), "!".repeat(5), "&!".to_owned()];
        let description = Description { model: Model::Bpe { merges }, special_tokens };
        match SideBySide::of(&description) {
            Some(tokenizer) => {
                tokenizer.agree_on_text(&text);
                made.update(|made| made + 1);
            }
            None => refused.update(|refused| refused + 1),
        }
    });
    assert!(made.get() > 10 && refused.get() > 10, "{made:?} {refused:?}");
}

/// Merges of the first visible characters, `!` to `$`, and of what earlier merges made.
fn merges() -> impl Strategy<Value = Vec<(u16, u16)>> {
    prop::collection::vec(any::<(Index, Index)>(), 0..12).prop_map(|pairs| {
        let mut merges = Vec::new();
        for (left, right) in pairs {
            let id = |index: Index| match index.index(4 + merges.len()) {
                char @ 0..4 => char as u16,
                merge => 252 + merge as u16,
            };
            let pair = (id(left), id(right));
            if !merges.contains(&pair) {
                merges.push(pair);
            }
        }
        merges
    })
}

#[test]
fn a_trained_tokenizer_gives_the_ids_of_the_reference() {
    let gpt2 = SideBySide::gpt2();
    let text = TRICKY.join(" ").repeat(3);
    let mut trainer = BpeTrainer::new(330, vec![END_OF_TEXT.to_owned()], 2).unwrap();
    trainer.add(&text, &mut || Ok::<(), gptrs_core::Error>(())).unwrap();
    let description = trainer.learn(&mut |_| Ok::<(), gptrs_core::Error>(())).unwrap();
    let tokenizer = SideBySide::of(&description).unwrap();
    tokenizer.agree_on_text(&text);
    proptest!(smoke(200), |(text in texts(gpt2.reference().tokens()))| {
        tokenizer.agree_on_text(&text);
    });
}

#[test]
fn a_tokenizer_of_characters_gives_the_ids_of_the_reference_or_refuses() {
    let chars = "\n !aeé\u{301}中🤖".chars().collect();
    let special_tokens = vec![END_OF_TEXT.to_owned(), "<é>".to_owned()];
    let chars =
        SideBySide::of(&Description { model: Model::Char { chars }, special_tokens }).unwrap();
    proptest!(smoke(500), |(text in "([ae !é中🤖\u{301}\n]|<é>|<\\|endoftext\\|>|<?){0,20}")| {
        chars.agree_on_text(&text);
    });
}
