//! Texts in which a splitter, a cache or a block of bytes may go wrong.

use proptest::prelude::*;
use proptest::sample::{Index, select};

/// One to four bytes a character, with the letters that contractions are made of.
const LETTERS: &str = "aAsStTdDmMlLvVrReEnéßÄñªжДωשאबก中文ひ한ａ𝒜𐐀𠀀";
const NUMBERS: &str = "0123789²½٣৬Ⅷ㊿𝟘𐄇";
/// All of `White_Space`.
const SPACES: &str = " \t\n\u{b}\u{c}\r\u{85}\u{a0}\u{1680}\u{2000}\u{2001}\u{2002}\u{2003}\u{2004}\
                      \u{2005}\u{2006}\u{2007}\u{2008}\u{2009}\u{200a}\u{2028}\u{2029}\u{202f}\
                      \u{205f}\u{3000}";
/// With what looks like a space, a letter or an apostrophe and is none.
const SYMBOLS: &str = "'!.,-_#<|>\0\u{1c}\u{1d}\u{1e}\u{1f}\u{7f}\u{180e}\u{200b}\u{feff}\u{345}\u{301}\
                       ⓐ\u{2019}€😀\u{10ffff}";
const CONTRACTIONS: &[&str] = &[
    "'s", "'d", "'m", "'t", "'ll", "'ve", "'re", "'S", "'D", "'M", "'T", "'LL", "'VE", "'RE",
    "'lL", "'v", "'r", "'l", "''s", "'", " '", " 's",
];

/// Around the sizes of words in a cache, of vector registers and of blocks, in bytes.
const LENGTHS: &[usize] = &[
    1, 1, 1, 2, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 61, 62, 63, 64, 65, 66, 127, 128, 129, 130,
];

/// Up to a dozen runs, contractions, tokens of the vocabulary and single characters.
pub fn texts(tokens: &[Vec<u8>]) -> impl Strategy<Value = String> + use<> {
    let tokens: Vec<String> =
        tokens.iter().map(|token| String::from_utf8_lossy(token).into_owned()).collect();
    let fragment = prop_oneof![
        3 => run(LETTERS),
        1 => run(NUMBERS),
        3 => run(SPACES),
        2 => run(SYMBOLS),
        2 => Just(" ".to_owned()),
        1 => Just("<|endoftext|>".to_owned()),
        3 => select(CONTRACTIONS).prop_map(str::to_owned),
        6 => select(tokens),
        1 => any::<char>().prop_map(String::from),
    ];
    prop::collection::vec(fragment, 0..12).prop_map(|fragments| fragments.concat())
}

/// Hundreds of words of four to eleven letters, of many ids each, or of single characters.
pub fn many_words() -> impl Strategy<Value = String> {
    let letters: Vec<char> = LETTERS.chars().collect();
    let any: Vec<char> = [LETTERS, NUMBERS, SPACES, SYMBOLS].concat().chars().collect();
    let words = prop::collection::vec(prop::collection::vec(select(letters), 4..12), 0..400)
        .prop_map(|words| {
            words.iter().map(|word| " ".to_owned() + &String::from_iter(word)).collect()
        });
    let chars = prop::collection::vec(select(any), 0..800).prop_map(String::from_iter);
    prop_oneof![words, chars]
}

/// A few characters in any order, thousands of bytes without a break.
pub fn long_words() -> impl Strategy<Value = String> {
    let chars: Vec<char> = LETTERS.chars().collect();
    (
        prop::collection::vec(select(chars), 1..6),
        prop::collection::vec(any::<Index>(), 1_500..5_000),
    )
        .prop_map(|(chars, order)| order.iter().map(|index| *index.get(&chars)).collect())
}

/// One to three characters over and over, until they fill one of `LENGTHS`.
fn run(chars: &'static str) -> impl Strategy<Value = String> {
    let chars: Vec<char> = chars.chars().collect();
    (prop::collection::vec(select(chars), 1..4), select(LENGTHS)).prop_map(|(cycle, num_bytes)| {
        let mut run = String::new();
        for char in cycle.iter().cycle() {
            if !run.is_empty() && run.len() + char.len_utf8() > num_bytes {
                break;
            }
            run.push(*char);
        }
        run
    })
}
