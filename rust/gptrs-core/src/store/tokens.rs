//! One stream of ids over many files: a range of it, wherever the files' borders are.

use std::ops::Range;
use std::path::Path;

use super::Dtype;
use super::files::refused;
use super::region::Region;
use crate::tokenizer::Check;
use crate::{Error, Result};

/// How many tokens are looked at between two calls of a check, where there may be many.
pub const BLOCK: u64 = 1 << 18;

/// Token ids as they lie in a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ids<'a> {
    /// Of a store of uint16.
    U16(&'a [u16]),
    /// Of a store of uint32.
    U32(&'a [u32]),
}

impl<'a> Ids<'a> {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::U16(ids) => ids.len(),
            Self::U32(ids) => ids.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Some of them.
    #[must_use]
    pub fn slice(self, range: Range<usize>) -> Self {
        match self {
            Self::U16(ids) => Self::U16(&ids[range]),
            Self::U32(ids) => Self::U32(&ids[range]),
        }
    }

    /// All of them, one by one.
    pub fn iter(self) -> impl Iterator<Item = u32> + 'a {
        let (short, long) = match self {
            Self::U16(ids) => (ids, &[][..]),
            Self::U32(ids) => (&[][..], ids),
        };
        short.iter().map(|&id| u32::from(id)).chain(long.iter().copied())
    }

    /// The highest.
    pub fn max(self) -> Option<u32> {
        // A fold over the bare integers becomes vector instructions; `Iterator::max` does not.
        match self {
            Self::U16([]) | Self::U32([]) => None,
            Self::U16(ids) => Some(ids.iter().fold(0, |max: u16, &id| max.max(id)).into()),
            Self::U32(ids) => Some(ids.iter().fold(0, |max, &id| max.max(id))),
        }
    }

    fn widen(self, to: &mut [i64]) {
        match self {
            Self::U16(ids) => to.iter_mut().zip(ids).for_each(|(to, &id)| *to = id.into()),
            Self::U32(ids) => to.iter_mut().zip(ids).for_each(|(to, &id)| *to = id.into()),
        }
    }
}

/// Token ids that were copied out of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OwnedIds {
    /// Of a store of uint16.
    U16(Vec<u16>),
    /// Of a store of uint32.
    U32(Vec<u32>),
}

/// The files that hold a stream, in order.
#[derive(Debug)]
pub struct Tokens {
    shards: Vec<Region>,
    /// Where each file's tokens start; and last, where all end.
    starts: Vec<u64>,
    dtype: Dtype,
    n_vocab: usize,
}

impl Tokens {
    /// Each region with the number of its ids.
    pub fn new(shards: Vec<(Region, u64)>, dtype: Dtype, n_vocab: usize) -> Self {
        let mut starts = vec![0; shards.len() + 1];
        for (index, (_, count)) in shards.iter().enumerate() {
            starts[index + 1] = starts[index] + count;
        }
        let shards = shards.into_iter().map(|(region, _)| region).collect();
        Self { shards, starts, dtype, n_vocab }
    }

    pub fn len(&self) -> u64 {
        self.starts.last().copied().unwrap_or_default()
    }

    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    pub fn shards(&self) -> &[Region] {
        &self.shards
    }

    /// The shard that has token `index`, or the last one with tokens if that is where all end.
    pub fn shard_of(&self, index: u64) -> usize {
        let after = self.starts.partition_point(|&start| start <= index);
        after.saturating_sub(1).min(self.shards.len().saturating_sub(1))
    }

    /// The ids of one shard.
    pub fn ids(&self, shard: usize) -> Result<Ids<'_>> {
        ids_of(&self.shards[shard], self.dtype)
    }

    /// Calls `f` with the ids in `range`, shard by shard, and with the shard's number.
    pub fn for_each<'a>(
        &'a self,
        range: Range<u64>,
        mut f: impl FnMut(usize, Ids<'a>) -> Result<()>,
    ) -> Result<()> {
        self.check_range(&range)?;
        let (mut at, mut shard) = (range.start, self.shard_of(range.start));
        while at < range.end {
            let (start, end) = (self.starts[shard], self.starts[shard + 1].min(range.end));
            if at < end {
                f(shard, self.ids(shard)?.slice((at - start) as usize..(end - start) as usize))?;
                at = end;
            }
            shard += 1;
        }
        Ok(())
    }

    /// As `for_each`, in portions of `BLOCK` tokens at most, each with where it starts.
    pub fn for_each_block(
        &self,
        range: Range<u64>,
        mut f: impl FnMut(u64, usize, Ids<'_>) -> Result<()>,
    ) -> Result<()> {
        let mut at = range.start;
        self.check_range(&range)?;
        while at < range.end {
            let end = range.end.min(at + BLOCK);
            self.for_each(at..end, |shard, ids| {
                f(at, shard, ids)?;
                at += ids.len() as u64;
                Ok(())
            })?;
        }
        Ok(())
    }

    /// The ids in `range` where they lie, if that is in one shard. They are not checked.
    pub fn slice(&self, range: Range<u64>) -> Result<Option<Ids<'_>>> {
        self.check_range(&range)?;
        if self.shards.is_empty() {
            return Ok(None);
        }
        let shard = self.shard_of(range.start);
        let (start, end) = (self.starts[shard], self.starts[shard + 1]);
        if range.end > end {
            return Ok(None);
        }
        let inside = (range.start - start) as usize..(range.end - start) as usize;
        Ok(Some(self.ids(shard)?.slice(inside)))
    }

    /// The ids in `range`, copied and checked.
    pub fn copied(&self, range: Range<u64>, check: Check<'_>) -> Result<OwnedIds> {
        self.check_range(&range)?;
        let (len, shorts, longs) = ((range.end - range.start) as usize, &mut vec![], &mut vec![]);
        match self.dtype {
            Dtype::Uint16 => shorts.reserve_exact(len),
            Dtype::Uint32 => longs.reserve_exact(len),
        }
        self.for_each_block(range, |_, shard, ids| {
            self.check_ids(shard, ids)?;
            match ids {
                Ids::U16(ids) => shorts.extend_from_slice(ids),
                Ids::U32(ids) => longs.extend_from_slice(ids),
            }
            check()
        })?;
        Ok(match self.dtype {
            Dtype::Uint16 => OwnedIds::U16(std::mem::take(shorts)),
            Dtype::Uint32 => OwnedIds::U32(std::mem::take(longs)),
        })
    }

    /// Copies tokens from `start` on into `out`, and checks them.
    pub fn copy_to(&self, start: u64, out: &mut [i64]) -> Result<()> {
        let mut rest = out;
        self.for_each(start..start.saturating_add(rest.len() as u64), |shard, ids| {
            let (to, later) = std::mem::take(&mut rest).split_at_mut(ids.len());
            self.check_ids(shard, ids)?;
            ids.widen(to);
            rest = later;
            Ok(())
        })
    }

    /// Refuses ids that the vocabulary does not have; `ids` are of that shard.
    pub fn check_ids(&self, shard: usize, ids: Ids<'_>) -> Result<()> {
        match ids.max() {
            Some(max) if max as usize >= self.n_vocab => {
                Err(out_of_range(self.shards[shard].path(), max, self.n_vocab))
            }
            _ => Ok(()),
        }
    }

    /// Refuses a range that the stream does not have.
    pub fn check_range(&self, range: &Range<u64>) -> Result<()> {
        let len = self.len();
        if range.start <= range.end && range.end <= len {
            return Ok(());
        }
        let (start, end) = (range.start, range.end);
        Err(Error::Setting(format!("tokens {start}..{end} were asked for, and there are {len}")))
    }
}

/// The ids in a file.
pub fn ids_of(region: &Region, dtype: Dtype) -> Result<Ids<'_>> {
    Ok(match dtype {
        Dtype::Uint16 => Ids::U16(region.values()?),
        Dtype::Uint32 => Ids::U32(region.values()?),
    })
}

/// An id that is none.
pub fn out_of_range(path: &Path, id: u32, n_vocab: usize) -> Error {
    let last = n_vocab.saturating_sub(1);
    refused(path, format!("has the token id {id}, outside the vocabulary's 0..{last}"))
}
