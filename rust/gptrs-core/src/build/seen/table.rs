//! Keys in memory, by open addressing. They are spread evenly, so a key's place is its share of 2^128.

/// Keys in memory. A slot of 0 is free; the key 0 is kept aside.
pub struct Table {
    pub slots: Vec<u128>,
    num_keys: usize,
    has_zero: bool,
}

impl Table {
    pub fn new(slots: usize) -> Self {
        Self { slots: vec![0; slots], num_keys: 0, has_zero: false }
    }

    /// Where to look for a key first: keys in order have places in order.
    pub fn place(&self, key: u128) -> usize {
        (((key >> 64) * self.slots.len() as u128) >> 64) as usize
    }

    /// Where a key may be put; `None` if it is there.
    pub fn free_slot(&self, key: u128) -> Option<usize> {
        if key == 0 {
            return (!self.has_zero).then_some(0);
        }
        let mut slot = self.place(key);
        loop {
            match self.slots[slot] {
                0 => return Some(slot),
                found if found == key => return None,
                _ => slot = if slot + 1 == self.slots.len() { 0 } else { slot + 1 },
            }
        }
    }

    pub fn put(&mut self, slot: usize, key: u128) {
        self.num_keys += 1;
        if key == 0 {
            self.has_zero = true;
        } else {
            self.slots[slot] = key;
        }
    }

    /// With more than two of three slots taken, runs of taken slots grow long.
    pub fn is_full(&self) -> bool {
        self.num_keys >= self.slots.len() / 3 * 2
    }

    /// Twice the slots, or `most_slots`.
    pub fn grow(&mut self, most_slots: usize) {
        let mut larger = Self::new((self.slots.len() * 2).min(most_slots));
        larger.has_zero = self.has_zero;
        for key in self.slots.iter().filter(|key| **key != 0) {
            if let Some(slot) = larger.free_slot(*key) {
                larger.slots[slot] = *key;
            }
        }
        larger.num_keys = self.num_keys;
        *self = larger;
    }

    /// All keys in order. `clear` has to follow.
    pub fn sort(&mut self) -> &[u128] {
        self.slots.retain(|key| *key != 0);
        self.slots.extend(self.has_zero.then_some(0));
        self.slots.sort_unstable();
        &self.slots
    }

    pub fn clear(&mut self, slots: usize) {
        self.slots.clear();
        self.slots.resize(slots, 0);
        self.num_keys = 0;
        self.has_zero = false;
    }
}
