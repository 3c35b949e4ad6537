//! Large buffers in large pages: a page of 4 KiB costs the kernel a microsecond or two when it is
//! first written, and then a place in the processor's page table cache.

#![allow(unsafe_code, reason = "the operating system is asked, and memory is filled in parallel")]

use std::collections::BTreeMap;
use std::mem::{MaybeUninit, needs_drop};
use std::ops::{Deref, Range};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytemuck::Zeroable;

/// The size of a huge page on x86-64 and, mostly, on ARM.
const HUGE_PAGE: usize = 1 << 21;

/// Room for the ids of a text. A text rarely has more than one for two bytes; then this grows.
pub fn room_for_ids(text_bytes: usize) -> Vec<u16> {
    let mut ids = Vec::with_capacity(text_bytes / 2 + 1);
    prefer_huge_pages(ids.spare_capacity_mut());
    ids
}

/// Ids that threads append to in portions. Each has its turn: one that comes early is kept, and
/// copied by the thread that brings the one before it. Nobody waits.
pub struct SharedIds<'a> {
    state: Mutex<State<'a>>,
    /// How many ids have been copied.
    copied: AtomicUsize,
}

struct State<'a> {
    turn: usize,
    room: &'a mut [MaybeUninit<u16>],
    early: BTreeMap<usize, Vec<u16>>,
    /// Buffers to be used again.
    free: Vec<Vec<u16>>,
}

/// Lets `work` append up to `capacity` ids, from any number of threads that end with it. Portions
/// after a turn that never came are left out.
pub fn collect_ids<T>(capacity: usize, work: impl FnOnce(&SharedIds<'_>) -> T) -> (Vec<u16>, T) {
    let mut ids = Vec::with_capacity(capacity);
    prefer_huge_pages(ids.spare_capacity_mut());
    let room = &mut ids.spare_capacity_mut()[..capacity];
    let state = State { turn: 0, room, early: BTreeMap::new(), free: Vec::new() };
    let shared = SharedIds { state: Mutex::new(state), copied: AtomicUsize::new(0) };
    let done = work(&shared);
    let left = shared.state.into_inner().unwrap_or_else(PoisonError::into_inner).room.len();
    let copied = shared.copied.into_inner();
    assert_eq!(copied, capacity - left, "what was taken was written");
    // SAFETY: portions were taken from the front, `capacity - left` ids in all, and as many were
    // written.
    unsafe { ids.set_len(copied) };
    (ids, done)
}

impl<'a> SharedIds<'a> {
    fn lock(&self) -> MutexGuard<'_, State<'a>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends a portion after those of all lower turns. Returns an empty buffer for the next.
    pub fn append(&self, turn: usize, portion: Vec<u16>) -> Vec<u16> {
        let (mut ready, capacity) = (Vec::new(), portion.capacity());
        let mut guard = self.lock();
        let state = &mut *guard;
        state.early.insert(turn, portion);
        while let Some(portion) = state.early.remove(&state.turn) {
            let (place, room) = std::mem::take(&mut state.room).split_at_mut(portion.len());
            ready.push((place, portion));
            state.room = room;
            state.turn += 1;
        }
        let free = state.free.pop();
        drop(guard);
        let mut buffer = free.unwrap_or_else(|| Vec::with_capacity(capacity));
        for (place, portion) in ready {
            for (to, from) in place.iter_mut().zip(&portion) {
                to.write(*from);
            }
            self.copied.fetch_add(portion.len(), Ordering::Relaxed);
            let unused = std::mem::replace(&mut buffer, portion);
            if unused.capacity() > 0 {
                self.lock().free.push(unused);
            }
        }
        buffer.clear();
        buffer
    }
}

/// An array that begins where a huge page does, if it is as large as one.
#[derive(Debug)]
pub struct Zeros<T> {
    room: Box<[MaybeUninit<T>]>,
    place: Range<usize>,
}

/// Zeros, on their way into the processor's caches: that writing them takes less time than to have
/// their pages cleared by the operating system when they are first read.
pub fn zeros<T: Zeroable>(len: usize) -> Zeros<T> {
    let is_large = len * size_of::<T>() >= HUGE_PAGE;
    let spare = if is_large { HUGE_PAGE / size_of::<T>() } else { 0 };
    let mut room = Box::new_uninit_slice(len + spare);
    let start = room.as_ptr().align_offset(HUGE_PAGE).min(spare);
    prefer_huge_pages(&mut room[start..start + len]);
    let mut zeros = Zeros { room, place: start..start + len };
    zeros.clear();
    zeros
}

impl<T: Zeroable> Zeros<T> {
    /// Makes all zeros again.
    pub fn clear(&mut self) {
        const { assert!(!needs_drop::<T>()) }
        let place = &mut self.room[self.place.clone()];
        // SAFETY: zeros are a value of the type, and as many are written as there is room for.
        unsafe { place.as_mut_ptr().write_bytes(0, place.len()) }
    }
}

impl<T> Deref for Zeros<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        let place: *const [MaybeUninit<T>] = &raw const self.room[self.place.clone()];
        // SAFETY: `zeros`, which alone makes this, has written all that is there.
        unsafe { &*(place as *const [T]) }
    }
}

/// Asks the operating system for huge pages where whole ones fit in `buffer`. It may say no.
fn prefer_huge_pages<T>(buffer: &mut [MaybeUninit<T>]) {
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
                        shared.append(turn, portion.clone());
                    });
                }
            }));
            prop_assert_eq!(ids, portions.concat());
        }
    }

    #[test]
    fn what_comes_after_a_turn_that_never_came_is_left_out() {
        let (ids, next) = collect_ids(4, |shared| {
            shared.append(2, vec![8]);
            shared.append(0, vec![7, 7])
        });
        assert_eq!((ids, next), (vec![7, 7], vec![]));
    }

    #[test]
    fn a_buffer_of_many_pages_may_be_written() {
        let mut ids = room_for_ids(1 << 24);
        assert!(ids.capacity() > 1 << 22);
        ids.resize(1 << 22, 7);
        assert!(ids.iter().all(|id| *id == 7));
    }
}
