//! Any bytes as a `tokenizer.json`: refused, or the file of a tokenizer whose ids are the
//! reference's.
#![no_main]

use gptrs_fuzz::read_twice;
use gptrs_fuzz::reference::agreement::SideBySide;
use libfuzzer_sys::fuzz_target;

/// How many of the last tokens to write into the sample.
const NUM_TOKENS: usize = 40;

fuzz_target!(|json: &[u8]| {
    let Some(tokenizer) = read_twice(json).and_then(|description| SideBySide::of(&description))
    else {
        return;
    };
    let last = tokenizer.reference().tokens().iter().rev().take(NUM_TOKENS).flatten().copied();
    let tokens = String::from_utf8_lossy(&last.collect::<Vec<u8>>()).into_owned();
    tokenizer.agree_on_text(&tokens);
    tokenizer.agree_on_text(&(tokens + "'the theta' tthe"));
});
