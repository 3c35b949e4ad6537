//! One `extend`: which sequences read how many of their tokens.
//!
//! ```text
//! unread   a 1   b 1   c 5000   d 300        at most 2048 tokens of prompts a step:
//! step 1   a 1   b 1   c 2048
//! step 2   a 1   b 1   c 2048
//! step 3   a 1   b 1   c 904    d 300        and from here on all of them get tokens
//! ```
//!
//! A sequence that lacks just one token always reads it, so nobody waits for another one's prompt.

use super::slots::Slots;
use super::{Extend, NextLogits};

/// Shares out what a step may read.
#[derive(Debug, Default)]
pub(super) struct Reader {
    /// The slot whose turn it is to read a long prompt.
    turn: usize,
    /// Kept for its memory alone.
    work: Vec<Extend<'static>>,
}

impl Reader {
    /// Lets the model read; then sequences whose logits have come know which row is theirs.
    pub fn read<M: NextLogits>(
        &mut self,
        model: &mut M,
        slots: &mut Slots,
        prefill_tokens: usize,
    ) -> Result<(), M::Error> {
        self.share_out(slots, prefill_tokens);
        let mut work = emptied(std::mem::take(&mut self.work));
        work.extend(slots.running().filter_map(|(slot, sequence)| sequence.work(slot)));
        let done = model.extend(&work);
        self.work = emptied(work);
        done?;
        let mut rows = 0..;
        for (_, sequence) in slots.running_mut() {
            sequence.has_read(&mut rows);
        }
        slots.join_twins(model)
    }

    fn share_out(&mut self, slots: &mut Slots, prefill_tokens: usize) {
        let mut has_long = false;
        for (_, sequence) in slots.running_mut() {
            let num_unread = sequence.num_unread();
            sequence.share = usize::from(num_unread == 1 && sequence.has_begun());
            has_long |= num_unread > 1;
        }
        if has_long {
            self.share_out_prompts(slots, prefill_tokens);
        }
    }

    /// In the order of the slots, from the one that had to stop last time.
    fn share_out_prompts(&mut self, slots: &mut Slots, prefill_tokens: usize) {
        let mut left = prefill_tokens;
        let mut next_turn = None;
        let num_running = slots.num_running();
        for slot in (0..num_running).map(|i| (self.turn + i) % num_running) {
            let Some(sequence) = slots.get_mut(slot).filter(|s| s.has_begun()) else { continue };
            let num_unread = sequence.num_unread();
            if num_unread > 1 {
                sequence.share = num_unread.min(left);
                left -= sequence.share;
                if sequence.share < num_unread {
                    next_turn = next_turn.or(Some(slot));
                }
            }
        }
        self.turn = next_turn.unwrap_or(0);
    }
}

/// An empty vector with the memory of another one, whose borrows have ended.
pub(super) fn emptied<T, U>(mut full: Vec<T>) -> Vec<U> {
    full.clear();
    full.into_iter().filter_map(|_| None).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_emptied_vector_keeps_its_memory() {
        let tokens = [1, 2];
        let full: Vec<_> = (0..5).map(|slot| Extend { slot, tokens: &tokens, wanted: 0 }).collect();
        let (place, capacity) = (full.as_ptr().addr(), full.capacity());
        let empty: Vec<Extend<'static>> = emptied(full);
        assert_eq!((empty.len(), empty.as_ptr().addr(), empty.capacity()), (0, place, capacity));
    }
}
