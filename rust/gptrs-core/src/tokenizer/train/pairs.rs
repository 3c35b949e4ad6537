//! The words while their tokens merge: where every pair stands, and how often.
//!
//! ```text
//!   "hug" and "hugs", after u + g -> X
//!   ids        END  h  X  X  END  h  X  X  s  END     a token's first and last place hold its id
//!   pair_at         0  -  -       0  1  -  -          by a token's first place: 0 is (h, X)
//! ```
//!
//! A merge visits the places of its pair and nothing else. A visit reads and writes a few entries
//! next to each other and leaves one token fewer, so the whole work is linear in the distinct
//! words, however long they are. The pairs that a merge makes all have its token in them: so all
//! the places of a pair are found in one merge, in ascending order, and later only go stale.

use super::places::{END, Places, filled};
use crate::tokenizer::description::NUM_BYTES;

/// No pair starts here.
const NO_PAIR: u32 = u32::MAX;

/// How many places to visit between two calls of a `check`: a millisecond's work or two.
const VISITS_BETWEEN_CHECKS: usize = 1 << 16;

/// Two tokens that stand next to each other.
#[derive(Debug)]
pub struct Pair {
    pub left: u16,
    pub right: u16,
    /// How often they do, by overlapping windows: "aaa" has (a, a) twice.
    pub count: u64,
    /// Where its places are, in the list of the merge that made it.
    first_place: u32,
    num_places: u32,
}

/// The pairs of a text's words. Pairs are numbered as they are found.
#[derive(Debug)]
pub struct Pairs {
    ids: Vec<u16>,
    pair_at: Vec<u32>,
    /// Where the words of each count end, and that count.
    runs: Vec<(u32, u64)>,
    found: Vec<Pair>,
    /// Places by pair: those of the pairs of bytes, then for each merge those of its new pairs.
    places: Vec<Vec<u32>>,
    /// How many bytes each token has.
    token_lens: Vec<u32>,
    /// The pairs (id, new) and (new, id) of the merge at work, by id.
    before_new: Vec<u32>,
    after_new: Vec<u32>,
    /// Each new pair that the merge at work has made, and its place.
    made: Vec<(u32, u32)>,
    visits: usize,
}

impl Pairs {
    /// The pairs of bytes.
    pub fn new<E>(
        places: Places,
        check: &mut impl FnMut(usize) -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut pairs = Self {
            pair_at: filled(NO_PAIR, places.ids.len(), &mut || check(0))?,
            ids: places.ids,
            runs: places.runs,
            found: Vec::new(),
            places: Vec::new(),
            token_lens: vec![1; NUM_BYTES],
            before_new: vec![NO_PAIR; 1 << 16],
            after_new: vec![NO_PAIR; 1 << 16],
            made: Vec::new(),
            visits: 0,
        };
        pairs.find_pairs_of_bytes(check)?;
        Ok(pairs)
    }

    /// How many pairs were ever found.
    pub fn len(&self) -> usize {
        self.found.len()
    }

    pub fn get(&self, pair: u32) -> &Pair {
        &self.found[pair as usize]
    }

    /// Merges `pair` into a new token, wherever it stands.
    pub fn merge<E>(
        &mut self,
        pair: u32,
        check: &mut impl FnMut(usize) -> Result<(), E>,
    ) -> Result<(), E> {
        let Pair { left, right, first_place, num_places, .. } = self.found[pair as usize];
        let [left_len, right_len] = [left, right].map(|id| self.token_lens[usize::from(id)]);
        self.token_lens.push(left_len + right_len);
        let maker = (usize::from(left.max(right)) + 1).saturating_sub(NUM_BYTES);
        let places = std::mem::take(&mut self.places[maker]);
        let first_new = self.found.len();
        let mut run = 0;
        for &start in &places[first_place as usize..][..num_places as usize] {
            // Otherwise another merge has taken one of the two tokens.
            if self.pair_at[start as usize] == pair {
                run = self.run_at(start, run);
                let middle = start + left_len;
                self.merge_at([start, middle, middle + right_len], self.runs[run].1);
            }
            self.visit(check)?;
        }
        self.places[maker] = places;
        self.list_new_pairs(first_new, check)
    }

    /// Calls `check` with the number of merges, once in a while.
    pub fn visit<E>(&mut self, check: &mut impl FnMut(usize) -> Result<(), E>) -> Result<(), E> {
        self.visits += 1;
        if self.visits.is_multiple_of(VISITS_BETWEEN_CHECKS) {
            check(self.token_lens.len() - NUM_BYTES)?;
        }
        Ok(())
    }

    fn find_pairs_of_bytes<E>(
        &mut self,
        check: &mut impl FnMut(usize) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut known = vec![NO_PAIR; NUM_BYTES * NUM_BYTES];
        let mut start = 0;
        for run in 0..self.runs.len() {
            let (end, count) = self.runs[run];
            for at in start..end as usize - 1 {
                let (left, right) = (self.ids[at], self.ids[at + 1]);
                if left != END && right != END {
                    let known = &mut known[usize::from(left) * NUM_BYTES + usize::from(right)];
                    self.pair_at[at] = number_of((left, right), known, &mut self.found);
                    self.found[self.pair_at[at] as usize].add_place(count);
                }
                self.visit(check)?;
            }
            start = end as usize;
        }
        let places = self.pair_at.iter().zip(0..).filter(|(pair, _)| **pair != NO_PAIR);
        let places = places.map(|(pair, start)| (*pair, start));
        self.places.push(list_places(&mut self.found, places, &mut || check(0))?);
        Ok(())
    }

    /// Merges the tokens at `start..middle` and `middle..end` into the last token, in a word that
    /// the text has `count` times.
    fn merge_at(&mut self, [start, middle, end]: [u32; 3], count: u64) {
        let new = (self.token_lens.len() - 1) as u16;
        let before = self.ids[start as usize - 1];
        if before != END {
            let before_start = start - self.token_lens[usize::from(before)];
            self.found[self.pair_at[before_start as usize] as usize].count -= count;
            let known = &mut self.before_new[usize::from(before)];
            let pair = number_of((before, new), known, &mut self.found);
            self.enter(pair, before_start, count);
        }
        let next = std::mem::replace(&mut self.pair_at[middle as usize], NO_PAIR);
        if next == NO_PAIR {
            self.pair_at[start as usize] = NO_PAIR;
        } else {
            self.found[next as usize].count -= count;
            let after = self.ids[end as usize];
            let known = &mut self.after_new[usize::from(after)];
            let pair = number_of((new, after), known, &mut self.found);
            self.enter(pair, start, count);
        }
        self.ids[start as usize] = new;
        self.ids[end as usize - 1] = new;
    }

    fn enter(&mut self, pair: u32, start: u32, count: u64) {
        self.pair_at[start as usize] = pair;
        self.found[pair as usize].add_place(count);
        self.made.push((pair, start));
    }

    /// Ends a merge: lists where the pairs stand that it has made, those from `first_new` on.
    fn list_new_pairs<E>(
        &mut self,
        first_new: usize,
        check: &mut impl FnMut(usize) -> Result<(), E>,
    ) -> Result<(), E> {
        let num_merges = self.token_lens.len() - NUM_BYTES;
        let new_pairs = &mut self.found[first_new..];
        for pair in &*new_pairs {
            self.before_new[usize::from(pair.left)] = NO_PAIR;
            self.after_new[usize::from(pair.right)] = NO_PAIR;
        }
        let made = self.made.drain(..).map(|(pair, start)| (pair - first_new as u32, start));
        self.places.push(list_places(new_pairs, made, &mut || check(num_merges))?);
        Ok(())
    }

    /// The run that `place` is in: `run`, or one after it.
    fn run_at(&self, place: u32, run: usize) -> usize {
        if place < self.runs[run].0 {
            return run;
        }
        run + self.runs[run..].partition_point(|(end, _)| *end <= place)
    }
}

impl Pair {
    fn add_place(&mut self, count: u64) {
        self.count += count;
        self.num_places += 1;
    }
}

/// The number of a pair, which `known` is or becomes.
fn number_of((left, right): (u16, u16), known: &mut u32, pairs: &mut Vec<Pair>) -> u32 {
    if *known == NO_PAIR {
        *known = pairs.len() as u32;
        pairs.push(Pair { left, right, count: 0, first_place: 0, num_places: 0 });
    }
    *known
}

/// The places of all `pairs`, pair by pair, given in ascending order for each.
fn list_places<E>(
    pairs: &mut [Pair],
    made: impl Iterator<Item = (u32, u32)>,
    check: &mut impl FnMut() -> Result<(), E>,
) -> Result<Vec<u32>, E> {
    let mut num_places = 0;
    for pair in &mut *pairs {
        pair.first_place = num_places;
        num_places += std::mem::take(&mut pair.num_places);
    }
    let mut places = vec![0; num_places as usize];
    for (index, (pair, place)) in made.enumerate() {
        if (index + 1).is_multiple_of(VISITS_BETWEEN_CHECKS) {
            check()?;
        }
        let pair = &mut pairs[pair as usize];
        places[(pair.first_place + pair.num_places) as usize] = place;
        pair.num_places += 1;
    }
    Ok(places)
}
