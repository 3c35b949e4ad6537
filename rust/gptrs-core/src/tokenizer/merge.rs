//! Byte-pair merging: the bytes of a piece -> its tokens.
//!
//! The pair of lowest rank is merged first, the leftmost of equals, until none is left. A pair's
//! rank is the id of the token that it becomes (`vocab::merged`).
//!
//! ```text
//!   h  u  g  s      hu 13415, ug 1018, gs 14542: ug is the lowest
//!   h  ug    s      hug is no token, ugs 10339
//!   h  ugs          hugs is no token: done
//! ```

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::iter;

use super::layout::NO_ID;
use super::vocab::{byte_id, merged, merged_bytes};

/// Pieces of up to this many bytes are merged in arrays on the stack: searching all of them for
/// the lowest rank is faster than keeping a heap, as long as they fit a few cache lines.
const SHORT: usize = 64;

/// How many steps of a long merge to make between two calls of `check`: a few milliseconds' work.
const STEPS_BETWEEN_CHECKS: usize = 1 << 16;

/// Appends the tokens of a piece. Calls `check` now and then if the piece is long; its error ends
/// the work and is returned.
pub fn merge<E>(
    piece: &[u8],
    tokens: &mut Vec<u16>,
    check: &mut impl FnMut() -> Result<(), E>,
) -> Result<(), E> {
    if piece.len() <= SHORT {
        merge_short(piece, tokens);
        Ok(())
    } else {
        merge_long(piece, tokens, check)
    }
}

/// Takes quadratic time, of which a piece this short feels nothing.
fn merge_short(piece: &[u8], tokens: &mut Vec<u16>) {
    let mut len = piece.len();
    let (mut ids, mut ranks) = ([0; SHORT], [NO_ID; SHORT]);
    for (id, byte) in ids.iter_mut().zip(piece) {
        *id = byte_id(*byte);
    }
    // ranks[i] is the rank of the pair (i, i + 1), NO_ID for the last token.
    for (rank, pair) in ranks.iter_mut().zip(piece.windows(2)) {
        *rank = merged_bytes(pair[0], pair[1]);
    }
    loop {
        let lowest = ranks[..len].iter().copied().min().unwrap_or(NO_ID);
        if lowest == NO_ID {
            break;
        }
        let Some(at) = ranks[..len].iter().position(|rank| *rank == lowest) else { break };
        ids[at] = lowest;
        ids.copy_within(at + 2..len, at + 1);
        ranks.copy_within(at + 1..len, at);
        len -= 1;
        if at + 1 < len {
            ranks[at] = merged(lowest, ids[at + 1]);
        }
        if at > 0 {
            ranks[at - 1] = merged(ids[at - 1], lowest);
        }
    }
    tokens.extend_from_slice(&ids[..len]);
}

/// Takes O(n log n) time.
fn merge_long<E>(
    piece: &[u8],
    tokens: &mut Vec<u16>,
    check: &mut impl FnMut() -> Result<(), E>,
) -> Result<(), E> {
    let mut list = List::with_capacity(piece.len());
    for (place, byte) in piece.iter().enumerate() {
        if place % STEPS_BETWEEN_CHECKS == 0 {
            check()?;
        }
        list.push(*byte, piece.get(place + 1).copied());
    }
    for step in 1_usize.. {
        if step.is_multiple_of(STEPS_BETWEEN_CHECKS) {
            check()?;
        }
        let Some(Reverse(pair)) = list.pairs.pop() else { break };
        list.join((pair >> RANK_SHIFT) as u16, (pair & PLACE_MASK) as usize);
    }
    tokens.extend(list.ids());
    Ok(())
}

/// The tokens of a long piece, linked both ways, and a heap of their pairs.
struct List {
    nodes: Vec<Node>,
    /// Lowest rank first, then leftmost: `rank << 48 | place`. Some are outdated.
    pairs: BinaryHeap<Reverse<u64>>,
}

const RANK_SHIFT: u32 = 48;
const PLACE_MASK: u64 = (1 << RANK_SHIFT) - 1;

/// A token, at the place of its first byte.
struct Node {
    id: u16,
    /// The rank of the pair with the next token; `NO_ID` too once this is part of another token.
    rank: u16,
    previous: usize,
    next: usize,
}

impl List {
    fn with_capacity(len: usize) -> Self {
        Self { nodes: Vec::with_capacity(len), pairs: BinaryHeap::with_capacity(len) }
    }

    /// Appends a single byte, of which `next` will be the neighbour.
    fn push(&mut self, byte: u8, next: Option<u8>) {
        let place = self.nodes.len();
        let rank = next.map_or(NO_ID, |next| merged_bytes(byte, next));
        let (previous, next) = (place.wrapping_sub(1), place + 1);
        self.nodes.push(Node { id: byte_id(byte), rank, previous, next });
        self.push_pair(rank, place);
    }

    /// Merges the token at `place` with the next, unless the pair is no longer there.
    fn join(&mut self, rank: u16, place: usize) {
        let Node { rank: current, previous, next: right, .. } = self.nodes[place];
        if current != rank {
            return;
        }
        let next = self.nodes[right].next;
        self.nodes[right].rank = NO_ID;
        self.nodes[place] = Node { id: rank, rank: NO_ID, previous, next };
        if let Some(after) = self.nodes.get_mut(next) {
            after.previous = place;
            self.rank_pair(place, next);
        }
        if place > 0 {
            self.rank_pair(previous, place);
        }
    }

    /// Notes the pair that two neighbours now are.
    fn rank_pair(&mut self, left: usize, right: usize) {
        let rank = merged(self.nodes[left].id, self.nodes[right].id);
        self.nodes[left].rank = rank;
        self.push_pair(rank, left);
    }

    fn push_pair(&mut self, rank: u16, place: usize) {
        if rank != NO_ID {
            self.pairs.push(Reverse(u64::from(rank) << RANK_SHIFT | place as u64));
        }
    }

    /// The tokens from left to right.
    fn ids(&self) -> impl Iterator<Item = u16> {
        iter::successors(self.nodes.first(), |node| self.nodes.get(node.next)).map(|node| node.id)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{layout::NUM_RANKS, vocab};
    use super::*;
    use proptest::prelude::*;

    fn short(piece: &[u8]) -> Vec<u16> {
        let mut tokens = Vec::new();
        merge_short(piece, &mut tokens);
        tokens
    }

    fn long(piece: &[u8]) -> Vec<u16> {
        let mut tokens = Vec::new();
        merge_long(piece, &mut tokens, &mut || Ok::<_, ()>(())).unwrap();
        tokens
    }

    #[test]
    fn every_token_merges_into_itself() {
        for id in 0..NUM_RANKS as u16 {
            let token = vocab::bytes(id).unwrap();
            assert_eq!(long(token), [id]);
            if token.len() <= SHORT {
                assert_eq!(short(token), [id]);
            }
        }
    }

    #[test]
    fn a_long_merge_stops_when_the_check_fails() {
        let piece = vec![b'x'; 4 * STEPS_BETWEEN_CHECKS];
        for calls_allowed in [0, 3, 5] {
            let mut calls = 0;
            let mut check = || {
                calls += 1;
                if calls > calls_allowed { Err("stop") } else { Ok(()) }
            };
            assert_eq!(merge(&piece, &mut Vec::new(), &mut check), Err("stop"));
        }
    }

    proptest! {
        #[test]
        fn arrays_and_heap_agree(piece in prop::collection::vec(any::<u8>(), 0..=SHORT)) {
            prop_assert_eq!(short(&piece), long(&piece));
        }

        #[test]
        fn arrays_and_heap_agree_on_few_letters(piece in "[ estin]{0,64}") {
            prop_assert_eq!(short(piece.as_bytes()), long(piece.as_bytes()));
        }
    }
}
