use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::*;
use proptest::prelude::*;
use proptest::sample::select;

/// Documents in memory, in parts of a few tokens.
#[derive(Debug, Clone)]
struct Memory {
    tokens: Vec<u16>,
    ends: Vec<u64>,
    part: usize,
}

impl Memory {
    /// Token i has the id i: a window shows where it was cut.
    fn new(lengths: &[u64], part: usize) -> Self {
        let mut ends = Vec::new();
        let mut len = 0;
        for length in lengths {
            len += length;
            ends.push(len);
        }
        Self { tokens: (0..len as u16).collect(), ends, part }
    }
}

impl TokenStream for Memory {
    fn len(&self) -> u64 {
        self.tokens.len() as u64
    }

    fn n_vocab(&self) -> usize {
        self.tokens.len()
    }

    fn for_each(&self, range: Range<u64>, f: &mut dyn FnMut(Ids<'_>)) -> Result<()> {
        let mut at = range.start as usize;
        while at < range.end as usize {
            let end = (at / self.part * self.part + self.part).min(range.end as usize);
            f(Ids::U16(&self.tokens[at..end]));
            at = end;
        }
        Ok(())
    }

    fn copy_to(&self, start: u64, out: &mut [i64]) -> Result<()> {
        for (out, &id) in out.iter_mut().zip(&self.tokens[start as usize..]) {
            if usize::from(id) >= self.n_vocab() {
                let last = self.n_vocab() - 1;
                return Err(Error::TokenIdOutOfVocabulary { id: id.to_string(), index: 0, last });
            }
            *out = id.into();
        }
        Ok(())
    }

    fn find_documents(&self, _check: Check<'_>) -> Result<()> {
        Ok(())
    }

    fn for_each_boundary(&self, range: Range<u64>, f: &mut dyn FnMut(u64)) -> Result<()> {
        let inside = |end: &&u64| **end > range.start && **end < range.end;
        self.ends.iter().filter(inside).for_each(|end| f(*end));
        Ok(())
    }

    fn for_each_end(&self, _check: Check<'_>, f: &mut dyn FnMut(u64)) -> Result<()> {
        self.ends.iter().for_each(|end| f(*end));
        Ok(())
    }
}

const PLAIN: Settings =
    Settings { length: 2, stride: 1, boundary: Boundary::Stream, seed: None, positions: false };

fn batches(memory: &Memory, settings: Settings, plan: [i64; 3], drop_last: bool) -> Arc<Batches> {
    let plan = |count| Plan::new(count, plan[0], plan[1], plan[2], drop_last);
    Arc::new(Batches::new(Arc::new(memory.clone()), settings, plan, &mut || Ok(())).unwrap())
}

/// The epochs 0..`end` from a cursor on.
fn stream(batches: &Arc<Batches>, cursor: Cursor, end: u64, prefetch: usize) -> BatchStream {
    let walk = Walk::new(*batches.plan(), cursor, end, 0, 1).unwrap();
    BatchStream::new(Arc::clone(batches), walk, prefetch)
}

fn next(stream: &mut BatchStream) -> Option<Batch> {
    stream.next(&mut || Ok(())).unwrap()
}

/// All that is left; now and then the caller takes his time, so that the thread is woken.
fn rest(mut stream: BatchStream) -> Vec<Batch> {
    let mut batches = Vec::new();
    while let Some(batch) = next(&mut stream) {
        if batches.len() % 8 == 5 {
            sleep(Duration::from_micros(150));
        }
        batches.push(batch);
    }
    batches
}

/// The windows' first tokens.
fn firsts(batches: &[Batch], length: usize) -> Vec<i64> {
    batches.iter().flat_map(|batch| batch.inputs.chunks(length).map(|row| row[0])).collect()
}

fn documents() -> impl Strategy<Value = Vec<u64>> {
    prop_oneof![
        prop::collection::vec(0_u64..12, 0..40),
        // More than there are between two samples.
        prop::collection::vec(0_u64..3, 250..800),
    ]
}

proptest! {
    #[test]
    fn a_batch_has_its_windows_and_their_targets(
        lengths in documents(), part in 1_usize..50, length in 1_i64..9, stride in 1_i64..9,
        prefetch in 0_usize..4, seed in prop::option::of(0_u64..5),
    ) {
        let memory = Memory::new(&lengths, part);
        let settings = Settings { length, stride, seed, ..PLAIN };
        let batches = batches(&memory, settings, [3, 0, 1], false);
        let found = rest(stream(&batches, Cursor::default(), 1, prefetch));
        for batch in &found {
            for (input, target) in batch.inputs.iter().zip(&batch.targets) {
                prop_assert_eq!(input + 1, *target);
            }
            for row in batch.inputs.chunks(length as usize) {
                prop_assert!(row.windows(2).all(|pair| pair[0] + 1 == pair[1]));
            }
        }
        let mut starts = firsts(&found, length as usize);
        if seed.is_some() {
            starts.sort_unstable();
        }
        let len = memory.len() as i64;
        let expected: Vec<i64> = (0..len - length).step_by(stride as usize).collect();
        prop_assert_eq!(starts, expected);
    }

    #[test]
    fn windows_inside_documents_are_those_of_each_document_alone(
        lengths in documents(), length in 1_i64..9, stride in 1_i64..12,
    ) {
        let memory = Memory::new(&lengths, 64);
        let settings = Settings { length, stride, boundary: Boundary::Document, ..PLAIN };
        let batches = batches(&memory, settings, [1, 0, 1], false);
        let (mut expected, mut at) = (Vec::new(), 0);
        let mut seen = BTreeSet::new();
        for size in lengths.iter().map(|&size| size as i64) {
            for start in (0..size - length).step_by(stride as usize) {
                expected.push(at + start);
                seen.extend(at + start..=at + start + length);
            }
            at += size;
        }
        prop_assert_eq!(batches.plan().num_windows(), expected.len() as u64);
        prop_assert_eq!(batches.dropped_tokens(), memory.len() - seen.len() as u64);
        let found = rest(stream(&batches, Cursor::default(), 1, 0));
        prop_assert_eq!(firsts(&found, length as usize), expected);
    }

    #[test]
    fn positions_start_anew_at_each_row_and_behind_each_document(
        lengths in documents(), length in 1_i64..9, seed in any::<u64>(),
    ) {
        let memory = Memory::new(&lengths, 7);
        let settings = Settings { length, seed: Some(seed), positions: true, ..PLAIN };
        let batches = batches(&memory, settings, [4, 0, 1], false);
        for batch in rest(stream(&batches, Cursor::default(), 1, 1)) {
            let found = batch.positions.unwrap();
            let (mut position_ids, mut cu_seqlens) = (Vec::new(), Vec::new());
            for (at, &token) in batch.inputs.iter().enumerate() {
                let is_start = at % length as usize == 0 || memory.ends.contains(&(token as u64));
                if is_start {
                    cu_seqlens.push(at as i32);
                }
                position_ids.push(if is_start { 0 } else { position_ids[at - 1] + 1 });
            }
            cu_seqlens.push(batch.inputs.len() as i32);
            prop_assert_eq!(found, Positions { position_ids, cu_seqlens });
        }
    }

    #[test]
    fn ranks_together_see_the_one_order(
        num_tokens in 26_u64..200, batch_size in 1_i64..7, world_size in select(vec![1, 2, 3, 4]),
        drop_last in any::<bool>(), seed in prop::option::of(any::<u64>()),
    ) {
        let memory = Memory::new(&[num_tokens], 1000);
        let settings = Settings { seed, ..PLAIN };
        let order = rest(stream(&batches(&memory, settings, [1, 0, 1], true), Cursor::default(), 1, 0));
        let order = firsts(&order, 2);
        let ranks: Vec<_> = (0..world_size)
            .map(|rank| batches(&memory, settings, [batch_size, rank, world_size], drop_last))
            .collect();
        let found: Vec<Vec<Batch>> =
            ranks.iter().map(|rank| rest(stream(rank, Cursor::default(), 1, 2))).collect();
        let mut union = Vec::new();
        for step in 0..found[0].len() {
            let same: BTreeSet<usize> = found.iter().map(|rank| rank[step].rows).collect();
            prop_assert_eq!(same.len(), 1, "ranks have batches of unequal size");
            union.extend(found.iter().flat_map(|rank| firsts(&rank[step..=step], 2)));
        }
        prop_assert!(found.iter().all(|rank| rank.len() as u64 == ranks[0].plan().batches_per_epoch()));
        let dropped = ranks[0].plan().dropped_windows() as usize;
        prop_assert_eq!(&union[..], &order[..order.len() - dropped]);
        if !drop_last {
            prop_assert!(dropped < world_size as usize);
        }
    }

    #[test]
    fn a_walk_that_goes_on_from_a_cursor_is_the_rest_of_the_one_that_was_left(
        num_tokens in 10_u64..100, first in 1_i64..5, second in 1_i64..5, stop in 0_usize..12,
        prefetch in 0_usize..4, seed in any::<u64>(),
    ) {
        let memory = Memory::new(&[num_tokens], 16);
        let settings = Settings { seed: Some(seed), ..PLAIN };
        let all = rest(stream(&batches(&memory, settings, [1, 0, 1], false), Cursor::default(), 3, 0));
        let all = firsts(&all, 2);
        let mut before = stream(&batches(&memory, settings, [first, 0, 1], false), Cursor::default(), 3, prefetch);
        let mut found = Vec::new();
        for turn in 0..stop {
            found.extend(next(&mut before));
            if turn % 3 == 0 {
                sleep(Duration::from_micros(150));
            }
        }
        // Another batch size; the thread of the old one may have filled more.
        let after = batches(&memory, settings, [second, 0, 1], false);
        found.extend(rest(stream(&after, before.cursor(), 3, prefetch)));
        prop_assert_eq!(firsts(&found, 2), all);
    }

    #[test]
    fn workers_take_turns_through_all_epochs(
        num_tokens in 10_u64..60, num_workers in 1_u64..5, start in 0_u64..8, end in 1_u64..4,
    ) {
        let batches = batches(&Memory::new(&[num_tokens], 16), PLAIN, [2, 0, 1], false);
        let cursor = Cursor { epoch: 0, position: start };
        let alone = rest(stream(&batches, cursor, end, 0));
        let mut workers: Vec<_> = (0..num_workers)
            .map(|skip| Walk::new(*batches.plan(), cursor, end, skip, num_workers).unwrap())
            .map(|walk| BatchStream::new(Arc::clone(&batches), walk, 0))
            .collect();
        let mut turns = Vec::new();
        for turn in 0..=alone.len() {
            turns.extend(next(&mut workers[turn % num_workers as usize]));
        }
        prop_assert_eq!(turns, alone);
        prop_assert!(workers.iter_mut().all(|worker| next(worker).is_none()));
    }
}

#[test]
fn an_id_outside_the_vocabulary_is_refused() {
    let mut memory = Memory::new(&[20], 4);
    memory.tokens[11] = 20;
    let batches = batches(&memory, PLAIN, [1, 0, 1], true);
    let mut found = stream(&batches, Cursor::default(), 1, 2);
    let good = std::iter::from_fn(|| found.next(&mut || Ok(())).transpose());
    let results: Vec<_> = good.take(12).collect();
    // Window 9 is the first that has token 11, as its last target.
    assert!(results[..9].iter().all(Result::is_ok));
    assert!(results[9..].iter().all(Result::is_err), "and the cursor stays where it is");
    assert_eq!(found.cursor(), Cursor { epoch: 0, position: 9 });
}

#[test]
fn a_stream_that_is_dropped_ends_its_thread() {
    let batches = batches(&Memory::new(&[1000], 64), PLAIN, [1, 0, 1], true);
    let mut stream = stream(&batches, Cursor::default(), 1, 4);
    next(&mut stream);
    drop(stream);
    let deadline = Instant::now() + Duration::from_secs(20);
    while Arc::strong_count(&batches) > 1 {
        assert!(Instant::now() < deadline, "the thread still runs");
        sleep(Duration::from_millis(1));
    }
}

/// Tokens that window 2 has to wait for.
#[derive(Debug)]
struct Gated {
    memory: Memory,
    is_waiting: AtomicBool,
    is_open: AtomicBool,
}

impl TokenStream for Gated {
    fn len(&self) -> u64 {
        self.memory.len()
    }

    fn n_vocab(&self) -> usize {
        self.memory.n_vocab()
    }

    fn for_each(&self, range: Range<u64>, f: &mut dyn FnMut(Ids<'_>)) -> Result<()> {
        while range.start == 2 && !self.is_open.load(Ordering::SeqCst) {
            self.is_waiting.store(true, Ordering::SeqCst);
            sleep(Duration::from_millis(1));
        }
        self.memory.for_each(range, f)
    }

    fn copy_to(&self, start: u64, out: &mut [i64]) -> Result<()> {
        self.memory.copy_to(start, out)
    }

    fn find_documents(&self, check: Check<'_>) -> Result<()> {
        self.memory.find_documents(check)
    }

    fn for_each_boundary(&self, range: Range<u64>, f: &mut dyn FnMut(u64)) -> Result<()> {
        self.memory.for_each_boundary(range, f)
    }

    fn for_each_end(&self, check: Check<'_>, f: &mut dyn FnMut(u64)) -> Result<()> {
        self.memory.for_each_end(check, f)
    }
}

#[test]
fn a_wait_can_be_stopped_and_goes_on_later() {
    let memory = Memory::new(&[100], 64);
    let tokens = Arc::new(Gated { memory, is_waiting: false.into(), is_open: false.into() });
    let plan = |count| Plan::new(count, 1, 0, 1, true);
    let batches = Batches::new(Arc::<Gated>::clone(&tokens), PLAIN, plan, &mut || Ok(())).unwrap();
    let mut stream = stream(&Arc::new(batches), Cursor::default(), 1, 1);
    for _ in 0..2 {
        next(&mut stream);
        // A caller who takes his time, so that the thread is woken.
        sleep(Duration::from_millis(1));
    }
    while !tokens.is_waiting.load(Ordering::SeqCst) {
        sleep(Duration::from_millis(1));
    }
    assert_eq!(stream.next(&mut || Err(Error::Stopped)), Err(Error::Stopped));
    tokens.is_open.store(true, Ordering::SeqCst);
    assert_eq!(next(&mut stream).unwrap().inputs[0], 2);
}

#[test]
fn shares_that_make_no_sense_are_refused() {
    for (batch_size, rank, world_size, message) in [
        (0, 0, 1, "batch_size is 0, world_size is 1"),
        (1, 0, -1, "batch_size is 1, world_size is -1"),
        (1, 2, 2, "rank 2 is outside 0..1"),
        (1, -1, 2, "rank -1 is outside 0..1"),
        (i64::MAX, 0, 2, "on 2 ranks is more than can be counted"),
    ] {
        let error = Plan::new(10, batch_size, rank, world_size, true).unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
    }
    let plan = Plan::new(10, 1, 0, 1, true).unwrap();
    let error = Walk::new(plan, Cursor { epoch: 0, position: 11 }, 1, 0, 1).unwrap_err();
    assert_eq!(error.to_string(), "position 11 is behind the last of 10 windows");
}

/// More tokens than there can be.
#[derive(Debug)]
struct Endless;
impl TokenStream for Endless {
    fn len(&self) -> u64 {
        u64::MAX / 2
    }
    fn n_vocab(&self) -> usize {
        1
    }
    fn for_each(&self, _: Range<u64>, _: &mut dyn FnMut(Ids<'_>)) -> Result<()> {
        Ok(())
    }
    fn copy_to(&self, _: u64, _: &mut [i64]) -> Result<()> {
        Ok(())
    }
    fn find_documents(&self, _: Check<'_>) -> Result<()> {
        Ok(())
    }
    fn for_each_boundary(&self, _: Range<u64>, _: &mut dyn FnMut(u64)) -> Result<()> {
        Ok(())
    }
    fn for_each_end(&self, _: Check<'_>, _: &mut dyn FnMut(u64)) -> Result<()> {
        Ok(())
    }
}

#[test]
fn a_batch_that_no_memory_holds_is_an_error() {
    let settings = Settings { length: i64::MAX / 4, ..PLAIN };
    let plan = |count| Plan::new(count, 8, 0, 1, true);
    let batches = Batches::new(Arc::new(Endless), settings, plan, &mut || Ok(())).unwrap();
    let error = batches.fill(&Rows { epoch: 0, places: 0..8 }).unwrap_err();
    assert!(error.to_string().contains("does not fit into memory"), "{error}");
    let settings = Settings { positions: true, ..settings };
    let refused = Batches::new(Arc::new(Endless), settings, plan, &mut || Ok(())).unwrap_err();
    assert!(refused.to_string().contains("too large for cu_seqlens"), "{refused}");
}
