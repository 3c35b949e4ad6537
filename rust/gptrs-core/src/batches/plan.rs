//! How an epoch's windows are shared out among ranks and batches: arithmetic alone.

use std::ops::Range;

use crate::{Error, Result};

/// The shares of one rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    num_windows: u64,
    batch_size: u64,
    rank: u64,
    world_size: u64,
    drop_last: bool,
}

/// How far all ranks together have come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cursor {
    /// Counted from 0.
    pub epoch: u64,
    /// How many windows of this epoch's order are behind.
    pub position: u64,
}

/// The places of the order that are one batch of one rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rows {
    /// Whose order it is.
    pub epoch: u64,
    /// The places.
    pub places: Range<u64>,
}

impl Plan {
    /// The share of rank `rank` of `world_size`, in batches of `batch_size` windows.
    ///
    /// Where the windows are no multiple of a global batch, the rest is dropped, or else shared
    /// evenly: each rank's last batch has the same size, and less than one window a rank is dropped.
    pub fn new(
        num_windows: u64,
        batch_size: i64,
        rank: i64,
        world_size: i64,
        drop_last: bool,
    ) -> Result<Self> {
        let refused = |reason: String| Err(Error::Setting(reason));
        if batch_size < 1 || world_size < 1 {
            return refused(format!(
                "batch_size and world_size are at least 1; batch_size is {batch_size}, world_size \
                 is {world_size}"
            ));
        }
        if rank < 0 || rank >= world_size {
            return refused(format!("rank {rank} is outside 0..{}", world_size - 1));
        }
        if batch_size.checked_mul(world_size).is_none() {
            return refused(format!(
                "batch_size {batch_size} on {world_size} ranks is more than can be counted"
            ));
        }
        let [batch_size, rank, world_size] = [batch_size, rank, world_size].map(i64::unsigned_abs);
        Ok(Self { num_windows, batch_size, rank, world_size, drop_last })
    }

    /// How many windows an epoch has.
    pub fn num_windows(&self) -> u64 {
        self.num_windows
    }

    /// Windows a batch.
    pub fn batch_size(&self) -> u64 {
        self.batch_size
    }

    /// How many batches each rank gets in an epoch.
    pub fn batches_per_epoch(&self) -> u64 {
        self.num_windows / self.global_batch() + u64::from(self.last_batch() > 0)
    }

    /// How many windows of an epoch are in no batch.
    pub fn dropped_windows(&self) -> u64 {
        self.num_windows % self.global_batch() - self.last_batch() * self.world_size
    }

    /// The rows of the batch that starts at `position` of an epoch, and the position behind it.
    pub fn batch_at(&self, position: u64) -> Option<(Range<u64>, u64)> {
        let left = self.num_windows.saturating_sub(position);
        let (rows, after) = if left >= self.global_batch() {
            (self.batch_size, position + self.global_batch())
        } else {
            (self.share(left), self.num_windows)
        };
        let first = position + self.rank * rows;
        (rows > 0).then_some((first..first + rows, after))
    }

    fn global_batch(&self) -> u64 {
        self.batch_size * self.world_size
    }

    fn last_batch(&self) -> u64 {
        self.share(self.num_windows % self.global_batch())
    }

    /// Each rank's part of a last batch.
    fn share(&self, left: u64) -> u64 {
        if self.drop_last { 0 } else { left / self.world_size }
    }
}

/// The way through the batches of one epoch or several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Walk {
    plan: Plan,
    cursor: Cursor,
    end_epoch: u64,
    step: u64,
}

impl Walk {
    /// From `cursor` on up to epoch `end_epoch`, which is not part of it.
    ///
    /// `skip` batches are left out first, and of each `step` batches all but one: what one worker of
    /// several does.
    pub fn new(plan: Plan, cursor: Cursor, end_epoch: u64, skip: u64, step: u64) -> Result<Self> {
        if cursor.position > plan.num_windows {
            return Err(Error::Setting(format!(
                "position {} is behind the last of {} windows",
                cursor.position, plan.num_windows
            )));
        }
        let walk = Self { plan, cursor, end_epoch, step: step.max(1) };
        Ok(walk.moved(skip))
    }

    /// Where the next batch is looked for.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// The next batch, and the rest of the way.
    pub fn next(&self) -> Option<(Rows, Self)> {
        let (rows, rest) = self.one()?;
        Some((rows, rest.moved(self.step - 1)))
    }

    fn one(mut self) -> Option<(Rows, Self)> {
        while self.cursor.epoch < self.end_epoch {
            let Cursor { epoch, position } = self.cursor;
            if let Some((places, after)) = self.plan.batch_at(position) {
                self.cursor.position = after;
                return Some((Rows { epoch, places }, self));
            }
            if self.plan.batches_per_epoch() == 0 {
                return None;
            }
            self.cursor = Cursor { epoch: epoch + 1, position: 0 };
        }
        None
    }

    /// The way without its first batches; at its end if it has fewer.
    fn moved(mut self, batches: u64) -> Self {
        for _ in 0..batches {
            let Some((_, rest)) = self.one() else {
                return self.ended();
            };
            self = rest;
        }
        self
    }

    fn ended(mut self) -> Self {
        let last = self.end_epoch.saturating_sub(1);
        if self.cursor.epoch <= last {
            self.cursor = Cursor { epoch: last, position: self.plan.num_windows };
        }
        self
    }
}
