//! JSON as a description, if it is of a tokenizer that is supported.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt::Display;

use serde_json::Value;

use super::super::description::{Description, MAX_IDS, Model, NUM_BYTES, byte_letters, shortened};
use super::ids::Ids;
use super::json::{self, AddedToken, File, Merge};
use crate::{Error, Result};

/// What a `tokenizer.json` describes.
///
/// # Errors
/// `Error::TokenizerFile`: it is no such file or a truncated one; it asks for what is not
/// supported; its ids are not laid out as ours; it has been altered since it was written.
/// `Error::TokenizerDescription`: as of `Description::check`.
pub fn from_json(json: &[u8]) -> Result<Description> {
    let file: File<'_> = serde_json::from_slice(json).map_err(|error| {
        let error = error.to_string();
        Error::TokenizerFile(format!("expected a tokenizer in JSON: {}", both_ends(&error)))
    })?;
    refuse_settings(&file)?;
    let special_tokens = special_tokens(&file)?;
    let model = match (file.model.kind.as_deref(), &file.model.merges) {
        // Old files do not name the type.
        (Some("BPE"), _) | (None, Some(_)) => bpe(&file, &special_tokens)?,
        (Some("WordLevel"), _) => char_level(&file, &special_tokens)?,
        (found, _) => {
            let found = shortened(found.unwrap_or("not named"));
            return refuse("model's type", found, "BPE (byte-level) or WordLevel (of characters)");
        }
    };
    let special_tokens = special_tokens.into_iter().map(|token| token.content.to_string());
    let description = Description { model, special_tokens: special_tokens.collect() };
    description.check()?;
    match &file.model.gptrs_fingerprint {
        Some(written) if **written != description.fingerprint() => refuse(
            "content's fingerprint",
            format!("{}: the file has been altered", description.fingerprint()),
            format!("the model's gptrs_fingerprint, {:?}", shortened(written)),
        ),
        _ => Ok(description),
    }
}

fn refuse<T>(what: impl Display, found: impl Display, expected: impl Display) -> Result<T> {
    Err(Error::TokenizerFile(format!("the {what} is {found}; expected {expected}")))
}

/// Refuses a setting unless it is `supported`.
fn require(what: &str, found: &Value, supported: bool, expected: &str) -> Result<()> {
    if supported { Ok(()) } else { refuse(what, shortened(&found.to_string()), expected) }
}

/// What no tokenizer of ours does, whatever its model.
fn refuse_settings(file: &File<'_>) -> Result<()> {
    let version = &file.version;
    require("version", version, version.is_null() || version == "1.0", "\"1.0\"")?;
    for (what, found) in [
        ("truncation", &file.truncation),
        ("padding", &file.padding),
        ("normalizer", &file.normalizer),
    ] {
        require(what, found, found.is_null(), "null")?;
    }
    let found = &file.post_processor;
    require("post_processor", found, adds_nothing(found), "null, or one that adds no tokens")
}

/// Whether a post-processor leaves the ids of a text as they are. ByteLevel moves offsets only;
/// transformers saves a template that consists of the text.
fn adds_nothing(post_processor: &Value) -> bool {
    match post_processor["type"].as_str() {
        None => post_processor.is_null(),
        Some("ByteLevel") => true,
        Some("TemplateProcessing") => {
            let pieces = post_processor["single"].as_array().map_or(&[][..], Vec::as_slice);
            matches!(pieces, [piece] if piece["Sequence"]["id"] == "A")
        }
        Some(_) => false,
    }
}

/// The special tokens in order of id.
fn special_tokens<'f, 'a>(file: &'f File<'a>) -> Result<Vec<&'f AddedToken<'a>>> {
    let mut tokens: Vec<_> = file.added_tokens.iter().flatten().collect();
    tokens.sort_by_key(|token| token.id);
    for token in &tokens {
        let content = shortened(&token.content);
        let settings = [
            ("single_word", token.single_word, false),
            ("lstrip", token.lstrip, false),
            ("rstrip", token.rstrip, false),
            ("special", token.special, true),
            // Where not all are alike, some are looked for before the others.
            ("normalized", token.normalized, tokens[0].normalized),
        ];
        for (setting, found, expected) in settings {
            if found != expected {
                return refuse(
                    format!("{setting} of the added token {content:?}"),
                    found,
                    expected,
                );
            }
        }
    }
    Ok(tokens)
}

/// Byte-pair encoding with GPT-2's pattern.
fn bpe(file: &File<'_>, special_tokens: &[&AddedToken<'_>]) -> Result<Model> {
    let model = &file.model;
    for (what, found) in [
        ("dropout", &model.dropout),
        ("continuing_subword_prefix", &model.continuing_subword_prefix),
        ("end_of_word_suffix", &model.end_of_word_suffix),
        ("byte_fallback", &model.byte_fallback),
        ("ignore_merges", &model.ignore_merges),
    ] {
        let off = found.is_null() || found == false || found == "";
        require(&format!("model's {what}"), found, off, "none")?;
    }
    let splitter = &file.pre_tokenizer;
    let supported = splitter["type"] == "ByteLevel"
        && splitter["add_prefix_space"] == false
        && (splitter["use_regex"].is_null() || splitter["use_regex"] == true);
    require("pre_tokenizer", splitter, supported, BYTE_LEVEL)?;
    let decoder = &file.decoder;
    require("decoder", decoder, decoder["type"] == "ByteLevel", "ByteLevel")?;

    let merges = model.merges.as_ref();
    let num_merges = merges.map_or(0, |merges| merges.len);
    let ids = Ids::new(vocab(model)?, special_tokens, NUM_BYTES + num_merges)?;
    for (id, letter) in byte_letters().enumerate() {
        if ids.token(id) != letter.encode_utf8(&mut [0; 4]) {
            let expected = format!("{letter:?}: the 256 bytes come first, in GPT-2's order");
            return refuse(
                format!("token of id {id}"),
                format!("{:?}", shortened(ids.token(id))),
                expected,
            );
        }
    }
    let merges = merges.iter().flat_map(|merges| &merges.items).enumerate();
    let merges = merges.map(|(index, merge)| read_merge(index, merge, &ids)).collect::<Result<_>>();
    Ok(Model::Bpe { merges: merges? })
}

const BYTE_LEVEL: &str = "ByteLevel with add_prefix_space false and use_regex true";

/// The ids that a merge joins. What they make has the id that is next.
fn read_merge(index: usize, Merge(left, right): &Merge<'_>, ids: &Ids<'_>) -> Result<(u16, u16)> {
    let made = NUM_BYTES + index;
    let id_of = |token: &Cow<'_, str>| match ids.id(token) {
        Some(id) if usize::from(id) < made => Ok(id),
        found => refuse(
            format!("id of {:?}, which merge {index} joins,", shortened(token)),
            found.map_or("missing".to_owned(), |id| id.to_string()),
            format!("one below {made}, where the merge's own token is"),
        ),
    };
    let pair = (id_of(left)?, id_of(right)?);
    if ids.token(made).strip_prefix(&**left) == Some(&**right) {
        Ok(pair)
    } else {
        refuse(
            format!("token of id {made}"),
            format!("{:?}", shortened(ids.token(made))),
            format!("{:?}, what merge {index} makes", shortened(&format!("{left}{right}"))),
        )
    }
}

/// A token a character.
fn char_level(file: &File<'_>, special_tokens: &[&AddedToken<'_>]) -> Result<Model> {
    let (splitter, decoder) = (&file.pre_tokenizer, &file.decoder);
    let supported = splitter["type"] == "FixedLength" && splitter["length"] == 1;
    require("pre_tokenizer", splitter, supported, "FixedLength with length 1")?;
    require("decoder", decoder, decoder["type"] == "Fuse", "Fuse")?;

    let vocab = vocab(&file.model)?;
    let special: HashSet<&str> = special_tokens.iter().map(|token| &*token.content).collect();
    let num_chars = vocab.items.iter().filter(|(token, _)| !special.contains(&**token)).count();
    let ids = Ids::new(vocab, special_tokens, num_chars)?;
    if let Some(unknown) = file.model.unk_token.as_str()
        && let Some(id) = ids.id(unknown)
    {
        let found = format!("{:?}, which has the id {id}", shortened(unknown));
        return refuse("model's unk_token", found, "one that is not in the vocabulary");
    }
    let chars = (0..num_chars).map(|id| {
        let token = ids.token(id);
        let mut chars = token.chars();
        match (chars.next(), chars.next()) {
            (Some(char), None) => Ok(char),
            _ => refuse(
                format!("token of id {id}"),
                format!("{:?}", shortened(token)),
                "a single character: only special tokens are longer, and they come last",
            ),
        }
    });
    Ok(Model::Char { chars: chars.collect::<Result<_>>()? })
}

fn vocab<'m, 'a>(model: &'m json::Model<'a>) -> Result<&'m json::Vocab<'a>> {
    match &model.vocab {
        Some(vocab) if vocab.len <= MAX_IDS => Ok(vocab),
        Some(vocab) => refuse("vocabulary's size", vocab.len, format!("at most {MAX_IDS}")),
        None => refuse("model's vocab", "missing", "an object of tokens and their ids"),
    }
}

/// serde_json quotes what it did not expect, however long, and says last where.
fn both_ends(message: &str) -> String {
    match message.char_indices().rev().nth(80) {
        Some((start, _)) if start > 400 => format!("{} {}", shortened(message), &message[start..]),
        _ => message.to_owned(),
    }
}
