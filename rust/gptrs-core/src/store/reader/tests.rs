use std::fs;
use std::sync::atomic::AtomicU64;

use proptest::prelude::*;

use super::*;
use crate::Error;
use crate::store::scratch::Scratch;
use crate::store::{LEDGER, Layout, Mark, StoreWriter, Target, convert};

/// GPT-2's end-of-text, and two other ids.
const END: u16 = 50_256;
const IDS: [u16; 2] = [0, 50_255];

/// Documents without their end-of-text.
fn documents() -> impl Strategy<Value = Vec<Vec<u16>>> {
    prop::collection::vec(prop::collection::vec(prop::sample::select(&IDS[..]), 0..6), 0..12)
}

#[expect(clippy::unnecessary_wraps, reason = "a check may fail")]
fn nothing() -> Result<()> {
    Ok(())
}

/// The documents in one stream, each with an end-of-text behind it, and where they end.
fn stream(documents: &[Vec<u16>]) -> (Vec<u16>, Vec<u64>) {
    let (mut ids, mut ends) = (vec![], vec![]);
    for document in documents {
        ids.extend(document);
        ids.push(END);
        ends.push(ids.len() as u64);
    }
    (ids, ends)
}

/// A folder of ours with these documents.
fn folder(dir: &Path, documents: &[Vec<u16>], shard_tokens: u64, dtype: Dtype) -> TokenStore {
    let layout = Layout { dtype, shard_tokens, hashes: true };
    let mut writer = StoreWriter::open(dir, layout, Mark::default(), &mut nothing).unwrap();
    for (number, document) in documents.iter().enumerate() {
        writer.append(document).unwrap();
        writer.append(&[END]).unwrap();
        writer.end_document(number as u128).unwrap();
    }
    let mut manifest = description(manifest::FORMAT, dtype, 0, TokenizerInfo::gpt2());
    manifest.shards = writer.finish().unwrap();
    manifest.version = manifest::VERSION;
    manifest.num_tokens = manifest.shards.iter().map(|shard| shard.num_tokens).sum();
    manifest.num_documents = documents.len() as u64;
    fs::write(dir.join("tokenizer.json"), b"{}").unwrap();
    manifest.tokenizer.json_xxh3 = xxh3_64(b"{}");
    fs::write(dir.join(manifest::FILE_NAME), manifest.to_json()).unwrap();
    let _ = fs::remove_file(dir.join(LEDGER));
    TokenStore::open(dir, None).unwrap()
}

fn bytes(ids: &[u16]) -> Vec<u8> {
    ids.iter().flat_map(|id| id.to_le_bytes()).collect()
}

fn all_ends(store: &TokenStore) -> Vec<u64> {
    let mut ends = vec![];
    store.for_each_end(&mut nothing, &mut |end| ends.push(end)).unwrap();
    ends
}

/// Everything that can be read, compared with a stream in memory.
fn check(store: &TokenStore, ids: &[u16], ends: &[u64], from: usize, to: usize) {
    assert_eq!(store.len(), ids.len() as u64);
    let (from, to) = (from.min(ids.len()), to.min(ids.len()));
    let range = from.min(to)..from.max(to);
    let wanted: Vec<i64> = ids[range.clone()].iter().map(|&id| id.into()).collect();
    let places = range.start as u64..range.end as u64;
    let mut copied = vec![-1; range.len()];
    store.copy_to(places.start, &mut copied).unwrap();
    assert_eq!(copied, wanted);
    let all: Vec<u32> = ids[range].iter().map(|&id| id.into()).collect();
    let owned = match store.copied(places.clone(), &mut nothing).unwrap() {
        OwnedIds::U16(ids) => ids.into_iter().map(u32::from).collect(),
        OwnedIds::U32(ids) => ids,
    };
    assert_eq!(owned, all);
    if let Some(view) = store.slice(places.clone(), &mut nothing).unwrap() {
        assert_eq!(view.iter().collect::<Vec<_>>(), all);
    }
    assert_eq!(all_ends(store), ends);
    let mut boundaries = vec![];
    store.for_each_boundary(places.clone(), &mut |end| boundaries.push(end)).unwrap();
    let inside = |end: &u64| places.start < *end && *end < places.end;
    assert_eq!(boundaries, ends.iter().copied().filter(inside).collect::<Vec<_>>());
    assert_eq!(store.num_documents(&mut nothing).unwrap(), ends.len() as u64);
    for (index, &end) in ends.iter().enumerate() {
        let start = if index == 0 { 0 } else { ends[index - 1] };
        assert_eq!(store.document(index as u64, &mut nothing), Ok(start..end));
    }
    let beyond = store.document(ends.len() as u64, &mut nothing);
    assert!(matches!(beyond, Err(Error::Setting(_))), "{beyond:?}");
    assert_eq!(store.verify(2, &AtomicU64::new(0), &mut nothing), Ok(()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_folder_is_one_stream_wherever_its_shards_end(
        documents in documents(),
        shard_tokens in 1u64..12,
        wide in any::<bool>(),
        from in 0usize..80,
        to in 0usize..80,
    ) {
        let scratch = Scratch::new();
        let dtype = if wide { Dtype::Uint32 } else { Dtype::Uint16 };
        let store = folder(scratch.path(), &documents, shard_tokens, dtype);
        let (ids, ends) = stream(&documents);
        check(&store, &ids, &ends, from, to);
    }

    #[test]
    fn a_nanogpt_file_has_documents_that_end_with_the_token_and_perhaps_a_rest(
        documents in documents(),
        rest in prop::collection::vec(prop::sample::select(&IDS[..]), 0..4),
        from in 0usize..80,
        to in 0usize..80,
    ) {
        let scratch = Scratch::new();
        let (mut ids, mut ends) = stream(&documents);
        ids.extend(&rest);
        if !rest.is_empty() {
            ends.push(ids.len() as u64);
        }
        let path = scratch.path().join("train.bin");
        fs::write(&path, bytes(&ids)).unwrap();
        check(&TokenStore::open(&path, None).unwrap(), &ids, &ends, from, to);
    }

    #[test]
    fn what_is_written_as_any_format_reads_as_the_same_documents(
        documents in documents(),
        shard_tokens in 1u64..12,
        from in 0usize..80,
        to in 0usize..80,
    ) {
        let scratch = Scratch::new();
        let path = |name: &str| scratch.path().join(name);
        let (done, (ids, ends)) = (AtomicU64::new(0), stream(&documents));
        let source = folder(&path("source"), &documents, shard_tokens, Dtype::Uint16);
        let folder = Target::Folder { tokenizer_json: Some(b"{}"), shard_tokens };
        for (name, target) in [("a.bin", Target::NanoGpt), ("b.idx", Target::Megatron), ("c", folder)] {
            convert(&source, &path(name), target, &done, &mut nothing).unwrap();
            check(&TokenStore::open(&path(name), None).unwrap(), &ids, &ends, from, to);
        }
        // llm.c's documents begin with the token.
        convert(&source, &path("l.bin"), Target::LlmC, &done, &mut nothing).unwrap();
        let first: Vec<u16> = [END].into_iter().chain(ids.iter().copied()).take(ids.len()).collect();
        let store = TokenStore::open(&path("l.bin"), None).unwrap();
        check(&store, &first, &ends, from, to);
        // And back.
        convert(&store, &path("back"), folder, &done, &mut nothing).unwrap();
        check(&TokenStore::open(&path("back"), None).unwrap(), &ids, &ends, from, to);
    }

    #[test]
    fn verify_finds_any_bit_that_was_flipped_in_any_file(
        documents in prop::collection::vec(
            prop::collection::vec(prop::sample::select(&IDS[..]), 0..6), 1..12),
        file in any::<prop::sample::Index>(),
        place in any::<prop::sample::Index>(),
        bit in 0u32..8,
    ) {
        let scratch = Scratch::new();
        folder(scratch.path(), &documents, 7, Dtype::Uint16);
        let names: Vec<_> = crate::store::scratch::files(scratch.path()).into_keys().collect();
        let name = &names[file.index(names.len())];
        let path = scratch.path().join(name);
        let mut content = fs::read(&path).unwrap();
        let at = place.index(content.len());
        content[at] ^= 1 << bit;
        fs::write(&path, content).unwrap();
        let found = TokenStore::open(scratch.path(), None)
            .and_then(|store| store.verify(2, &AtomicU64::new(0), &mut nothing));
        let Err(Error::Store { path: named, .. }) = found else { panic!("{name} at {at}: {found:?}") };
        prop_assert_eq!(named, path.display().to_string());
    }

    #[test]
    fn no_bytes_in_an_index_or_a_header_panic(
        noise in prop::collection::vec(any::<u8>(), 0..60),
        start in 0usize..3,
    ) {
        let scratch = Scratch::new();
        let llmc = [20_240_520_i32, 1, 3].map(i32::to_le_bytes).concat();
        let beginnings = [&b"MMIDIDX\0\0\x01\0\0\0\0\0\0\0\x08"[..], &llmc, b""];
        let mut content = beginnings[start].to_vec();
        content.extend(noise);
        fs::write(scratch.path().join("x.idx"), &content).unwrap();
        content.resize(if start == 1 { 1030 } else { content.len() }, 0);
        fs::write(scratch.path().join("x.bin"), &content).unwrap();
        for name in ["x.idx", "x.bin"] {
            if let Ok(store) = TokenStore::open(&scratch.path().join(name), None) {
                let _ = store.verify(1, &AtomicU64::new(0), &mut nothing);
                let _ = store.document(0, &mut nothing);
                let _ = store.for_each_end(&mut nothing, &mut |_| {});
            }
        }
    }
}

#[test]
fn an_id_outside_the_vocabulary_is_refused_by_file_however_it_is_read() {
    let scratch = Scratch::new();
    let path = scratch.path().join("train.bin");
    fs::write(&path, bytes(&[1, 2, 50_257, 3])).unwrap();
    let store = TokenStore::open(&path, None).unwrap();
    let expected = Err(Error::Store {
        path: path.display().to_string(),
        reason: "has the token id 50257, outside the vocabulary's 0..50256".to_owned(),
    });
    assert_eq!(store.copy_to(0, &mut [0; 2]), Ok(()));
    assert_eq!(store.copy_to(1, &mut [0; 2]), expected);
    assert_eq!(store.slice(0..4, &mut nothing).map(drop), expected);
    assert_eq!(store.copied(0..4, &mut nothing).map(drop), expected);
    assert_eq!(store.verify(1, &AtomicU64::new(0), &mut nothing), expected);
    assert_eq!(store.token_counts(0..4, 1, &AtomicU64::new(0), &mut nothing).map(drop), expected);
    let out = scratch.path().join("out.bin");
    let done = AtomicU64::new(0);
    assert_eq!(convert(&store, &out, Target::NanoGpt, &done, &mut nothing), expected);
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 1, "nothing is left");
}

#[test]
fn gpt2s_fingerprint_is_that_of_the_tokenizer() {
    let fingerprint = crate::Tokenizer::gpt2().description().fingerprint();
    assert_eq!(TokenizerInfo::gpt2().fingerprint, fingerprint);
}

#[test]
fn a_shard_that_goes_missing_after_opening_is_named_at_first_touch() {
    let scratch = Scratch::new();
    let store = folder(scratch.path(), &[vec![1; 5], vec![2; 5]], 6, Dtype::Uint16);
    fs::remove_file(scratch.path().join("tokens-00001.npy")).unwrap();
    assert_eq!(store.copy_to(0, &mut [0; 6]), Ok(()));
    let error = store.copy_to(5, &mut [0; 3]).unwrap_err().to_string();
    assert!(error.contains("tokens-00001.npy: cannot be read"), "{error}");
}
