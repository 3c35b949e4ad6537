//! Any settings, row and history: an error, or the id of a token that may come, and the same one whatever
//! was sampled before.
#![no_main]

use std::cell::RefCell;

use gptrs_core::constraint::TokenMask;
use gptrs_core::sampling::{Choice, Draw, History, Row, Sampler, SamplingConfig, sample_all};
use half::{bf16, f16};
use libfuzzer_sys::arbitrary::{self, Arbitrary, Result, Unstructured};
use libfuzzer_sys::fuzz_target;

thread_local! {
    static USED: RefCell<Sampler> = RefCell::default();
}

#[derive(Debug, Arbitrary)]
struct Input {
    settings: Settings,
    format: Format,
    /// Repeated to reach a vocabulary's size.
    logits: Vec<u16>,
    times: u8,
    prompt: Vec<u8>,
    output: Vec<u8>,
    allowed: Option<Vec<u8>>,
    position: u64,
}

#[derive(Debug, Arbitrary)]
struct Settings {
    numbers: [Number; 7],
    top_k: Option<u16>,
    no_repeat_ngram_size: Option<u8>,
    logit_bias: Vec<(u8, f32)>,
    bad_words: Vec<Vec<u8>>,
    min_new_tokens: u8,
    end_ids: Vec<u8>,
    set: [bool; 3],
}

/// Mostly within the ranges, sometimes anything.
#[derive(Debug)]
struct Number(f64);

impl<'a> Arbitrary<'a> for Number {
    fn arbitrary(bytes: &mut Unstructured<'a>) -> Result<Self> {
        Ok(Self(match bytes.arbitrary()? {
            0_u8 => f64::arbitrary(bytes)?,
            share => f64::from(share) / f64::from(u8::arbitrary(bytes)?.max(1)),
        }))
    }
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Format {
    F32,
    Bf16,
    F16,
    Candidates,
}

impl Settings {
    fn into_config(self) -> SamplingConfig {
        let ids = |ids: Vec<u8>| ids.into_iter().map(u32::from).collect();
        let [temperature, top_p, min_p, typical_p, repetition, frequency, presence] =
            self.numbers.map(|number| number.0);
        let [has_top_p, has_min_p, has_typical_p] = self.set;
        SamplingConfig {
            temperature,
            top_k: self.top_k.map(usize::from),
            top_p: has_top_p.then_some(top_p),
            min_p: has_min_p.then_some(min_p),
            typical_p: has_typical_p.then_some(typical_p),
            repetition_penalty: repetition,
            frequency_penalty: frequency,
            presence_penalty: presence,
            no_repeat_ngram_size: self.no_repeat_ngram_size.map(usize::from),
            logit_bias: self.logit_bias.into_iter().map(|(id, bias)| (id.into(), bias)).collect(),
            bad_words: self.bad_words.into_iter().map(ids).collect(),
            min_new_tokens: self.min_new_tokens.into(),
            end_ids: ids(self.end_ids),
        }
    }
}

fuzz_target!(|input: Input| {
    let config = input.settings.into_config();
    if config.check().is_err() {
        return;
    }
    let bits = input.logits.repeat(usize::from(input.times >> 3) + 1);
    let bf16: Vec<_> = bits.iter().map(|&bits| bf16::from_bits(bits)).collect();
    let f16: Vec<_> = bits.iter().map(|&bits| f16::from_bits(bits)).collect();
    let f32: Vec<_> = bf16.iter().map(|value| value.to_f32()).collect();
    let ids: Vec<_> = (0..bits.len() as u32).rev().map(|id| 3 * id).collect();
    let row = match input.format {
        Format::F32 => Row::F32(&f32),
        Format::Bf16 => Row::Bf16(&bf16),
        Format::F16 => Row::F16(&f16),
        Format::Candidates => Row::Candidates { ids: &ids, values: &f32, log_sum_exp: 0.0 },
    };
    let mut history = History::new(input.prompt.into_iter().map(u32::from).collect());
    input.output.into_iter().for_each(|token| history.push(token.into()));
    let mask = input.allowed.map(|bytes| {
        let mut mask = TokenMask::new(bytes.len() * 8);
        (0..bytes.len() as u32 * 8)
            .filter(|id| bytes[*id as usize / 8] >> (id % 8) & 1 == 1)
            .for_each(|id| mask.insert(id));
        mask
    });
    let draw = Draw { seed: 1, sequence: 2, position: input.position };
    let choice = Choice { row, config: &config, history: &history, allowed: mask.as_ref(), draw };
    let sampled = USED.with_borrow_mut(|sampler| sampler.sample(&choice));
    assert_eq!(sample_all(&mut Vec::new(), &[choice], 1), sampled.clone().map(|id| vec![id]));
    let mut probabilities = vec![f32::NAN; 3 * bits.len()];
    let found = Sampler::new().probabilities(&choice, &mut probabilities);
    assert_eq!(found.err(), sampled.clone().err());
    let Ok(id) = sampled else { return };
    assert!(probabilities[id as usize] > 0.0);
    assert!((probabilities.iter().copied().map(f64::from).sum::<f64>() - 1.0).abs() < 1e-3);
    assert!(mask.is_none_or(|mask| mask.contains(id)));
    let own = match row {
        Row::Candidates { ids, .. } => ids.contains(&id),
        _ => (id as usize) < row.len(),
    };
    assert!(own);
    let may_end = history.output().len() >= config.min_new_tokens;
    assert!(may_end || !config.end_ids.contains(&id));
});
