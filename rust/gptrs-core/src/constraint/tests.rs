//! Masks against brute force, and random sequences to their ends.

use proptest::prelude::*;

use super::*;

fn vocabulary(tokens: &[&str]) -> Arc<TokenBytes> {
    Arc::new(TokenBytes::new(tokens.iter().map(|token| token.as_bytes().into()).collect()))
}

/// Every text that some texts begin with, up to a number of tokens: what is allowed by definition.
struct ByHand<'a> {
    texts: &'a [String],
    tokens: &'a [String],
}

impl ByHand<'_> {
    /// The fewest tokens that make one of the texts out of `text`.
    fn to_match(&self, text: &str, at_most: usize) -> Option<usize> {
        if self.texts.iter().any(|full| full == text) {
            return Some(0);
        }
        if at_most == 0 || !self.texts.iter().any(|full| full.starts_with(text)) {
            return None;
        }
        let longer = self.tokens.iter().filter(|token| !token.is_empty());
        let counts =
            longer.filter_map(|token| self.to_match(&format!("{text}{token}"), at_most - 1));
        counts.min().map(|count| count + 1)
    }

    fn allows(&self, text: &str, token: &str, tokens_left: usize) -> bool {
        let after = tokens_left.checked_sub(1);
        !token.is_empty()
            && after.is_some_and(|left| self.to_match(&format!("{text}{token}"), left).is_some())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn choices_allow_exactly_the_tokens_that_lead_to_one_in_time(
        texts in prop::collection::hash_set("[ab\u{e9}]{1,6}", 1..6),
        longer in prop::collection::vec("[ab\u{e9}]{0,4}", 0..8),
        letters in prop::sample::subsequence(vec!["a", "b", "\u{e9}"], 2..=3),
        budget in 0_usize..8,
        picks in prop::collection::vec(any::<prop::sample::Index>(), 8),
    ) {
        let texts: Vec<String> = texts.into_iter().collect();
        let tokens: Vec<String> =
            letters.into_iter().map(String::from).chain(longer).collect();
        let by_hand = ByHand { texts: &texts, tokens: &tokens };
        let bytes = vocabulary(&tokens.iter().map(String::as_str).collect::<Vec<_>>());
        let Ok(grammar) = Grammar::choices(&texts, bytes) else {
            prop_assert_eq!(by_hand.to_match("", 12), None);
            return Ok(());
        };
        let grammar = Arc::new(grammar);
        let possible = by_hand.to_match("", budget).is_some();
        prop_assert_eq!(grammar.check_budget(budget).is_ok(), possible);
        if !possible {
            return Ok(());
        }

        let (mut matcher, mut text) = (grammar.start(), String::new());
        for (num_tokens, pick) in picks.iter().enumerate() {
            let tokens_left = budget - num_tokens;
            let allowed = matcher.allowed(tokens_left);
            let ids: Vec<usize> = (0..tokens.len())
                .filter(|&id| by_hand.allows(&text, &tokens[id], tokens_left))
                .collect();
            let found: Vec<usize> =
                (0..tokens.len()).filter(|&id| allowed.tokens.contains(id as u32)).collect();
            prop_assert_eq!(&found, &ids);
            prop_assert_eq!(allowed.goes_on, !ids.is_empty());
            prop_assert_eq!(allowed.may_end, texts.contains(&text));
            if ids.is_empty() {
                prop_assert!(allowed.may_end);
                return Ok(());
            }
            let id = *pick.get(&ids);
            text.push_str(&tokens[id]);
            prop_assert!(matcher.push(id as u32));
        }
    }

    #[test]
    fn what_a_pattern_of_bytes_allows_does_not_depend_on_how_its_states_are_walked(
        pattern in prop::collection::vec(
            (
                prop::sample::select(vec!["[ab]", "[^ab]", "a", ".", "\u{e9}", "(ab|c)"]),
                prop::sample::select(vec!["", "*", "?", "{1,3}"]),
            ),
            1..5,
        ),
        tokens in prop::collection::vec("[abc\u{e9}\u{4e2d}]{1,4}", 1..40),
        walk in prop::collection::vec(any::<prop::sample::Index>(), 4),
    ) {
        let pattern: String = pattern.into_iter().flat_map(|(atom, times)| [atom, times]).collect();
        let bytes = (0..=255_u8).map(|byte| vec![byte]);
        let tokens: Vec<Vec<u8>> = bytes.chain(tokens.into_iter().map(Into::into)).collect();
        let boxed = tokens.iter().map(|token| token.clone().into()).collect();
        let grammar = Arc::new(Grammar::regex(&pattern, Arc::new(TokenBytes::new(boxed))).unwrap());
        let mut matcher = grammar.start();
        for pick in walk {
            let state = matcher.state;
            // Every token by itself, byte by byte, without the prefix tree.
            let leads_on = |id: &u32| {
                let bytes = &tokens[*id as usize];
                let after = |state, &byte| grammar.automaton.after(state, byte);
                bytes.iter().fold(state, after) != DEAD
            };
            let expected: Vec<u32> = (0..tokens.len() as u32).filter(leads_on).collect();
            let allowed = matcher.allowed(100);
            let found: Vec<u32> =
                (0..tokens.len() as u32).filter(|&id| allowed.tokens.contains(id)).collect();
            prop_assert_eq!(&found, &expected);
            if found.is_empty() {
                break;
            }
            prop_assert!(matcher.push(*pick.get(&found)));
        }
    }
}

#[test]
fn a_choice_that_begins_another_may_end_and_may_go_on() {
    let grammar = Grammar::choices(&["a".into(), "ab".into()], vocabulary(&["a", "b"])).unwrap();
    let mut matcher = Arc::new(grammar).start();
    assert!(!matcher.allowed(2).may_end);
    matcher.push(0);
    let allowed = matcher.allowed(1);
    assert!(allowed.may_end && allowed.goes_on && allowed.tokens.contains(1));
    let allowed = matcher.allowed(0);
    assert!(allowed.may_end && !allowed.goes_on);
    matcher.push(1);
    let allowed = matcher.allowed(5);
    assert!(allowed.may_end && !allowed.goes_on);
}

#[test]
fn tokens_without_bytes_are_never_allowed_and_end_what_they_are_pushed_to() {
    let mut matcher = Arc::new(Grammar::regex(".*", vocabulary(&["a", ""])).unwrap()).start();
    assert!(!matcher.allowed(9).tokens.contains(1));
    assert!(!matcher.push(1));
    let allowed = matcher.allowed(9);
    assert!(!allowed.goes_on && !allowed.may_end);
}

#[test]
fn hostile_patterns_are_refused_before_they_take_memory() {
    let letters = vocabulary(&["a", "b", "c"]);
    for pattern in ["((a|b|c){1000}){1000}", "(((a{0,99}){0,99}){0,99}){0,99}"] {
        let error = Grammar::regex(pattern, Arc::clone(&letters)).unwrap_err().to_string();
        assert!(error.contains(pattern) && error.contains("too large"), "{error}");
    }
}

#[test]
fn what_cannot_be_matched_at_all_is_refused() {
    let letters = vocabulary(&["a", "b"]);
    for (pattern, reason) in [
        ("a$b", "no text"),
        (r"[^\s\S]", "no text"),
        ("abc", "no text"),
        ("(a", "unclosed group"),
        ("a{2,1}", "invalid repetition count range"),
        (r"\p{Nonsense}", "not found"),
    ] {
        let error = Grammar::regex(pattern, Arc::clone(&letters)).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
    let refusal = |texts: &[String]| Grammar::choices(texts, Arc::clone(&letters)).unwrap_err();
    assert!(refusal(&[]).to_string().contains("found none"));
    assert!(refusal(&["a".into(), String::new()]).to_string().contains("number 1 is empty"));
    assert!(refusal(&["c".into()]).to_string().contains("no text"));
}

#[test]
fn a_budget_too_small_is_named_with_what_is_needed() {
    let grammar = Grammar::regex("a{5}", vocabulary(&["a", "aa"])).unwrap();
    assert!(grammar.check_budget(3).is_ok());
    let error = grammar.check_budget(2).unwrap_err().to_string();
    assert!(error.contains("max_new_tokens is 2") && error.contains("at least 3"), "{error}");
}

#[test]
fn threads_that_share_a_grammar_get_the_same_masks() {
    let grammar =
        Arc::new(Grammar::regex("(a|bb){3,40}", vocabulary(&["a", "b", "ab", "ba"])).unwrap());
    let walk = |seed: u32| {
        let mut matcher = grammar.start();
        let mut seen = Vec::new();
        for step in 0..40 {
            let allowed = matcher.allowed(40 - step as usize);
            let ids: Vec<u32> = (0..4).filter(|&id| allowed.tokens.contains(id)).collect();
            let Some(&id) = ids.get((seed * 7 + step) as usize % ids.len().max(1)) else { break };
            matcher.push(id);
            seen.push((ids, id));
        }
        seen
    };
    let alone: Vec<_> = (0..4).map(walk).collect();
    let together: Vec<_> = std::thread::scope(|scope| {
        let walk = &walk;
        let threads: Vec<_> = (0..4).map(|seed| scope.spawn(move || walk(seed))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(together, alone);
    assert_ne!(alone[0], alone[1]);
}
