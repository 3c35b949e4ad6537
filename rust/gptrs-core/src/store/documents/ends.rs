//! Ends in a file for each shard, relative to the shard's first token.

use std::ops::Range;

use crate::Result;
use crate::store::Shard;
use crate::store::files::refused;
use crate::store::region::Region;
use crate::tokenizer::Check;

/// One file of ends for each shard.
#[derive(Debug)]
pub struct Ends {
    shards: Vec<Region>,
    /// Where each shard's tokens start; and last, where all end.
    starts: Vec<u64>,
    /// How many documents end before each shard; and last, how many there are.
    counts: Vec<u64>,
}

impl Ends {
    pub fn new(shards: Vec<Region>, manifest: &[Shard]) -> Self {
        let sums = |count: fn(&Shard) -> u64| {
            let mut sum = 0;
            let next = |shard| {
                sum += count(shard);
                sum
            };
            std::iter::once(0).chain(manifest.iter().map(next)).collect()
        };
        let (starts, counts) = (sums(|shard| shard.num_tokens), sums(|shard| shard.num_documents));
        Self { shards, starts, counts }
    }

    pub fn shards(&self) -> &[Region] {
        &self.shards
    }

    pub fn count(&self) -> u64 {
        self.counts.last().copied().unwrap_or_default()
    }

    /// Where document `index` ends; there is such a document.
    pub fn end(&self, index: u64) -> Result<u64> {
        let shard = self.counts.partition_point(|&count| count <= index) - 1;
        let ends = self.shards[shard].values::<u64>()?;
        self.absolute(shard, ends[(index - self.counts[shard]) as usize])
    }

    pub fn for_each_in(&self, range: Range<u64>, f: &mut dyn FnMut(u64)) -> Result<()> {
        // An end at a shard's very end is that shard's: those of the next lie behind its start.
        let first = self.starts.partition_point(|&start| start <= range.start).saturating_sub(1);
        for shard in first..self.shards.len() {
            let start = self.starts[shard];
            if start + 1 >= range.end {
                break;
            }
            let ends = self.shards[shard].values::<u64>()?;
            let from = ends.partition_point(|&end| start.saturating_add(end) <= range.start);
            for &end in &ends[from..] {
                let end = self.absolute(shard, end)?;
                if end >= range.end {
                    return Ok(());
                }
                f(end);
            }
        }
        Ok(())
    }

    pub fn for_each(&self, check: Check<'_>, f: &mut dyn FnMut(u64) -> Result<()>) -> Result<()> {
        for (shard, region) in self.shards.iter().enumerate() {
            let ends = region.values::<u64>()?.iter().map(|&end| self.absolute(shard, end));
            super::each_checked(ends, check, f)?;
        }
        Ok(())
    }

    fn absolute(&self, shard: usize, end: u64) -> Result<u64> {
        let (start, next) = (self.starts[shard], self.starts[shard + 1]);
        if end > next - start {
            let reason = format!("a document ends at {end}, and the shard at {}", next - start);
            return Err(refused(self.shards[shard].path(), reason));
        }
        Ok(start + end)
    }
}
