//! Any text, at any offset and over and over: the reference's ids, whatever came before; decoded,
//! the text.
#![no_main]

use std::sync::LazyLock;

use gptrs_core::tokenizer::Tokenizer;
use gptrs_fuzz::reference::agreement::SideBySide;
use libfuzzer_sys::fuzz_target;

/// Words that are tokens, so that the slow reference has little to merge in them.
const FILLER: &str = "in a word, ";

static GPT2: LazyLock<SideBySide> = LazyLock::new(SideBySide::gpt2);

fuzz_target!(|data: &[u8]| {
    let [offset, times, text @ ..] = data else { return };
    let before: String = FILLER.chars().cycle().take(usize::from(*offset)).collect();
    // Most texts come once: a long word takes the reference long.
    let times = usize::from(*times).saturating_sub(240).max(1);
    let text = before + &String::from_utf8_lossy(text).repeat(times);
    GPT2.agree_on_text(&text);
    GPT2.agree_on_pieces(&text);
    let seen_much = GPT2.tokenizers()[0].encode_ordinary(&text);
    assert_eq!(Tokenizer::gpt2().encode_ordinary(&text), seen_much, "{text:?}");
});
