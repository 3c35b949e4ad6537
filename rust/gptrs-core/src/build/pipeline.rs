//! From inputs to the writing end on many threads.
//!
//! ```text
//!   input 0  ▪▪▪▪▪▪    thread: takes the next block of the earliest input that nobody reads,
//!   input 1  ▪▪▪               encodes it, and leaves it to be written in its turn
//!   input 2  ▪▪▪▪▪▪▪           whoever brings the block whose turn it is writes it, and those
//!                              behind it that came early; nobody else waits
//! ```
//!
//! So the bytes do not depend on the threads. One thread alone does the same in the same order, and
//! no other is started.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::encoding::{Encoded, Encoder, Rules};
use super::feed::{Blocks, Files};
use super::output::{Output, Place};
use super::plan::PlannedInput;
use super::schedule::{Done, Schedule, Task};
use crate::source::{Block, Failure, Kind};
use crate::tokenizer::{Check, Tokenizer};
use crate::{Error, Result};

/// How long the calling thread waits before it asks `check` again.
const BETWEEN_CHECKS: Duration = Duration::from_millis(20);

/// What threads work on together.
pub struct Pipeline<'a> {
    tokenizer: &'a Tokenizer,
    rules: &'a Rules,
    files: Files<'a>,
    schedule: Mutex<Schedule>,
    /// Something in the schedule has changed.
    changed: Condvar,
    output: Mutex<&'a mut Output>,
    stopped: AtomicBool,
    /// What ended the work.
    failure: Mutex<Option<Error>>,
}

impl<'a> Pipeline<'a> {
    pub fn new(
        tokenizer: &'a Tokenizer,
        files: Files<'a>,
        schedule: Schedule,
        output: &'a mut Output,
    ) -> Self {
        Self {
            tokenizer,
            rules: files.rules,
            files,
            schedule: Mutex::new(schedule),
            changed: Condvar::new(),
            output: Mutex::new(output),
            stopped: AtomicBool::new(false),
            failure: Mutex::new(None),
        }
    }

    /// Does all there is to do, on `threads` threads, of which this is one.
    ///
    /// # Errors
    /// That of the first block, in their order, that cannot be read, encoded or written; all before
    /// it is written. Those of `check`, at any place.
    pub fn run(self, threads: usize, check: Check<'_>) -> Result<()> {
        thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(|| self.work(&mut || self.go_on(), false));
            }
            let mut ended = Ok(());
            let mut check = || {
                // What has failed is not asked again.
                if ended.is_ok() {
                    ended = check();
                    if let Err(error) = &ended {
                        self.stop(error.clone());
                    }
                }
                self.go_on()
            };
            self.work(&mut check, true);
        });
        self.failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    fn go_on(&self) -> Result<()> {
        if self.stopped.load(Ordering::Relaxed) { Err(Error::Stopped) } else { Ok(()) }
    }

    /// Ends the work of all threads; the first to say why is believed.
    fn stop(&self, why: Error) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
        self.stopped.store(true, Ordering::Relaxed);
        // A thread that looks at `stopped` and then waits holds this lock meanwhile.
        drop(self.lock());
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Schedule> {
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One thread's work. `is_caller`: it asks its check while it waits.
    fn work(&self, check: Check<'_>, is_caller: bool) {
        let _guard = StopOnPanic(self);
        let mut encoder = Encoder::new(self.tokenizer, self.rules);
        let mut schedule = self.lock();
        while self.go_on().is_ok() {
            match schedule.next(|input| self.files.may_pass(input)) {
                Task::Nothing if !is_caller || schedule.is_done() => break,
                Task::Wait | Task::Nothing if is_caller => {
                    let waited = self.changed.wait_timeout(schedule, BETWEEN_CHECKS);
                    drop(waited.unwrap_or_else(PoisonError::into_inner));
                    if check().is_err() {
                        return;
                    }
                    schedule = self.lock();
                }
                Task::Wait | Task::Nothing => {
                    let waited = self.changed.wait(schedule);
                    schedule = waited.unwrap_or_else(PoisonError::into_inner);
                }
                task => {
                    let buffers = schedule.buffers();
                    drop(schedule);
                    self.do_block(&mut encoder, task, buffers, check);
                    schedule = self.lock();
                }
            }
        }
    }

    /// Reads and encodes a block, and writes what is ready to be written.
    fn do_block(
        &self,
        encoder: &mut Encoder<'_>,
        task: Task,
        (buffer, mut ids): (Vec<u8>, Encoded),
        check: Check<'_>,
    ) {
        let (input, number, read) = match task {
            Task::Read((input, number), blocks) => {
                (input, number, self.read(input, blocks, buffer, check))
            }
            Task::Open(input) => {
                let opened = self.files.open(input, check).map_err(Failure::from);
                (input, 0, opened.and_then(|blocks| self.read(input, blocks, buffer, check)))
            }
            Task::Wait | Task::Nothing => return,
        };
        let PlannedInput { kind, path, .. } = &self.files.inputs[input];
        match read {
            Ok(None) => self.lock().has_nothing(input),
            Ok(Some(block)) => {
                let result = encoder.encode(path, &block, &mut ids, check);
                let cost = block.cost();
                let (bytes, place) = Place::of(block, input, *kind == Kind::Rows);
                let done = Done { place, cost: ids.cost(), encoded: result.map(|()| ids) };
                let mut schedule = self.lock();
                schedule.keep(Some(bytes), None);
                schedule.has_encoded((input, number), done, cost);
            }
            Err(failure) => {
                let place = Place::failed(input);
                let mut schedule = self.lock();
                schedule.has_read(input, None, 0);
                let done = Done { place, encoded: Err(failure), cost: 0 };
                schedule.has_encoded((input, number), done, 0);
            }
        }
        self.changed.notify_all();
        self.write_ready(check);
    }

    /// Reads the next block of an input, and lets others read on.
    fn read(
        &self,
        input: usize,
        mut blocks: Box<dyn Blocks>,
        buffer: Vec<u8>,
        check: Check<'_>,
    ) -> std::result::Result<Option<Block>, Failure> {
        let Some(block) = blocks.next_block(buffer, check)? else { return Ok(None) };
        let blocks = (!block.is_last).then_some(blocks);
        self.lock().has_read(input, blocks, block.cost());
        self.changed.notify_all();
        Ok(Some(block))
    }

    /// Writes the blocks whose turn it is, unless another thread does.
    fn write_ready(&self, check: Check<'_>) {
        while check().is_ok() {
            let Some(Done { place, encoded, cost }) = self.lock().next_to_write() else { return };
            let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
            let written = match &encoded {
                Ok(encoded) => output.write(&place, encoded, check),
                Err(failure) => {
                    let path = &self.files.inputs[place.input].path;
                    Err(output.error(place.input, path, failure.clone()))
                }
            };
            drop(output);
            if let Err(error) = written {
                return self.stop(error);
            }
            let mut schedule = self.lock();
            schedule.has_written(place.is_last, cost);
            schedule.keep(None, encoded.ok());
            drop(schedule);
            self.changed.notify_all();
        }
    }
}

/// Stops all other threads should this one panic: they would wait for its block.
struct StopOnPanic<'p, 'a>(&'p Pipeline<'a>);

impl Drop for StopOnPanic<'_, '_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.stop(Error::Stopped);
        }
    }
}
