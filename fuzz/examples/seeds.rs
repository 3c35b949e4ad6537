//! Writes what fuzzing starts from into `corpus/<target>/`: the same files every time.

#[path = "../../rust/gptrs-core/tests/texts/mod.rs"]
mod texts;

use std::error::Error;
use std::fs;
use std::path::Path;

use gptrs_core::tokenizer::description::{Description, Model};
use gptrs_core::tokenizer::file::to_json;
use gptrs_fuzz::reference::agreement::SideBySide;
use gptrs_fuzz::without_fingerprint;
use proptest::prop_oneof;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use texts::{long_words, many_words, texts};

const NUM_TEXTS: usize = 500;

fn main() -> Result<(), Box<dyn Error>> {
    write_texts()?;
    write_files()
}

fn write_texts() -> Result<(), Box<dyn Error>> {
    let gpt2 = SideBySide::gpt2();
    let reference = gpt2.reference();
    let texts = prop_oneof![
        8 => texts(reference.tokens()),
        1 => many_words(),
        1 => long_words(),
    ];
    let mut runner = TestRunner::deterministic();
    for number in 0..NUM_TEXTS {
        let text = texts.new_tree(&mut runner).map_err(|reason| reason.to_string())?.current();
        write("encode", number, &[&[number as u8, number as u8], text.as_bytes()].concat())?;
        let ids = reference.encode_ordinary(&text).ok_or("every byte is a token")?;
        write("decode", number, &ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<_>>())?;
    }
    Ok(())
}

/// Small tokenizers of both kinds, each as we write it and without the fingerprint, which would
/// have every altered file refused.
fn write_files() -> Result<(), Box<dyn Error>> {
    // ` t`, ` th`, ` the`, and `he`.
    let bpe = Model::Bpe { merges: vec![(220, 83), (256, 71), (257, 68), (71, 68)] };
    let char = Model::Char { chars: "\n 'aeé\u{301}中🤖".chars().collect() };
    let mut number = 0;
    for model in [bpe, char] {
        for special_tokens in [vec![], vec!["<|endoftext|>".to_owned(), "<pad>".to_owned()]] {
            let description = Description { model: model.clone(), special_tokens };
            let json = to_json(&description)?;
            for file in [without_fingerprint(&json, &description), json] {
                write("tokenizer_file", number, file.as_bytes())?;
                number += 1;
            }
        }
    }
    Ok(())
}

fn write(target: &str, number: usize, seed: &[u8]) -> std::io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&corpus)?;
    fs::write(corpus.join(format!("seed-{number:03}")), seed)
}
