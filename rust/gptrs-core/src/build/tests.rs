//! Builds of random inputs, in tiny blocks and shards, against one that is simple and slow.

mod faults;

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed, xxh3_128};

use super::*;
use crate::store::Manifest;
use crate::store::manifest::{Dropped, ends_name, tokens_name};
use crate::store::npy::HEADER_BYTES;
use crate::store::scratch::{Scratch, files};
use crate::tokenizer::cuts::safe_cut;

const DOCUMENT: &str = r"([a-e]{1,4}|[ \n]{1,2}|é|中 |\u{3000}|<\|endoftext\|>|;){0,25}";

/// An input of a test: what is in it, and how it is packed.
#[derive(Debug, Clone)]
struct Made {
    kind: Kind,
    extension: &'static str,
    /// `None` for a row that is no document.
    documents: Vec<Option<String>>,
}

#[derive(Debug, Clone)]
struct Case {
    inputs: Vec<Made>,
    options: Options,
    block_bytes: usize,
}

fn made() -> impl Strategy<Value = Made> {
    let kind = prop::sample::select(vec![Kind::Text, Kind::Jsonl, Kind::Rows]);
    let extension = prop::sample::select(vec!["", ".gz", ".zst"]);
    // Few different ones, so that many come twice.
    let pool = prop::collection::vec(DOCUMENT, 1..5);
    let picks = prop::collection::vec((any::<prop::sample::Index>(), 0..12_u8), 0..9);
    (kind, extension, pool, picks).prop_map(|(kind, extension, pool, picks)| {
        let documents = picks.into_iter().map(|(index, chance)| {
            (chance > 0 || kind == Kind::Text).then(|| index.get(&pool).clone())
        });
        Made { kind, extension, documents: documents.collect() }
    })
}

fn case() -> impl Strategy<Value = Case> {
    let split_on = prop::option::of(prop::sample::select(vec!["\n", ";", "\n;", "ab"]));
    let numbers = (0..6_u64, 1..60_u64, 4..40_usize);
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), 0..5_u64);
    (prop::collection::vec(made(), 0..5), split_on, numbers, flags).prop_map(
        |(
            inputs,
            split_on,
            (min_chars, shard_tokens, block_bytes),
            (special, once, val, memory),
        )| {
            let options = Options {
                split_on: split_on.map(str::to_owned),
                skip_invalid: true,
                allow_special: special,
                min_chars,
                deduplicate: once,
                val_fraction: if val { 0.3 } else { 0.0 },
                shard_tokens,
                memory: memory << 26,
                ..Options::default()
            };
            Case { inputs, options, block_bytes }
        },
    )
}

impl Made {
    /// What the file has, decompressed.
    fn content(&self, options: &Options) -> Vec<u8> {
        let texts = self.documents.iter();
        match self.kind {
            Kind::Text => {
                let gap = options.split_on.as_deref().unwrap_or(" ");
                let texts: Vec<&str> = texts.flatten().map(String::as_str).collect();
                texts.join(gap).into_bytes()
            }
            Kind::Jsonl => {
                let line = |text: &Option<String>| match text {
                    Some(text) => {
                        let text = serde_json::to_string(text).unwrap();
                        format!("{{\"id\": [1, {{}}], \"text\": {text}, \"n\": null}}\r\n \n")
                    }
                    None => "{\"txt\": \"x\"}\n".to_owned(),
                };
                texts.map(line).collect::<String>().trim_end().as_bytes().to_vec()
            }
            Kind::Rows => Vec::new(),
        }
    }

    /// The documents as the definition has them.
    fn expected(&self, options: &Options) -> Vec<Option<String>> {
        let whole = || String::from_utf8(self.content(options)).unwrap();
        match (self.kind, &options.split_on) {
            (Kind::Text, Some(gap)) => whole().split(gap).map(|text| Some(text.into())).collect(),
            (Kind::Text, None) => vec![Some(whole())],
            _ => self.documents.clone(),
        }
    }

    fn write(&self, dir: &Path, number: usize, options: &Options) -> Input {
        let path = dir.join(format!("{number}{}", self.extension));
        if self.kind != Kind::Rows {
            fs::write(&path, packed(&self.content(options), self.extension)).unwrap();
        }
        Input { kind: self.kind, path: path.display().to_string() }
    }
}

/// Compressed in two members or frames.
fn packed(content: &[u8], extension: &str) -> Vec<u8> {
    let (one, two) = content.split_at(content.len() / 3);
    match extension {
        ".gz" => [one, two].map(gzip).concat(),
        ".zst" => [one, two].map(|part| zstd::encode_all(part, 1).unwrap()).concat(),
        _ => content.to_vec(),
    }
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// What a store holds: all tokens, where documents end, and what was dropped.
#[derive(Debug, Default, PartialEq)]
struct Content {
    tokens: Vec<u16>,
    ends: Vec<u64>,
    text_bytes: u64,
}

/// The build, one document after the other. The train side, or all of it, comes first.
fn expected(case: &Case) -> (Vec<Content>, Dropped) {
    let Case { inputs, options, block_bytes } = case;
    let tokenizer = Tokenizer::gpt2();
    let (mut sides, mut dropped) = (vec![Content::default()], Dropped::default());
    if options.val_fraction > 0.0 {
        sides.push(Content::default());
    }
    let mut seen = HashSet::new();
    for text in inputs.iter().flat_map(|input| input.expected(options)) {
        let Some(text) = text else {
            dropped.invalid += 1;
            continue;
        };
        if text.is_empty() {
            dropped.empty += 1;
        } else if (text.chars().count() as u64) < options.min_chars {
            dropped.short += 1;
        } else if options.deduplicate && !seen.insert(text.clone()) {
            dropped.duplicate += 1;
        } else {
            let first =
                if text.len() > *block_bytes { safe_cut(&text, *block_bytes) } else { text.len() };
            let hash = xxh3_128(&text.as_bytes()[..first]).to_le_bytes();
            let place = xxh3_64_with_seed(&hash, encoding::SIDE_SEED) as f64 / 2.0_f64.powi(64);
            let side = &mut sides[usize::from(place < options.val_fraction)];
            let allowed: &[&str] = if options.allow_special { &[END_OF_TEXT] } else { &[] };
            side.tokens.extend(tokenizer.encode(&text, allowed, &[]).unwrap());
            side.tokens.push(50_256);
            side.ends.push(side.tokens.len() as u64);
            side.text_bytes += text.len() as u64;
        }
    }
    (sides, dropped)
}

/// Reads a store as somebody would who only knows the format.
fn read(dir: &Path, shard_tokens: u64) -> (Content, Manifest) {
    let manifest = Manifest::read(dir).unwrap();
    let mut content = Content { text_bytes: manifest.text_bytes, ..Content::default() };
    for (number, shard) in manifest.shards.iter().enumerate() {
        let values = |name: String| fs::read(dir.join(name)).unwrap().split_off(HEADER_BYTES);
        let (tokens, ends) = (values(tokens_name(number)), values(ends_name(number)));
        assert_eq!((xxh3_64(&tokens), xxh3_64(&ends)), (shard.tokens_xxh3, shard.ends_xxh3));
        let before = content.tokens.len() as u64;
        let is_last = number + 1 == manifest.shards.len();
        assert!(is_last || shard.num_tokens == shard_tokens);
        content.ends.extend(ends.as_chunks().0.iter().map(|end| before + u64::from_le_bytes(*end)));
        content.tokens.extend(tokens.as_chunks().0.iter().map(|id| u16::from_le_bytes(*id)));
    }
    (content, manifest)
}

/// A folder for inputs and one for the store.
struct Site {
    scratch: Scratch,
    inputs: Vec<Input>,
}

impl Site {
    fn new(case: &Case) -> Self {
        let scratch = Scratch::new();
        let inputs = case.inputs.iter().enumerate();
        let write =
            |(number, made): (usize, &Made)| made.write(scratch.path(), number, &case.options);
        let inputs = inputs.map(write).collect();
        Self { scratch, inputs }
    }

    fn open(
        &self,
        out: &Path,
        case: &Case,
        save_every: Duration,
        check: Check<'_>,
    ) -> Result<Builder> {
        let sizes = Sizes { block_bytes: case.block_bytes, save_every };
        let (tokenizer, options) = (Arc::new(Tokenizer::gpt2()), case.options.clone());
        Builder::open_with(out, tokenizer, "gpt2", &self.inputs, options, sizes, check)
    }
}

/// Does what is left of a build, rows in batches of `batch`.
fn go_on(builder: &mut Builder, case: &Case, batch: usize, check: Check<'_>) -> Result<()> {
    while let Some(input) = builder.next_input() {
        let made = &case.inputs[input];
        if made.kind != Kind::Rows {
            builder.add_files(check)?;
            continue;
        }
        // From the first row on, or from where it stopped.
        let first = if batch.is_multiple_of(2) { 0 } else { builder.rows_done() as usize };
        let mut first = first.min(made.documents.len());
        for rows in made.documents[first..].chunks(batch) {
            builder.add_rows(rows.iter().map(Option::as_deref), first as u64, check)?;
            first += rows.len();
        }
        builder.end_rows(check)?;
    }
    builder.finish()
}

/// A store from one run without a break.
fn built(site: &Site, case: &Case, name: &str) -> BTreeMap<String, Vec<u8>> {
    let out = site.scratch.path().join(name);
    let mut builder = site.open(&out, case, Duration::MAX, &mut || Ok(())).unwrap();
    go_on(&mut builder, case, 3, &mut || Ok(())).unwrap();
    files(&out)
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name())).unwrap();
        if path.is_dir() {
            copy(&path, &to.join(name));
        } else {
            fs::copy(&path, to.join(name)).unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_store_has_what_the_definition_says(case in case(), threads in 1_usize..5) {
        let case = Case { options: Options { threads, ..case.options }, ..case };
        let site = Site::new(&case);
        built(&site, &case, "out");
        let (sides, dropped) = expected(&case);
        let names: &[&str] = if sides.len() > 1 { &["out/train", "out/val"] } else { &["out"] };
        for (name, side) in names.iter().zip(&sides) {
            let (found, manifest) = read(&site.scratch.path().join(name), case.options.shard_tokens);
            prop_assert_eq!(&found, side);
            let expected = if *name == "out/val" { Dropped::default() } else { dropped };
            prop_assert_eq!(manifest.dropped, expected);
        }
        prop_assert!(!site.scratch.path().join("out/.building").exists());
    }

    #[test]
    fn the_bytes_depend_on_no_threads_and_no_kill(
        case in case(),
        kills in prop::collection::vec((0_u32..60, any::<bool>(), 1_usize..4, 1_usize..5), 0..6),
    ) {
        let site = Site::new(&case);
        let expected = built(&site, &case, "whole");
        let mut out = site.scratch.path().join("out");
        for (number, (calls, often, threads, batch)) in kills.into_iter().enumerate() {
            let case = Case { options: Options { threads, ..case.options.clone() }, ..case.clone() };
            let mut left = calls;
            let mut check = || {
                left = left.checked_sub(1).ok_or(Error::NothingToDraw)?;
                Ok(())
            };
            let save_every = if often { Duration::ZERO } else { Duration::MAX };
            let builder = site.open(&out, &case, save_every, &mut check);
            let done = builder.and_then(|mut builder| {
                let done = go_on(&mut builder, &case, batch, &mut check);
                if number.is_multiple_of(2) && done.is_err() {
                    // As if it were killed here: nothing that is in memory reaches the disk.
                    let next = out.with_extension(number.to_string());
                    copy(&out, &next);
                    out = next;
                }
                done
            });
            match done {
                Ok(()) => {
                    prop_assert_eq!(files(&out), expected.clone());
                    fs::remove_dir_all(&out).unwrap();
                }
                Err(error) => prop_assert_eq!(error, Error::NothingToDraw),
            }
        }
        let mut builder = site.open(&out, &case, Duration::MAX, &mut || Ok(())).unwrap();
        go_on(&mut builder, &case, 2, &mut || Ok(())).unwrap();
        prop_assert_eq!(files(&out), expected);
    }
}
