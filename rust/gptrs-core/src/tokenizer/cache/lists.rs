//! What does not fit into an entry of the cache, one after the other in a list that threads append to
//! without waiting.
//!
//! ```text
//!   a word of many ids    4 to a number, filled up to 16
//!   a longer word         internat│ionaliza│lization│international ization    8 bytes to a number,
//!                                                                            the last 8, its ids
//! ```

use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU64, AtomicUsize};

use bytemuck::allocation::zeroed_slice_box;

use super::MOST_IDS;
use super::word::eights;

/// 1 MiB. Memory that nobody wrote to takes no room.
const NUMBERS: usize = 1 << 17;

/// What a thread takes at once: seldom enough that threads do not wait for each other's caches.
const NUMBERS_A_ROOM: usize = 1 << 9;

const IDS_A_NUMBER: usize = 4;

/// The ids of words that have many, and words that are too long to be their own key.
///
/// Who is to see what was put here has to learn of its place by an acquiring load.
#[derive(Debug)]
pub struct Lists {
    numbers: Box<[AtomicU64]>,
    taken: AtomicUsize,
}

impl Default for Lists {
    fn default() -> Self {
        Self { numbers: zeroed_slice_box(NUMBERS), taken: AtomicUsize::new(0) }
    }
}

impl Lists {
    /// Keeps the ids of a word, as many as they may be. Returns their place, if there was one.
    pub fn put_many(&self, room: &mut Room, ids: &[u16]) -> Option<usize> {
        let mut all = [0; MOST_IDS];
        all[..ids.len()].copy_from_slice(ids);
        let fours = all.as_chunks().0.iter().copied().map(four);
        self.put(room, MOST_IDS / IDS_A_NUMBER, fours)
    }

    /// The ids at a place of `put_many`, and what fills it up.
    #[inline(always)]
    pub fn many(&self, place: usize) -> [u16; MOST_IDS] {
        let numbers = &self.numbers[place..][..MOST_IDS / IDS_A_NUMBER];
        bytemuck::cast::<[u64; MOST_IDS / IDS_A_NUMBER], _>(std::array::from_fn(|at| {
            numbers[at].load(Relaxed)
        }))
    }

    /// Keeps a long word and its ids. Returns their place, if there was one.
    pub fn put_long(&self, room: &mut Room, word: &[u8], ids: &[u16]) -> Option<usize> {
        let num_ids = ids.len().div_ceil(IDS_A_NUMBER);
        let fours = ids.chunks(IDS_A_NUMBER).map(|ids| {
            let mut all = [0; IDS_A_NUMBER];
            all[..ids.len()].copy_from_slice(ids);
            four(all)
        });
        self.put(room, eights(word).count() + num_ids, eights(word).chain(fours))
    }

    /// Copies the ids of a long word to `ids`, as many as these are, if it is the one at this place.
    /// Says whether it is.
    pub fn long(&self, place: usize, word: &[u8], ids: &mut [u16]) -> bool {
        let (bytes, numbers) = self.numbers[place..].split_at(eights(word).count());
        // No branch for each number: most often all are equal.
        let differing = bytes.iter().zip(eights(word));
        if differing.fold(0, |all, (number, eight)| all | (number.load(Relaxed) ^ eight)) != 0 {
            return false;
        }
        let (fours, rest) = ids.as_chunks_mut();
        let found =
            |number: &AtomicU64| -> [u16; IDS_A_NUMBER] { bytemuck::cast(number.load(Relaxed)) };
        for (four, number) in fours.iter_mut().zip(numbers) {
            *four = found(number);
        }
        if let Some(number) = numbers.get(fours.len()) {
            let len = rest.len();
            rest.copy_from_slice(&found(number)[..len]);
        }
        true
    }

    /// Keeps so many numbers, and returns the place of the first.
    fn put(
        &self,
        room: &mut Room,
        count: usize,
        numbers: impl Iterator<Item = u64>,
    ) -> Option<usize> {
        if room.0.len() < count {
            *room = self.new_room()?;
        }
        let place = room.0.start;
        room.0.start += count;
        for (to, from) in self.numbers[place..].iter().zip(numbers) {
            to.store(from, Relaxed);
        }
        Some(place)
    }

    fn new_room(&self) -> Option<Room> {
        let least = self.taken.load(Relaxed);
        // Looked at first, so that this does not grow for ever.
        if least + NUMBERS_A_ROOM > NUMBERS {
            return None;
        }
        let start = self.taken.fetch_add(NUMBERS_A_ROOM, Relaxed);
        let room = start..start + NUMBERS_A_ROOM;
        (room.end <= NUMBERS).then_some(Room(room))
    }

    /// Takes back what is left of a room, if it is the last.
    pub fn give_back(&self, Room(Range { start, end }): Room) {
        let _ = self.taken.compare_exchange(end, start, Relaxed, Relaxed);
    }
}

/// A part of a list that one thread alone puts something in.
#[derive(Debug, Default)]
pub struct Room(Range<usize>);

fn four(ids: [u16; IDS_A_NUMBER]) -> u64 {
    bytemuck::cast(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A word, and ids that no other has.
    fn entry(number: usize) -> (Vec<u8>, Vec<u16>) {
        let word = format!("long word number {number:0width$}", width = number % 100 + 1);
        (word.into_bytes(), (0..=number % 60).map(|at| (number + at) as u16).collect())
    }

    #[test]
    fn what_several_put_there_in_turns_stays_until_there_is_no_room() {
        let (lists, mut rooms) = (Lists::default(), [(); 3].map(|()| Room::default()));
        let mut places = Vec::new();
        for number in 0.. {
            let (word, ids) = entry(number);
            let Some(place) = lists.put_long(&mut rooms[number % 3], &word, &ids) else { break };
            places.push(place);
        }
        assert!(places.len() > 1_000);
        for (number, place) in places.into_iter().enumerate() {
            let (word, ids) = entry(number);
            let mut found = vec![0; ids.len()];
            assert!(lists.long(place, &word, &mut found));
            assert_eq!(found, ids);
            assert!(!lists.long(place, &entry(number + 1).0, &mut found));
        }
    }

    #[test]
    fn what_is_given_back_is_used_again() {
        let lists = Lists::default();
        for number in 0..NUMBERS / 16 {
            let mut room = Room::default();
            let ids = [number as u16; MOST_IDS];
            let place = lists.put_many(&mut room, &ids);
            assert_eq!(place.map(|place| lists.many(place)), Some(ids));
            lists.give_back(room);
        }
    }
}
