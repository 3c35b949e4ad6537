//! Merges -> the tables of a vocabulary: hash tables with linear probing, zero where a slot is
//! empty. For GPT-2 `build.rs` runs this, for a trained vocabulary the program itself.

use super::layout::{
    BYTES, NO_RANK, NUM_BYTES, PAIR_GROUPS, pack, pack_pair, pair_group, pair_hash, pair_slot,
    slots_for, top_bits, word_hash,
};

/// The tables as little-endian records; `Vocab` reads them.
#[derive(Debug)]
pub struct Tables {
    /// Ids by `layout::word_hash`.
    pub words: Vec<[u8; 4]>,
    /// Ranks by `layout::pair_slot`, and the steps of the groups of pairs.
    pub pairs: Vec<[u8; 4]>,
    pub pair_steps: Vec<[u8; 2]>,
    /// The ranks of the merges of two single bytes, at `left * 256 + right`.
    pub byte_pairs: Vec<[u8; 2]>,
    /// Bit r of row l: some token has bytes l and r next to each other.
    pub neighbours: Vec<[u8; NUM_BYTES / 8]>,
    /// The two ids that each merge joins, in order of rank.
    pub merges: Vec<[u8; 4]>,
    /// All tokens' bytes, in order of id, with nothing between them.
    pub token_bytes: Vec<u8>,
    /// Where each token's bytes end.
    pub token_ends: Vec<[u8; 4]>,
}

impl Tables {
    /// The tables of the tokens that `merges`, in order of rank, make. Each must join ids that
    /// come before its own.
    pub fn of(merges: &[(u16, u16)]) -> Self {
        let tokens = tokens(merges);
        let token_ends = tokens.iter().scan(0u32, |end, token| {
            *end += token.len() as u32;
            Some(end.to_le_bytes())
        });
        let (pairs, pair_steps) = pairs(merges);
        Self {
            words: words(&tokens),
            pairs: pairs.into_iter().map(u32::to_le_bytes).collect(),
            pair_steps: pair_steps.into_iter().map(u16::to_le_bytes).collect(),
            byte_pairs: byte_pairs(merges),
            neighbours: neighbours(&tokens),
            merges: merges.iter().map(|&(left, right)| record(left, right)).collect(),
            token_ends: token_ends.collect(),
            token_bytes: tokens.concat(),
        }
    }
}

/// The bytes of every token; a token's index is its id.
pub fn tokens(merges: &[(u16, u16)]) -> Vec<Vec<u8>> {
    let mut tokens: Vec<Vec<u8>> = BYTES.iter().map(|byte| vec![*byte]).collect();
    for &(left, right) in merges {
        tokens.push([&*tokens[usize::from(left)], &*tokens[usize::from(right)]].concat());
    }
    tokens
}

fn words(tokens: &[Vec<u8>]) -> Vec<[u8; 4]> {
    hash_table(tokens.iter().map(|token| word_hash(token)))
}

/// A table without collisions, so that one look tells: pairs whose hashes agree in some bits are a
/// group, and each group, the largest first, gets a step that takes all of it to empty slots.
fn pairs(merges: &[(u16, u16)]) -> (Vec<u32>, Vec<u16>) {
    let mut groups = vec![Vec::new(); PAIR_GROUPS];
    for (&(left, right), rank) in merges.iter().zip(0..) {
        let hash = pair_hash(left, right);
        groups[pair_group(hash)].push((hash, rank));
    }
    let mut order: Vec<usize> = (0..PAIR_GROUPS).collect();
    order.sort_by_key(|group| std::cmp::Reverse(groups[*group].len()));
    let mut num_slots = FEWEST_PAIR_SLOTS.max((merges.len() * 5 / 4).next_power_of_two());
    loop {
        if let Some(table) = place_groups(&groups, &order, num_slots) {
            return table;
        }
        num_slots *= 2;
    }
}

/// With fewer a slot would not tell half of the hash.
const FEWEST_PAIR_SLOTS: usize = 1 << 16;

fn place_groups(
    groups: &[Vec<(u32, u16)>],
    order: &[usize],
    num_slots: usize,
) -> Option<(Vec<u32>, Vec<u16>)> {
    let empty = NO_RANK.into();
    let (mut slots, mut steps) = (vec![empty; num_slots], vec![0; groups.len()]);
    for &group in order {
        steps[group] = (0..=u16::MAX).find(|step| {
            let place = |hash| pair_slot(hash, *step, num_slots);
            let pairs = &groups[group];
            let is_free = |at: usize, hash| {
                let mut before = pairs[..at].iter().map(|(other, _)| place(*other));
                slots[place(hash)] == empty && before.all(|other| other != place(hash))
            };
            pairs.iter().enumerate().all(|(at, (hash, _))| is_free(at, *hash))
        })?;
        for &(hash, rank) in &groups[group] {
            slots[pair_slot(hash, steps[group], num_slots)] = pack_pair(hash, rank);
        }
    }
    Some((slots, steps))
}

/// A table in which each hash leads to its number.
fn hash_table(hashes: impl ExactSizeIterator<Item = u64>) -> Vec<[u8; 4]> {
    let mut slots = vec![0; slots_for(hashes.len())];
    for (hash, number) in hashes.zip(0..=u16::MAX) {
        let mut at = top_bits(hash, slots.len());
        while slots[at] != 0 {
            at = (at + 1) % slots.len();
        }
        slots[at] = pack(hash, number);
    }
    slots.into_iter().map(u32::to_le_bytes).collect()
}

fn byte_pairs(merges: &[(u16, u16)]) -> Vec<[u8; 2]> {
    let mut ranks = vec![NO_RANK; NUM_BYTES * NUM_BYTES];
    let byte = |id: u16| BYTES.get(usize::from(id)).map(|byte| usize::from(*byte));
    for (&(left, right), rank) in merges.iter().zip(0..) {
        if let (Some(left), Some(right)) = (byte(left), byte(right)) {
            ranks[left * NUM_BYTES + right] = rank;
        }
    }
    ranks.into_iter().map(u16::to_le_bytes).collect()
}

fn neighbours(tokens: &[Vec<u8>]) -> Vec<[u8; NUM_BYTES / 8]> {
    let mut rows = vec![[0; NUM_BYTES / 8]; NUM_BYTES];
    for pair in tokens.iter().flat_map(|token| token.windows(2)) {
        rows[usize::from(pair[0])][usize::from(pair[1] / 8)] |= 1 << (pair[1] % 8);
    }
    rows
}

fn record(left: u16, right: u16) -> [u8; 4] {
    (u32::from(left) | u32::from(right) << 16).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::super::layout::unpack_pair;
    use super::super::tables;
    use super::super::vocab::{GPT2, Vocab};
    use super::*;

    /// Merges of any tokens, no two of which make the same bytes.
    fn merges(pairs: Vec<(Index, Index)>) -> Vec<(u16, u16)> {
        let mut merges = Vec::new();
        let mut made = HashSet::new();
        for (left, right) in pairs {
            // Letters and what was made of them, so that tokens become long.
            let id = |index: Index| match index.index(4 + merges.len()) {
                letter @ 0..4 => 64 + letter as u16,
                merge => (NUM_BYTES - 4 + merge) as u16,
            };
            let pair = (id(left), id(right));
            merges.push(pair);
            let token = tokens(&merges).pop().unwrap();
            if token.len() > 100 || !made.insert(token) {
                merges.pop();
            }
        }
        merges
    }

    #[test]
    fn the_tables_that_the_program_carries_are_those_of_their_merges() {
        let merges: Vec<_> = GPT2.merges().collect();
        let built = Tables::of(&merges);
        assert!(built.words == tables::WORDS);
        assert!(built.pairs == tables::PAIRS);
        assert!(built.pair_steps == tables::PAIR_STEPS);
        assert!(built.byte_pairs == tables::BYTE_PAIRS);
        assert!(built.neighbours == tables::NEIGHBOURS);
        assert!(built.merges == tables::MERGES);
        assert!(built.token_bytes == tables::TOKEN_BYTES);
        assert!(built.token_ends == tables::TOKEN_ENDS);
    }

    #[test]
    fn as_many_pairs_as_there_can_be_are_found_and_no_others() {
        let merges: Vec<(u16, u16)> = (0..(1 << 16) - NUM_BYTES)
            .map(|n| ((n % 255) as u16, (n / 255 * 251) as u16))
            .collect();
        let (slots, steps) = pairs(&merges);
        let rank = |left, right| {
            let hash = pair_hash(left, right);
            unpack_pair(slots[pair_slot(hash, steps[pair_group(hash)], slots.len())], hash)
        };
        for (&(left, right), expected) in merges.iter().zip(0..) {
            assert_eq!(rank(left, right), expected);
            assert_eq!(rank(left, right + 1), NO_RANK);
            assert_eq!(rank(left + 256, right), NO_RANK);
        }
    }

    #[test]
    fn without_merges_there_are_the_bytes_alone() {
        let tables = Tables::of(&[]);
        let vocab = Vocab::of(&tables);
        assert_eq!(vocab.len(), NUM_BYTES);
        assert_eq!(vocab.find(b"!"), Some(0));
        assert_eq!(vocab.find(b"!!"), None);
        assert_eq!(vocab.find(b"more than thirteen bytes"), None);
        assert_eq!(vocab.rank(0, 0), NO_RANK);
    }

    proptest! {
        #[test]
        fn every_token_is_found_by_its_bytes_and_every_merge_by_its_pair(
            pairs in prop::collection::vec(any::<(Index, Index)>(), 0..60),
        ) {
            let merges = merges(pairs);
            let (tokens, tables) = (tokens(&merges), Tables::of(&merges));
            let vocab = Vocab::of(&tables);
            prop_assert_eq!(vocab.len(), tokens.len());
            for (id, token) in (0..).zip(&tokens) {
                prop_assert_eq!(vocab.bytes(id), Some(&**token));
                prop_assert_eq!(vocab.find(token), Some(id));
                prop_assert_eq!(vocab.find(&[token, &b"e"[..]].concat()), None);
            }
            prop_assert_eq!(vocab.bytes(tokens.len() as u16), None);
            for (&(left, right), rank) in merges.iter().zip(0..) {
                prop_assert_eq!(vocab.rank(left, right), rank);
                prop_assert_eq!(vocab.merge(rank), (left, right));
                let is_merged = merges.contains(&(right, left));
                prop_assert_eq!(vocab.rank(right, left) == NO_RANK, !is_merged);
            }
        }
    }
}
