//! Which windows make up which batch: epochs, ranks, resuming; and filling batches ahead of time.
//!
//! ```text
//! order    5 0 7 2 │ 6 3 1 8 │ 4          an epoch's windows; `shuffle` says which is at which place
//! rank 0   5 0     │ 6 3     │            batch_size 2, world_size 2: a global batch takes 4 places
//! rank 1       7 2 │     1 8 │            a `Cursor` counts the places that are behind
//! ```
//!
//! The order depends on the tokens, the windows, the kind of shuffle, the seed and the epoch, and on
//! nothing else: not on ranks, batches or threads. So a cursor of two numbers is enough to go on, on
//! any number of ranks.
//!
//! `Batches::windows_at` alone turns a place into a window. Two things can join there later, each under a
//! name of its own in a saved state: several streams by weight, and a shuffle of two levels (blocks,
//! then windows in a few open blocks) for tokens on a slow disk.

mod ahead;
mod plan;
mod positions;
mod stream;

use std::ops::Range;
use std::sync::Arc;

pub use ahead::BatchStream;
pub use plan::{Cursor, Plan, Rows, Walk};
pub use positions::Positions;
pub use stream::TokenStream;

use crate::shuffle::Permutation;
use crate::store::Ids;
use crate::tokenizer::Check;
use crate::tokenizer::simd::prefetch;
use crate::windows::DocumentWindows;
use crate::{Error, Result, Windows};

/// The windows of so many tokens are asked for together: they fit into the processor's second cache.
const TOKENS_TOGETHER: usize = 1 << 15;

/// What memory is read by.
const LINE_BYTES: usize = 64;

/// Where a window may lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Boundary {
    /// Anywhere in the stream of all documents.
    Stream,
    /// Inside one document, its end-of-text included.
    Document,
}

/// What an epoch's windows are, and in which order they come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Tokens a window.
    pub length: i64,
    /// Tokens from one window's start to the next.
    pub stride: i64,
    /// Where a window may lie.
    pub boundary: Boundary,
    /// The seed of the order; windows come one after the other without one.
    pub seed: Option<u64>,
    /// Whether batches say where documents start in them.
    pub positions: bool,
}

/// Windows of a stream of tokens, rank by rank and batch by batch.
#[derive(Debug)]
pub struct Batches {
    tokens: Arc<dyn TokenStream>,
    windows: AnyWindows,
    length: usize,
    seed: Option<u64>,
    positions: bool,
    plan: Plan,
}

#[derive(Debug)]
enum AnyWindows {
    Stream(Windows),
    Document(DocumentWindows),
}

/// A batch of `rows` windows, row by row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// How many windows.
    pub rows: usize,
    /// Their tokens.
    pub inputs: Vec<i64>,
    /// The token that follows each of them.
    pub targets: Vec<i64>,
    /// Where documents start, if it was asked for.
    pub positions: Option<Positions>,
}

impl Batches {
    /// Batches of what `settings` say, shared out by `plan`: its arguments are the number of windows.
    ///
    /// Windows inside documents take one pass over the documents' ends.
    pub fn new(
        tokens: Arc<dyn TokenStream>,
        settings: Settings,
        plan: impl FnOnce(u64) -> Result<Plan>,
        check: Check<'_>,
    ) -> Result<Self> {
        let windows = Windows::new(tokens.len() as usize, settings.length, settings.stride)?;
        let windows = match settings.boundary {
            Boundary::Stream => AnyWindows::Stream(windows),
            Boundary::Document => {
                let mut documents = DocumentWindows::builder(windows);
                tokens.for_each_end(check, &mut |end| documents.add(end))?;
                AnyWindows::Document(documents.finish())
            }
        };
        if settings.positions {
            // Another program's file is searched for its documents here, where it can be stopped.
            tokens.find_documents(check)?;
        }
        let num_windows = match &windows {
            AnyWindows::Stream(windows) => windows.len() as u64,
            AnyWindows::Document(windows) => windows.count(),
        };
        let plan = plan(num_windows)?;
        let length = settings.length as usize;
        if settings.positions && plan.batch_size().saturating_mul(length as u64) > i32::MAX as u64 {
            return Err(Error::Setting(format!(
                "a batch of {} x {length} tokens is too large for cu_seqlens, which is int32",
                plan.batch_size()
            )));
        }
        let Settings { seed, positions, .. } = settings;
        Ok(Self { tokens, windows, length, seed, positions, plan })
    }

    /// How windows are shared out.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Tokens a window.
    pub fn length(&self) -> usize {
        self.length
    }

    /// How many tokens of the stream are in no window, neither as input nor as target.
    pub fn dropped_tokens(&self) -> u64 {
        match &self.windows {
            AnyWindows::Stream(windows) => windows.dropped_tokens() as u64,
            AnyWindows::Document(windows) => windows.dropped_tokens(),
        }
    }

    /// The window at each of these places of an epoch's order.
    pub fn windows_at(&self, rows: &Rows) -> Result<impl Iterator<Item = u64> + use<>> {
        let order = match self.seed {
            Some(seed) => Some(Permutation::new(self.plan.num_windows(), seed, rows.epoch)?),
            None => None,
        };
        Ok(rows.places.clone().map(move |place| order.map_or(place, |order| order.at(place))))
    }

    /// The batch of these rows.
    pub fn fill(&self, rows: &Rows) -> Result<Batch> {
        let num_rows = (rows.places.end - rows.places.start) as usize;
        let mut batch = Batch {
            rows: num_rows,
            inputs: self.buffer(num_rows)?,
            targets: self.buffer(num_rows)?,
            positions: None,
        };
        if self.positions {
            batch.positions = Some(Positions::new(self.buffer(num_rows)?));
        }
        let starts = self.windows_at(rows)?.map(|window| self.start(window));
        let starts = starts.collect::<Result<Vec<_>>>()?;
        for group in starts.chunks((TOKENS_TOGETHER / self.length).max(1)) {
            group.iter().try_for_each(|&start| self.ask_for(start))?;
            for &start in group {
                self.add_row(start..start + self.length as u64, &mut batch)?;
            }
        }
        if let Some(positions) = &mut batch.positions {
            positions.finish();
        }
        Ok(batch)
    }

    fn start(&self, window: u64) -> Result<u64> {
        match &self.windows {
            AnyWindows::Stream(windows) => Ok(windows.start(window as i64)? as u64),
            AnyWindows::Document(windows) => {
                windows.start(window, &|range, f| self.tokens.for_each_boundary(range, f))
            }
        }
    }

    /// Asks for a window's cache lines: those of all rows come from memory at once, while copying
    /// alone would wait for one row after the other.
    fn ask_for(&self, start: u64) -> Result<()> {
        self.tokens.for_each(start..start + self.length as u64, &mut |ids| match ids {
            Ids::U16(ids) => ids.iter().step_by(LINE_BYTES / 2).for_each(prefetch),
            Ids::U32(ids) => ids.iter().step_by(LINE_BYTES / 4).for_each(prefetch),
        })
    }

    /// Adds the tokens of `range`, and their targets.
    fn add_row(&self, range: Range<u64>, batch: &mut Batch) -> Result<()> {
        let (mut left, mut skip, mut highest) = (self.length, 1, 0);
        let Batch { inputs, targets, positions, .. } = batch;
        self.tokens.for_each(range.start..range.end + 1, &mut |ids| {
            // The last token is only a target, the first only an input.
            let (as_inputs, as_targets) = (..left.min(ids.len()), skip.min(ids.len())..);
            match ids {
                Ids::U16(ids) => {
                    inputs.extend(ids[as_inputs].iter().map(|&id| i64::from(id)));
                    targets.extend(ids[as_targets].iter().map(|&id| i64::from(id)));
                }
                Ids::U32(ids) => {
                    inputs.extend(ids[as_inputs].iter().map(|&id| i64::from(id)));
                    targets.extend(ids[as_targets].iter().map(|&id| i64::from(id)));
                }
            }
            left = left.saturating_sub(ids.len());
            skip = skip.saturating_sub(ids.len());
            highest = highest.max(ids.max().unwrap_or_default());
        })?;
        if highest as usize >= self.tokens.n_vocab() {
            // Another look, which says where it was found.
            self.tokens.copy_to(range.start, &mut vec![0; self.length + 1])?;
        }
        if let Some(positions) = positions {
            positions.add_row(range, &|range, f| self.tokens.for_each_boundary(range, f))?;
        }
        Ok(())
    }

    /// Room for a batch's tokens. Batches are never reused: whoever has one keeps it.
    fn buffer(&self, num_rows: usize) -> Result<Vec<i64>> {
        let mut buffer = Vec::new();
        let room = num_rows.checked_mul(self.length).ok_or(());
        room.and_then(|room| buffer.try_reserve_exact(room).map_err(drop)).map_err(|()| {
            Error::Setting(format!(
                "a batch of {num_rows} x {} tokens does not fit into memory",
                self.length
            ))
        })?;
        Ok(buffer)
    }
}

/// Copies the windows `indices` of `tokens` into `inputs` and their targets into `targets`, as
/// `Windows::fill` does from memory. A bad index writes nothing.
pub fn fill_windows(
    tokens: &dyn TokenStream,
    windows: &Windows,
    indices: &[i64],
    inputs: &mut [i64],
    targets: &mut [i64],
) -> Result<()> {
    windows.fill_rows(indices, inputs, targets, |start, input, target| {
        tokens.copy_to(start as u64, input)?;
        tokens.copy_to(start as u64 + 1, target)
    })
}

#[cfg(test)]
mod tests;
