//! What a store is made of: how often each token occurs, how long documents are.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::reader::TokenStore;
use super::tokens::Ids;
use crate::tokenizer::Check;
use crate::{Result, threads};

/// How many tokens a thread counts at a time.
const SPAN: u64 = 1 << 24;

/// Below this, lengths have a bin each; above, each octave has half as many bins.
const SINGLE: u64 = 16;

/// Documents of all lengths, by bins that are narrower than an eighth of what they hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lengths {
    /// How many documents are in each bin; bin `i` begins at `Lengths::bin_start(i)`.
    pub bins: Vec<u64>,
    /// The documents.
    pub count: u64,
    /// The tokens of the shortest document.
    pub shortest: u64,
    /// The tokens of the longest document.
    pub longest: u64,
}

impl Lengths {
    /// The shortest length in a bin.
    pub fn bin_start(bin: usize) -> u64 {
        let (bin, half) = (bin as u64, SINGLE / 2);
        match bin.checked_sub(SINGLE) {
            None => bin,
            Some(above) => (half + above % half) << (above / half + 1),
        }
    }

    fn bin_of(length: u64) -> usize {
        let octave = length.checked_ilog2().unwrap_or_default().saturating_sub(SINGLE.ilog2() - 1);
        let half = SINGLE / 2;
        (u64::from(octave) * half + (length >> octave)) as usize
    }

    fn add(&mut self, length: u64) {
        let bin = Self::bin_of(length);
        self.bins.resize(self.bins.len().max(bin + 1), 0);
        self.bins[bin] += 1;
        self.shortest = if self.count == 0 { length } else { self.shortest.min(length) };
        self.longest = self.longest.max(length);
        self.count += 1;
    }
}

impl TokenStore {
    /// How often each id occurs in `range`, counted on `threads` threads. `tokens_done` counts along.
    ///
    /// # Errors
    /// Those of all that reads, and those of `check`.
    pub fn token_counts(
        &self,
        range: Range<u64>,
        threads: usize,
        tokens_done: &AtomicU64,
        check: Check<'_>,
    ) -> Result<Vec<u64>> {
        self.tokens.check_range(&range)?;
        let n_vocab = self.manifest().tokenizer.n_vocab;
        let total = Mutex::new(vec![0_u64; n_vocab]);
        let spans = (range.end - range.start).div_ceil(SPAN) as usize;
        threads::for_each(spans, threads, check, |span, check| {
            let start = range.start + span as u64 * SPAN;
            // A span's counts fit in 32 bits, and those of a common vocabulary in the cache.
            let mut counts = vec![0_u32; n_vocab];
            self.tokens.for_each_block(start..range.end.min(start + SPAN), |_, shard, ids| {
                self.tokens.check_ids(shard, ids)?;
                match ids {
                    Ids::U16(ids) => ids.iter().for_each(|&id| counts[usize::from(id)] += 1),
                    Ids::U32(ids) => ids.iter().for_each(|&id| counts[id as usize] += 1),
                }
                tokens_done.fetch_add(ids.len() as u64, Ordering::Relaxed);
                check()
            })?;
            let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
            total.iter_mut().zip(counts).for_each(|(total, count)| *total += u64::from(count));
            Ok(())
        })?;
        Ok(total.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// How long the documents are, their end-of-text included.
    ///
    /// # Errors
    /// Those of all that reads, and those of `check`.
    pub fn document_lengths(&self, check: Check<'_>) -> Result<Lengths> {
        let (mut lengths, mut start) = (Lengths::default(), 0);
        self.for_each_end(check, &mut |end| {
            lengths.add(end.saturating_sub(start));
            start = end;
        })?;
        Ok(lengths)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_length_is_in_a_bin_that_begins_at_most_an_eighth_below_it(
            length in prop_oneof![0u64..100, any::<u64>()],
        ) {
            let bin = Lengths::bin_of(length);
            prop_assert!(Lengths::bin_start(bin) <= length);
            prop_assert!(length - Lengths::bin_start(bin) <= length / 8);
            let next = u128::from(Lengths::bin_start(bin)) + u128::from(length / 8) + 1;
            prop_assert!(bin + 1 > 480 || u128::from(Lengths::bin_start(bin + 1)) <= next);
        }
    }

    #[test]
    fn bins_follow_each_other_without_a_gap() {
        for bin in 0..480 {
            assert_eq!(Lengths::bin_of(Lengths::bin_start(bin)), bin);
            assert_eq!(Lengths::bin_of(Lengths::bin_start(bin + 1) - 1), bin);
        }
    }
}
