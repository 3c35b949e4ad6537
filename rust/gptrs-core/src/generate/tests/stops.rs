//! What ends a sequence besides tokens and lengths: stop strings and grammars. And log-probabilities.

use proptest::prelude::*;

use super::plain::requests;
use super::*;
use crate::constraint::{Grammar, TokenBytes};
use crate::sampling::SamplingConfig;

/// Token 10 ends a text, and has none itself.
const TEXTS: [&str; 11] = ["a", "b", "c", "ab", "bc", "abc", " ", "aa", "cab", "b ", ""];
const END: u32 = 10;

fn tokens() -> Arc<TokenBytes> {
    Arc::new(TokenBytes::new(TEXTS.map(|text| text.as_bytes().into()).into()))
}

fn text(tokens: &[u32]) -> String {
    tokens.iter().map(|&token| TEXTS[token as usize]).collect()
}

proptest! {
    #[test]
    fn a_text_ends_before_the_first_stop_string_in_it(
        requests in requests(8), stops in prop::collection::vec("[abc ]{1,4}", 1..4),
        slots in 1_usize..4,
    ) {
        let stop_strings = Arc::new(StopStrings::new(&stops, tokens())?);
        let mut run = generation(30, slots, Options::default());
        let mut expected = Vec::new();
        for request in requests {
            let settings = Settings {
                stop_strings: Some(Arc::clone(&stop_strings)),
                logprobs: Some(0),
                overflow: Overflow::Slide,
                ..(*request.settings).clone()
            };
            let request = Request { settings: Arc::new(settings), ..request };
            let mut output = alone(&request, 30, 11);
            let whole = text(&output.tokens);
            let cut = stops.iter().filter_map(|stop| whole.find(stop)).min();
            if let Some(cut) = cut {
                let begin = |i: usize| text(&output.tokens[..i]).len();
                let kept = (0..output.tokens.len()).take_while(|&i| begin(i) < cut).count();
                output.tokens.truncate(kept);
                output.finish = Finish::Stop;
            }
            output.text = Some(whole[..cut.unwrap_or(whole.len())].into());
            expected.push(output);
            run.inbox().submit(request)?;
        }
        let mut outputs = run.run().unwrap();
        for output in &mut outputs {
            prop_assert_eq!(output.logprobs.len(), output.tokens.len());
            output.logprobs.clear();
        }
        prop_assert_eq!(outputs, expected);
    }

    #[test]
    fn a_grammar_is_kept_by_every_sequence_of_a_batch(
        seeds in prop::collection::vec(0_u64..1000, 1..9), slots in 1_usize..4,
        max_new_tokens in 4_usize..9, has_end in any::<bool>(),
    ) {
        let settings = Arc::new(Settings {
            grammar: Some(Arc::new(Grammar::regex("[ab]{2,5}c( c)*", tokens())?)),
            stop_ids: if has_end { vec![END] } else { vec![] },
            sampling: SamplingConfig::default(),
            ..Settings::greedy(max_new_tokens, 30)
        });
        let mut run = generation(30, slots, Options::default());
        for &seed in &seeds {
            let settings = Arc::clone(&settings);
            run.inbox().submit(Request { prompt: vec![1], seed, sequence: 0, settings })?;
        }
        for output in run.run().unwrap() {
            let found = text(&output.tokens);
            let (word, rest) = found.split_at(found.find('c').unwrap());
            prop_assert!((2..=5).contains(&word.len()) && word.chars().all(|c| "ab".contains(c)));
            prop_assert_eq!(rest, format!("c{}", " c".repeat(rest.len() / 2)));
            prop_assert_eq!(output.finish == Finish::Length, output.tokens.len() == max_new_tokens);
        }
    }
}

fn choices(texts: &[&str]) -> Arc<Grammar> {
    let texts: Vec<_> = texts.iter().map(|&text| text.to_owned()).collect();
    Arc::new(Grammar::choices(&texts, tokens()).unwrap())
}

/// The texts that so many seeds give, and the number of calls for each.
fn texts_of(settings: Settings) -> Vec<(String, Finish, usize)> {
    let settings = Arc::new(settings);
    let one = |seed| {
        let mut run = generation(30, 1, Options::default());
        let settings = Arc::clone(&settings);
        run.inbox().submit(Request { prompt: vec![1], seed, sequence: 0, settings }).unwrap();
        let output = &run.run().unwrap()[0];
        (text(&output.tokens), output.finish, run.model.calls)
    };
    (0..40).map(one).collect()
}

#[test]
fn a_grammar_that_nothing_can_follow_ends_the_sequence_without_another_call() {
    let sampling = SamplingConfig { min_new_tokens: 9, end_ids: vec![END], ..Default::default() };
    for (stop_ids, sampling) in [(vec![], SamplingConfig::default()), (vec![END], sampling)] {
        let settings = Settings {
            grammar: Some(choices(&["cb", "cc"])),
            stop_ids,
            sampling,
            ..Settings::greedy(10, 30)
        };
        for (text, finish, calls) in texts_of(settings) {
            assert!(text == "cb" || text == "cc");
            assert_eq!((finish, calls), (Finish::Stop, 2));
        }
    }
}

#[test]
fn a_stop_token_may_come_where_the_text_is_complete_and_nowhere_else() {
    let settings = Settings {
        grammar: Some(choices(&["c", "c b", "c b c"])),
        stop_ids: vec![END],
        sampling: SamplingConfig::default(),
        ..Settings::greedy(10, 30)
    };
    let found = texts_of(settings.clone());
    for text in ["c", "c b", "c b c"] {
        assert!(found.iter().any(|(found, ..)| found == text));
    }
    assert!(found.iter().all(|(text, finish, _)| {
        ["c", "c b", "c b c"].contains(&&**text) && *finish == Finish::Stop
    }));
    // Without a stop token a text goes on as long as something can follow.
    let found = texts_of(Settings { stop_ids: vec![], ..settings });
    assert!(found.iter().all(|(text, ..)| text == "c b c"));
}

#[test]
fn a_budget_too_small_for_the_grammar_is_refused() {
    for (max_new_tokens, window) in [(2, 30), (10, 3)] {
        let settings = Settings {
            grammar: Some(choices(&["c c"])),
            overflow: Overflow::Stop,
            ..Settings::greedy(max_new_tokens, window)
        };
        let run = generation(30, 1, Options::default());
        let refusal = run.inbox().submit(request(&[1], &Arc::new(settings))).unwrap_err();
        let message = "max_new_tokens is 2, but this list of 1 choices needs at least 3";
        assert_eq!(refusal.to_string(), message);
    }
}

#[test]
fn log_probabilities_are_the_models_own_and_the_likeliest_come_first() {
    let sampling = SamplingConfig { temperature: 3.0, ..SamplingConfig::default() };
    let settings = Arc::new(Settings { logprobs: Some(4), sampling, ..Settings::greedy(20, 30) });
    let mut run = generation(30, 2, Options::default());
    for seed in 0..2 {
        let settings = Arc::clone(&settings);
        run.inbox().submit(Request { prompt: vec![1, 2], seed, sequence: 0, settings }).unwrap();
    }
    let mut seen = vec![1, 2];
    let output = &run.run().unwrap()[1];
    for (&token, logprobs) in output.tokens.iter().zip(&output.logprobs) {
        let logits: Vec<_> = HashModel::logits_after(&seen, 11).map(f64::from).collect();
        let log_sum_exp = logits.iter().map(|v| v.exp()).sum::<f64>().ln();
        let expected = |id: u32| logits[id as usize] - log_sum_exp;
        let is_close = |id: u32, found: f32| (f64::from(found) - expected(id)).abs() < 1e-5;
        assert!(is_close(token, logprobs.chosen));
        let mut ids: Vec<u32> = (0..11).collect();
        ids.sort_by(|&a, &b| expected(b).total_cmp(&expected(a)));
        assert!(logprobs.top.iter().map(|(id, _)| id).eq(&ids[..4]));
        assert!(logprobs.top.iter().all(|&(id, found)| is_close(id, found)));
        seen.push(token);
    }
    assert_eq!(output.logprobs.len(), 20);
}
