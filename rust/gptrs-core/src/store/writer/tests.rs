use std::collections::BTreeMap;
use std::fs;

use proptest::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

use super::*;
use crate::store::manifest::{ends_name, tokens_name};
use crate::store::npy::{HEADER_BYTES, header, pairs_header};
use crate::store::scratch::{Scratch, files};

/// What a caller may do, in any order.
#[derive(Debug, Clone)]
enum Step {
    Append(Vec<u16>),
    End(u128),
    /// Lengths of documents, each followed by its end, and of what is behind the last.
    Documents(Vec<usize>, usize),
    /// Notes the place.
    Mark,
    /// Goes back to a place that was noted.
    Rewind(prop::sample::Index),
    /// Syncs, as whoever wants to go on from here later.
    Save,
    /// Ends without any notice and goes on from where it was saved.
    Kill,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => prop::collection::vec(any::<u16>(), 0..20).prop_map(Step::Append),
        3 => any::<u128>().prop_map(Step::End),
        2 => (prop::collection::vec(0..6_usize, 0..5), 0..4_usize).prop_map(|(a, b)| Step::Documents(a, b)),
        2 => Just(Step::Mark),
        2 => any::<prop::sample::Index>().prop_map(Step::Rewind),
        1 => Just(Step::Save),
        1 => Just(Step::Kill),
    ]
}

/// The stream as it should be.
#[derive(Debug, Clone, Default, PartialEq)]
struct Stream {
    ids: Vec<u16>,
    ends: Vec<(u64, u128)>,
}

impl Stream {
    fn append(&mut self, lens: &[usize], rest: usize) -> (Vec<u16>, Vec<DocumentEnd>) {
        let (mut ids, mut documents) = (Vec::new(), Vec::new());
        for len in lens {
            ids.extend((0..*len).map(|id| id as u16));
            documents.push(DocumentEnd { end: ids.len(), hash: ids.len() as u128 });
        }
        ids.extend((0..rest).map(|id| id as u16));
        let before = self.ids.len() as u64;
        self.ids.extend_from_slice(&ids);
        self.ends.extend(documents.iter().map(|ended| (before + ended.end as u64, ended.hash)));
        (ids, documents)
    }

    /// Its files, by the letter of the format.
    fn files(&self, layout: Layout) -> (BTreeMap<String, Vec<u8>>, Vec<Shard>) {
        let (mut files, mut shards, mut first) = (BTreeMap::new(), Vec::new(), 0);
        let len = self.ids.len() as u64;
        while first < len || (len == 0 && !self.ends.is_empty() && shards.is_empty()) {
            let last = len.min(first + layout.shard_tokens);
            let inside =
                |end: &&(u64, u128)| (end.0 > first || (end.0 == 0 && first == 0)) && end.0 <= last;
            let ends: Vec<_> = self.ends.iter().filter(inside).collect();
            let wide = layout.dtype == Dtype::Uint32;
            let ids = self.ids[first as usize..last as usize].iter();
            let tokens: Vec<u8> = ids
                .flat_map(|id| u32::from(*id).to_le_bytes()[..if wide { 4 } else { 2 }].to_vec())
                .collect();
            let rows: Vec<u8> = ends.iter().flat_map(|end| (end.0 - first).to_le_bytes()).collect();
            let hashes: Vec<u8> = ends.iter().flat_map(|end| end.1.to_le_bytes()).collect();
            shards.push(Shard {
                num_tokens: last - first,
                num_documents: ends.len() as u64,
                tokens_xxh3: xxh3_64(&tokens),
                ends_xxh3: xxh3_64(&rows),
                hashes_xxh3: layout.hashes.then(|| xxh3_64(&hashes)),
            });
            let number = shards.len() - 1;
            let with = |header: [u8; HEADER_BYTES], values| [header.to_vec(), values].concat();
            let descr = if wide { "<u4" } else { "<u2" };
            files.insert(tokens_name(number), with(header(descr, last - first), tokens));
            let count = ends.len() as u64;
            files.insert(ends_name(number), with(header("<u8", count), rows));
            if layout.hashes {
                files.insert(hashes_name(number), with(pairs_header("<u8", count), hashes));
            }
            first = last;
        }
        (files, shards)
    }
}

fn open(dir: &Path, layout: Layout, mark: Mark) -> Result<StoreWriter> {
    StoreWriter::open(dir, layout, mark, &mut || Ok(()))
}

fn layout(shard_tokens: u64) -> Layout {
    Layout { dtype: Dtype::Uint16, shard_tokens, hashes: false }
}

fn wide_or_narrow() -> impl Strategy<Value = Dtype> {
    prop_oneof![Just(Dtype::Uint16), Just(Dtype::Uint32)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn whatever_was_taken_back_or_killed_the_files_are_those_of_what_is_left(
        steps in prop::collection::vec(step(), 0..40),
        shard_tokens in prop_oneof![1..9_u64, Just(40)],
        dtype in wide_or_narrow(),
        hashes in any::<bool>(),
    ) {
        let (dir, layout) = (Scratch::new(), Layout { dtype, shard_tokens, hashes });
        let mut writer = open(dir.path(), layout, Mark::default()).unwrap();
        let mut stream = Stream::default();
        let mut marks = vec![(Mark::default(), Stream::default())];
        let mut saved = marks[0].clone();
        for step in steps {
            match step {
                Step::Append(ids) => {
                    writer.append(&ids).unwrap();
                    stream.ids.extend(ids);
                }
                Step::End(hash) => {
                    writer.end_document(hash).unwrap();
                    stream.ends.push((stream.ids.len() as u64, hash));
                }
                Step::Documents(lens, rest) => {
                    let (ids, documents) = stream.append(&lens, rest);
                    writer.append_documents(&ids, &documents).unwrap();
                }
                Step::Mark => marks.push((writer.mark(), stream.clone())),
                Step::Save => {
                    writer.sync().unwrap();
                    saved = (writer.mark(), stream.clone());
                }
                Step::Rewind(index) => {
                    marks.truncate(index.index(marks.len()) + 1);
                    let earlier = marks[marks.len() - 1].clone();
                    if earlier.0.num_tokens < saved.0.num_tokens
                        || earlier.0.num_documents < saved.0.num_documents
                    {
                        writer.sync().unwrap();
                        saved = earlier.clone();
                    }
                    writer.rewind(earlier.0, &mut || Ok(())).unwrap();
                    stream = earlier.1;
                }
                Step::Kill => {
                    drop(writer);
                    writer = open(dir.path(), layout, saved.0).unwrap();
                    stream = saved.1.clone();
                    marks = vec![(Mark::default(), Stream::default()), saved.clone()];
                }
            }
            prop_assert_eq!(writer.mark().num_tokens, stream.ids.len() as u64);
            prop_assert_eq!(writer.mark().num_documents, stream.ends.len() as u64);
        }
        if hashes {
            let mut found = Vec::new();
            writer.for_each_hash(&mut || Ok(()), &mut |hash| { found.push(hash); Ok(()) }).unwrap();
            prop_assert_eq!(found, stream.ends.iter().map(|end| end.1).collect::<Vec<_>>());
        }
        let shards = writer.finish().unwrap();
        let mut found = files(dir.path());
        found.remove(LEDGER);
        prop_assert_eq!((found, shards), stream.files(layout));
    }

    #[test]
    fn ids_of_32_bits_are_kept_or_narrowed_and_refused_where_they_do_not_fit(
        ids in prop::collection::vec(0..66_000_u32, 0..50),
        dtype in wide_or_narrow(),
    ) {
        let (dir, layout) = (Scratch::new(), Layout { dtype, ..layout(7) });
        let mut writer = open(dir.path(), layout, Mark::default()).unwrap();
        let appended = writer.append_u32(&ids);
        let too_large = ids.iter().find(|id| **id > 65_535 && dtype == Dtype::Uint16);
        if let Some(id) = too_large {
            let message = appended.unwrap_err().to_string();
            prop_assert!(message.contains(&format!("token id {id} does not fit")), "{message}");
            return Ok(());
        }
        appended.unwrap();
        let shards = writer.finish().unwrap();
        let found: Vec<u32> = (0..shards.len()).flat_map(|number| {
            let bytes = fs::read(dir.path().join(tokens_name(number))).unwrap();
            let id = |bytes: &[u8]| bytes.iter().rev().fold(0, |id, byte| id << 8 | u32::from(*byte));
            bytes[HEADER_BYTES..].chunks(dtype.size()).map(id).collect::<Vec<_>>()
        }).collect();
        prop_assert_eq!(found, ids);
    }
}

#[test]
fn portions_larger_than_any_buffer_are_written_whole() {
    let (dir, layout) = (Scratch::new(), layout(100_000));
    let mut writer = open(dir.path(), layout, Mark::default()).unwrap();
    let mut stream = Stream::default();
    for lens in [[90_000, 200_000], [3, 5], [50_000, 1]] {
        let (ids, documents) = stream.append(&lens, 7);
        writer.append_documents(&ids, &documents).unwrap();
    }
    let shards = writer.finish().unwrap();
    let mut found = files(dir.path());
    found.remove(LEDGER);
    assert!((found, shards) == stream.files(layout));
}

#[test]
fn nothing_appended_is_no_shard_and_a_shard_of_no_tokens_is_refused() {
    let dir = Scratch::new();
    assert_eq!(open(dir.path(), layout(5), Mark::default()).unwrap().finish(), Ok(vec![]));
    let refused = open(dir.path(), layout(0), Mark::default()).err();
    assert_eq!(refused, Some(Error::Setting("shard_tokens is 1 or more, found 0".to_owned())));
}

#[test]
fn a_file_that_lost_what_was_synced_is_refused_by_name() {
    let dir = Scratch::new();
    let mut writer = open(dir.path(), layout(4), Mark::default()).unwrap();
    writer.append(&[1, 2, 3, 4, 5, 6]).unwrap();
    writer.sync().unwrap();
    let mark = writer.mark();
    drop(writer);
    let path = dir.path().join("tokens-00001.npy");
    fs::File::options().write(true).open(&path).unwrap().set_len(131).unwrap();
    let message = open(dir.path(), layout(4), mark).err().unwrap().to_string();
    assert!(message.contains("tokens-00001.npy: has 131 bytes, expected 132 or more"), "{message}");
    fs::remove_file(dir.path().join(LEDGER)).unwrap();
    let message = open(dir.path(), layout(4), mark).err().unwrap().to_string();
    assert!(message.contains("shards.json: cannot be read: there is no such file"), "{message}");
}

#[test]
fn after_an_error_nothing_more_is_written_and_what_was_synced_can_be_gone_on_from() {
    let dir = Scratch::new();
    let mut writer = open(dir.path(), layout(4), Mark::default()).unwrap();
    writer.append(&[1, 2, 3]).unwrap();
    writer.end_document(0).unwrap();
    writer.sync().unwrap();
    let mark = writer.mark();
    writer.append(&[4]).unwrap();
    // A folder stands where the next shard's file would.
    fs::create_dir(dir.path().join("tokens-00001.npy")).unwrap();
    let error = writer.append(&[5]).unwrap_err();
    assert!(matches!(&error, Error::Store { path, .. } if path.ends_with("tokens-00001.npy")));
    assert_eq!(writer.append(&[6]), Err(error.clone()));
    assert_eq!(writer.end_document(0), Err(error.clone()));
    assert_eq!(writer.sync(), Err(error.clone()));
    assert_eq!(writer.rewind(mark, &mut || Ok(())), Err(error.clone()));
    assert_eq!(writer.finish(), Err(error));
    fs::remove_dir(dir.path().join("tokens-00001.npy")).unwrap();
    let mut writer = open(dir.path(), layout(4), mark).unwrap();
    writer.append(&[7]).unwrap();
    let expected = Stream { ids: vec![1, 2, 3, 7], ends: vec![(3, 0)] };
    assert_eq!(writer.finish(), Ok(expected.files(layout(4)).1));
}

#[test]
fn a_document_may_not_end_behind_its_ids() {
    let dir = Scratch::new();
    let mut writer = open(dir.path(), layout(4), Mark::default()).unwrap();
    let refused = writer.append_documents(&[1, 2], &[DocumentEnd { end: 3, hash: 0 }]);
    assert!(matches!(refused, Err(Error::WrongLength { found: 2, expected: 3, .. })));
}
