//! What of a text is a word.

use regex_automata::dfa::dense;
use regex_automata::dfa::regex::Regex;
use regex_automata::nfa::thompson;

use crate::{Error, Result};

/// The most memory that a pattern's automaton may take, and what it is made from.
const MOST_AUTOMATON_BYTES: usize = 1 << 26;
const MOST_NFA_BYTES: usize = 1 << 22;

/// Splits text into words: at whitespace, or what a pattern matches; in lower case, if asked.
#[derive(Debug)]
pub struct WordSplitter {
    pattern: Option<Box<Regex>>,
    lower: bool,
}

impl WordSplitter {
    /// `pattern` is in the syntax of Rust's `regex`: Python's without look-around and references.
    ///
    /// # Errors
    /// `Error::Setting`: it is no such pattern, or too large.
    pub fn new(pattern: Option<&str>, lower: bool) -> Result<Self> {
        let pattern = pattern.map(compile).transpose()?.map(Box::new);
        Ok(Self { pattern, lower })
    }

    /// Calls `each` with every word of `text`, in order.
    pub fn for_each(&self, text: &str, each: &mut dyn FnMut(&str)) {
        let lowered;
        let text = if self.lower {
            lowered = text.to_lowercase();
            &lowered
        } else {
            text
        };
        match &self.pattern {
            None => text.split_whitespace().for_each(each),
            Some(pattern) => {
                let found = pattern.find_iter(text).map(|found| &text[found.range()]);
                found.filter(|word| !word.is_empty()).for_each(each);
            }
        }
    }
}

fn compile(pattern: &str) -> Result<Regex> {
    let dense = dense::Config::new()
        .dfa_size_limit(Some(MOST_AUTOMATON_BYTES))
        .determinize_size_limit(Some(MOST_AUTOMATON_BYTES));
    let nfa = thompson::Config::new().nfa_size_limit(Some(MOST_NFA_BYTES));
    let built = Regex::builder().dense(dense).thompson(nfa).build(pattern);
    built.map_err(|error| {
        let mut reason = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            reason = cause.to_string();
            source = cause.source();
        }
        let reason = reason.split_whitespace().collect::<Vec<_>>().join(" ");
        Error::Setting(format!("{pattern:?} is no pattern for words: {reason}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(pattern: Option<&str>, lower: bool, text: &str) -> Vec<String> {
        let mut words = Vec::new();
        let splitter = WordSplitter::new(pattern, lower).unwrap();
        splitter.for_each(text, &mut |word| words.push(word.to_owned()));
        words
    }

    #[test]
    fn text_is_split_at_any_whitespace() {
        let found = words(None, false, " The  cat\tsat,\u{a0}\u{3000}Ω.\r\n");
        assert_eq!(found, ["The", "cat", "sat,", "Ω."]);
    }

    #[test]
    fn words_are_in_lower_case_if_asked_as_python_has_it() {
        assert_eq!(words(None, true, "The ΟΔΟΣ İ"), ["the", "οδος", "i\u{307}"]);
    }

    #[test]
    fn a_pattern_s_matches_are_the_words_and_empty_ones_are_none() {
        assert_eq!(
            words(Some(r"\w+"), false, "It's über—中文 1_a."),
            ["It", "s", "über", "中文", "1_a"]
        );
        assert_eq!(words(Some("[a-z]*"), true, "Ab1 c"), ["ab", "c"]);
    }

    #[test]
    fn a_pattern_that_cannot_be_used_is_refused() {
        for pattern in ["(", r"(?<=a)b", r"(a)\1", r"\w{1000}{1000}"] {
            let error = WordSplitter::new(Some(pattern), false).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("{pattern:?} is no pattern for words: ")),
                "{error}"
            );
        }
    }
}
