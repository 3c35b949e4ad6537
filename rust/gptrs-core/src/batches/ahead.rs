//! Batches in order; a thread fills the next ones while the caller works with this one.
//!
//! ```text
//! caller   take 0 ─ work ────── take 1 ─ work ────── take 2 …      `walk`   what to fill next
//! thread      fill 1 ─ fill 2 ─ sleep ─ fill 3 ─ sleep             `ready`  what to take next
//! ```
//!
//! Nobody waits without need. A batch that is neither ready nor being filled, the caller fills. And
//! the thread is woken only by a caller who takes his time: to wake it takes as long as a small batch.
//!
//! The thread knows nothing of Python, and ends when the stream is dropped. A process that was forked
//! has no such thread, and fills its batches itself.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use super::{Batch, Batches, Cursor, Walk};
use crate::Result;
use crate::tokenizer::Check;

/// From one batch to the next: beyond it, the caller is not kept from anything by waking the thread.
const WORTH_WAKING: Duration = Duration::from_micros(100);

/// How long to wait for the thread before asking whether to go on.
const BETWEEN_CHECKS: Duration = Duration::from_millis(40);

/// The batches of a walk.
#[derive(Debug)]
pub struct BatchStream {
    batches: Arc<Batches>,
    walk: Walk,
    prefetch: usize,
    ahead: Option<Ahead>,
    last_call: Option<Instant>,
    has_ended: bool,
}

impl BatchStream {
    /// The batches of `walk`, of which `prefetch` are filled ahead of the caller.
    pub fn new(batches: Arc<Batches>, walk: Walk, prefetch: usize) -> Self {
        Self { batches, walk, prefetch, ahead: None, last_call: None, has_ended: false }
    }

    /// How far the caller has come: batches that wait do not count.
    pub fn cursor(&self) -> Cursor {
        self.walk.cursor()
    }

    /// Whether the caller was told that there is no further batch.
    pub fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Ends the thread. What it has filled is filled anew when it is asked for.
    pub fn close(&mut self) {
        self.ahead = None;
    }

    /// The next batch. After an error, the same one is tried again.
    pub fn next(&mut self, check: Check<'_>) -> Result<Option<Batch>> {
        let Some((rows, rest)) = self.walk.next() else {
            self.has_ended = true;
            self.close();
            return Ok(None);
        };
        let last_call = self.last_call.replace(Instant::now());
        let is_slow = last_call.is_none_or(|then| then.elapsed() > WORTH_WAKING);
        let filled = match &self.ahead {
            Some(ahead) => ahead.take(is_slow, check)?,
            None => None,
        };
        if self.ahead.is_none() && is_slow && self.prefetch > 0 {
            self.ahead = Ahead::start(&self.batches, rest, self.prefetch);
        }
        let batch = filled.unwrap_or_else(|| self.batches.fill(&rows));
        // The thread is behind this batch already: with another one it starts anew.
        let batch = batch.inspect_err(|_| self.close())?;
        self.walk = rest;
        Ok(Some(batch))
    }
}

/// A thread that fills batches.
#[derive(Debug)]
struct Ahead {
    shared: Option<Arc<Shared>>,
    thread: JoinHandle<()>,
    process: u32,
}

#[derive(Debug)]
struct Shared {
    batches: Arc<Batches>,
    prefetch: usize,
    queue: Mutex<Queue>,
    /// Told to the thread.
    has_room: Condvar,
    /// Told to the caller.
    has_batch: Condvar,
}

#[derive(Debug)]
struct Queue {
    walk: Walk,
    ready: VecDeque<Result<Batch>>,
    is_filling: bool,
    /// Whether the thread may fill up `ready`; it sleeps when it has.
    is_awake: bool,
    is_over: bool,
}

impl Ahead {
    /// Starts the thread; None if the system gives none.
    fn start(batches: &Arc<Batches>, walk: Walk, prefetch: usize) -> Option<Self> {
        let queue = Queue {
            walk,
            ready: VecDeque::new(),
            is_filling: false,
            is_awake: true,
            is_over: false,
        };
        let shared = Arc::new(Shared {
            batches: Arc::clone(batches),
            prefetch,
            queue: Mutex::new(queue),
            has_room: Condvar::new(),
            has_batch: Condvar::new(),
        });
        let threads = Arc::clone(&shared);
        let thread = Builder::new().name("gptrs-batches".to_owned());
        let thread = thread.spawn(move || threads.fill_all()).ok()?;
        Some(Self { shared: Some(shared), thread, process: std::process::id() })
    }

    /// The next batch; None if the caller is to fill it.
    fn take(&self, is_slow: bool, check: Check<'_>) -> Result<Option<Result<Batch>>> {
        let Some(shared) = &self.shared else { return Ok(None) };
        let mut queue = match shared.queue.try_lock() {
            Ok(queue) => queue,
            Err(_) if self.is_here() => shared.queue(),
            Err(_) => return Ok(None),
        };
        // A thread that is gone will not fill what it began.
        while queue.ready.is_empty() && queue.is_filling && !self.thread.is_finished() {
            if !self.is_here() {
                return Ok(None);
            }
            let waited = shared.has_batch.wait_timeout(queue, BETWEEN_CHECKS);
            let (guard, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            queue = guard;
            if timeout.timed_out() {
                drop(queue);
                check()?;
                queue = shared.queue();
            }
        }
        let batch = queue.ready.pop_front();
        if batch.is_none()
            && let Some((_, rest)) = queue.walk.next()
        {
            queue.walk = rest;
        }
        let wakes = is_slow && !queue.is_awake;
        queue.is_awake |= is_slow;
        drop(queue);
        if wakes {
            shared.has_room.notify_one();
        }
        Ok(batch)
    }

    /// Whether this process has the thread. To ask takes a system call, so only who would wait asks.
    fn is_here(&self) -> bool {
        self.process == std::process::id()
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        if !self.is_here() {
            // A thread that this process does not have may hold the lock for ever.
            std::mem::forget(self.shared.take());
        } else if let Some(shared) = &self.shared {
            shared.queue().is_over = true;
            shared.has_room.notify_one();
        }
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the thread does.
    fn fill_all(&self) {
        let mut queue = self.queue();
        while !queue.is_over {
            let next = queue.walk.next().filter(|_| queue.is_awake);
            let Some((rows, rest)) = next else {
                queue = self.has_room.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            (queue.walk, queue.is_filling) = (rest, true);
            drop(queue);
            let batch = self.batches.fill(&rows);
            queue = self.queue();
            queue.is_filling = false;
            queue.ready.push_back(batch);
            queue.is_awake = queue.ready.len() < self.prefetch;
            self.has_batch.notify_one();
        }
    }
}
