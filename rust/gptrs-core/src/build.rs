//! Inputs to a store: read, encoded on many threads, written in order, resumable at any instant.
//!
//! ```text
//!   plan ─► feed ─► blocks ─► threads: encoding ─► in order: output ─► shards ─► finish
//!                                                     │  kept? which side?
//!                                                     └─► seen, progress.json
//! ```
//!
//! The bytes depend on the inputs, the tokenizer and the settings alone: not on threads, memory, or
//! how often a build was stopped and continued. Everything lies in `DIR/.building` until all of it
//! is done.

mod encoding;
mod feed;
mod finish;
mod folder;
mod merge;
mod options;
mod output;
mod pipeline;
mod plan;
mod progress;
mod rows;
mod schedule;
mod seen;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64;

use crate::source::{Input, Kind, Start};
use crate::store::TokenizerInfo;
use crate::tokenizer::{Check, END_OF_TEXT, Tokenizer, file};
use crate::{Error, Result};
use encoding::Rules;
use feed::Files;
use finish::{ALL, Finished, SIDES};
use folder::{Folder, holds_store_already};
use output::{Output, OutputSettings};
use pipeline::Pipeline;
use plan::Plan;
use progress::Progress;
use rows::{Rows, Unfit};
use schedule::Schedule;

pub use merge::{Merge, Progress as MergeProgress};
pub use options::Options;
pub use progress::Counts;

/// What is read and encoded at a time.
const BLOCK_BYTES: usize = 1 << 20;

/// How often progress is saved.
const SAVE_EVERY: Duration = Duration::from_secs(5);

/// How many blocks of rows a thread gets before they are encoded.
const ROW_BLOCKS: usize = 8;

/// What only tests change.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    block_bytes: usize,
    save_every: Duration,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { block_bytes: BLOCK_BYTES, save_every: SAVE_EVERY }
    }
}

/// A build that is under way.
pub struct Builder {
    tokenizer: Arc<Tokenizer>,
    tokenizer_json: String,
    options: Options,
    plan: Plan,
    rules: Rules,
    /// The inputs that this part has.
    range: Range<usize>,
    blocks_budget: usize,
    state: State,
    /// The rows of the input that is being handed over.
    rows: Option<Rows>,
    counts: Arc<Mutex<Counts>>,
}

enum State {
    Building(Box<Output>),
    /// All shards are final.
    Finished(Folder, Vec<Finished>),
    Closed,
}

impl Builder {
    /// Begins a build in the folder `out`, or goes on with the one that was begun there.
    ///
    /// # Errors
    /// `Error::Setting`: an option makes no sense. `Error::File`: an input is missing, or is a
    /// folder. `Error::Store`: `out` holds a store, or a build with another plan, or another process
    /// builds there, or it cannot be written. Those of `check`.
    pub fn open(
        out: &Path,
        tokenizer: Arc<Tokenizer>,
        name: &str,
        inputs: &[Input],
        options: Options,
        check: Check<'_>,
    ) -> Result<Self> {
        Self::open_with(out, tokenizer, name, inputs, options, Sizes::default(), check)
    }

    fn open_with(
        out: &Path,
        tokenizer: Arc<Tokenizer>,
        name: &str,
        inputs: &[Input],
        options: Options,
        sizes: Sizes,
        check: Check<'_>,
    ) -> Result<Self> {
        options.check()?;
        let description = tokenizer.description();
        let tokenizer_json = file::to_json(&description)?;
        let info = TokenizerInfo {
            name: name.to_owned(),
            fingerprint: description.fingerprint(),
            n_vocab: tokenizer.n_vocab(),
            end_of_text: tokenizer.special_id(END_OF_TEXT).map(u32::from),
            json_xxh3: xxh3_64(tokenizer_json.as_bytes()),
        };
        let plan = Plan::new(info, inputs, &options)?;
        let range = plan.inputs_of(options.task);
        let rules = rules(&tokenizer, &plan, &options, sizes.block_bytes);
        let (blocks_budget, seen_bytes) = options.shares_of_memory();
        let folder = folder_for(out, &plan)?;
        let (state, counts) = if let Some(finished) = folder.read_finished::<Vec<Finished>>()? {
            let counts = finish::counts(&finished, plan.bytes_before(&range)[range.end]);
            (State::Finished(folder, finished), Arc::new(Mutex::new(counts)))
        } else {
            let settings = OutputSettings {
                shard_tokens: options.shard_tokens,
                deduplicate: options.deduplicate,
                min_chars: options.min_chars,
                end_of_text: rules.end_of_text,
                streams: streams(&options).to_vec(),
                seen_bytes,
                save_every: sizes.save_every,
                bytes_before: plan.bytes_before(&range),
            };
            let progress: Option<Progress> = folder.read_progress()?;
            let mut output = Output::open(folder, settings, progress.unwrap_or_default(), check)?;
            output.begin_input(range.start);
            let counts = output.counts();
            (State::Building(Box::new(output)), counts)
        };
        Ok(Self {
            tokenizer,
            tokenizer_json,
            options,
            plan,
            rules,
            range,
            blocks_budget,
            state,
            rows: None,
            counts,
        })
    }

    /// The first input that is not done.
    pub fn next_input(&self) -> Option<usize> {
        let State::Building(output) = &self.state else { return None };
        let input = output.progress().position.input;
        self.range.contains(&input).then_some(input)
    }

    /// How many rows of `next_input` are done.
    pub fn rows_done(&self) -> u64 {
        match &self.state {
            State::Building(output) => output.progress().position.lines,
            _ => 0,
        }
    }

    /// What is done so far, to be looked at while this works.
    pub fn counts(&self) -> Arc<Mutex<Counts>> {
        Arc::clone(&self.counts)
    }

    /// The bytes of all inputs of this part, as far as they are files.
    pub fn total_bytes(&self) -> u64 {
        self.plan.bytes_before(&self.range)[self.range.end]
    }

    /// Builds all files up to the next input of rows.
    ///
    /// # Errors
    /// `Error::File`, `Error::NotUtf8`, `Error::Row`: an input cannot be read or used, or has
    /// changed; all before the block that has it is done. `Error::Store`: the output cannot be
    /// written. Those of `check`. After any of them a new builder goes on.
    pub fn add_files(&mut self, check: Check<'_>) -> Result<()> {
        let Some(first) = self.next_input() else { return Ok(()) };
        let left = &self.plan.inputs[first..self.range.end];
        let num_files = left.iter().take_while(|input| input.kind != Kind::Rows).count();
        let range = first..first + num_files;
        let schedule = self.schedule(range.clone());
        self.run(range, schedule, check)
    }

    /// Builds rows of `next_input`, the first of which has the number `first`; `None` is a row that
    /// is no text. Rows that are done are passed over. Some wait for those that come next.
    ///
    /// # Errors
    /// As `add_files`. `Error::Setting`: rows are missing in between. `Error::Store`: the rows
    /// before are not those that this build was begun with, as far as they are handed over again.
    pub fn add_rows<'t>(
        &mut self,
        texts: impl IntoIterator<Item = Option<&'t str>>,
        first: u64,
        check: Check<'_>,
    ) -> Result<()> {
        let State::Building(output) = &self.state else { return Ok(()) };
        let (position, block_bytes) = (output.progress().position, self.rules.block_bytes);
        let rows = self.rows.get_or_insert_with(|| Rows::new(position, first, block_bytes));
        let pushed = rows.push(texts, first);
        let is_enough = rows.pending_bytes() >= ROW_BLOCKS * self.options.threads * block_bytes;
        pushed.map_err(|unfit| self.unfit(unfit, first))?;
        if is_enough { self.encode_rows(check) } else { Ok(()) }
    }

    /// `next_input` has no more rows.
    ///
    /// # Errors
    /// As `add_rows`.
    pub fn end_rows(&mut self, check: Check<'_>) -> Result<()> {
        // Without any, the caller knew that all of them were done.
        let ended = self.rows.as_mut().map_or(Ok(()), Rows::end);
        ended.map_err(|unfit| self.unfit(unfit, 0))?;
        self.encode_rows(check)?;
        self.rows = None;
        if let State::Building(output) = &mut self.state {
            output.end_input();
        }
        Ok(())
    }

    fn encode_rows(&mut self, check: Check<'_>) -> Result<()> {
        let (Some(input), Some(rows)) = (self.next_input(), &mut self.rows) else { return Ok(()) };
        let blocks = Box::new(rows.take());
        let mut schedule = self.schedule(input..input);
        schedule.add_open(input, blocks);
        self.run(input..input, schedule, check)
    }

    fn unfit(&self, unfit: Unfit, found: u64) -> Error {
        match unfit {
            Unfit::Gap { expected } => Error::Setting(format!(
                "rows come in order: expected those from row {expected} on, found row {found}"
            )),
            Unfit::Other(how) => {
                let path = self.next_input().map_or("", |input| &*self.plan.inputs[input].path);
                match &self.state {
                    State::Building(output) => {
                        output.folder().differs(&format!("input {path:?} has changed: {how}"))
                    }
                    _ => Error::Stopped,
                }
            }
        }
    }

    fn schedule(&self, files: Range<usize>) -> Schedule {
        let (threads, budget) = (self.options.threads.max(1), self.blocks_budget);
        Schedule::new(files, threads, budget, 4 * (self.rules.block_bytes + SLACK_BYTES))
    }

    fn run(&mut self, range: Range<usize>, schedule: Schedule, check: Check<'_>) -> Result<()> {
        let State::Building(output) = &mut self.state else { return Ok(()) };
        let progress = output.progress();
        let start = Start {
            offset: progress.position.offset,
            digest: progress.position.digest,
            in_document: progress.document.is_some(),
        };
        let files = Files {
            inputs: &self.plan.inputs,
            range,
            rules: &self.rules,
            split_on: self.options.split_on.as_deref(),
            start,
        };
        let pipeline = Pipeline::new(&self.tokenizer, files, schedule, output);
        pipeline.run(self.options.threads, check)
    }

    /// Makes the store whole, once all inputs are done.
    ///
    /// # Errors
    /// `Error::Setting`: an input is not done. `Error::Store`.
    pub fn finish(&mut self) -> Result<()> {
        if let Some(input) = self.next_input() {
            let path = &self.plan.inputs[input].path;
            return Err(Error::Setting(format!("input {path:?} is not done yet")));
        }
        let (folder, finished) = match std::mem::replace(&mut self.state, State::Closed) {
            State::Closed => return Ok(()),
            State::Finished(folder, finished) => (folder, finished),
            State::Building(output) => {
                let (folder, progress, shards) = output.finish()?;
                let names = streams(&self.options);
                let finished = finish::manifests(&self.plan, names, &progress, shards);
                folder.write_finished(&finished)?;
                (folder, finished)
            }
        };
        finish::publish(&folder, &finished, &self.tokenizer_json)
    }

    /// Saves how far this is, and lets others go on. Also done when it is dropped.
    ///
    /// # Errors
    /// `Error::Store`; then what was saved before stays.
    pub fn close(&mut self) -> Result<()> {
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Building(mut output) => output.save(),
            State::Finished(..) | State::Closed => Ok(()),
        }
    }
}

impl Drop for Builder {
    fn drop(&mut self) {
        // What was saved before stays, and there is nobody to tell.
        let _ = self.close();
    }
}

/// What a block may have beyond its size.
const SLACK_BYTES: usize = 1 << 12;

/// The folder of a build with this plan, new or begun before.
fn folder_for(out: &Path, plan: &Plan) -> Result<Folder> {
    if Folder::is_complete(out) {
        return Err(holds_store_already(out));
    }
    let folder = Folder::open(out)?;
    match folder.read_plan::<Plan>()? {
        None if folder.holds_store() => {
            folder.remove()?;
            Err(holds_store_already(out))
        }
        None => {
            folder.write_plan(plan)?;
            Ok(folder)
        }
        Some(begun) => {
            if let Some(how) = begun.difference(plan) {
                return Err(folder.differs(&how));
            }
            // Some settings may be milder than they were, but not stricter again.
            folder.write_plan(plan)?;
            Ok(folder)
        }
    }
}

fn streams(options: &Options) -> &'static [&'static str] {
    if options.val_fraction > 0.0 { &SIDES } else { &[ALL] }
}

fn rules(tokenizer: &Tokenizer, plan: &Plan, options: &Options, block_bytes: usize) -> Rules {
    let special = if options.allow_special { tokenizer.special_tokens() } else { &[] };
    // 2^64 times the fraction; never 0 if there is one.
    let val_below = (options.val_fraction * 2.0_f64.powi(64)).ceil() as u64;
    let has_rows = plan.inputs.iter().any(|input| input.kind == Kind::Rows);
    Rules {
        text_key: options.text_key.clone(),
        replace_invalid: options.replace_invalid,
        skip_invalid: options.skip_invalid,
        special: special.to_vec(),
        end_of_text: tokenizer.special_id(END_OF_TEXT),
        min_chars: options.min_chars,
        val_below,
        hashes: options.deduplicate || val_below > 0 || has_rows,
        block_bytes,
    }
}
