//! Prompts that begin alike are read once.
//!
//! ```text
//! a  The cat sat on the mat      reads all of it
//! b  The cat sat on the mat      a's twin: draws from the same row of logits
//! c  The cat sat on my hat       waits for a, copies 4 tokens, reads the rest
//! ```
//!
//! Whatever a slot holds counts, also what an ended sequence left there. Tokens are compared, from the
//! slot's first on: where they are equal, so are their positions, and what the model computed of them.

use super::{NextLogits, Slots};

/// How a sequence begins.
enum Plan {
    /// With the first `len` tokens that slot `from` holds.
    From { from: usize, len: usize },
    /// Later: another sequence is about to read what it needs.
    Wait,
    /// Together with this request, whose prompt is the same.
    Twin(usize),
}

impl Slots {
    /// Lets new sequences begin with what a slot holds already, or wait for one that is being read.
    ///
    /// The oldest never waits for a younger one, and so somebody always goes on.
    pub fn begin_new<M: NextLogits>(
        &mut self,
        model: &mut M,
        least_shared: usize,
    ) -> Result<(), M::Error> {
        if !self.has_new {
            return Ok(());
        }
        let mut new = Vec::new();
        for (_, sequence) in self.running_mut().filter(|(_, s)| !s.has_begun()) {
            sequence.twin = None;
            new.push(sequence.request);
        }
        new.sort_unstable();
        for request in new {
            let Some(slot) = self.slot_of(request) else { continue };
            match self.plan(slot, least_shared) {
                Plan::From { from, len } => self.begin(slot, from, len, model)?,
                Plan::Wait => {}
                Plan::Twin(leader) => {
                    if let Some(sequence) = self.get_mut(slot) {
                        sequence.twin = Some(leader);
                    }
                }
            }
        }
        let has_new = self.running().any(|(_, sequence)| !sequence.has_begun());
        self.has_new = has_new;
        Ok(())
    }

    /// Lets twins draw from the row of the one that was read.
    pub fn join_twins<M: NextLogits>(&mut self, model: &mut M) -> Result<(), M::Error> {
        if !self.has_new {
            return Ok(());
        }
        for slot in 0..self.num_running {
            let twin = self.get_mut(slot).and_then(|sequence| sequence.twin);
            let Some(from) = twin.and_then(|leader| self.slot_of(leader)) else { continue };
            let Some(leader) = self.get_mut(from).filter(|leader| leader.row.is_some()) else {
                continue;
            };
            let (row, held) = (leader.row, leader.held().len());
            model.copy(from, slot, held)?;
            self.all[slot].left = Vec::new();
            if let Some(sequence) = self.get_mut(slot) {
                sequence.begin(held);
                sequence.row = row;
            }
        }
        Ok(())
    }

    fn slot_of(&self, request: usize) -> Option<usize> {
        self.running().find(|(_, sequence)| sequence.request == request).map(|(slot, _)| slot)
    }

    fn plan(&self, slot: usize, least_shared: usize) -> Plan {
        let Some(new) = &self.all[slot].sequence else { return Plan::Wait };
        let [rest @ .., last] = new.seen() else { return Plan::Wait };
        // The last token is read in any case: its logits are wanted.
        let shared = |tokens: &[u32]| tokens.iter().zip(rest).take_while(|(a, b)| a == b).count();
        let (mut from, mut len) = (slot, shared(self.all[slot].held()));
        for (other, holder) in self.all.iter().enumerate() {
            let found = shared(holder.held());
            if found > len {
                (from, len) = (other, found);
            }
        }
        let mut promised = 0;
        for (_, other) in self.running() {
            let is_first =
                if other.has_begun() { other.is_at_prompt() } else { other.request < new.request };
            if is_first {
                let found = shared(other.seen());
                let is_same = found == rest.len() && other.seen()[found..] == [*last];
                if is_same && other.twin.is_none() {
                    return Plan::Twin(other.request);
                }
                promised = promised.max(found);
            }
        }
        if promised >= len + least_shared.max(1) { Plan::Wait } else { Plan::From { from, len } }
    }

    /// Makes a slot hold the first `len` tokens of slot `from`, and lets its sequence go on there.
    fn begin<M: NextLogits>(
        &mut self,
        mut slot: usize,
        from: usize,
        len: usize,
        model: &mut M,
    ) -> Result<(), M::Error> {
        let is_new = self.all[from].sequence.as_ref().is_some_and(|s| !s.has_begun());
        if from != slot && !is_new {
            model.copy(from, slot, len)?;
        } else {
            // Two that have not begun trade places, which is cheaper than a copy.
            let sequence = self.all[slot].sequence.take();
            let other = std::mem::replace(&mut self.all[from].sequence, sequence);
            if from != slot {
                self.all[slot].sequence = other;
                slot = from;
            }
            model.truncate(slot, len)?;
        }
        self.all[slot].left = Vec::new();
        if let Some(sequence) = self.get_mut(slot) {
            sequence.begin(len);
        }
        Ok(())
    }
}
