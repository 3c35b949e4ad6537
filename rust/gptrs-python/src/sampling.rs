//! `_core.Sampler`: rows of logits in, token ids out.

use gptrs_core::Error;
use gptrs_core::sampling::{Draw, Row, Sampler, SamplingConfig};
use numpy::{PyArray1, PyReadonlyArray1, PyReadonlyArray2, PyUntypedArrayMethods, ToPyArray};
use pyo3::prelude::*;

use crate::errors::CoreError;

/// Checks temperature, top_k and top_p together; a negative top_k is refused with its value.
pub fn sampling_config(
    temperature: f64,
    top_k: Option<i64>,
    top_p: Option<f64>,
) -> Result<SamplingConfig, CoreError> {
    // A k beyond usize keeps the whole vocabulary, as any k above it does.
    let top_k = match top_k {
        Some(k) if k < 1 => return Err(Error::TopK(k).into()),
        k => k.map(|k| usize::try_from(k).unwrap_or(usize::MAX)),
    };
    let config = SamplingConfig { temperature, top_k, top_p };
    config.check()?;
    Ok(config)
}

/// Chooses one token a row.
///
/// Args:
///     temperature: 0 is greedy.
///     top_k, top_p: None is off.
/// Raises:
///     ConfigError: a setting is out of its range.
#[pyclass(name = "Sampler", module = "gptrs._core")]
pub struct PySampler(Sampler);

#[pymethods]
impl PySampler {
    #[new]
    #[pyo3(signature = (*, temperature, top_k=None, top_p=None))]
    fn new(temperature: f64, top_k: Option<i64>, top_p: Option<f64>) -> Result<Self, CoreError> {
        Ok(Self(Sampler::new(sampling_config(temperature, top_k, top_p)?)?))
    }

    /// Draws for each row by its counter.
    ///
    /// Args:
    ///     logits: float32 [B, V], C-contiguous.
    ///     seeds, sequences, positions: uint64 [B].
    /// Returns:
    ///     int64 [B].
    /// Raises:
    ///     GenerationError: a row has NaN, +inf, or nothing but -inf.
    fn sample<'py>(
        &mut self,
        py: Python<'py>,
        logits: PyReadonlyArray2<'py, f32>,
        seeds: PyReadonlyArray1<'py, u64>,
        sequences: PyReadonlyArray1<'py, u64>,
        positions: PyReadonlyArray1<'py, u64>,
    ) -> PyResult<Bound<'py, PyArray1<i64>>> {
        let [num_rows, width] = [logits.shape()[0], logits.shape()[1]];
        let counters = [seeds.as_slice()?, sequences.as_slice()?, positions.as_slice()?];
        for (what, counter) in ["seeds", "sequences", "positions"].into_iter().zip(counters) {
            if counter.len() != num_rows {
                let error = Error::WrongLength { what, found: counter.len(), expected: num_rows };
                return Err(CoreError(error).into());
            }
        }
        let logits = logits.as_slice()?;
        let ids: Vec<i64> = py
            .detach(|| {
                (0..num_rows)
                    .map(|i| {
                        let [seed, sequence, position] = counters.map(|counter| counter[i]);
                        let row = Row::F32(&logits[i * width..(i + 1) * width]);
                        self.0.sample(row, Draw { seed, sequence, position }).map(i64::from)
                    })
                    .collect::<gptrs_core::Result<_>>()
            })
            .map_err(CoreError)?;
        Ok(ids.to_pyarray(py))
    }
}
