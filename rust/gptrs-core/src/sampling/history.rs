//! What a sequence has seen: its prompt, and what came after it.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// The tokens of one sequence, and how often each came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    tokens: Vec<u32>,
    prompt_len: usize,
    seen: Vec<Seen>,
    /// Where in `seen` a token is.
    places: HashMap<u32, usize, BuildHasherDefault<IdHasher>>,
}

/// A token of prompt or output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// The token.
    pub id: u32,
    /// How many times it is in the output.
    pub times_in_output: u32,
}

impl History {
    /// A prompt, and no output yet.
    pub fn new(prompt: Vec<u32>) -> Self {
        let mut history = Self { prompt_len: prompt.len(), tokens: prompt, ..Self::default() };
        for place in 0..history.tokens.len() {
            history.see(history.tokens[place]);
        }
        history
    }

    /// Appends a token of the output.
    pub fn push(&mut self, token: u32) {
        self.tokens.push(token);
        self.see(token).times_in_output += 1;
    }

    /// Prompt and output.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The prompt alone.
    pub fn prompt(&self) -> &[u32] {
        &self.tokens[..self.prompt_len]
    }

    /// The output alone.
    pub fn output(&self) -> &[u32] {
        &self.tokens[self.prompt_len..]
    }

    /// Each token of prompt and output once, in the order in which they came first.
    pub fn seen(&self) -> &[Seen] {
        &self.seen
    }

    /// Tokens that would make the newest `size` tokens a sequence that has come before; some twice.
    pub fn repeating(&self, size: usize) -> impl Iterator<Item = u32> {
        let len = self.tokens.len();
        let start = &self.tokens[(len + 1).saturating_sub(size).min(len)..];
        let windows =
            if size == 0 || len < size { [].windows(1) } else { self.tokens.windows(size) };
        windows.filter_map(move |window| {
            let (&last, before) = window.split_last()?;
            // One comparison rules out almost all.
            (before.last() == start.last() && before == start).then_some(last)
        })
    }

    fn see(&mut self, id: u32) -> &mut Seen {
        let place = *self.places.entry(id).or_insert_with(|| {
            self.seen.push(Seen { id, times_in_output: 0 });
            self.seen.len() - 1
        });
        &mut self.seen[place]
    }
}

/// Spreads token ids over a table: they are small numbers that nobody chooses to do harm.
#[derive(Debug, Clone, Copy, Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u32(u32::from(byte));
        }
    }

    fn write_u32(&mut self, id: u32) {
        // The golden ratio as a fraction: neighbours end up far apart, in the high bits as in the low.
        let product = (self.0 ^ u64::from(id)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.0 = product ^ product >> 32;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn each_token_is_counted_once_and_its_times_in_the_output(
            prompt in prop::collection::vec(0_u32..9, 0..20),
            output in prop::collection::vec(0_u32..9, 0..20),
        ) {
            let mut history = History::new(prompt.clone());
            for &token in &output {
                history.push(token);
            }
            let all = [prompt.as_slice(), &output].concat();
            prop_assert_eq!(history.tokens(), &*all);
            prop_assert_eq!((history.prompt(), history.output()), (&*prompt, &*output));
            let ids: Vec<_> = history.seen().iter().map(|seen| seen.id).collect();
            let distinct: BTreeSet<_> = all.iter().copied().collect();
            prop_assert_eq!(ids.len(), distinct.len());
            prop_assert!(distinct.iter().all(|id| ids.contains(id)));
            for Seen { id, times_in_output } in history.seen() {
                let times = output.iter().filter(|&token| token == id).count();
                prop_assert_eq!(*times_in_output as usize, times);
            }
        }

        #[test]
        fn what_would_repeat_is_what_followed_the_same_tokens_before(
            tokens in prop::collection::vec(0_u32..4, 0..30), size in 1_usize..5,
        ) {
            let history = History::new(tokens.clone());
            let found: BTreeSet<_> = history.repeating(size).collect();
            let comes_again = |id: &u32| {
                let with = [tokens.as_slice(), &[*id]].concat();
                with.len() >= size
                    && tokens.windows(size).any(|window| window == &with[with.len() - size..])
            };
            prop_assert_eq!(found, (0..4).filter(comes_again).collect::<BTreeSet<_>>());
        }
    }
}
