//! Beam search against one over plain arrays, and against all sequences there are.

use proptest::prelude::*;

use super::*;
use crate::generate::tests::HashModel;

const VOCAB_SIZE: usize = 11;

fn log_probs(tokens: &[u32], vocab_size: usize) -> Vec<f32> {
    let logits: Vec<f64> = HashModel::logits_after(tokens, vocab_size).map(f64::from).collect();
    let log_sum_exp = logits.iter().map(|v| v.exp()).sum::<f64>().ln();
    logits.into_iter().map(|v| (v - log_sum_exp) as f32).collect()
}

/// Beam search as transformers computes it: what must not be chosen has a score of -1e9 or less.
fn plain(prompt: &[u32], settings: &BeamSettings<'_>, window: usize) -> Vec<(Vec<u32>, f32)> {
    let num_beams = settings.num_beams;
    let penalty = |len: usize| (len as f64).powf(settings.length_penalty) as f32;
    let mut running: Vec<_> =
        (0..num_beams).map(|i| (vec![], if i == 0 { 0.0 } else { -1e9_f32 })).collect();
    let mut finished: Vec<(Vec<u32>, f32, bool)> = vec![(vec![], -1e9, false); num_beams];
    for len in 1.. {
        let mut candidates = Vec::new();
        for (tokens, score) in &running {
            let seen = [prompt, tokens].concat();
            let row = log_probs(&seen[seen.len().saturating_sub(window)..], VOCAB_SIZE);
            candidates.extend(row.iter().zip(0_u32..).map(|(p, id)| {
                let ends = len == settings.max_new_tokens || settings.stop_ids.contains(&id);
                ([&tokens[..], &[id]].concat(), score + p, ends)
            }));
        }
        candidates.sort_by(|a, b| b.1.total_cmp(&a.1));
        candidates.truncate(num_beams * (1 + settings.stop_ids.len()).max(2));
        let is_full = finished.iter().all(|f| f.2) && settings.early_stopping == EarlyStopping::Yes;
        for (place, (tokens, score, ends)) in candidates.iter().enumerate() {
            let counts = *ends && place < num_beams && !is_full;
            let score = score / penalty(len) + if counts { 0.0 } else { -1e9 };
            finished.push((tokens.clone(), score, counts));
        }
        finished.sort_by(|a, b| b.1.total_cmp(&a.1));
        finished.truncate(num_beams);
        let all_end = candidates.iter().all(|c| c.2);
        let mut next: Vec<_> = candidates
            .into_iter()
            .map(|(tokens, score, ends)| (tokens, score + if ends { -1e9 } else { 0.0 }))
            .collect();
        next.sort_by(|a, b| b.1.total_cmp(&a.1));
        next.truncate(num_beams);
        running = next;
        let is_never = settings.early_stopping == EarlyStopping::Never;
        let hoped_for =
            if is_never && settings.length_penalty > 0.0 { settings.max_new_tokens } else { len };
        let all_finished = finished.iter().all(|f| f.2);
        let worst = if all_finished { finished[num_beams - 1].1 } else { -1e9 };
        let may_improve = running[0].1 / penalty(hoped_for) > worst;
        let is_done = all_finished && settings.early_stopping == EarlyStopping::Yes;
        if !may_improve || is_done || all_end {
            break;
        }
    }
    finished.truncate(settings.num_return);
    finished.into_iter().map(|(tokens, score, _)| (tokens, score)).collect()
}

/// Without the stop token, as an output has it.
fn without_stop(mut tokens: Vec<u32>, settings: &BeamSettings<'_>) -> Vec<u32> {
    if tokens.last().is_some_and(|last| settings.stop_ids.contains(last)) {
        tokens.pop();
    }
    tokens
}

fn settings(num_beams: usize, max_new_tokens: usize) -> BeamSettings<'static> {
    BeamSettings {
        num_beams,
        num_return: num_beams,
        max_new_tokens,
        window: 64,
        length_penalty: 1.0,
        early_stopping: EarlyStopping::No,
        stop_ids: &[],
        prefill_tokens: 2048,
    }
}

proptest! {
    #[test]
    fn the_same_sequences_are_found_as_without_slots(
        prompts in prop::collection::vec(prop::collection::vec(0_u32..11, 1..15), 1..6),
        num_beams in 1_usize..5, spare in 0_usize..9, max_new_tokens in 1_usize..10,
        stop_ids in prop::collection::btree_set(0_u32..11, 0..3), length_penalty in -1.0_f64..2.0,
        early_stopping in prop_oneof![
            Just(EarlyStopping::Yes), Just(EarlyStopping::No), Just(EarlyStopping::Never)
        ],
        window in 1_usize..20, prefill_tokens in 1_usize..20,
    ) {
        let stop_ids: Vec<u32> = stop_ids.into_iter().collect();
        let settings = BeamSettings {
            length_penalty, early_stopping, window, prefill_tokens, stop_ids: &stop_ids,
            ..settings(num_beams, max_new_tokens)
        };
        let mut model = HashModel::new(VOCAB_SIZE, 20, num_beams + spare);
        let found = beam_search(&mut model, &prompts, &settings).unwrap();
        prop_assert_eq!(found.len(), prompts.len());
        for (prompt, outputs) in prompts.iter().zip(found) {
            let expected = plain(prompt, &settings, window);
            prop_assert_eq!(outputs.len(), expected.len());
            for (output, (tokens, score)) in outputs.into_iter().zip(expected) {
                let is_stop = tokens.last().is_some_and(|last| stop_ids.contains(last));
                prop_assert_eq!(output.finish == Finish::Stop, is_stop);
                prop_assert_eq!(output.tokens, without_stop(tokens, &settings));
                prop_assert!((output.score - score).abs() <= 1e-5 * score.abs().max(1.0));
            }
        }
    }
}

/// Every sequence of `left` more tokens at most, and its sum of log-probabilities.
fn all(tokens: &[u32], sum: f32, left: usize, stop: u32) -> Vec<(Vec<u32>, f32)> {
    let row = log_probs(&[&[1], tokens].concat(), 4);
    let each = row.iter().zip(0_u32..).flat_map(|(p, id)| {
        let longer = [tokens, &[id]].concat();
        if left == 1 || id == stop {
            vec![(longer, sum + p)]
        } else {
            all(&longer, sum + p, left - 1, stop)
        }
    });
    each.collect()
}

#[test]
fn with_enough_beams_the_best_of_all_sequences_are_found() {
    for (length_penalty, stop) in [(0.0, 2), (1.0, 2), (-0.5, 3), (2.0, 0)] {
        let settings = BeamSettings {
            num_return: 20,
            length_penalty,
            early_stopping: EarlyStopping::Never,
            stop_ids: &[stop],
            ..settings(256, 4)
        };
        let found = beam_search(&mut HashModel::new(4, 64, 256), &[vec![1]], &settings).unwrap();
        let mut expected = all(&[], 0.0, 4, stop);
        let score = |(tokens, sum): &(Vec<u32>, f32)| {
            f64::from(*sum) / (tokens.len() as f64).powf(length_penalty)
        };
        expected.sort_by(|a, b| score(b).total_cmp(&score(a)));
        expected.truncate(20);
        let expected: Vec<_> =
            expected.into_iter().map(|(tokens, _)| without_stop(tokens, &settings)).collect();
        let found: Vec<_> = found[0].iter().map(|output| output.tokens.clone()).collect();
        assert_eq!(found, expected);
    }
}

#[test]
fn a_prompt_is_read_once_and_each_beam_one_token_a_step() {
    let mut model = HashModel::new(VOCAB_SIZE, 64, 8);
    let prompts = [(0..11).collect(), vec![3; 9]];
    let found = beam_search(&mut model, &prompts, &settings(4, 10));
    assert_eq!(found.unwrap()[1].len(), 4);
    assert_eq!((model.calls, model.tokens_read), (10, 11 + 9 + 2 * 4 * 9));
}

#[test]
fn settings_out_of_their_range_and_bad_rows_are_refused() {
    let good = settings(2, 4);
    let refusal =
        |slots: usize, settings: BeamSettings<'_>, prompt: &[u32], poison: Option<u32>| {
            let mut model = HashModel::new(VOCAB_SIZE, 64, slots);
            model.poison = poison;
            match beam_search(&mut model, &[prompt.to_vec()], &settings) {
                Err(GenerateError::Core(error)) => error.to_string(),
                other => panic!("{other:?}"),
            }
        };
    for (settings, message) in [
        (BeamSettings { num_beams: 0, ..good }, "num_beams is at least 1, found 0"),
        (
            BeamSettings { num_return: 3, ..good },
            "of 2 beams 1 to 2 sequences are returned, asked for 3",
        ),
        (
            BeamSettings { length_penalty: f64::NAN, ..good },
            "length_penalty is a finite number, found NaN",
        ),
        (
            BeamSettings { max_new_tokens: 0, ..good },
            "a beam search needs max_new_tokens and prefill_tokens of at least 1, found 0 and 2048",
        ),
    ] {
        assert_eq!(refusal(2, settings, &[1], None), message);
    }
    assert_eq!(refusal(1, good, &[1], None), "2 beams need as many slots, the model has 1");
    assert_eq!(refusal(2, good, &[11], None), "token id 11 at [0, 0] is outside 0..10");
    assert_eq!(refusal(2, good, &[1, 5], Some(5)), "sequence 0: the logit of token id 0 is NaN");
    let mut model = HashModel::new(VOCAB_SIZE, 64, 2);
    model.fails_at = Some(2);
    let failed = beam_search(&mut model, &[vec![1]], &good);
    assert!(matches!(failed, Err(GenerateError::Model(error)) if error == "call 2 fails"));
}
