mod reference;

use std::collections::BTreeSet;

use half::{bf16, f16};
use proptest::prelude::*;

use self::reference::Reference;
use super::*;

const VOCAB_SIZE: usize = 50_257;

fn config(temperature: f64, top_k: Option<usize>, top_p: Option<f64>) -> SamplingConfig {
    SamplingConfig { temperature, top_k, top_p, ..SamplingConfig::default() }
}

fn draw(position: u64) -> Draw {
    Draw { seed: 7, sequence: 3, position }
}

/// A choice after `history`, with the random number of position 0.
fn choice<'a>(row: Row<'a>, config: &'a SamplingConfig, history: &'a History) -> Choice<'a> {
    Choice { row, config, history, allowed: None, draw: draw(0) }
}

fn sample(config: &SamplingConfig, row: Row<'_>, draw: Draw) -> Result<u32> {
    let history = History::default();
    Sampler::new().sample(&Choice { draw, ..choice(row, config, &history) })
}

fn ids_drawn(config: &SamplingConfig, row: Row<'_>, draws: u64) -> BTreeSet<u32> {
    let (mut sampler, history) = (Sampler::new(), History::default());
    let choice = choice(row, config, &history);
    let mut id = |position| sampler.sample(&Choice { draw: draw(position), ..choice }).unwrap();
    (0..draws).map(&mut id).collect()
}

fn probabilities(sampler: &mut Sampler, choice: &Choice<'_>) -> Result<Vec<f32>> {
    let mut out = vec![f32::NAN; choice.row.vocab_size()];
    sampler.probabilities(choice, &mut out)?;
    Ok(out)
}

/// Normal logits of a vocabulary's size, from the draws' own generator.
fn normal_row(seed: u64, deviation: f64) -> Vec<f32> {
    (0..VOCAB_SIZE as u64)
        .map(|id| {
            let [radius, angle] = [0, 1].map(|axis| uniform(seed, axis, id));
            let radius = (-2.0 * (1.0 - radius).ln()).sqrt() * deviation;
            (radius * (std::f64::consts::TAU * angle).cos()) as f32
        })
        .collect()
}

/// Settings of every kind, for a vocabulary of `width`.
fn settings(width: u32) -> impl Strategy<Value = SamplingConfig> {
    let share = || prop::option::of(0.01_f64..1.0);
    let filters = (0.2_f64..3.0, prop::option::of(1_usize..900), share(), share(), share());
    let penalties = (prop_oneof![Just(1.0), 0.5_f64..2.0], -1.0_f64..1.0, -1.0_f64..1.0);
    let ids = move || prop::collection::vec(0..width, 0..4);
    let bans = (
        prop::option::of(1_usize..4),
        prop::collection::btree_map(0..width, -3.0_f32..3.0, 0..4),
        prop::collection::vec(prop::collection::vec(0..width, 1..3), 0..3),
        (0_usize..6, ids()),
    );
    (filters, penalties, bans).prop_map(|(filters, penalties, bans)| {
        let (temperature, top_k, top_p, min_p, typical_p) = filters;
        let (repetition_penalty, frequency_penalty, presence_penalty) = penalties;
        let (no_repeat_ngram_size, logit_bias, bad_words, (min_new_tokens, end_ids)) = bans;
        SamplingConfig {
            temperature,
            top_k,
            top_p,
            min_p,
            typical_p,
            repetition_penalty,
            frequency_penalty,
            presence_penalty,
            no_repeat_ngram_size,
            logit_bias: logit_bias.into_iter().collect(),
            bad_words,
            min_new_tokens,
            end_ids,
        }
    })
}

/// A row, settings for it, and a prompt and an output.
fn cases() -> impl Strategy<Value = (Vec<f32>, SamplingConfig, [Vec<u32>; 2])> {
    // Eighths have ties, the others hardly any.
    let eighths = (-60_i16..60).prop_map(|eighths| f32::from(eighths) / 8.0);
    let logit = prop_oneof![eighths, -8.0_f32..8.0, Just(f32::NEG_INFINITY)];
    let row = prop_oneof![3 => 1_usize..40, 2 => 40_usize..900, 1 => 900_usize..2000]
        .prop_flat_map(move |width| prop::collection::vec(logit.clone(), width));
    row.prop_flat_map(|row| {
        let width = row.len() as u32;
        let tokens = || prop::collection::vec(0..width.min(12), 0..9);
        (Just(row), settings(width), [tokens(), tokens()])
    })
}

fn history_of([prompt, output]: [Vec<u32>; 2]) -> History {
    let mut history = History::new(prompt);
    for token in output {
        history.push(token);
    }
    history
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn probabilities_are_those_of_the_definitions(
        (row, config, tokens) in cases(),
    ) {
        let history = history_of(tokens);
        let choice = choice(Row::F32(&row), &config, &history);
        let expected = Reference::new(&row, &config, &history);
        match probabilities(&mut Sampler::new(), &choice) {
            Ok(found) => {
                // Where a filter decides by less than rounding, either is right.
                prop_assume!(expected.margin > 1e-5);
                for (id, (found, expected)) in found.iter().zip(expected.probabilities()).enumerate() {
                    prop_assert!((f64::from(*found) - expected).abs() < 1e-6, "{id}: {found} {expected}");
                }
            }
            Err(error) => {
                let raw = row.iter().all(|logit| *logit == f32::NEG_INFINITY);
                let cause = if raw { Error::NothingToDraw } else { Error::NothingAllowed };
                prop_assert_eq!(error, cause);
                prop_assert!(expected.logits.iter().all(|logit| *logit == f64::NEG_INFINITY));
            }
        }
    }

    #[test]
    fn greedy_takes_the_largest_of_what_the_settings_leave(
        (row, config, tokens) in cases(),
    ) {
        let history = history_of(tokens);
        let config = SamplingConfig { temperature: 0.0, ..config };
        let choice = choice(Row::F32(&row), &config, &history);
        let expected = Reference::new(&row, &config, &history).logits;
        if let Ok(id) = Sampler::new().sample(&choice) {
            let largest = expected.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            // Penalties are rounded to float32.
            prop_assert!((expected[id as usize] - largest).abs() < 1e-5);
            let one_hot = probabilities(&mut Sampler::new(), &choice)?;
            let expected: Vec<_> = (0..row.len()).map(|i| f32::from(i == id as usize)).collect();
            prop_assert_eq!(one_hot, expected);
        }
    }

    #[test]
    fn every_processor_gives_the_same_bits(
        (row, config, tokens) in cases(), positions in prop::array::uniform8(any::<u64>()),
    ) {
        let history = history_of(tokens);
        let choice = choice(Row::F32(&row), &config, &history);
        let expected = probabilities(&mut Sampler::on(Isa::Portable), &choice);
        for isa in Isa::available() {
            let mut sampler = Sampler::on(isa);
            prop_assert_eq!(&probabilities(&mut sampler, &choice), &expected);
            for position in positions {
                let choice = Choice { draw: draw(position), ..choice };
                prop_assert_eq!(sampler.sample(&choice), Sampler::on(Isa::Portable).sample(&choice));
            }
        }
    }

    #[test]
    fn what_is_drawn_has_a_probability(
        (row, config, tokens) in cases(), position in any::<u64>(),
    ) {
        let history = history_of(tokens);
        let choice = Choice { draw: draw(position), ..choice(Row::F32(&row), &config, &history) };
        let mut sampler = Sampler::new();
        if let Ok(id) = sampler.sample(&choice) {
            prop_assert!(probabilities(&mut sampler, &choice)?[id as usize] > 0.0);
        }
    }

    #[test]
    fn candidates_give_what_a_row_of_nothing_else_gives(
        (row, config, tokens) in cases(), position in any::<u64>(), shift in 0_usize..50,
    ) {
        let history = history_of(tokens);
        let mut pairs: Vec<_> = (0..).zip(row.iter().copied()).filter(|(_, v)| v.is_finite()).collect();
        prop_assume!(!pairs.is_empty());
        let middle = shift % pairs.len();
        pairs.rotate_left(middle);
        let (ids, values): (Vec<u32>, Vec<f32>) = pairs.into_iter().unzip();
        let candidates = Row::Candidates { ids: &ids, values: &values, log_sum_exp: 0.0 };
        let whole = Choice { draw: draw(position), ..choice(Row::F32(&row), &config, &history) };
        let few = Choice { row: candidates, ..whole };
        prop_assert_eq!(Sampler::new().sample(&few), Sampler::new().sample(&whole));
    }

    #[test]
    fn a_mask_is_a_ban_of_all_other_tokens(
        (row, config, tokens) in cases(), bits in prop::collection::vec(any::<bool>(), 2000),
    ) {
        let history = history_of(tokens);
        let mut mask = TokenMask::new(row.len());
        let mut banned = config.clone();
        for (id, &is_allowed) in (0..row.len() as u32).zip(&bits) {
            if is_allowed {
                mask.insert(id);
            } else {
                banned.logit_bias.push((id, f32::NEG_INFINITY));
            }
        }
        let masked = Choice { allowed: Some(&mask), ..choice(Row::F32(&row), &config, &history) };
        let banned = choice(Row::F32(&row), &banned, &history);
        let expected = probabilities(&mut Sampler::new(), &banned);
        prop_assert_eq!(probabilities(&mut Sampler::new(), &masked), expected);
    }

    #[test]
    fn any_finite_row_gives_an_id_of_its_own(
        row in prop::collection::vec(prop_oneof![any::<f32>().prop_filter("finite", |v| v.is_finite()), Just(f32::MAX), Just(f32::MIN)], 1..300),
        temperature in prop_oneof![1e-300_f64..1e300, Just(f64::MIN_POSITIVE), Just(f64::MAX)],
        k in 1_usize..300, p in 1e-9_f64..=1.0, min_p in 0.0_f64..=1.0, typical_p in 1e-9_f64..=1.0,
        penalty in 1e-30_f64..1e30,
    ) {
        let config = SamplingConfig {
            min_p: Some(min_p),
            typical_p: Some(typical_p),
            repetition_penalty: penalty,
            frequency_penalty: penalty,
            ..config(temperature, Some(k), Some(p))
        };
        config.check()?;
        let history = history_of([(0..row.len() as u32).collect(), vec![0, 0]]);
        let id = Sampler::new().sample(&choice(Row::F32(&row), &config, &history))?;
        prop_assert!((id as usize) < row.len());
    }

    #[test]
    fn log_probabilities_are_the_models_own(
        (row, _, _) in cases(), chosen in 0_usize..2000, top in 0_usize..300,
    ) {
        prop_assume!(row.iter().any(|logit| logit.is_finite()));
        let chosen = chosen % row.len();
        let model = Reference::new(&row, &SamplingConfig::default(), &History::default());
        let expected: Vec<_> = model.probabilities().iter().map(|p| p.ln()).collect();
        let close = |found: f32, expected: f64| {
            (f64::from(found) - expected).abs() < 1e-5 || (found < -1e9 && expected < -1e9)
        };
        let found = log_probs(Row::F32(&row), chosen as u32, top);
        prop_assert!(close(found.chosen, expected[chosen]));
        let mut ids: Vec<_> = (0..row.len()).collect();
        ids.sort_by(|&a, &b| expected[b].total_cmp(&expected[a]).then(a.cmp(&b)));
        prop_assert_eq!(found.top.len(), top.min(row.len()));
        for (&(id, log_prob), &expected_id) in found.top.iter().zip(&ids) {
            prop_assert_eq!(id as usize, expected_id);
            prop_assert!(close(log_prob, expected[expected_id]));
        }
        prop_assert_eq!(top_log_probs(Row::F32(&row), top), found.top);
    }
}

#[test]
fn a_batch_gives_what_each_row_gives_alone_on_any_number_of_threads() {
    let row = normal_row(0, 2.0);
    let mut bad_row = row.clone();
    bad_row[40_000] = f32::NAN;
    let configs =
        [config(0.8, None, Some(0.9)), config(0.0, None, None), config(1.0, Some(9), None)];
    let history = History::default();
    let mut samplers = Vec::new();
    for (case, bad) in (0..20).zip([None, Some(11), Some(0), None, Some(5)].into_iter().cycle()) {
        let choices: Vec<_> = (0..case)
            .map(|i| {
                let row = if bad == Some(i) || i == 15 { &bad_row } else { &row };
                let choice = choice(Row::F32(&row[i..]), &configs[i % 3], &history);
                Choice { draw: draw(i as u64), ..choice }
            })
            .collect();
        let expected: Result<Vec<_>> =
            choices.iter().map(|choice| Sampler::new().sample(choice)).collect();
        for threads in [0, 1, 2, 5] {
            assert_eq!(sample_all(&mut samplers, &choices, threads), expected);
        }
    }
    assert_eq!(samplers.len(), 5);
}

#[test]
fn a_vocabularys_rows_have_the_probabilities_of_the_definitions() {
    let history = History::new((0..40).collect());
    let mut sampler = Sampler::new();
    let configs = [
        config(0.7, None, Some(0.95)),
        config(1.0, Some(3_000), Some(0.5)),
        SamplingConfig { min_p: Some(0.02), ..config(1.3, None, None) },
        SamplingConfig { typical_p: Some(0.9), repetition_penalty: 1.2, ..config(1.0, None, None) },
        SamplingConfig { typical_p: Some(0.2), ..config(0.5, None, Some(0.99)) },
    ];
    let deviations = [0.01_f32, 0.5, 2.0, 4.0];
    let normal = normal_row(0, 1.0);
    for seed in 0..20 {
        let row: Vec<_> = normal.iter().map(|logit| logit * deviations[seed % 4]).collect();
        let config = &configs[seed % 5];
        let choice = choice(Row::F32(&row), config, &history);
        let found = probabilities(&mut sampler, &choice).unwrap();
        let expected = Reference::new(&row, config, &history).probabilities();
        // Among so many tokens a filter is often close to deciding otherwise about one or two, whose
        // probabilities are small.
        let distance: f64 =
            found.iter().zip(&expected).map(|(&a, b)| (f64::from(a) - b).abs()).sum();
        let largest = expected.iter().copied().fold(0.0, f64::max);
        assert!(distance < 2e-5 + largest.min(1e-3), "{seed} {config:?}: {distance}");
    }
}

#[test]
fn every_token_of_a_flat_row_is_reached() {
    let row = vec![0.25; VOCAB_SIZE];
    let (config, history) = (config(1.0, None, None), History::default());
    let mut sampler = Sampler::new();
    let mut candidates = sampler.adjusted(&choice(Row::F32(&row), &config, &history)).unwrap();
    filters::filter(&mut candidates, &config);
    for id in 0..VOCAB_SIZE {
        let middle = (id as f64 + 0.5) / VOCAB_SIZE as f64;
        assert_eq!(draw::draw(&candidates, middle), id as u32);
    }
    assert_eq!(draw::draw(&candidates, 0.0), 0);
    assert_eq!(draw::draw(&candidates, 1.0 - f64::EPSILON / 2.0), VOCAB_SIZE as u32 - 1);
}

/// Where on the line from 0 to 1 the ids above `id` begin.
fn upper_end(candidates: &Candidates<'_>, id: u32) -> f64 {
    let [mut low, mut high] = [0_u64, 1 << 53];
    while low < high {
        let middle = low.midpoint(high);
        if draw::draw(candidates, middle as f64 / (1_u64 << 53) as f64) > id {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    low as f64 / (1_u64 << 53) as f64
}

#[test]
fn unlikely_tokens_are_drawn_as_often_as_they_should_be() {
    let mut row = normal_row(1, 1.0);
    let tail = [(5, 1e-7), (300, 1e-9), (40_000, 1e-11), (50_256, 1e-13)];
    row[17] = 12.0;
    let largest_share: f64 = row.iter().map(|&logit| (f64::from(logit) - 12.0).exp()).sum();
    for (id, probability) in tail {
        row[id] = (12.0 + (probability * largest_share).ln()) as f32;
    }
    let (config, history) = (config(1.0, None, None), History::default());
    let expected = Reference::new(&row, &config, &history).probabilities();
    let mut sampler = Sampler::new();
    let mut candidates = sampler.adjusted(&choice(Row::F32(&row), &config, &history)).unwrap();
    filters::filter(&mut candidates, &config);
    for (id, _) in tail {
        let length = upper_end(&candidates, id as u32) - upper_end(&candidates, id as u32 - 1);
        // A uniform number is a multiple of 2^-53, and so is each end.
        let resolution = 2.0 / (1_u64 << 53) as f64;
        assert!((length - expected[id]).abs() < 1e-5 * expected[id] + resolution, "{id}: {length}");
    }
}

#[test]
fn greedy_takes_the_lowest_id_on_a_tie() {
    let values = [0.0, 3.0, 3.0, -1.0];
    assert_eq!(ids_drawn(&config(0.0, None, None), Row::F32(&values), 1), [1].into());
    let row = Row::Candidates { ids: &[9, 4], values: &[3.0, 3.0], log_sum_exp: 4.0 };
    assert_eq!(ids_drawn(&config(0.0, None, None), row, 1), [4].into());
    let mut row = vec![0.0; VOCAB_SIZE];
    (row[700], row[300], row[50_256]) = (2.0, 2.0, 2.0);
    assert_eq!(ids_drawn(&config(0.0, None, None), Row::F32(&row), 1), [300].into());
}

#[test]
fn top_k_keeps_what_ties_with_the_kth() {
    let values = [1.0, 2.0, 1.0, 0.0, 1.0];
    let drawn = ids_drawn(&config(1.0, Some(2), None), Row::F32(&values), 300);
    assert_eq!(drawn, [0, 1, 2, 4].into());
}

#[test]
fn top_p_breaks_ties_by_the_lowest_id() {
    let drawn = ids_drawn(&config(1.0, None, Some(0.5)), Row::F32(&[0.0; 4]), 200);
    assert_eq!(drawn, [0, 1].into());
    let row = vec![0.0; VOCAB_SIZE];
    let drawn = ids_drawn(&config(1.0, None, Some(1e-4)), Row::F32(&row), 60);
    assert_eq!(drawn, (0..6).collect());
}

#[test]
fn every_float_format_gives_the_same_tokens() {
    let values: Vec<f32> = (0..700_u16).map(|i| f32::from(i % 97) / 16.0).collect();
    let bf16: Vec<_> = values.iter().copied().map(bf16::from_f32).collect();
    let f16: Vec<_> = values.iter().copied().map(f16::from_f32).collect();
    let rounded: Vec<_> = bf16.iter().map(|value| value.to_f32()).collect();
    let config = config(0.9, Some(200), Some(0.9));
    for position in 0..50 {
        let id = |row| sample(&config, row, draw(position)).unwrap();
        assert_eq!(id(Row::Bf16(&bf16)), id(Row::F32(&rounded)));
        assert_eq!(id(Row::F16(&f16)), id(Row::F32(&values)));
    }
}

#[test]
fn a_draw_depends_on_its_counter_alone() {
    let row = normal_row(3, 2.0);
    let config = config(1.0, None, Some(0.95));
    let mut sampler = Sampler::new();
    let history = History::default();
    let mut id =
        |draw| sampler.sample(&Choice { draw, ..choice(Row::F32(&row), &config, &history) });
    let forwards: Vec<_> = (0..20).map(|position| id(draw(position))).collect();
    let backwards: Vec<_> = (0..20).rev().map(|position| id(draw(position))).collect();
    assert!(forwards.iter().eq(backwards.iter().rev()));
    let others = [Draw { seed: 8, ..draw(0) }, Draw { sequence: 4, ..draw(0) }];
    let drawn: Vec<_> = others.into_iter().map(&mut id).collect();
    assert!(drawn.iter().all(|other| *other != forwards[0]));
}

#[test]
fn bad_rows_are_refused() {
    let settings = config(1.0, None, None);
    let mut late = vec![0.0; 900];
    late[800] = f32::NAN;
    for (row, message) in [
        (&[0.0, f32::NAN][..], "the logit of token id 1 is NaN"),
        (&[f32::INFINITY, 0.0], "the logit of token id 0 is inf"),
        (&late, "the logit of token id 800 is NaN"),
        (&[f32::NEG_INFINITY; 3], "no token can be drawn: every logit is -inf"),
        (&[], "no token can be drawn: every logit is -inf"),
    ] {
        let error = sample(&settings, Row::F32(row), draw(0)).unwrap_err();
        assert_eq!(error.to_string(), message);
    }
    let all_banned = SamplingConfig { bad_words: vec![vec![0], vec![1]], ..settings };
    let error = sample(&all_banned, Row::F32(&[0.0, 1.0, f32::NEG_INFINITY]), draw(0)).unwrap_err();
    assert_eq!(error, Error::NothingAllowed);
}

#[test]
fn settings_outside_their_range_are_refused_by_name() {
    let good = SamplingConfig::default;
    for (config, name) in [
        (config(-0.1, None, None), "temperature"),
        (config(f64::NAN, None, None), "temperature"),
        (config(1.0, Some(0), None), "top_k"),
        (config(1.0, None, Some(1.5)), "top_p"),
        (SamplingConfig { min_p: Some(-0.1), ..good() }, "min_p"),
        (SamplingConfig { min_p: Some(f64::NAN), ..good() }, "min_p"),
        (SamplingConfig { typical_p: Some(0.0), ..good() }, "typical_p"),
        (SamplingConfig { repetition_penalty: 0.0, ..good() }, "repetition_penalty"),
        (SamplingConfig { repetition_penalty: 1e-45, ..good() }, "repetition_penalty"),
        (SamplingConfig { frequency_penalty: f64::INFINITY, ..good() }, "frequency_penalty"),
        (SamplingConfig { presence_penalty: f64::NAN, ..good() }, "presence_penalty"),
        (SamplingConfig { no_repeat_ngram_size: Some(0), ..good() }, "no_repeat_ngram_size"),
        (SamplingConfig { logit_bias: vec![(3, f32::NAN)], ..good() }, "logit_bias[3]"),
        (SamplingConfig { bad_words: vec![vec![1], vec![]], ..good() }, "bad_words_ids"),
    ] {
        let message = config.check().unwrap_err().to_string();
        assert!(message.contains(name) && message.contains("found"), "{message}");
    }
    assert_eq!(good().check(), Ok(()));
    assert_eq!(SamplingConfig::greedy().check(), Ok(()));
}

#[test]
fn settings_that_name_foreign_ids_are_refused() {
    let bias = SamplingConfig { logit_bias: vec![(9, 1.0), (10, 1.0)], ..Default::default() };
    let words = SamplingConfig { bad_words: vec![vec![1], vec![2, 11]], ..Default::default() };
    assert_eq!(bias.check_vocabulary(11), Ok(()));
    for (config, message) in [
        (bias, "logit_bias names token id 10, but the vocabulary has 10 ids, from 0 on"),
        (words, "bad_words_ids names token id 11, but the vocabulary has 10 ids, from 0 on"),
    ] {
        assert_eq!(config.check_vocabulary(10).unwrap_err().to_string(), message);
        // They are not asked for again at every token: a row without them is as it is.
        assert!(sample(&config, Row::F32(&[1.0; 10]), draw(0)).is_ok());
    }
}
