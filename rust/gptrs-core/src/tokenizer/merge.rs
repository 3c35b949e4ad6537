//! Byte-pair merging: the bytes of a piece -> its tokens.
//!
//! The pair of lowest rank is merged first, the leftmost of equals, until none is left. A pair's
//! rank is the id of the token that it becomes (`vocab::merged`).
//!
//! ```text
//!   h  u  g  s      rank of each pair with its right neighbour: hu -, ug 1018, gs 14542
//!   h  ug    s      h+ug 1757, ug+s 10339
//!   hug      s      hug+s -: done
//! ```

use std::cmp::Reverse;
use std::collections::BinaryHeap;

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

/// A token of a long piece, in a list linked both ways. Its place is that of its first byte.
struct Node {
    id: u16,
    /// The rank of the pair with the next token; `NO_ID` too once this token is part of another.
    rank: u16,
    previous: usize,
    next: usize,
}

/// Takes O(n log n) time with a heap of (rank, place), whose outdated entries are skipped.
fn merge_long<E>(
    piece: &[u8],
    tokens: &mut Vec<u16>,
    check: &mut impl FnMut() -> Result<(), E>,
) -> Result<(), E> {
    let mut nodes = Vec::with_capacity(piece.len());
    let mut heap = BinaryHeap::with_capacity(piece.len());
    for (place, byte) in piece.iter().enumerate() {
        let rank = piece.get(place + 1).map_or(NO_ID, |next| merged_bytes(*byte, *next));
        if rank != NO_ID {
            heap.push(Reverse((rank, place)));
        }
        let (previous, next) = (place.wrapping_sub(1), place + 1);
        nodes.push(Node { id: byte_id(*byte), rank, previous, next });
        if place % STEPS_BETWEEN_CHECKS == 0 {
            check()?;
        }
    }

    let mut steps = 0;
    while let Some(Reverse((rank, place))) = heap.pop() {
        steps += 1;
        if steps % STEPS_BETWEEN_CHECKS == 0 {
            check()?;
        }
        if nodes[place].rank != rank {
            continue;
        }
        let (previous, right) = (nodes[place].previous, nodes[place].next);
        let next = nodes[right].next;
        nodes[right].rank = NO_ID;
        nodes[place].id = rank;
        nodes[place].next = next;
        nodes[place].rank = NO_ID;
        if let Some(after) = nodes.get_mut(next) {
            after.previous = place;
            rank_pair(&mut nodes, place, next, &mut heap);
        }
        if place > 0 {
            rank_pair(&mut nodes, previous, place, &mut heap);
        }
    }

    let mut place = 0;
    while let Some(node) = nodes.get(place) {
        tokens.push(node.id);
        place = node.next;
    }
    Ok(())
}

/// Notes the rank of the pair that two neighbours now are.
fn rank_pair(
    nodes: &mut [Node],
    left: usize,
    right: usize,
    heap: &mut BinaryHeap<Reverse<(u16, usize)>>,
) {
    let rank = merged(nodes[left].id, nodes[right].id);
    nodes[left].rank = rank;
    if rank != NO_ID {
        heap.push(Reverse((rank, left)));
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
