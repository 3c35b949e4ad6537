use std::collections::HashSet;
use std::fs;

use proptest::prelude::*;
use serde_json::json;
use xxhash_rust::xxh3::xxh3_128;

use super::*;
use crate::store::manifest::{Dropped, FORMAT, TokenizerInfo, VERSION};
use crate::store::scratch::{Scratch, files};
use crate::store::{Dtype, Layout, Mark, OwnedIds, StoreWriter, TokenStore};
use crate::tokenizer::END_OF_TEXT;
use crate::tokenizer::description::{Description, Model};

/// Texts, some of which come again.
type Texts = Vec<String>;

fn tokenizer() -> Description {
    let model = Model::Char { chars: vec!['a', 'b', 'é'] };
    Description { model, special_tokens: vec![END_OF_TEXT.to_owned()] }
}

/// Writes a store as a build of one task would.
fn write_part(dir: &Path, texts: &Texts, shard_tokens: u64, settings: &[(&str, Value)]) {
    let tokenizer = Tokenizer::new(tokenizer()).unwrap();
    let layout = Layout { dtype: Dtype::Uint16, shard_tokens, hashes: true };
    let mut writer = StoreWriter::open(dir, layout, Mark::default(), &mut || Ok(())).unwrap();
    for text in texts {
        let mut ids = tokenizer.encode_ordinary(text).unwrap();
        ids.push(3);
        writer.append(&ids).unwrap();
        writer.end_document(xxh3_128(text.as_bytes())).unwrap();
    }
    let mark = writer.mark();
    let shards = writer.finish().unwrap();
    fs::remove_file(dir.join(crate::store::LEDGER)).unwrap();
    let json = file::to_json(&tokenizer.description()).unwrap();
    fs::write(dir.join("tokenizer.json"), &json).unwrap();
    let manifest = Manifest {
        format: FORMAT.to_owned(),
        version: VERSION,
        tokenizer: TokenizerInfo {
            name: "three".to_owned(),
            fingerprint: tokenizer.description().fingerprint(),
            n_vocab: 4,
            end_of_text: Some(3),
            json_xxh3: xxh3_64(json.as_bytes()),
        },
        dtype: Dtype::Uint16,
        num_tokens: mark.num_tokens,
        num_documents: mark.num_documents,
        text_bytes: texts.iter().map(|text| text.len() as u64).sum(),
        dropped: Dropped { empty: 1, duplicate: 2, ..Dropped::default() },
        settings: settings.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect(),
        shards,
    };
    fs::write(dir.join("manifest.json"), manifest.to_json()).unwrap();
}

/// Writes all parts of a build and says where.
fn write_parts(dir: &Path, parts: &[Texts], shard_tokens: u64) -> Vec<PathBuf> {
    let write = |(number, texts): (usize, &Texts)| {
        let part = dir.join(format!("part-{number}"));
        let task = [("deduplicate", json!(true)), ("task", json!([number, parts.len()]))];
        write_part(&part, texts, shard_tokens, &task);
        part
    };
    parts.iter().enumerate().map(write).collect()
}

fn merge(parts: &[PathBuf], out: &Path, deduplicate: bool) -> Result<()> {
    let progress = Progress::default();
    let merge = Merge { deduplicate, memory_bytes: 0, progress: &progress };
    merge.run(parts, out, &mut || Ok(()))?;
    let Progress { tokens, bytes, bytes_total } = progress;
    let bytes = bytes.into_inner();
    assert_eq!((tokens.into_inner() * 2, bytes), (bytes, bytes_total.into_inner()));
    Ok(())
}

/// The documents of a store, as another module reads them.
fn documents(dir: &Path) -> Texts {
    let store = TokenStore::open(dir, None).unwrap();
    store.verify(1, &AtomicU64::new(0), &mut || Ok(())).unwrap();
    let text = |index| {
        let range = store.document(index, &mut || Ok(())).unwrap();
        let OwnedIds::U16(ids) = store.copied(range, &mut || Ok(())).unwrap() else { panic!() };
        assert_eq!(ids.last(), Some(&3));
        ids[..ids.len() - 1].iter().map(|id| ['a', 'b', 'é'][usize::from(*id)]).collect()
    };
    (0..store.num_documents(&mut || Ok(())).unwrap()).map(text).collect()
}

/// The first of each text.
fn distinct(texts: Texts) -> Texts {
    let mut seen = HashSet::new();
    texts.into_iter().filter(|text| seen.insert(text.clone())).collect()
}

fn texts() -> impl Strategy<Value = Texts> {
    let text = prop_oneof![4 => "[abé]{1,3}", 1 => "[ab]{6,20}", 1 => Just("abé".repeat(6))];
    prop::collection::vec(text, 0..12)
}

fn refusal(parts: &[PathBuf], out: &Path, deduplicate: bool) -> String {
    merge(parts, out, deduplicate).unwrap_err().to_string()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn a_merged_store_has_the_documents_of_its_parts_in_order(
        parts in prop::collection::vec(texts(), 1..4),
        shard_tokens in 1..12_u64,
        deduplicate in any::<bool>(),
    ) {
        let dir = Scratch::new();
        let parts: Vec<Texts> = parts.into_iter().map(distinct).collect();
        let dirs = write_parts(dir.path(), &parts, shard_tokens);
        let before = files(dir.path());
        let out = Scratch::new();
        merge(&dirs, out.path(), deduplicate).unwrap();
        let mut expected = parts.concat();
        let all = expected.len();
        if deduplicate {
            expected = distinct(expected);
        }
        prop_assert_eq!(documents(out.path()), expected.clone());
        let manifest = Manifest::read(out.path()).unwrap();
        let bytes = expected.iter().map(|text| text.len() as u64).sum::<u64>();
        prop_assert_eq!(manifest.text_bytes, bytes);
        let duplicate = 2 * parts.len() + all - expected.len();
        prop_assert_eq!(manifest.dropped.duplicate, duplicate as u64);
        prop_assert_eq!(manifest.dropped.empty, parts.len() as u64);
        prop_assert_eq!(manifest.settings.get("task"), None);
        // Nothing else is there, and the parts are what they were.
        let num_files = fs::read_dir(out.path()).unwrap().count();
        prop_assert_eq!(num_files, 2 * manifest.shards.len() + 2);
        prop_assert_eq!(files(dir.path()), before);
    }

    #[test]
    fn a_merge_that_was_killed_ends_with_the_same_bytes(
        parts in prop::collection::vec(texts(), 2..4),
        shard_tokens in 1..12_u64,
        deduplicate in any::<bool>(),
        moved in 0..20_usize,
        is_joined in any::<bool>(),
    ) {
        let (dir, unbroken, out) = (Scratch::new(), Scratch::new(), Scratch::new());
        let dirs = write_parts(dir.path(), &parts, shard_tokens);
        merge(&dirs, unbroken.path(), deduplicate).unwrap();
        let progress = &Progress::default();
        let merger = Merge { deduplicate, memory_bytes: 0, progress };
        let folder = Folder::open(out.path()).unwrap();
        let streams = [("all", parts::read(&dirs, "all", deduplicate).unwrap())];
        merger.begin(&folder, &streams).unwrap();
        let json = tokenizer_json(&streams[0].1[0]).unwrap();
        merger.join_all(&folder, &streams, &json, &mut || Ok(())).unwrap();
        let joined = fs::read_dir(folder.path().join("all")).unwrap();
        for entry in joined.map(|entry| entry.unwrap()).take(moved) {
            if is_joined {
                fs::rename(entry.path(), out.path().join(entry.file_name())).unwrap();
            } else {
                fs::remove_file(entry.path()).unwrap();
            }
        }
        if !is_joined {
            fs::remove_file(folder.path().join("finished.json")).unwrap();
        }
        drop(folder);
        merge(&dirs, out.path(), deduplicate).unwrap();
        prop_assert_eq!(files(out.path()), files(unbroken.path()));
    }
}

#[test]
fn parts_with_a_side_for_validation_are_merged_side_by_side() {
    let (dir, out) = (Scratch::new(), Scratch::new());
    for (number, texts) in [["a", "b"], ["b", "ab"]].iter().enumerate() {
        for (side, text) in ["train", "val"].iter().zip(texts) {
            let part = dir.path().join(format!("part-{number}")).join(side);
            write_part(&part, &vec![(*text).to_owned()], 5, &[("subset", json!(side))]);
        }
    }
    let parts = [dir.path().join("part-0"), dir.path().join("part-1")];
    merge(&parts, out.path(), true).unwrap();
    assert_eq!(documents(&out.path().join("train")), ["a", "b"]);
    assert_eq!(documents(&out.path().join("val")), ["b", "ab"]);
}

#[test]
fn parts_that_are_missing_or_out_of_order_are_refused_by_name() {
    let (dir, out) = (Scratch::new(), Scratch::new());
    let texts = vec![vec!["a".to_owned()], vec!["b".to_owned()], vec!["ab".to_owned()]];
    let parts = write_parts(dir.path(), &texts, 5);
    let missing = refusal(&[parts[0].clone(), parts[2].clone()], out.path(), false);
    assert!(missing.contains("is part of a build of 3 tasks: 1/3 missing"), "{missing}");
    let swapped = [parts[0].clone(), parts[2].clone(), parts[1].clone()];
    let swapped = refusal(&swapped, out.path(), false);
    assert!(swapped.contains("part-2: is of 2/3, expected 1/3"), "{swapped}");
    let twice = refusal(&[parts.clone(), vec![parts[1].clone()]].concat(), out.path(), false);
    assert!(twice.contains("part-1: is of 1/3, expected no more"), "{twice}");
    assert!(refusal(&[], out.path(), false).contains("nothing to merge"));
    for at in [0, 1] {
        let mut some = parts[..2].to_vec();
        some[at] = dir.path().join("none");
        let nowhere = refusal(&some, out.path(), false);
        assert!(nowhere.contains("none: is missing: there is no such folder"), "{nowhere}");
    }
    assert_eq!(files(out.path()).len(), 0);
}

#[test]
fn what_is_in_the_place_of_a_part_is_said() {
    let (dir, out) = (Scratch::new(), Scratch::new());
    let [one, split, begun, empty] =
        ["one", "split", "begun", "empty"].map(|name| dir.path().join(name));
    let texts = vec!["a".to_owned()];
    write_part(&one, &texts, 5, &[]);
    for side in ["train", "val"] {
        write_part(&split.join(side), &texts, 5, &[("subset", json!(side))]);
    }
    drop(Folder::open(&begun).unwrap());
    fs::create_dir(&empty).unwrap();
    for (first, second, reason) in [
        (&one, &split, "split: has a part for training and one for validation, and "),
        (&split, &one, "one: is one store, and "),
        (&one, &begun, "begun: its build is not finished"),
        (&begun, &one, "begun: its build is not finished"),
        (&split, &begun, "begun: its build is not finished"),
        (&one, &empty, "empty: is no token store: there is no "),
        (&split, &empty, "empty: is no token store: there is no "),
    ] {
        let message = refusal(&[first.clone(), second.clone()], out.path(), false);
        assert!(message.contains(reason), "{message}");
    }
    assert_eq!(files(out.path()).len(), 0);
}

#[test]
fn parts_that_were_made_otherwise_are_refused_with_what_differs() {
    let (dir, out) = (Scratch::new(), Scratch::new());
    let parts = [dir.path().join("one"), dir.path().join("two")];
    let write = |part: &PathBuf, chars| {
        write_part(part, &vec!["a".to_owned()], 5, &[("min_chars", json!(chars))]);
    };
    write(&parts[0], 3);
    write(&parts[1], 4);
    let message = refusal(&parts, out.path(), false);
    assert!(message.contains("two: its setting \"min_chars\" is 4, but that of"), "{message}");
    write(&parts[1], 3);
    let mut manifest = Manifest::read(&parts[1]).unwrap();
    manifest.tokenizer.name = "another".to_owned();
    fs::write(parts[1].join("manifest.json"), manifest.to_json()).unwrap();
    let message = refusal(&parts, out.path(), false);
    assert!(message.contains("two: its tokenizer is \"another\""), "{message}");
    let mut manifest = Manifest::read(&parts[0]).unwrap();
    manifest.shards[0].hashes_xxh3 = None;
    fs::write(parts[1].join("manifest.json"), manifest.to_json()).unwrap();
    let message = refusal(&parts, out.path(), true);
    assert!(message.contains("two: has no hashes of its documents"), "{message}");
}

#[test]
fn what_is_damaged_or_in_use_is_refused_by_name_and_leaves_nothing() {
    let (dir, out) = (Scratch::new(), Scratch::new());
    let texts = vec![vec!["aab".to_owned()], vec!["b".to_owned(), "aab".to_owned()]];
    let parts = write_parts(dir.path(), &texts, 50);
    for (name, at, deduplicate) in [
        ("hashes-00000.npy", 130, true),
        ("ends-00000.npy", 130, true),
        ("tokens-00000.npy", 130, true),
        ("tokens-00000.npy", 60, false),
        ("ends-00000.npy", 60, false),
        ("tokenizer.json", 1, false),
    ] {
        let path = parts[1].join(name);
        let path = if name == "tokenizer.json" { parts[0].join(name) } else { path };
        let whole = fs::read(&path).unwrap();
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        fs::write(&path, damaged).unwrap();
        let message = refusal(&parts, out.path(), deduplicate);
        assert!(message.starts_with(&path.display().to_string()), "{message}");
        fs::write(&path, whole).unwrap();
        assert_eq!(files(out.path()).len(), 0);
    }
    let folder = Folder::open(out.path()).unwrap();
    assert!(refusal(&parts, out.path(), false).contains("under way"));
    folder.write_plan(&json!({"inputs": []})).unwrap();
    drop(folder);
    assert!(refusal(&parts, out.path(), false).contains("begun otherwise"));
    fs::remove_dir_all(out.path().join(".building")).unwrap();
    merge(&parts, out.path(), true).unwrap();
    assert!(refusal(&parts, out.path(), true).contains("holds a token store already"));
    assert_eq!(documents(out.path()), ["aab", "b"]);
}

#[test]
fn an_error_of_the_check_ends_a_merge_and_leaves_nothing() {
    let (dir, out) = (Scratch::new(), Scratch::new());
    let texts: Texts = (0..20).map(|len| "a".repeat(len + 1)).collect();
    let parts = write_parts(dir.path(), &[texts], 10);
    let progress = &Progress::default();
    let merge = Merge { deduplicate: true, memory_bytes: 0, progress };
    let mut calls = 0;
    let mut check = || {
        calls += 1;
        if calls == 9 { Err(Error::Stopped) } else { Ok(()) }
    };
    assert_eq!(merge.run(&parts, out.path(), &mut check), Err(Error::Stopped));
    assert_eq!(files(out.path()).len(), 0);
}
