use std::collections::HashMap;

use proptest::prelude::*;

use super::cache::{Key, Room, WordCache};
use super::train::BpeTrainer;
use super::words::Words;
use super::*;

/// Letters, digits, contractions, every kind of whitespace, and what is none of them.
const TEXT: &str = r"([a-eA-E'0-9 \t\n]|'(s|t|re|ve|ll)|\s|\pL|\pN|\PC|<\|endoftext\|>){0,60}";

fn ids(text: &str) -> Vec<u16> {
    Tokenizer::gpt2().encode_ordinary(text).unwrap()
}

fn ids_allowing(text: &str) -> Vec<u16> {
    Tokenizer::gpt2().encode(text, &[END_OF_TEXT], &[]).unwrap()
}

fn bpe(merges: Vec<(u16, u16)>) -> Result<Tokenizer> {
    Tokenizer::new(Description { model: Model::Bpe { merges }, special_tokens: vec![] })
}

/// The id of an ASCII character that prints.
fn letter(char: char) -> u16 {
    char as u16 - '!' as u16
}

/// The ids of tokens by their bytes, from which all else follows.
struct Definition<'a>(HashMap<&'a [u8], u16>);

impl<'a> Definition<'a> {
    fn of(tokenizer: &'a Tokenizer) -> Self {
        let ids = (0..tokenizer.num_ordinary()).map(|id| id as u16);
        Self(ids.map(|id| (tokenizer.token_bytes(id).unwrap(), id)).collect())
    }

    /// In each piece the leftmost two neighbours that make the token of lowest rank become it,
    /// until no two make one.
    fn ids(&self, text: &str) -> Vec<u16> {
        let mut ids = Vec::new();
        for piece in split(text) {
            let mut parts: Vec<Vec<u8>> = piece.bytes().map(|byte| vec![byte]).collect();
            loop {
                let joined = parts.windows(2).map(|pair| self.0.get(&*pair.concat()));
                let lowest = joined.zip(0..).filter_map(|(id, at)| Some((id?, at))).min();
                let Some((_, at)) = lowest else { break };
                let right = parts.remove(at + 1);
                parts[at].extend(right);
            }
            ids.extend(parts.iter().map(|part| self.0[&**part]));
        }
        ids
    }
}

/// Word number `number`, unlike all others: most are short, some have up to 130 bytes, and a
/// quarter one id for each of their ten bytes.
fn word(number: usize) -> String {
    let digits = |number: usize, zero: u8| {
        let digits = format!("{number:09x}");
        let values = digits.chars().filter_map(|digit| digit.to_digit(16));
        values.map(|digit| char::from(zero + digit as u8)).collect::<String>()
    };
    match number % 16 {
        // Control characters, which nothing merges.
        0..4 => format!(" {}", digits(number, 0x0e)),
        4 => format!(" {}{}", digits(number, b'a'), "word".repeat(number / 16 % 31)),
        _ => format!(" {}", digits(number, b'a').trim_start_matches('a')),
    }
}

#[test]
fn ids_are_those_that_openai_published() {
    assert_eq!(ids("hello world"), [31373, 995]);
    assert_eq!(ids("<|endoftext|>"), [27, 91, 437, 1659, 5239, 91, 29]);
    assert_eq!(ids("I HAD always thought"), [40, 367, 2885, 1464, 1807]);
    assert_eq!(ids(""), [0; 0]);
}

#[test]
fn a_special_token_ends_a_segment_so_whitespace_before_it_stays_whole() {
    assert_eq!(ids_allowing("a\n\n<|endoftext|>"), [ids("a\n\n"), vec![50_256]].concat());
    assert_eq!(ids("a\n\n<").len(), 4);
}

#[test]
fn ids_outside_the_vocabulary_are_refused() {
    let tokenizer = Tokenizer::gpt2();
    let error = tokenizer.decode(&[0, 50_257]).unwrap_err();
    assert_eq!(error.to_string(), "token id 50257 at index 1 is outside 0..50256");
    assert_eq!(tokenizer.decode_with_offsets(&[0, 50_257]), Err(error));
    assert_eq!(tokenizer.decode(&[50_256]).unwrap(), END_OF_TEXT.as_bytes());
}

#[test]
fn a_word_or_a_run_of_spaces_of_a_million_bytes_is_encoded_whole() {
    let tokenizer = Tokenizer::gpt2();
    for unit in ["a", " ", "é", "hugs"] {
        let text = unit.repeat(1_000_000 / unit.len()) + "b";
        let ids = tokenizer.encode_ordinary(&text).unwrap();
        assert!(tokenizer.decode(&ids).unwrap() == text.as_bytes(), "{unit:?}");
    }
}

#[test]
fn the_check_is_asked_early_and_its_error_arrives_unchanged() {
    let text = "word ".repeat(BYTES_BETWEEN_CHECKS);
    let mut encoded = Vec::new();
    let mut sink = |ids: &[u16]| encoded.extend_from_slice(ids);
    let tokenizer = Tokenizer::gpt2();
    let stopped = tokenizer.encode_to(&text, &[], &mut sink, &mut || Err(Error::NothingToDraw));
    assert_eq!(stopped, Err(Error::NothingToDraw));
    let bytes = tokenizer.decode(&encoded).unwrap();
    assert!(text.as_bytes().starts_with(&bytes), "the sink has the ids up to there");
    assert!(bytes.len() < 2 * BYTES_BETWEEN_CHECKS, "{}", bytes.len());
    assert_eq!(tokenizer.encode_ordinary("word word"), Ok(vec![4775, 1573]), "as before");
}

#[test]
fn a_text_of_short_segments_asks_the_check_too() {
    let text = "word<|endoftext|>".repeat(BYTES_BETWEEN_CHECKS / 4);
    let tokenizer = Tokenizer::gpt2();
    let stopped = tokenizer.count(&text, &[END_OF_TEXT], &mut || Err(Error::Stopped));
    assert_eq!(stopped, Err(Error::Stopped));
}

#[test]
fn what_is_allowed_but_no_special_token_stays_ordinary_text() {
    let found = Tokenizer::gpt2().encode("hello world", &["wor", "o w"], &[]);
    assert_eq!(found, Ok(vec![31373, 995]));
}

#[test]
fn a_long_word_asks_the_check_too() {
    let text = "hugs".repeat(20_000);
    assert!(text.len() < BYTES_BETWEEN_CHECKS);
    let stopped = Tokenizer::gpt2().count(&text, &[], &mut || Err(Error::Stopped));
    assert_eq!(stopped, Err(Error::Stopped));
}

#[test]
fn a_piece_that_is_too_long_is_refused_where_it_starts_before_it_is_merged() {
    let text = "words<|endoftext|>and\n".to_owned() + &" ".repeat(LONGEST_PIECE + 2) + "x";
    let refused = Tokenizer::gpt2().encode(&text, &[END_OF_TEXT], &[]);
    assert_eq!(refused, Err(Error::PieceTooLong { offset: 21, longest: LONGEST_PIECE }));
}

#[test]
fn words_around_the_sizes_of_the_caches_entries_get_their_ids_cold_and_warm() {
    // A NUL and a rare letter are one id a byte, so that there are words of any number of ids.
    let fillers = ["a", "ab", "\0", "\u{7f}", "é", "hugs", "q"];
    let gpt2 = Tokenizer::gpt2();
    let definition = Definition::of(&gpt2);
    for isa in Isa::available() {
        let tokenizer = Tokenizer::gpt2().on(isa);
        for filler in fillers {
            for len in (1..=18).chain([31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257]) {
                let mut word = filler.repeat(len / filler.len());
                word += &"x".repeat(len - word.len());
                let expected = definition.ids(&word);
                for temperature in ["cold", "warm"] {
                    let found = tokenizer.encode_ordinary(&word).unwrap();
                    assert_eq!(found, expected, "{word:?} {temperature} on {isa:?}");
                }
                // In the middle of a text a word has other words' bytes behind it.
                let found = tokenizer.encode_ordinary(&format!("{word}\n{word}\n")).unwrap();
                assert_eq!(found, [&*expected, &[198], &*expected, &[198]].concat());
            }
        }
    }
}

#[test]
fn a_full_cache_gives_the_ids_of_a_fresh_one() {
    let num_words = 300_000;
    let text: String = (0..num_words).map(word).collect();
    let tokenizer = Tokenizer::gpt2();
    let cold = tokenizer.encode_ordinary(&text).unwrap();
    assert!(tokenizer.encode_ordinary(&text).unwrap() == cold, "other ids when warm");
    assert!(tokenizer.decode(&cold).unwrap() == text.as_bytes());
    for first in (0..num_words).step_by(num_words / 20) {
        let some: String = (first..first + 500).map(word).collect();
        assert_eq!(tokenizer.encode_ordinary(&some).unwrap(), ids(&some));
    }
}

#[test]
fn threads_that_learn_the_same_words_at_once_get_the_ids_that_each_gets_alone() {
    // So many that the table is replaced by larger ones and by an empty one.
    let (num_words, threads) = (400_000, 4);
    let texts: Vec<String> = (0..num_words)
        .step_by(num_words / 50)
        .map(|first| (first..first + num_words / 50).map(word).collect())
        .collect();
    let expected: Vec<Vec<u16>> = texts.iter().map(|text| ids(text)).collect();
    let tokenizer = Tokenizer::gpt2();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (tokenizer, texts, expected) = (&tokenizer, &texts, &expected);
            scope.spawn(move || {
                for number in (0..2 * texts.len()).map(|i| (i + thread) % texts.len()) {
                    let found = tokenizer.encode_ordinary(&texts[number]).unwrap();
                    assert!(found == expected[number], "text {number} on thread {thread}");
                }
            });
        }
    });
}

#[test]
fn words_of_many_short_texts_are_remembered_in_tables_that_grow() {
    let tokenizer = Tokenizer::gpt2();
    for number in 0..20_000 {
        tokenizer.encode_ordinary(&word(number)).unwrap();
    }
    assert!(!Words::new(&tokenizer.words).known().is_small_for(1 << 20));
}

#[test]
fn a_long_word_is_not_taken_for_another_with_the_same_key() {
    let (one, other) = (b"one word of many letters", b"another with the same key");
    let cache = WordCache::default();
    let (mut keys, mut ids) = ([Key::default()], [0; 16]);
    cache.make_keys(one, &[0, one.len() as u32], &mut keys);
    let [key] = keys;
    cache.put(&mut Room::default(), key, other, &[1, 2]);
    assert_eq!(cache.append(&keys, &mut ids, 0), (0, 0));
    assert_eq!(cache.get_other(key, one, &mut ids), None);
    assert_eq!(cache.get_other(key, other, &mut ids), Some(2));
    assert_eq!(ids[..2], [1, 2]);
}

#[test]
fn merges_that_never_come_to_pass_are_refused() {
    let (a, b, c) = (letter('a'), letter('b'), letter('c'));
    let refused = |merges: Vec<(u16, u16)>| bpe(merges).unwrap_err().to_string();
    // In "abc" a and b merge first, so that a and bc never meet.
    let error = refused(vec![(a, b), (b, c), (a, 257)]);
    assert!(error.contains("merge 2 joins ids 64 and 257, which never meet"), "{error}");
    // Of three equal letters the first two merge.
    let error = refused(vec![(a, a), (a, 256)]);
    assert!(error.contains("merge 1 joins ids 64 and 256, which never meet"), "{error}");
    assert!(bpe(vec![(a, a), (256, a)]).is_ok());
    assert!(bpe(vec![(b, c), (a, b), (a, 256)]).is_ok());
}

#[test]
fn merges_that_make_the_same_bytes_are_refused() {
    let (a, b, c) = (letter('a'), letter('b'), letter('c'));
    for merges in [vec![(a, b), (a, b)], vec![(a, b), (b, c), (256, c), (a, 257)]] {
        assert!(matches!(bpe(merges), Err(Error::TokenizerDescription(_))));
    }
}

#[test]
fn a_vocabulary_may_have_all_ids_of_16_bits() {
    let pairs = (0..256).flat_map(|left| (0..256).map(move |right| (left, right)));
    let merges: Vec<(u16, u16)> = pairs.take(65_536 - 256).collect();
    let last = *merges.last().unwrap();
    let tokenizer = bpe(merges).unwrap();
    assert_eq!(tokenizer.n_vocab(), 65_536);
    let bytes = |id: u16| tokenizer.token_bytes(id).unwrap();
    assert_eq!(bytes(65_535), [bytes(last.0), bytes(last.1)].concat());
    let text = "any text, in pairs of bytes: é中😀".repeat(3);
    let ids = tokenizer.encode_ordinary(&text).unwrap();
    assert_eq!(ids, Definition::of(&tokenizer).ids(&text));
    assert_eq!(tokenizer.decode(&ids).unwrap(), text.as_bytes());
}

#[test]
fn tokens_longer_than_any_cached_word_are_found() {
    let doublings = (0..9).map(|merge| if merge == 0 { 64 } else { 255 + merge });
    let tokenizer = bpe(doublings.map(|id| (id, id)).collect()).unwrap();
    assert_eq!(tokenizer.token_bytes(264), Some("a".repeat(512).as_bytes()));
    for len in [1, 2, 13, 14, 16, 63, 64, 65, 127, 128, 129, 300, 512, 513] {
        let text = "a".repeat(len);
        let expected = Definition::of(&tokenizer).ids(&text);
        assert_eq!(tokenizer.encode_ordinary(&text).unwrap(), expected, "{len}");
    }
}

#[test]
fn a_tokenizer_is_made_again_of_its_description() {
    let gpt2 = Tokenizer::gpt2();
    let again = Tokenizer::new(gpt2.description()).unwrap();
    assert_eq!(again.description(), gpt2.description());
    assert_eq!(again.special_id(END_OF_TEXT), Some(50_256));
    let model = Model::Char { chars: vec!['a', 'é', '中'] };
    let special_tokens = vec!["<s>".to_owned(), "<é>".to_owned()];
    let described = Description { model, special_tokens };
    let chars = Tokenizer::new(described.clone()).unwrap();
    assert_eq!(chars.description(), described);
    let ids = chars.encode("é<é>中<s>", &["<s>", "<é>"], &[]).unwrap();
    assert_eq!(ids, [1, 4, 2, 3]);
    assert_eq!(chars.decode(&ids).unwrap(), "é<é>中<s>".as_bytes());
    assert_eq!(chars.token_bytes(5), None);
}

proptest! {
    #[test]
    fn decoding_gives_the_text_back(text in TEXT) {
        let tokenizer = Tokenizer::gpt2();
        for ids in [ids(&text), ids_allowing(&text)] {
            prop_assert_eq!(tokenizer.decode(&ids).unwrap(), text.as_bytes());
            let count = |allowed| tokenizer.count(&text, allowed, &mut || Ok(())).unwrap();
            prop_assert!([count(&[]), count(&[END_OF_TEXT])].contains(&ids.len()));
        }
    }

    #[test]
    fn an_offset_is_the_number_of_the_character_that_the_token_begins_in(text in TEXT) {
        let tokenizer = Tokenizer::gpt2();
        let ids = ids_allowing(&text);
        let (bytes, offsets) = tokenizer.decode_with_offsets(&ids).unwrap();
        prop_assert_eq!(bytes, text.as_bytes());
        let mut start = 0;
        for (id, offset) in ids.iter().zip(offsets) {
            let num_chars = text.char_indices().take_while(|(at, _)| *at <= start).count();
            prop_assert_eq!(offset + 1, num_chars);
            start += tokenizer.token_bytes(*id).unwrap().len();
        }
    }

    #[test]
    fn ids_are_the_same_on_every_processor_cold_and_warm(text in TEXT) {
        let expected = ids_allowing(&text);
        for isa in Isa::available() {
            let tokenizer = Tokenizer::gpt2().on(isa);
            for _ in ["cold", "warm"] {
                let found = tokenizer.encode(&text, &[END_OF_TEXT], &[]).unwrap();
                prop_assert_eq!(&found, &expected);
            }
        }
    }

    #[test]
    fn text_may_be_cut_before_whitespace_that_follows_anything_else(text in TEXT) {
        let whole = ids_allowing(&text);
        let mut previous = ' ';
        for (cut, char) in text.char_indices() {
            // char::is_whitespace is the White_Space property, as `\s` is.
            if char.is_whitespace() && !previous.is_whitespace() {
                let (before, after) = text.split_at(cut);
                prop_assert_eq!([ids_allowing(before), ids_allowing(after)].concat(), &*whole);
            }
            previous = char;
        }
    }

    #[test]
    fn a_trained_vocabulary_gives_the_ids_of_its_definition(
        trained_on in r"(a{1,9}|(ab){1,5}|[a-e ]{1,12}|'s|\s|é|中){0,20}",
        text in r"(a{1,9}|(ab){1,5}|[a-e ]{1,12}|'s|\s|é|中|\PC){0,20}",
        num_merges in 1usize..40,
    ) {
        let train = |vocab_size| {
            let mut trainer = BpeTrainer::new(vocab_size, vec!["<s>".to_owned()], 1)?;
            trainer.add(&trained_on, &mut || Ok::<_, Error>(()))?;
            trainer.learn(&mut |_| Ok(()))
        };
        let description = train(257 + num_merges).or_else(|error| match error {
            Error::TooFewPairs { found, .. } => train(found),
            other => Err(other),
        });
        let description = description.unwrap();
        let mut tokenizer = Tokenizer::new(description.clone()).unwrap();
        prop_assert_eq!(tokenizer.description(), description);
        let expected = Definition::of(&tokenizer).ids(&text);
        prop_assert_eq!(tokenizer.decode(&expected).unwrap(), text.as_bytes());
        for isa in Isa::available() {
            tokenizer = tokenizer.on(isa);
            prop_assert_eq!(&tokenizer.encode_ordinary(&text).unwrap(), &expected);
        }
    }
}
