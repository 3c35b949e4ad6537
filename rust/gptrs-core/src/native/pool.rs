//! Threads that do one job together, step by step: between two steps lies a barrier.
//!
//! ```text
//!  caller   run(job) ─► thread 0 ── step ─ barrier ─ step ─ barrier ─ ... ─► returns
//!                       thread 1 ── step ─ barrier ─ step ─ barrier ─ ...
//!                                                                        then spins for a while, then sleeps
//! ```
//!
//! A token of a large model has some sixty barriers, a small model's token takes 20 microseconds: so
//! who waits spins, and only who has waited for long lets others run. A child process has no threads
//! after a fork; the first job there starts new ones.

#![allow(unsafe_code, reason = "a job borrows from its caller, who waits for all threads")]

use std::hint;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering};
use std::thread::{self, Thread};

/// Turns of an empty loop until the processor is offered to others: some 30 microseconds.
const SPINS: u32 = 1000;
/// Such offers until a thread without a job sleeps.
const OFFERS: u32 = 50;

/// A job for every thread of a pool.
type Job<'a> = dyn Fn(&Worker<'_>) + Sync + 'a;

/// A thread's place among those that do a job.
#[derive(Debug)]
pub struct Worker<'a> {
    /// From 0.
    pub index: usize,
    /// How many there are.
    pub count: usize,
    barrier: &'a Barrier,
}

impl Worker<'_> {
    /// Waits until all threads are here. What they wrote before, all can read after.
    pub fn wait(&self) {
        self.barrier.wait(self.index, self.count);
    }

    /// This thread's share of `count` things: neighbours, in multiples of `unit` but for the end.
    pub fn share(&self, count: usize, unit: usize) -> std::ops::Range<usize> {
        let units = count.div_ceil(unit);
        let bound = |index: usize| (units * index / self.count * unit).min(count);
        bound(self.index)..bound(self.index + 1)
    }
}

/// Threads that wait for jobs.
#[derive(Debug)]
pub struct Pool {
    count: usize,
    team: Option<Team>,
}

/// The threads besides the caller's, in the process that started them.
#[derive(Debug)]
struct Team {
    process: u32,
    common: Arc<Common>,
    threads: Vec<Thread>,
}

#[derive(Debug)]
struct Common {
    barrier: Barrier,
    /// How many threads there are, the caller's too.
    count: AtomicUsize,
    call: Line<Call>,
    /// How many threads sleep, or are about to.
    sleepers: Line<AtomicU32>,
    /// The last turn that each thread has finished.
    finished: Box<[Line<AtomicUsize>]>,
}

/// What the threads are to do: on one line, which is all that they need to begin.
#[derive(Debug, Default)]
struct Call {
    /// Counts jobs; `END` ends the threads.
    turn: AtomicUsize,
    /// What the current job is: a pointer to a reference to it.
    job: AtomicPtr<()>,
}

const END: usize = usize::MAX;

impl Pool {
    /// For jobs on `count` threads, of which the caller's is one. They start with the first job.
    pub fn new(count: usize) -> Self {
        Self { count: count.max(1), team: None }
    }

    /// Does a job on all threads, and returns when all are done.
    ///
    /// Panics where one of them does.
    pub fn run(&mut self, job: &Job<'_>) {
        if self.count == 1 {
            let alone = Barrier::new(0);
            return job(&Worker { index: 0, count: 1, barrier: &alone });
        }
        let process = process::id();
        if self.team.as_ref().is_some_and(|team| team.process != process) {
            // The threads are in the parent. Their memory is left: nobody can say what it is in the
            // middle of.
            std::mem::forget(self.team.take());
        }
        let team = self.team.get_or_insert_with(|| Team::start(self.count, process));
        let outcome = team.run(job);
        if team.common.barrier.is_broken.load(Ordering::Relaxed) {
            self.team = None;
            match outcome {
                Err(panic) => resume_unwind(panic),
                Ok(()) => panic!("another thread of the native engine panicked"),
            }
        }
    }
}

impl Team {
    fn start(count: usize, process: u32) -> Self {
        let common = Arc::new(Common {
            barrier: Barrier::new(count),
            count: AtomicUsize::new(count),
            call: Line::default(),
            sleepers: Line::default(),
            finished: lines(count),
        });
        let start = |index| {
            let common = Arc::clone(&common);
            let builder = thread::Builder::new().name(format!("gptrs-native-{index}"));
            let handle = builder.spawn(move || common.work(index)).ok()?;
            Some(handle.thread().clone())
        };
        // Where the system gives no more threads, those that there are do the work.
        let threads: Vec<_> = (1..count).map_while(start).collect();
        common.count.store(threads.len() + 1, Ordering::Relaxed);
        Self { process, common, threads }
    }

    fn run(&self, job: &Job<'_>) -> thread::Result<()> {
        let common = &*self.common;
        let count = self.threads.len() + 1;
        let mut job = job;
        let Call { turn, job: place } = &common.call.0;
        let next = turn.load(Ordering::Relaxed) + 1;
        place.store((&raw mut job).cast(), Ordering::Relaxed);
        turn.store(next, Ordering::SeqCst);
        if common.sleepers.0.load(Ordering::SeqCst) > 0 {
            self.threads.iter().for_each(Thread::unpark);
        }
        let worker = Worker { index: 0, count, barrier: &common.barrier };
        let own = catch_unwind(AssertUnwindSafe(|| job(&worker)));
        if own.is_err() {
            common.barrier.break_it();
        }
        // The others borrow from this frame until they are done, whatever happened.
        for finished in &common.finished[1..count] {
            wait_until(|| finished.0.load(Ordering::Acquire) == next);
        }
        own
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.common.call.0.turn.store(END, Ordering::SeqCst);
        self.threads.iter().for_each(Thread::unpark);
    }
}

impl Common {
    /// A thread's life.
    fn work(&self, index: usize) {
        let mut turn = 0;
        loop {
            turn = match self.next_turn(turn) {
                END => return,
                next => next,
            };
            let job = self.call.0.job.load(Ordering::Relaxed).cast::<&Job<'_>>();
            // SAFETY: `run` stored it before it counted this turn, and does not return, nor store
            // another, before this thread has finished it.
            let job = unsafe { *job };
            let count = self.count.load(Ordering::Relaxed);
            let worker = Worker { index, count, barrier: &self.barrier };
            if catch_unwind(AssertUnwindSafe(|| job(&worker))).is_err() {
                self.barrier.break_it();
            }
            self.finished[index].0.store(turn, Ordering::Release);
        }
    }

    /// Waits until the turn is another than `last`.
    fn next_turn(&self, last: usize) -> usize {
        let mut offers = 0;
        loop {
            for _ in 0..SPINS {
                let turn = self.call.0.turn.load(Ordering::Acquire);
                if turn != last {
                    return turn;
                }
                hint::spin_loop();
            }
            if offers < OFFERS {
                offers += 1;
                thread::yield_now();
                continue;
            }
            // Whoever counts the turn after this load sees a sleeper, and wakes it.
            self.sleepers.0.fetch_add(1, Ordering::SeqCst);
            while self.call.0.turn.load(Ordering::SeqCst) == last {
                thread::park();
            }
            self.sleepers.0.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// Where threads wait for each other.
#[derive(Debug)]
struct Barrier {
    /// How often each thread came here. A line has one writer, so what the last thread writes goes straight
    /// to those who wait.
    arrivals: Box<[Line<AtomicUsize>]>,
    is_broken: AtomicBool,
}

/// What one thread writes often and others look at.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Line<T>(T);

fn lines(count: usize) -> Box<[Line<AtomicUsize>]> {
    (0..count).map(|_| Line::default()).collect()
}

impl Barrier {
    fn new(count: usize) -> Self {
        Self { arrivals: lines(count), is_broken: AtomicBool::new(false) }
    }

    /// Waits until the first `count` threads have come as often as this one.
    #[inline]
    fn wait(&self, index: usize, count: usize) {
        if count == 1 {
            return;
        }
        let own = &self.arrivals[index].0;
        let before = own.load(Ordering::Relaxed);
        own.store(before.wrapping_add(1), Ordering::Release);
        // Nobody can be more than one time ahead: who has not come yet is at `before`.
        for other in &self.arrivals[..count] {
            wait_until(|| {
                assert!(!self.is_broken.load(Ordering::Relaxed), "another thread panicked");
                other.0.load(Ordering::Acquire) != before
            });
        }
    }

    fn break_it(&self) {
        self.is_broken.store(true, Ordering::Relaxed);
    }
}

/// Spins, and lets others run where that takes long: there may be more threads than processors.
fn wait_until(is_done: impl Fn() -> bool) {
    loop {
        for _ in 0..SPINS {
            if is_done() {
                return;
            }
            hint::spin_loop();
        }
        thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn every_thread_does_its_share_of_every_step() {
        for count in [1, 2, 3, 7] {
            let mut pool = Pool::new(count);
            for num_things in [0, 1, 5, 64, 1000] {
                let seen = Mutex::new(vec![0; num_things]);
                let order = Mutex::new(Vec::new());
                pool.run(&|worker| {
                    for step in 0..20 {
                        for thing in worker.share(num_things, 8) {
                            seen.lock().unwrap()[thing] += 1;
                        }
                        order.lock().unwrap().push(step);
                        worker.wait();
                    }
                });
                assert!(seen.into_inner().unwrap().iter().all(|&times| times == 20));
                assert!(order.into_inner().unwrap().is_sorted());
            }
        }
    }

    #[test]
    fn threads_that_fell_asleep_wake_up() {
        let mut pool = Pool::new(3);
        for pause in [0, 1, 30] {
            thread::sleep(std::time::Duration::from_millis(pause));
            let calls = AtomicUsize::new(0);
            pool.run(&|_| {
                calls.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(calls.into_inner(), 3);
        }
    }

    #[test]
    fn a_panic_on_any_thread_reaches_the_caller_and_the_pool_goes_on() {
        let mut pool = Pool::new(3);
        for guilty in 0..3 {
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                pool.run(&|worker| {
                    assert_ne!(worker.index, guilty, "as wanted");
                    worker.wait();
                });
            }));
            assert!(outcome.is_err());
            let calls = AtomicUsize::new(0);
            pool.run(&|_| {
                calls.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(calls.into_inner(), 3);
        }
    }
}
