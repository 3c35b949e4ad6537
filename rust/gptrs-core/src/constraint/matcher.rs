//! One sequence's way through a grammar.

use std::sync::Arc;

use super::automaton::{DEAD, NEVER, START};
use super::{ANY_NUMBER, Grammar, Next, TokenMask};

/// One sequence's place in a grammar.
#[derive(Debug, Clone)]
pub struct Matcher {
    grammar: Arc<Grammar>,
    pub(super) state: u32,
    next: Arc<Next>,
    /// What of `next` leads to a match in time, where that was less.
    in_time: Option<Arc<Next>>,
}

/// What a grammar allows one sequence next.
#[derive(Debug, Clone, Copy)]
pub struct Allowed<'a> {
    /// Tokens after which the text can still become a match, within the tokens that are left.
    pub tokens: &'a TokenMask,
    /// Whether there are any.
    pub goes_on: bool,
    /// Whether the text is a match as it stands.
    pub may_end: bool,
}

impl Matcher {
    pub(super) fn new(grammar: Arc<Grammar>) -> Self {
        let next = grammar.next(START, ANY_NUMBER);
        Self { grammar, state: START, next, in_time: None }
    }

    /// How many tokens there are, allowed or not.
    pub fn vocab_size(&self) -> usize {
        self.grammar.tokens.vocab_size()
    }

    /// What may come next, if at most `tokens_left` more tokens will: where the budget allows a match
    /// at all, what is allowed leads to one. The end of a sequence takes no token of the budget.
    pub fn allowed(&mut self, tokens_left: usize) -> Allowed<'_> {
        let grammar = &self.grammar;
        let tokens_left = u32::try_from(tokens_left).unwrap_or(ANY_NUMBER);
        let may_match = grammar.to_match[self.state as usize] <= tokens_left;
        self.in_time = match tokens_left.checked_sub(1) {
            None => Some(Arc::new(grammar.nothing())),
            Some(left) if may_match && self.next.farthest > left => {
                Some(grammar.next(self.state, left))
            }
            Some(_) => None,
        };
        let Next { tokens, goes_on, .. } = &**self.in_time.as_ref().unwrap_or(&self.next);
        let may_end = grammar.automaton.is_match(self.state);
        Allowed { tokens, goes_on: *goes_on, may_end }
    }

    /// Goes on with a token. False if no match has it here: then nothing is allowed any more.
    pub fn push(&mut self, token: u32) -> bool {
        let Grammar { automaton, tokens, to_match, .. } = &*self.grammar;
        let bytes = tokens.get(token);
        let after = bytes.iter().fold(self.state, |state, &byte| automaton.after(state, byte));
        let is_on_a_way = !bytes.is_empty() && to_match[after as usize] != NEVER;
        self.state = if is_on_a_way { after } else { DEAD };
        self.next = self.grammar.next(self.state, ANY_NUMBER);
        is_on_a_way
    }
}
