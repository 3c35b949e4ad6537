//! Independent jobs on several threads, of which the caller's is one.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use crate::tokenizer::Check;
use crate::{Error, Result};

/// How long to wait for the other threads before asking `check` again.
const BETWEEN_CHECKS: Duration = Duration::from_millis(20);

/// Calls `each` with every number below `count`, on at most `threads` threads; it gets a check that
/// it has to call every few milliseconds.
///
/// # Errors
/// As `in_order`.
pub fn for_each(
    count: usize,
    threads: usize,
    check: Check<'_>,
    each: impl Fn(usize, Check<'_>) -> Result<()> + Sync,
) -> Result<()> {
    let job = |(): &mut (), number: usize, check: Check<'_>| each(number, check);
    in_order(threads, count, &|| (), &job, check).map(drop)
}

/// Does jobs 0 to `num_jobs` - 1 on `threads` threads, this one among them, and returns their
/// results in order; or the error of the first job that fails, whichever thread fails first. An
/// error of `check`, which this thread alone calls, ends all jobs.
pub fn in_order<W, T: Send>(
    threads: usize,
    num_jobs: usize,
    new_worker: &(dyn Fn() -> W + Sync),
    job: &Job<'_, W, T>,
    check: Check<'_>,
) -> Result<Vec<T>> {
    let queue = Queue { job, next: AtomicUsize::new(0), end: AtomicUsize::new(num_jobs) };
    let mut results: Vec<_> = (0..num_jobs).map(|_| None).collect();
    thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        for _ in 1..threads.min(num_jobs) {
            let (sender, queue) = (sender.clone(), &queue);
            scope.spawn(move || {
                let mut worker = new_worker();
                while let Some(done) = queue.work(&mut worker, &mut || Ok(())) {
                    if sender.send(done).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        work_and_wait(&mut results, &mut new_worker(), &queue, &receiver, check)
    })?;
    results.into_iter().map(|result| result.unwrap_or(Err(Error::Stopped))).collect()
}

/// What to do for the job of a number, with what a thread keeps from job to job.
pub type Job<'a, W, T> = dyn Fn(&mut W, usize, Check<'_>) -> Result<T> + Sync + 'a;

/// Jobs to be taken by threads, one after the other.
struct Queue<'a, W, T> {
    job: &'a Job<'a, W, T>,
    next: AtomicUsize,
    /// Jobs from this one on are not wanted: one that failed comes before them.
    end: AtomicUsize,
}

impl<W, T> Queue<'_, W, T> {
    /// Does the next job, if there is one. Jobs before one that fails are done to their end, so
    /// that the first error there is is found.
    fn work(&self, worker: &mut W, check: Check<'_>) -> Option<(usize, Result<T>)> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let wanted = || number < self.end.load(Ordering::Relaxed);
        if !wanted() {
            return None;
        }
        let mut check = || if wanted() { check() } else { Err(Error::Stopped) };
        let result = (self.job)(worker, number, &mut check);
        if result.is_err() {
            self.end.fetch_min(number, Ordering::Relaxed);
        }
        Some((number, result))
    }

    /// Ends all jobs.
    fn stop(&self) {
        self.end.store(0, Ordering::Relaxed);
    }
}

type Results<T> = [Option<Result<T>>];

/// This thread's share of the jobs; then it collects what the others did.
fn work_and_wait<W, T>(
    results: &mut Results<T>,
    worker: &mut W,
    queue: &Queue<'_, W, T>,
    others: &mpsc::Receiver<(usize, Result<T>)>,
    check: Check<'_>,
) -> Result<()> {
    let mut ended = Ok(());
    let mut check = || {
        // What has failed is not asked again.
        if ended.is_ok() {
            ended = check();
            if ended.is_err() {
                queue.stop();
            }
        }
        ended.clone()
    };
    while let Some((number, result)) = queue.work(worker, &mut check) {
        results[number] = Some(result);
    }
    loop {
        match others.recv_timeout(BETWEEN_CHECKS) {
            Ok((number, result)) => results[number] = Some(result),
            Err(RecvTimeoutError::Timeout) if check().is_ok() => {}
            Err(_) => return ended,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Barrier;

    use proptest::prelude::*;

    use super::*;

    /// What an endless job does until it is told to stop.
    fn wait(check: Check<'_>) -> Result<usize> {
        loop {
            check()?;
            thread::yield_now();
        }
    }

    #[test]
    fn jobs_are_done_once_each_and_their_results_come_in_order() {
        for threads in 0..=5 {
            for num_jobs in [0, 1, 2, 3, 100] {
                let started = AtomicUsize::new(0);
                let job = |(): &mut (), number: usize, _: Check<'_>| {
                    started.fetch_add(1, Ordering::Relaxed);
                    Ok(number)
                };
                let results = in_order(threads, num_jobs, &|| (), &job, &mut || Ok(()));
                assert_eq!(results, Ok((0..num_jobs).collect()));
                assert_eq!(started.into_inner(), num_jobs);
            }
        }
    }

    #[test]
    fn after_an_error_the_jobs_behind_it_end_and_no_others_start() {
        for threads in 1..=5 {
            let started = AtomicUsize::new(0);
            let job = |(): &mut (), number: usize, check: Check<'_>| {
                started.fetch_add(1, Ordering::Relaxed);
                if number == 0 { Err(Error::NothingToDraw) } else { wait(check) }
            };
            let results = in_order(threads, 1_000, &|| (), &job, &mut || Ok(()));
            assert_eq!(results, Err(Error::NothingToDraw));
            assert!(started.into_inner() <= threads);
        }
    }

    #[test]
    fn an_error_of_the_check_ends_all_jobs_and_arrives_unchanged() {
        let error = Error::UnknownCharacter { char: 'x', offset: 1 };
        for threads in 1..=5 {
            for num_jobs in [1, threads, 1_000] {
                let job = |(): &mut (), _: usize, check: Check<'_>| wait(check);
                let mut calls = 0;
                let results = in_order(threads, num_jobs, &|| (), &job, &mut || {
                    calls += 1;
                    if calls == 3 { Err(error.clone()) } else { Ok(()) }
                });
                assert_eq!((results, calls), (Err(error.clone()), 3));
            }
        }
    }

    #[test]
    fn the_check_is_asked_while_the_other_threads_work() {
        let (this_thread, both) = (thread::current().id(), Barrier::new(2));
        let job = |(): &mut (), number: usize, check: Check<'_>| {
            both.wait();
            if thread::current().id() == this_thread { Ok(number) } else { wait(check) }
        };
        let stopped = in_order(2, 2, &|| (), &job, &mut || Err(Error::Stopped));
        assert_eq!(stopped, Err(Error::Stopped));
    }

    proptest! {
        #[test]
        fn the_first_job_that_fails_is_the_one_whose_error_arrives(
            failing in prop::collection::btree_set(0usize..40, 0..8),
            threads in 1usize..6,
        ) {
            let failing: BTreeSet<usize> = failing;
            let job = |(): &mut (), number: usize, check: Check<'_>| {
                // Later jobs fail sooner.
                for _ in number..40 {
                    check()?;
                    thread::yield_now();
                }
                let error = Error::UnknownCharacter { char: 'x', offset: number };
                if failing.contains(&number) { Err(error) } else { Ok(number) }
            };
            let expected = match failing.first() {
                Some(&offset) => Err(Error::UnknownCharacter { char: 'x', offset }),
                None => Ok((0..40).collect()),
            };
            prop_assert_eq!(in_order(threads, 40, &|| (), &job, &mut || Ok(())), expected);
        }

        #[test]
        fn each_number_comes_once_and_the_lowest_failure_is_returned(
            count in 0usize..40,
            threads in 1usize..5,
            failing in prop::collection::btree_set(0usize..40, 0..3),
        ) {
            let calls: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
            let done = for_each(count, threads, &mut || Ok(()), |index, check| {
                check()?;
                calls[index].fetch_add(1, Ordering::Relaxed);
                if failing.contains(&index) { Err(Error::TopK(index as i64)) } else { Ok(()) }
            });
            let lowest = failing.iter().find(|&&index| index < count);
            prop_assert_eq!(done, lowest.map_or(Ok(()), |&index| Err(Error::TopK(index as i64))));
            let before_failure = lowest.map_or(count, |&index| index);
            for (index, calls) in calls.iter().enumerate() {
                let calls = calls.load(Ordering::Relaxed);
                prop_assert!(calls == 1 || index > before_failure && calls == 0);
            }
        }

        #[test]
        fn an_error_of_the_check_ends_the_work_and_arrives_unchanged(threads in 1usize..4) {
            let mut calls = 0;
            let mut check = || {
                calls += 1;
                if calls > 3 { Err(Error::NothingToDraw) } else { Ok(()) }
            };
            let done = for_each(100, threads, &mut check, |_, check| {
                loop {
                    check()?;
                    thread::yield_now();
                }
            });
            prop_assert_eq!(done, Err(Error::NothingToDraw));
        }
    }
}
