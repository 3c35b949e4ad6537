//! Merging of long pieces, in linear time and little memory.
//!
//! A new token's merges have higher ranks than its own, so all pairs of one rank are merged before
//! the next rank comes, and a list for each rank takes a heap's place.
//!
//! A piece of any length is merged in parts. Tokens are what their bytes merge into just if each
//! two neighbours are: as long as no merge crosses a seam, either side merges as if it were alone,
//! and the first that would cross it would do so too if only the two tokens at the seam were there
//! (`Vocab::stay_apart`). A part begins with the last few tokens of the one before, so that the
//! seam rarely needs repair:
//!
//! ```text
//!   part 1   t o k e n s t h a t g o o n      the last tokens of a part may go on: they are
//!   part 2                 h a t g o o n a … merged again, with what follows
//! ```

use super::super::Check;
use super::super::layout::NO_RANK;
use super::super::vocab::{Vocab, byte_id, merged_id};
use crate::Result;

/// How many bytes are merged at once: the nodes of as many fit the caches nearest to the core.
const PART: usize = 1 << 12;

/// How many bytes at a part's end are merged again with the next part.
const OVERLAP: usize = 1 << 6;

/// Room for merging, used again for piece after piece.
#[derive(Debug)]
pub struct LongMerger {
    nodes: Vec<Node>,
    /// The newest entry of each rank, or `NONE`.
    newest: Box<[u32; NUM_RANKS]>,
    /// Bit r: there are entries of rank r.
    waiting: Box<[u64; NUM_RANKS / 64]>,
    /// The first `num_entries` are in use.
    entries: Vec<Entry>,
    num_entries: usize,
    places: Vec<u32>,
    bytes: Vec<u8>,
    ids: Vec<u16>,
}

/// A token, at the place of its first byte.
#[derive(Debug, Clone, Copy)]
struct Node {
    id: u16,
    /// The rank of the pair with the next token; `NO_RANK` too once this is part of another token.
    rank: u16,
    previous: u32,
    next: u32,
}

/// How many ranks 16 bits tell apart.
const NUM_RANKS: usize = 1 << 16;

/// A pair that had this rank when it was noted, and the entry of that rank noted before.
#[derive(Debug, Default, Clone, Copy)]
struct Entry {
    place: u32,
    older: u32,
}

const NONE: u32 = u32::MAX;

impl Default for LongMerger {
    fn default() -> Self {
        Self {
            nodes: Vec::new(),
            newest: boxed(NONE),
            waiting: boxed(0),
            entries: Vec::new(),
            num_entries: 0,
            places: Vec::new(),
            bytes: Vec::new(),
            ids: Vec::new(),
        }
    }
}

/// An array on the heap that never was on the stack.
fn boxed<T: Copy, const N: usize>(value: T) -> Box<[T; N]> {
    let array = vec![value; N].into_boxed_slice().try_into();
    array.unwrap_or_else(|_| unreachable!("it has N items"))
}

impl LongMerger {
    /// Appends the tokens of `piece` to `tokens`, those of what comes before it, as they are when
    /// both are one piece. Calls `check` now and then; its error ends the work.
    pub fn merge(
        &mut self,
        vocab: Vocab<'_>,
        piece: &[u8],
        tokens: &mut Vec<u16>,
        check: Check<'_>,
    ) -> Result<()> {
        let mut rest = piece;
        while !rest.is_empty() {
            check()?;
            let part = &rest[..rest.len().min(PART)];
            self.merge_part(vocab, part);
            let mut kept = part.len();
            if part.len() < rest.len() {
                kept = self.cut_tail(part.len() - OVERLAP);
            }
            self.join(vocab, tokens);
            rest = &rest[kept..];
        }
        Ok(())
    }

    /// Makes `ids` the tokens of `part`.
    fn merge_part(&mut self, vocab: Vocab<'_>, part: &[u8]) {
        self.nodes.clear();
        self.nodes.extend(part.iter().zip(0..).map(|(byte, place): (&u8, u32)| Node {
            id: byte_id(*byte),
            rank: NO_RANK,
            previous: place.wrapping_sub(1),
            next: place + 1,
        }));
        // Each byte begins a pair, and each merge makes two.
        self.entries.resize(3 * part.len(), Entry::default());
        self.num_entries = 0;
        for (place, pair) in part.windows(2).enumerate() {
            self.note(place as u32, vocab.rank_of_bytes(pair[0], pair[1]));
        }
        for word in 0..self.waiting.len() {
            while self.waiting[word] != 0 {
                let bit = self.waiting[word].trailing_zeros();
                self.waiting[word] &= self.waiting[word] - 1;
                self.merge_rank(vocab, (64 * word as u32 + bit) as u16);
            }
        }
        self.ids.clear();
        let mut place = 0;
        while let Some(node) = self.nodes.get(place) {
            self.ids.push(node.id);
            place = node.next as usize;
        }
    }

    /// Merges all pairs of one rank.
    fn merge_rank(&mut self, vocab: Vocab<'_>, rank: u16) {
        let mut entry = std::mem::replace(&mut self.newest[usize::from(rank)], NONE);
        let (left, right) = vocab.merge(rank);
        if left == right {
            return self.merge_doubles(vocab, rank, entry);
        }
        // No two such pairs share a token, so their order does not matter.
        while entry != NONE {
            let Entry { place, older } = self.entries[entry as usize];
            self.join_pair(vocab, place, rank);
            entry = older;
        }
    }

    /// Merges all pairs of one rank, whose tokens are equal, from left to right.
    fn merge_doubles(&mut self, vocab: Vocab<'_>, rank: u16, mut entry: u32) {
        let mut places = std::mem::take(&mut self.places);
        places.clear();
        while entry != NONE {
            let Entry { place, older } = self.entries[entry as usize];
            places.push(place);
            entry = older;
        }
        // Most were noted from left to right.
        places.reverse();
        places.sort_unstable();
        for place in &places {
            self.join_pair(vocab, *place, rank);
        }
        self.places = places;
    }

    /// Merges the token at `place` with the next, if they still are a pair of this rank.
    #[inline(always)]
    fn join_pair(&mut self, vocab: Vocab<'_>, place: u32, rank: u16) {
        let Node { rank: current, previous, next: right, .. } = self.nodes[place as usize];
        if current != rank {
            return;
        }
        let id = merged_id(rank);
        let next = self.nodes[right as usize].next;
        self.nodes[right as usize].rank = NO_RANK;
        self.nodes[place as usize] = Node { id, rank: NO_RANK, previous, next };
        if let Some(after) = self.nodes.get_mut(next as usize) {
            after.previous = place;
            let rank = vocab.rank(id, after.id);
            self.note(place, rank);
        }
        if let Some(before) = self.nodes.get(previous as usize) {
            let rank = vocab.rank(before.id, id);
            self.note(previous, rank);
        }
    }

    /// Notes that the token at `place` and the next are a pair of this rank.
    #[inline(always)]
    fn note(&mut self, place: u32, rank: u16) {
        self.nodes[place as usize].rank = rank;
        if rank != NO_RANK {
            let newest = &mut self.newest[usize::from(rank)];
            self.entries[self.num_entries] = Entry { place, older: *newest };
            *newest = self.num_entries as u32;
            self.num_entries += 1;
            self.waiting[usize::from(rank) / 64] |= 1 << (rank % 64);
        }
    }

    /// Drops the last of `ids`, those that start at byte `from` or later, but not all of them.
    /// Returns how many bytes the others have.
    fn cut_tail(&mut self, from: usize) -> usize {
        let (mut place, mut len) = (0, 0);
        while let Some(node) = self.nodes.get(place)
            && (place < from || len == 0)
        {
            place = node.next as usize;
            len += 1;
        }
        self.ids.truncate(len);
        place.min(self.nodes.len())
    }

    /// Appends `ids` to `tokens`, and merges what has to merge at the seam.
    fn join(&mut self, vocab: Vocab<'_>, tokens: &mut Vec<u16>) {
        let ids = std::mem::take(&mut self.ids);
        for (at, &id) in ids.iter().enumerate() {
            if tokens.last().is_none_or(|last| vocab.stay_apart(*last, id)) {
                tokens.extend_from_slice(&ids[at..]);
                break;
            }
            self.join_token(vocab, tokens, id);
        }
        self.ids = ids;
    }

    /// Appends a token that does not stay apart from the last.
    #[cold]
    fn join_token(&mut self, vocab: Vocab<'_>, tokens: &mut Vec<u16>, id: u16) {
        let mut seam = vec![id];
        loop {
            seam.splice(0..0, tokens.pop());
            let mut bytes = std::mem::take(&mut self.bytes);
            bytes.clear();
            bytes.extend(seam.iter().filter_map(|id| vocab.bytes(*id)).flatten());
            self.merge_part(vocab, &bytes);
            self.bytes = bytes;
            let Some((last, first)) = tokens.last().zip(self.ids.first()) else { break };
            if vocab.stay_apart(*last, *first) {
                break;
            }
        }
        tokens.extend_from_slice(&self.ids);
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::vocab::GPT2;
    use super::super::tests::slowly;
    use super::*;
    use crate::Error;
    use proptest::prelude::*;

    fn long(piece: &[u8]) -> Vec<u16> {
        let mut tokens = Vec::new();
        LongMerger::default().merge(GPT2, piece, &mut tokens, &mut || Ok(())).unwrap();
        tokens
    }

    #[test]
    fn every_token_merges_into_itself() {
        let mut merger = LongMerger::default();
        for id in 0..GPT2.len() as u16 {
            merger.merge_part(GPT2, GPT2.bytes(id).unwrap());
            assert_eq!(merger.ids, [id]);
        }
    }

    #[test]
    fn a_repeated_word_is_merged_in_parts_as_it_is_at_once() {
        let mut whole = LongMerger::default();
        for word in ["a", "ab", "=-", "estin", " ", "oooh", "ÃÂ", "\0", "0123456789", "é中"] {
            let piece = word.repeat(3 * PART / word.len());
            whole.merge_part(GPT2, piece.as_bytes());
            assert_eq!(long(piece.as_bytes()), whole.ids, "{word:?}");
        }
    }

    #[test]
    fn a_long_merge_stops_when_the_check_fails() {
        let piece = vec![b'x'; 9 * PART];
        let mut calls = 0;
        let mut check = || {
            calls += 1;
            if calls > 3 { Err(Error::Stopped) } else { Ok(()) }
        };
        let stopped = LongMerger::default().merge(GPT2, &piece, &mut Vec::new(), &mut check);
        assert_eq!(stopped, Err(Error::Stopped));
    }

    proptest! {
        #[test]
        fn long_pieces_merge_as_defined(piece in prop::collection::vec(any::<u8>(), 1..300)) {
            prop_assert_eq!(long(&piece), slowly(GPT2, &piece));
        }

        #[test]
        fn a_piece_is_merged_with_what_comes_before_it(
            piece in prop_oneof!["[ estin]{2,40}", "=*-?=*", "\\PC{2,40}"],
            cut in any::<prop::sample::Index>(),
        ) {
            let (before, after) = piece.as_bytes().split_at(cut.index(piece.len() + 1));
            let mut tokens = slowly(GPT2, before);
            let mut merger = LongMerger::default();
            merger.merge(GPT2, after, &mut tokens, &mut || Ok(())).unwrap();
            prop_assert_eq!(tokens, slowly(GPT2, piece.as_bytes()));
        }

        #[test]
        fn two_tokens_stay_apart_just_if_their_bytes_merge_into_them(
            left in 0..50_256u16,
            right in 0..50_256u16,
        ) {
            let bytes = [GPT2.bytes(left).unwrap(), GPT2.bytes(right).unwrap()].concat();
            prop_assert_eq!(GPT2.stay_apart(left, right), slowly(GPT2, &bytes) == [left, right]);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn parts_merge_as_the_whole(piece in "([a-e]{1,5}|[-=]{1,200}|estin|é|[中文字]|\\PC){800,1200}") {
            let mut whole = LongMerger::default();
            whole.merge_part(GPT2, piece.as_bytes());
            prop_assert_eq!(long(piece.as_bytes()), whole.ids);
        }
    }
}
