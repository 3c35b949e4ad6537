//! Any ids, little-endian: their tokens' bytes one after the other, or an error.
#![no_main]

use std::sync::LazyLock;

use gptrs_fuzz::reference::agreement::SideBySide;
use libfuzzer_sys::fuzz_target;

static GPT2: LazyLock<SideBySide> = LazyLock::new(SideBySide::gpt2);

fuzz_target!(|data: &[u8]| {
    let ids: Vec<u16> = data.as_chunks().0.iter().map(|id| u16::from_le_bytes(*id)).collect();
    GPT2.agree_on_ids(&ids);
});
