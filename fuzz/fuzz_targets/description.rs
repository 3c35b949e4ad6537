//! Any merges or characters: what they describe is refused, or gives the reference's ids and is
//! saved and read back; and so is its file with some bytes altered.
#![no_main]

use std::collections::BTreeSet;

use gptrs_core::tokenizer::description::{Description, Model};
use gptrs_core::tokenizer::file::to_json;
use gptrs_fuzz::reference::agreement::SideBySide;
use gptrs_fuzz::{read_twice, without_fingerprint};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    model: Choices,
    special_tokens: Vec<String>,
    /// Where the file is altered, and the new byte there.
    edits: Vec<(u16, u8)>,
    keep_fingerprint: bool,
    text: String,
}

#[derive(Arbitrary, Debug)]
enum Choices {
    Merges(Vec<(u8, u8)>),
    AnyMerges(Vec<(u16, u16)>),
    Chars(BTreeSet<char>),
    AnyChars(Vec<char>),
}

impl Choices {
    fn model(self) -> Model {
        match self {
            Self::Merges(pairs) => Model::Bpe {
                merges: (256..)
                    .zip(pairs)
                    .map(|(made, (left, right))| (earlier(left, made), earlier(right, made)))
                    .collect(),
            },
            Self::AnyMerges(merges) => Model::Bpe { merges },
            Self::Chars(chars) => Model::Char { chars: chars.into_iter().collect() },
            Self::AnyChars(chars) => Model::Char { chars },
        }
    }
}

/// An id that is there before `made`: one of ASCII's visible characters, or one of the newest.
fn earlier(choice: u8, made: u16) -> u16 {
    match choice.checked_sub(128) {
        None => u16::from(choice) % 94,
        Some(back) => made - 1 - u16::from(back),
    }
}

fuzz_target!(|input: Input| {
    let special_tokens = input.special_tokens;
    let description = Description { model: input.model.model(), special_tokens };
    if let Some(tokenizer) = SideBySide::of(&description) {
        tokenizer.agree_on_text(&input.text);
    }
    let Ok(json) = to_json(&description) else {
        assert!(description.check().is_err(), "{description:?}");
        return;
    };
    assert_eq!(read_twice(json.as_bytes()).as_ref(), Some(&description));

    let json = if input.keep_fingerprint { json } else { without_fingerprint(&json, &description) };
    let mut edited = json.into_bytes();
    for (place, byte) in input.edits {
        let place = usize::from(place) % edited.len();
        edited[place] = byte;
    }
    if let Some(tokenizer) = read_twice(&edited)
        .filter(|read| *read != description)
        .and_then(|read| SideBySide::of(&read))
    {
        tokenizer.agree_on_text(&input.text);
    }
});
