//! Which pair to merge next: the most frequent, of equally frequent ones that of the lowest ids.
//!
//! Most pairs are so rare that they are never merged. Only pairs that stand in the text `least`
//! times or more are kept in order; the others wait, unordered, until those run out.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;

use super::pairs::Pairs;

#[derive(Debug, Default)]
pub struct Queue {
    frequent: BinaryHeap<Candidate>,
    least: u64,
    rare: Vec<u32>,
}

/// A pair, and how often it stood in the text when it was entered: since then it can only have
/// become rarer.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    count: u64,
    ids: Reverse<(u16, u16)>,
    pair: u32,
}

impl Queue {
    pub fn new() -> Self {
        Self { frequent: BinaryHeap::new(), least: u64::MAX, rare: Vec::new() }
    }

    /// Enters a pair that is new.
    pub fn push(&mut self, pair: u32, pairs: &Pairs) {
        let found = pairs.get(pair);
        if found.count >= self.least {
            let ids = Reverse((found.left, found.right));
            self.frequent.push(Candidate { count: found.count, ids, pair });
        } else if found.count > 0 {
            self.rare.push(pair);
        }
    }

    /// Takes out the next pair, if any is left that stands in the text.
    pub fn pop<E>(
        &mut self,
        pairs: &mut Pairs,
        check: &mut impl FnMut(usize) -> Result<(), E>,
    ) -> Result<Option<u32>, E> {
        loop {
            while let Some(mut top) = self.frequent.peek_mut() {
                pairs.visit(check)?;
                let count = pairs.get(top.pair).count;
                if count == top.count {
                    return Ok(Some(PeekMut::pop(top).pair));
                }
                top.count = count;
                if count < self.least {
                    self.rare.push(PeekMut::pop(top).pair);
                }
            }
            if self.rare.is_empty() {
                return Ok(None);
            }
            self.least = (self.least / 4).max(1);
            for pair in std::mem::take(&mut self.rare) {
                pairs.visit(check)?;
                self.push(pair, pairs);
            }
        }
    }
}
