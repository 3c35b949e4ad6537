//! A description as JSON, in the order in which the tokenizers library writes it.

use serde::{Serialize, Serializer};

use super::super::description::{Description, Model, Spellings};
use crate::{Error, Result};

/// The contents of a `tokenizer.json`.
///
/// # Errors
/// `Error::TokenizerDescription`: `description` is none of a tokenizer.
pub fn to_json(description: &Description) -> Result<String> {
    description.check()?;
    let spellings = Spellings::of(description);
    let first_special = description.num_ordinary();
    let added_tokens = (first_special..description.num_ids())
        .map(|id| AddedToken::special(id, spellings.get(id)))
        .collect();
    let (splitter, decoder) = match description.model {
        Model::Bpe { .. } => (Stage::BYTE_LEVEL, Stage::BYTE_LEVEL),
        Model::Char { .. } => (Stage::FixedLength { length: 1 }, Stage::Fuse),
    };
    let file = File {
        version: "1.0",
        truncation: (),
        padding: (),
        added_tokens,
        normalizer: (),
        pre_tokenizer: splitter,
        post_processor: (),
        decoder,
        model: JsonModel::of(description, &spellings),
    };
    let mut json = Vec::with_capacity(BYTES_AN_ID * description.num_ids());
    let written = serde_json::to_writer(&mut json, &file).map_err(|error| error.to_string());
    let json = written.and_then(|()| String::from_utf8(json).map_err(|error| error.to_string()));
    json.map_err(Error::TokenizerFile)
}

/// About as much the file has for each id: a token, and the merge that makes it.
const BYTES_AN_ID: usize = 32;

#[derive(Serialize)]
struct File<'a> {
    version: &'static str,
    truncation: (),
    padding: (),
    added_tokens: Vec<AddedToken<'a>>,
    normalizer: (),
    pre_tokenizer: Stage,
    post_processor: (),
    decoder: Stage,
    model: JsonModel<'a>,
}

#[derive(Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "they are the file's")]
struct AddedToken<'a> {
    id: usize,
    content: &'a str,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    normalized: bool,
    special: bool,
}

impl<'a> AddedToken<'a> {
    fn special(id: usize, content: &'a str) -> Self {
        Self {
            id,
            content,
            single_word: false,
            lstrip: false,
            rstrip: false,
            normalized: false,
            special: true,
        }
    }
}

/// A pre-tokenizer or a decoder.
#[derive(Serialize)]
#[serde(tag = "type")]
enum Stage {
    ByteLevel { add_prefix_space: bool, trim_offsets: bool, use_regex: bool },
    FixedLength { length: usize },
    Fuse,
}

impl Stage {
    const BYTE_LEVEL: Self =
        Self::ByteLevel { add_prefix_space: false, trim_offsets: true, use_regex: true };
}

/// The vocabulary comes last but for the merges, so that a reader sees first what it is of.
#[derive(Serialize)]
#[serde(tag = "type")]
enum JsonModel<'a> {
    #[serde(rename = "BPE")]
    Bpe {
        gptrs_fingerprint: String,
        dropout: (),
        unk_token: (),
        continuing_subword_prefix: (),
        end_of_word_suffix: (),
        fuse_unk: bool,
        byte_fallback: bool,
        ignore_merges: bool,
        vocab: Vocab<'a>,
        merges: Vec<[&'a str; 2]>,
    },
    WordLevel {
        gptrs_fingerprint: String,
        /// The token of unknown characters: none, as no token is empty, so they are an error.
        unk_token: &'static str,
        vocab: Vocab<'a>,
    },
}

impl<'a> JsonModel<'a> {
    fn of(description: &Description, spellings: &'a Spellings) -> Self {
        let (gptrs_fingerprint, vocab) = (description.fingerprint(), Vocab(spellings));
        match &description.model {
            Model::Bpe { merges } => Self::Bpe {
                gptrs_fingerprint,
                dropout: (),
                unk_token: (),
                continuing_subword_prefix: (),
                end_of_word_suffix: (),
                fuse_unk: false,
                byte_fallback: false,
                ignore_merges: false,
                vocab,
                merges: merges
                    .iter()
                    .map(|&(left, right)| [left, right].map(|id| spellings.get(usize::from(id))))
                    .collect(),
            },
            Model::Char { .. } => Self::WordLevel { gptrs_fingerprint, unk_token: "", vocab },
        }
    }
}

struct Vocab<'a>(&'a Spellings);

impl Serialize for Vocab<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().enumerate().map(|(id, token)| (token, id)))
    }
}
