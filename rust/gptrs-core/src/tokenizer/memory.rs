//! Large buffers in large pages: a page of 4 KiB costs the kernel a microsecond or two when it is
//! first written, and then a place in the processor's page table cache.

#![allow(unsafe_code, reason = "the operating system is asked, and memory is filled in parallel")]

use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::Check;
use crate::Result;

/// The size of a huge page on x86-64 and, mostly, on ARM.
#[cfg(target_os = "linux")]
const HUGE_PAGE: usize = 1 << 21;

/// Room for the ids of a text. A text rarely has more than one for two bytes; then this grows.
pub fn room_for_ids(text_bytes: usize) -> Vec<u16> {
    let mut ids = Vec::with_capacity(text_bytes / 2 + 1);
    prefer_huge_pages(ids.spare_capacity_mut());
    ids
}

/// Ids that threads append to in portions, each in its turn. The first may have to wait for the
/// turn; then all copy at once.
pub struct SharedIds<'a> {
    state: Mutex<State<'a>>,
    next_turn: Condvar,
    /// How many ids have been copied.
    copied: AtomicUsize,
}

struct State<'a> {
    turn: usize,
    room: &'a mut [MaybeUninit<u16>],
}

/// How long to wait for the turn before asking the check again.
const BETWEEN_CHECKS: Duration = Duration::from_millis(20);

/// Lets `work` append up to `capacity` ids, from any number of threads that end with it.
pub fn collect_ids<T>(capacity: usize, work: impl FnOnce(&SharedIds<'_>) -> T) -> (Vec<u16>, T) {
    let mut ids = Vec::with_capacity(capacity);
    prefer_huge_pages(ids.spare_capacity_mut());
    let shared = SharedIds {
        state: Mutex::new(State { turn: 0, room: &mut ids.spare_capacity_mut()[..capacity] }),
        next_turn: Condvar::new(),
        copied: AtomicUsize::new(0),
    };
    let done = work(&shared);
    let left = shared.state.into_inner().unwrap_or_else(PoisonError::into_inner).room.len();
    let copied = shared.copied.into_inner();
    assert_eq!(copied, capacity - left, "what was taken was written");
    // SAFETY: portions were taken from the front, `capacity - left` ids in all, and as many were
    // written.
    unsafe { ids.set_len(copied) };
    (ids, done)
}

impl SharedIds<'_> {
    /// Appends a portion after those of all lower turns. Calls `check` while it waits; its error
    /// ends the waiting.
    pub fn append(&self, turn: usize, portion: &[u16], check: Check<'_>) -> Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.turn != turn {
            let waited = self.next_turn.wait_timeout(state, BETWEEN_CHECKS);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            check()?;
        }
        let (place, room) = std::mem::take(&mut state.room).split_at_mut(portion.len());
        state.room = room;
        state.turn += 1;
        drop(state);
        self.next_turn.notify_all();
        for (to, from) in place.iter_mut().zip(portion) {
            to.write(*from);
        }
        self.copied.fetch_add(portion.len(), Ordering::Relaxed);
        Ok(())
    }
}

/// Asks the operating system for huge pages where whole ones fit in `buffer`. It may say no.
pub fn prefer_huge_pages<T>(buffer: &mut [MaybeUninit<T>]) {
    #[cfg(target_os = "linux")]
    {
        let bytes = buffer.as_mut_ptr_range();
        let start = (bytes.start as usize).next_multiple_of(HUGE_PAGE);
        let end = bytes.end as usize / HUGE_PAGE * HUGE_PAGE;
        if start < end {
            let start_ptr = bytes.start.cast::<u8>().wrapping_add(start - bytes.start as usize);
            // SAFETY: the pages lie within the buffer, and MADV_HUGEPAGE leaves their content as
            // it is.
            unsafe { libc::madvise(start_ptr.cast(), end - start, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = buffer;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn portions_of_all_threads_come_in_the_order_of_their_turns(
            portions in prop::collection::vec(prop::collection::vec(any::<u16>(), 0..5), 0..12),
            threads in 1usize..5,
        ) {
            let capacity = portions.iter().map(Vec::len).sum::<usize>() + 3;
            let next = AtomicUsize::new(0);
            let (ids, ()) = collect_ids(capacity, |shared| std::thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| loop {
                        let turn = next.fetch_add(1, Ordering::Relaxed);
                        let Some(portion) = portions.get(turn) else { break };
                        shared.append(turn, portion, &mut || Ok(())).unwrap();
                    });
                }
            }));
            prop_assert_eq!(ids, portions.concat());
        }
    }

    #[test]
    fn a_turn_that_never_comes_is_waited_for_until_the_check_fails() {
        let (ids, stopped) = collect_ids(4, |shared| {
            shared.append(0, &[7], &mut || Ok(())).unwrap();
            shared.append(2, &[8], &mut || Err(Error::Stopped))
        });
        assert_eq!((ids, stopped), (vec![7], Err(Error::Stopped)));
    }

    #[test]
    fn a_buffer_of_many_pages_may_be_written() {
        let mut ids = room_for_ids(1 << 24);
        assert!(ids.capacity() > 1 << 22);
        ids.resize(1 << 22, 7);
        assert!(ids.iter().all(|id| *id == 7));
    }
}
