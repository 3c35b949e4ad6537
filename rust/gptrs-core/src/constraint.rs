//! Which tokens may come next, so that the text matches a pattern.
//!
//! ```text
//! pattern ─► automaton over bytes ─► states, each so many tokens from a match
//! tokens  ─► prefix tree of byte classes ─┤
//!                 one sequence: its state ─┴─► the tokens that lead to a match in time
//! ```
//!
//! A token is allowed if the text can still become a match within the tokens that are left. So every
//! sequence ends with a match, whatever the model thinks of it, unless its budget was too small from
//! the start, which [`Grammar::check_budget`] tells.
//!
//! ```
//! use std::sync::Arc;
//! use gptrs_core::constraint::{Grammar, TokenBytes};
//!
//! let tokens = ["1", "2", "12", "-", "x"].map(|token| token.as_bytes().into());
//! let tokens = Arc::new(TokenBytes::new(tokens.into()));
//! let grammar = Arc::new(Grammar::regex(r"\d{2}-\d{2}", tokens)?);
//! let mut matcher = grammar.start();
//! let allowed = matcher.allowed(3);
//! assert!(allowed.tokens.contains(2)); // Only "12", "-", "12" is short enough.
//! assert!(!allowed.tokens.contains(0));
//! # Ok::<(), gptrs_core::Error>(())
//! ```

mod automaton;
mod class_trie;
mod matcher;
mod pattern;
mod token_bytes;
mod token_mask;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};

use automaton::{Automaton, DEAD, NEVER, START};
use class_trie::ClassTrie;
pub use matcher::{Allowed, Matcher};
pub use token_bytes::TokenBytes;
pub use token_mask::TokenMask;

use crate::{Error, Result};

/// What a grammar keeps of masks; beyond that it computes them again.
const MOST_MASK_BYTES: usize = 8 << 20;
/// How many nodes of the prefix tree are looked at to count tokens exactly: about 0.2 s.
const MOST_VISITS: usize = 1 << 24;
/// A state from which so many nodes are looked at gets its mask when the grammar is made: the widest
/// would keep a sequence waiting for hundreds of microseconds.
const MANY_VISITS: usize = 1 << 9;

/// A pattern, compiled for one vocabulary; any number of sequences, on any threads, may follow it.
#[derive(Debug)]
pub struct Grammar {
    /// How messages call it.
    name: String,
    tokens: Arc<TokenBytes>,
    automaton: Automaton,
    trie: ClassTrie,
    /// Of each state: so many tokens lead to a match. The fewest that do, or, for a pattern too large
    /// to count them, as many as there are bytes in the shortest way to a match.
    to_match: Vec<u32>,
    /// By the state, and how many tokens may follow at most.
    masks: RwLock<HashMap<(u32, u32), Arc<Next>>>,
}

/// What may follow a state.
#[derive(Debug)]
struct Next {
    tokens: TokenMask,
    goes_on: bool,
    /// How many tokens it takes to a match from the worst of the states that these tokens lead to.
    farthest: u32,
}

impl Grammar {
    /// Text that matches the regular expression from its start to its end, as Python's
    /// `re.fullmatch` does.
    ///
    /// Python's syntax, and `\p{...}`; without look-around, references to groups, word boundaries,
    /// atomic groups, possessive repetitions, `--` in a class and other flags than i, m and s.
    ///
    /// # Errors
    /// The pattern is none, uses what is not supported, would take too much memory, or the tokens
    /// cannot make a text that matches it.
    pub fn regex(pattern: &str, tokens: Arc<TokenBytes>) -> Result<Self> {
        // A generated pattern may have megabytes; its beginning tells which it is.
        let mut shown: String = pattern.chars().take(80).collect();
        if shown.len() < pattern.len() {
            shown.push('…');
        }
        let automaton = pattern::from_python(pattern).map_err(str::to_owned);
        let automaton = automaton.and_then(|pattern| Automaton::of_regex(&pattern));
        Self::new(format!("the regex {shown:?}"), automaton, tokens)
    }

    /// One of these texts, and nothing else.
    ///
    /// # Errors
    /// There are none, one is empty, they would take too much memory, or the tokens cannot make any
    /// of them.
    pub fn choices(choices: &[String], tokens: Arc<TokenBytes>) -> Result<Self> {
        if choices.is_empty() {
            return Err(Error::Setting("choices: at least one is needed, found none".into()));
        }
        if let Some(index) = choices.iter().position(String::is_empty) {
            return Err(Error::Setting(format!("choices: number {index} is empty")));
        }
        let automaton = Automaton::of_texts(choices);
        Self::new(format!("this list of {} choices", choices.len()), automaton, tokens)
    }

    fn new(
        name: String,
        automaton: std::result::Result<Automaton, String>,
        tokens: Arc<TokenBytes>,
    ) -> Result<Self> {
        let refused = |reason: &str| Error::Setting(format!("{name} cannot be used: {reason}"));
        let automaton = automaton.map_err(|reason| refused(&reason))?;
        let trie = ClassTrie::new(&automaton, &tokens);
        let Steps { all, wide, is_complete } = Steps::new(&automaton, &trie);
        let to_match = if is_complete {
            automaton.steps_to_match(all)
        } else if trie.has_every_byte(&automaton) {
            automaton.bytes_to_match() // As many tokens as bytes are enough.
        } else {
            return Err(refused("too large for a vocabulary in which some bytes are no tokens"));
        };
        if to_match[START as usize] == NEVER {
            return Err(refused("no text that the vocabulary's tokens can make matches"));
        }
        let grammar = Self { name, tokens, automaton, trie, to_match, masks: RwLock::default() };
        for state in std::iter::once(START).chain(wide) {
            grammar.next(state, ANY_NUMBER);
        }
        Ok(grammar)
    }

    /// Refuses a budget in which no match can be promised.
    pub fn check_budget(&self, max_new_tokens: usize) -> Result<()> {
        let least = self.to_match[START as usize] as usize;
        if max_new_tokens >= least {
            return Ok(());
        }
        Err(Error::Setting(format!(
            "max_new_tokens is {max_new_tokens}, but {} needs at least {least}",
            self.name
        )))
    }

    /// The start of a sequence.
    pub fn start(self: &Arc<Self>) -> Matcher {
        Matcher::new(Arc::clone(self))
    }

    /// What may follow a state, if at most `tokens_left` tokens follow that.
    fn next(&self, state: u32, tokens_left: u32) -> Arc<Next> {
        let key = (state, tokens_left);
        let masks = self.masks.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(next) = masks.get(&key) {
            return Arc::clone(next);
        }
        let is_full = masks.len() * self.tokens.vocab_size() / 8 >= MOST_MASK_BYTES;
        drop(masks);
        let next = Arc::new(self.compute_next(state, tokens_left));
        if !is_full {
            let mut masks = self.masks.write().unwrap_or_else(PoisonError::into_inner);
            masks.insert(key, Arc::clone(&next));
        }
        next
    }

    fn nothing(&self) -> Next {
        Next { tokens: TokenMask::new(self.tokens.vocab_size()), goes_on: false, farthest: 0 }
    }

    fn compute_next(&self, state: u32, tokens_left: u32) -> Next {
        let Next { mut tokens, mut goes_on, mut farthest } = self.nothing();
        let is_in_time = |state: u32| {
            let distance = self.to_match[state as usize];
            if distance <= tokens_left {
                farthest = farthest.max(distance);
            }
            distance <= tokens_left
        };
        let insert = |range: Range<u32>| {
            goes_on |= !range.is_empty();
            self.trie.insert(range, &mut tokens);
        };
        self.trie.walk(&self.automaton, state, &mut Vec::new(), is_in_time, insert);
        Next { tokens, goes_on, farthest }
    }
}

/// How many tokens may follow, if there is no need to hurry.
const ANY_NUMBER: u32 = NEVER - 1;

/// What single tokens do to an automaton.
struct Steps {
    /// (from, to), for every token from every state.
    all: Vec<(u32, u32)>,
    /// The states from which the prefix tree has most to look at.
    wide: Vec<u32>,
    /// False if it would have taken too long to find all steps.
    is_complete: bool,
}

impl Steps {
    fn new(automaton: &Automaton, trie: &ClassTrie) -> Self {
        let mut found = Self { all: vec![], wide: vec![], is_complete: true };
        let (mut num_visits, mut path) = (0, Vec::new());
        // The newest state that has a step to this one.
        let mut has_step = vec![DEAD; automaton.num_states()];
        for state in START..automaton.num_states() as u32 {
            let note_step = |next: u32| {
                if has_step[next as usize] != state {
                    has_step[next as usize] = state;
                    found.all.push((state, next));
                }
                true
            };
            let visits = trie.walk(automaton, state, &mut path, note_step, drop);
            if visits >= MANY_VISITS {
                found.wide.push(state);
            }
            num_visits += visits;
            if num_visits > MOST_VISITS {
                found.is_complete = false;
                break;
            }
        }
        found
    }
}

#[cfg(test)]
mod tests;
