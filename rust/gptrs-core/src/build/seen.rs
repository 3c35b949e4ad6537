//! The hashes seen so far, exactly, in bounded memory: a table, and what it spilled to the disk.
//!
//! ```text
//!   table    open addressing; a key's place is its share of 2^128, so no hash of a hash is needed
//!     │ full
//!   runs     sorted files; eight of a level become one of the next
//!   filter   a few bits for each spilled key: most new keys need no look at the disk
//! ```
//!
//! Nothing here outlives the process: a build that goes on fills it again.

mod filter;
mod run;
mod table;

use std::fs;
use std::path::{Path, PathBuf};

use filter::Filter;
use run::{Run, merge};
use table::Table;

use crate::Result;
use crate::store::files::{create_folder, failed};
use crate::tokenizer::Check;

/// The slots that a table starts with.
const FIRST_SLOTS: usize = 1 << 10;

/// How many runs of a level become one of the next.
const FAN_IN: usize = 8;

/// The name of the folder for what is spilled.
const FOLDER: &str = "seen";

/// A set of hashes that are spread evenly, as XXH3-128 spreads them.
pub struct Seen {
    folder: PathBuf,
    table: Table,
    most_slots: usize,
    filter: Filter,
    filter_bytes: usize,
    /// From the largest to the smallest.
    runs: Vec<Run>,
    num_spilled: u64,
}

impl Seen {
    /// An empty set that takes about `memory_bytes`. What it spills goes to a folder of its own in
    /// `dir`; one that is there already is removed.
    ///
    /// # Errors
    /// `Error::Store`: the old folder cannot be removed.
    pub fn new(dir: &Path, memory_bytes: usize) -> Result<Self> {
        let folder = dir.join(FOLDER);
        if folder.exists() {
            fs::remove_dir_all(&folder).map_err(|error| failed(&folder, "removed", &error))?;
        }
        // A table that grows needs half as much again, until there is a filter.
        let most_slots = (memory_bytes / 2 / size_of::<u128>()).max(8);
        Ok(Self {
            folder,
            table: Table::new(most_slots.min(FIRST_SLOTS)),
            most_slots,
            filter: Filter::default(),
            filter_bytes: memory_bytes / 4,
            runs: Vec::new(),
            num_spilled: 0,
        })
    }

    /// Adds a hash. `false`: it was there.
    ///
    /// # Errors
    /// `Error::Store`: it cannot be spilled or looked up; the set is of no use any more. The same for
    /// an error of `check`, which is called while it spills.
    pub fn insert(&mut self, key: u128, check: Check<'_>) -> Result<bool> {
        let Some(slot) = self.table.free_slot(key) else { return Ok(false) };
        if self.filter.may_have(key) {
            for run in &self.runs {
                if run.contains(key)? {
                    return Ok(false);
                }
            }
        }
        self.table.put(slot, key);
        if self.table.is_full() {
            if self.table.slots.len() < self.most_slots {
                self.table.grow(self.most_slots);
            } else {
                self.spill(check)?;
            }
        }
        Ok(true)
    }

    /// Reads the slots that `keys` will need, so that the memory answers all at once.
    pub fn prepare(&self, keys: impl IntoIterator<Item = u128>) {
        let slots = keys.into_iter().map(|key| self.table.slots[self.table.place(key)]);
        std::hint::black_box(slots.fold(0, |sum, slot| sum ^ slot));
    }

    /// Writes the table as a run, and joins runs.
    fn spill(&mut self, check: Check<'_>) -> Result<()> {
        create_folder(&self.folder)?;
        if self.filter.is_empty() {
            self.filter = Filter::new(self.filter_bytes);
        }
        check()?;
        let path = self.next_path();
        let keys = self.table.sort();
        for key in keys {
            self.filter.add(*key);
        }
        self.runs.push(Run::write(path, keys)?);
        self.table.clear(self.most_slots);
        while let Some(from) = self.runs.len().checked_sub(FAN_IN)
            && self.runs[from].level == self.runs[from + FAN_IN - 1].level
        {
            let path = self.next_path();
            let run = merge(path, &self.runs[from..], check)?;
            self.runs.drain(from..).try_for_each(Run::remove)?;
            self.runs.push(run);
        }
        Ok(())
    }

    fn next_path(&mut self) -> PathBuf {
        self.num_spilled += 1;
        self.folder.join(format!("run-{:06}", self.num_spilled))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::Error;
    use crate::store::scratch::Scratch;

    /// Keys as XXH3-128 spreads them, many of which come again.
    fn keys() -> impl Strategy<Value = Vec<u128>> {
        let spread = |number: u32| {
            u128::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)
        };
        let key =
            prop_oneof![8 => (0..2000_u32).prop_map(spread), 1 => any::<u128>(), 1 => 0..4_u128];
        prop::collection::vec(key, 0..3000)
    }

    fn insert_all(seen: &mut Seen, keys: &[u128]) -> Vec<bool> {
        keys.iter().map(|key| seen.insert(*key, &mut || Ok(())).unwrap()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn each_key_is_new_once_however_little_memory_there_is(
            keys in keys(),
            memory_bytes in prop_oneof![0..4096_usize, Just(1 << 20)],
        ) {
            let dir = Scratch::new();
            let mut seen = Seen::new(dir.path(), memory_bytes).unwrap();
            let mut expected = BTreeSet::new();
            for key in keys {
                seen.prepare([key]);
                prop_assert_eq!(seen.insert(key, &mut || Ok(())), Ok(expected.insert(key)));
            }
        }

        #[test]
        fn keys_that_are_not_spread_evenly_are_found_as_well(
            near in prop::collection::btree_set(0..1_000_000_u128, 600),
            far in any::<u128>(),
        ) {
            let dir = Scratch::new();
            let mut keys: Vec<u128> = near.iter().copied().chain([u128::MAX]).collect();
            let run = Run::write(dir.path().join("run"), &keys).unwrap();
            keys.push(far);
            for key in keys {
                for key in [key, key.wrapping_add(1)] {
                    let expected = near.contains(&key) || key == u128::MAX;
                    prop_assert_eq!(run.contains(key), Ok(expected));
                }
            }
        }
    }

    #[test]
    fn runs_stay_few_and_nothing_of_them_is_left_by_the_next_set() {
        let dir = Scratch::new();
        let mut seen = Seen::new(dir.path(), 0).unwrap();
        let keys: Vec<u128> = (1..20_000).map(|number| number << 109).collect();
        assert!(insert_all(&mut seen, &keys).into_iter().all(|new| new));
        let files = fs::read_dir(dir.path().join(FOLDER)).unwrap().count();
        assert_eq!(files, seen.runs.len());
        assert!(files < 5 * FAN_IN, "{files}");
        assert!(!insert_all(&mut seen, &keys).into_iter().any(|new| new));
        let mut next = Seen::new(dir.path(), 0).unwrap();
        assert!(!dir.path().join(FOLDER).exists());
        assert!(insert_all(&mut next, &keys[..100]).into_iter().all(|new| new));
    }

    #[test]
    fn an_error_of_the_check_ends_a_spill_and_arrives_unchanged() {
        let dir = Scratch::new();
        let mut seen = Seen::new(dir.path(), 0).unwrap();
        let mut insert = |key| seen.insert(key, &mut || Err(Error::Stopped));
        assert_eq!(
            (1..100).map(|key| insert(key << 100)).find(|added| *added != Ok(true)),
            Some(Err(Error::Stopped))
        );
    }

    /// Not a test of speed, but where its figures come from: `cargo test --release -- --ignored`.
    #[test]
    #[ignore = "prints figures"]
    fn prints_how_long_inserting_takes() {
        for (memory_bytes, num_keys) in [(1 << 30, 10_000_000), (64 << 20, 20_000_000)] {
            let dir = Scratch::new();
            let mut seen = Seen::new(dir.path(), memory_bytes).unwrap();
            let start = std::time::Instant::now();
            // As many as documents in a block.
            for first in (0..num_keys).step_by(1000) {
                let hash = |number: u64| xxhash_rust::xxh3::xxh3_128(&number.to_le_bytes());
                let keys: Vec<u128> = (first..first + 1000).map(hash).collect();
                seen.prepare(keys.iter().copied());
                for key in keys {
                    assert!(seen.insert(key, &mut || Ok(())).unwrap());
                }
            }
            let ns = start.elapsed().as_nanos() as f64 / num_keys as f64;
            println!("{memory_bytes} bytes: {ns:.0} ns an insert, {} runs", seen.runs.len());
        }
    }
}
