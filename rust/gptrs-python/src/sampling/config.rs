//! `_core.SamplingConfig`: the settings, checked once and then shared by whoever samples.

use std::sync::Arc;

use gptrs_core::Error;
use gptrs_core::sampling::SamplingConfig;
use pyo3::prelude::*;

use crate::errors::CoreError;

/// How the next token is chosen; `gptrs.SamplingConfig` says what each setting does.
///
/// Args:
///     logit_bias: (token id, what is added to its logit).
///     bad_words: sequences of token ids.
///     end_ids: what min_new_tokens bans.
/// Raises:
///     ConfigError: a setting is out of its range.
#[pyclass(frozen, name = "SamplingConfig", module = "gptrs._core")]
pub struct PySamplingConfig(pub Arc<SamplingConfig>);

#[pymethods]
impl PySamplingConfig {
    #[new]
    #[pyo3(signature = (
        *, temperature=1.0, top_k=None, top_p=None, min_p=None, typical_p=None,
        repetition_penalty=1.0, frequency_penalty=0.0, presence_penalty=0.0,
        no_repeat_ngram_size=None, logit_bias=Vec::new(), bad_words=Vec::new(), min_new_tokens=0,
        end_ids=Vec::new()
    ))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments of a Python class")]
    fn new(
        temperature: f64,
        top_k: Option<i64>,
        top_p: Option<f64>,
        min_p: Option<f64>,
        typical_p: Option<f64>,
        repetition_penalty: f64,
        frequency_penalty: f64,
        presence_penalty: f64,
        no_repeat_ngram_size: Option<i64>,
        logit_bias: Vec<(i64, f64)>,
        bad_words: Vec<Vec<i64>>,
        min_new_tokens: i64,
        end_ids: Vec<i64>,
    ) -> Result<Self, CoreError> {
        if let Some(k) = top_k.filter(|&k| k < 1) {
            return Err(Error::TopK(k).into());
        }
        let bias = |(id, bias)| Ok((token_id("logit_bias", id)?, bias as f32));
        let config = SamplingConfig {
            temperature,
            top_k: top_k.map(|k| k as usize),
            top_p,
            min_p,
            typical_p,
            repetition_penalty,
            frequency_penalty,
            presence_penalty,
            no_repeat_ngram_size: no_repeat_ngram_size
                .map(|size| count("no_repeat_ngram_size", size, 1))
                .transpose()?,
            logit_bias: logit_bias.into_iter().map(bias).collect::<Result<_, CoreError>>()?,
            bad_words: bad_words
                .into_iter()
                .map(|word| token_ids("bad_words_ids", word))
                .collect::<Result<_, _>>()?,
            min_new_tokens: count("min_new_tokens", min_new_tokens, 0)?,
            end_ids: token_ids("eos_token_id", end_ids)?,
        };
        config.check()?;
        Ok(Self(Arc::new(config)))
    }
}

fn count(name: &str, found: i64, least: i64) -> Result<usize, CoreError> {
    if found < least {
        return Err(Error::Setting(format!("{name} is at least {least}, found {found}")).into());
    }
    Ok(found as usize)
}

fn token_ids(name: &str, ids: Vec<i64>) -> Result<Vec<u32>, CoreError> {
    ids.into_iter().map(|id| token_id(name, id)).collect()
}

fn token_id(name: &str, id: i64) -> Result<u32, CoreError> {
    u32::try_from(id)
        .map_err(|_| Error::Setting(format!("{name} has token ids, found {id}")).into())
}
