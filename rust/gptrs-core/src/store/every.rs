//! Does a number of independent things on several threads, of which the caller's is one.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::tokenizer::Check;
use crate::{Error, Result};

/// How often the caller's thread calls the check when it waits for the others.
const BETWEEN_CHECKS: Duration = Duration::from_millis(5);

/// Calls `each` with every number below `count`, lower ones first, on at most `threads` threads; it
/// gets a check that it has to call every few milliseconds.
///
/// # Errors
/// That of the lowest number; and those of `check`, which only the calling thread calls.
pub fn for_each(
    count: usize,
    threads: usize,
    check: Check<'_>,
    each: impl Fn(usize, Check<'_>) -> Result<()> + Sync,
) -> Result<()> {
    let work = Work {
        count,
        next: AtomicUsize::new(0),
        busy: AtomicUsize::new(0),
        stopped: AtomicBool::new(false),
        failure: Mutex::new(None),
    };
    thread::scope(|scope| {
        for _ in 1..threads.min(count) {
            work.busy.fetch_add(1, Ordering::Relaxed);
            scope.spawn(|| {
                let is_stopped = || work.stopped.load(Ordering::Relaxed);
                work.take(&each, &mut || if is_stopped() { Err(Error::Stopped) } else { Ok(()) });
                work.busy.fetch_sub(1, Ordering::Release);
            });
        }
        let mut stopped = None;
        let mut check = || {
            check().inspect_err(|error| {
                work.stopped.store(true, Ordering::Relaxed);
                stopped = Some(error.clone());
            })
        };
        work.take(&each, &mut check);
        while work.busy.load(Ordering::Acquire) > 0 && check().is_ok() {
            thread::sleep(BETWEEN_CHECKS);
        }
        stopped
    })
    .map_or_else(|| work.result(), Err)
}

/// What the threads share.
struct Work {
    count: usize,
    next: AtomicUsize,
    /// How many threads beside the caller's are not done.
    busy: AtomicUsize,
    stopped: AtomicBool,
    failure: Mutex<Option<(usize, Error)>>,
}

impl Work {
    /// Does what is left. After a failure nothing is begun, but what was begun is done.
    fn take(&self, each: &(impl Fn(usize, Check<'_>) -> Result<()> + Sync), check: Check<'_>) {
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= self.count {
                return;
            }
            if let Err(error) = each(index, check) {
                self.next.store(self.count, Ordering::Relaxed);
                let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
                if failure.as_ref().is_none_or(|&(earlier, _)| index < earlier) {
                    *failure = Some((index, error));
                }
                return;
            }
        }
    }

    fn result(self) -> Result<()> {
        let failure = self.failure.into_inner().unwrap_or_else(PoisonError::into_inner);
        failure.map_or(Ok(()), |(_, error)| Err(error))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
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
