//! The model's slots: which sequence is in each, and what it holds.
//!
//! ```text
//! slot       0   1   2   3 │ 4   5          running: 0..4, without a hole
//! sequence   a   b   c   d │ -   -
//! holds      a.. b.. x.. d │ y.. z..        c has not begun: its slot still holds what x left
//!
//! b ends     a   d   c     │ -              the last one moves into the hole
//! ```
//!
//! Running sequences stay in the first slots, so that a step is one dense batch. What an ended one
//! leaves behind stays where it is until the slot is needed: the next prompt may begin with it.

mod sharing;

use super::sequence::Sequence;
use super::{Event, Finish, NextLogits};

#[derive(Debug, Default)]
struct Slot {
    sequence: Option<Sequence>,
    /// What the slot holds, unless it holds the tokens of a sequence that has begun.
    left: Vec<u32>,
}

impl Slot {
    fn held(&self) -> &[u32] {
        match &self.sequence {
            Some(sequence) if sequence.has_begun() => sequence.held(),
            _ => &self.left,
        }
    }
}

/// All of a model's slots.
#[derive(Debug)]
pub(super) struct Slots {
    all: Vec<Slot>,
    /// The running sequences are in the slots below this.
    num_running: usize,
    /// Whether a sequence has ended since the last `close_holes`.
    has_holes: bool,
    /// Whether some sequence may not have begun.
    has_new: bool,
}

impl Slots {
    pub fn new(count: usize) -> Self {
        let all = (0..count).map(|_| Slot::default()).collect();
        Self { all, num_running: 0, has_holes: false, has_new: false }
    }

    pub fn num_running(&self) -> usize {
        self.num_running
    }

    pub fn has_holes(&self) -> bool {
        self.has_holes
    }

    /// Every running sequence, by slot.
    pub fn running(&self) -> impl Iterator<Item = (usize, &Sequence)> {
        let slots = self.all[..self.num_running].iter().enumerate();
        slots.filter_map(|(slot, s)| Some((slot, s.sequence.as_ref()?)))
    }

    /// Every running sequence, by slot.
    pub fn running_mut(&mut self) -> impl Iterator<Item = (usize, &mut Sequence)> {
        let slots = self.all[..self.num_running].iter_mut().enumerate();
        slots.filter_map(|(slot, s)| Some((slot, s.sequence.as_mut()?)))
    }

    /// The sequence in a slot.
    pub fn get_mut(&mut self, slot: usize) -> Option<&mut Sequence> {
        self.all[slot].sequence.as_mut()
    }

    /// The lowest slot without a sequence.
    pub fn free(&self) -> Option<usize> {
        if !self.has_holes {
            return (self.num_running < self.all.len()).then_some(self.num_running);
        }
        self.all.iter().position(|slot| slot.sequence.is_none())
    }

    /// Puts a new sequence into a free slot, which holds on to what was left there.
    pub fn put(&mut self, slot: usize, sequence: Sequence) {
        self.all[slot].sequence = Some(sequence);
        self.num_running = self.num_running.max(slot + 1);
        self.has_new = true;
    }

    /// Ends the sequence in a slot, if there is one; the slot keeps what it holds.
    pub fn end(&mut self, slot: usize) {
        let slot = &mut self.all[slot];
        if let Some(sequence) = slot.sequence.take_if(|sequence| sequence.has_begun()) {
            slot.left = sequence.held().to_vec();
        }
        slot.sequence = None;
        self.has_holes = true;
    }

    /// As `end`, but nobody is to go on from what the slot holds.
    pub fn discard(&mut self, slot: usize) {
        self.end(slot);
        self.all[slot].left.clear();
    }

    /// Ends a request, if it runs.
    pub fn cancel(&mut self, is_cancelled: impl Fn(usize) -> bool, events: &mut Vec<Event>) {
        for slot in 0..self.num_running {
            if let Some(sequence) = self.get_mut(slot)
                && is_cancelled(sequence.request)
            {
                events.push(sequence.end(Finish::Cancelled));
                self.end(slot);
            }
        }
    }

    /// Forgets all sequences and all that the slots hold; returns the requests that ran.
    pub fn clear(&mut self) -> Vec<usize> {
        let requests = self.running().map(|(_, sequence)| sequence.request).collect();
        // Free slots are holes: whoever waits is looked at again.
        *self = Self { has_holes: true, ..Self::new(self.all.len()) };
        requests
    }

    /// Moves the last sequences into the slots of those that have ended.
    pub fn close_holes<M: NextLogits>(&mut self, model: &mut M) -> Result<(), M::Error> {
        if !self.has_holes {
            return Ok(());
        }
        let mut hole = 0;
        loop {
            let is_taken = |slot: &Slot| slot.sequence.is_some();
            self.num_running = self.all.iter().rposition(is_taken).map_or(0, |last| last + 1);
            hole += self.all[hole..].iter().take_while(|slot| is_taken(slot)).count();
            if hole >= self.num_running {
                self.has_holes = false;
                return Ok(());
            }
            self.move_to(self.num_running - 1, hole, model)?;
        }
    }

    /// A sequence that has not begun moves without what its slot holds.
    fn move_to<M: NextLogits>(
        &mut self,
        from: usize,
        hole: usize,
        model: &mut M,
    ) -> Result<(), M::Error> {
        if let Some(sequence) = self.all[from].sequence.as_ref().filter(|s| s.has_begun()) {
            model.copy(from, hole, sequence.held().len())?;
            self.all[hole].left = Vec::new();
        }
        self.all[hole].sequence = self.all[from].sequence.take();
        Ok(())
    }

    /// Lets every sequence whose window is full slide on.
    pub fn slide<M: NextLogits>(&mut self, model: &mut M) -> Result<(), M::Error> {
        for (slot, sequence) in self.running_mut() {
            if sequence.slide() {
                model.truncate(slot, 0)?;
            }
        }
        Ok(())
    }
}
