//! The three Unicode classes of GPT-2's pattern, from the tables of the `regex` crate, on which
//! tiktoken's own splitter runs: letter `\p{L}`, number `\p{N}`, whitespace `\s`.

use std::collections::HashMap;

use regex_syntax::hir::{Class, HirKind};

use crate::tokenizer::layout::{CLASS_BLOCK, LETTER, NUMBER, SPACE, SYMBOL};

/// A class code for every code point, in blocks of `CLASS_BLOCK` that are stored once each:
/// (u8 number of each block in order, u8 codes of the distinct blocks).
pub fn two_stage_table() -> Result<(Vec<u8>, Vec<u8>), String> {
    let mut codes = vec![SYMBOL; char::MAX as usize + 1];
    for (pattern, code) in [(r"\p{L}", LETTER), (r"\p{N}", NUMBER), (r"\s", SPACE)] {
        for (first, last) in ranges(pattern)? {
            codes[first as usize..=last as usize].fill(code);
        }
    }
    let mut numbers: HashMap<&[u8], usize> = HashMap::new();
    let (mut index, mut blocks) = (Vec::new(), Vec::new());
    for block in codes.chunks(CLASS_BLOCK) {
        let next = numbers.len();
        let number = *numbers.entry(block).or_insert(next);
        if number == next {
            blocks.extend_from_slice(block);
        }
        index.push(u8::try_from(number).map_err(|_| "more than 256 distinct blocks")?);
    }
    Ok((index, blocks))
}

/// The code points that a one-character pattern matches, as inclusive ranges.
fn ranges(pattern: &str) -> Result<Vec<(char, char)>, String> {
    let hir = regex_syntax::parse(pattern).map_err(|e| e.to_string())?;
    match hir.into_kind() {
        HirKind::Class(Class::Unicode(class)) => {
            Ok(class.iter().map(|range| (range.start(), range.end())).collect())
        }
        kind => Err(format!("{pattern} is not a class of characters: {kind:?}")),
    }
}
