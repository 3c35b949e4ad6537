//! `_core.Generation`: the sampling loop over a model that lives in Python.
//!
//! One step is one callback, `engine.extend(slots, starts, counts, wanted, tokens, copies)`. What
//! the loop asks of slots besides (copies, truncations) costs no call of its own: a truncation is a
//! lower start, and copies travel with the next `extend`.

use gptrs_core::generate::{
    Event, Extend, Finish, GenerateError, Generation, Limits, Logits, NextLogits, Plan, Request,
};
use half::{bf16, f16};
use numpy::{PyReadonlyArray1, PyReadonlyArray2, PyUntypedArrayMethods, ToPyArray};
use pyo3::prelude::*;

use crate::errors::{CoreError, GenerationError};
use crate::sampling::sampling_config;

const UNKNOWN_VOCAB_SIZE: usize = 1 << 32;

/// A Python engine as the loop sees it.
struct PyModel {
    engine: Py<PyAny>,
    limits: Limits,
    /// How many tokens each slot holds.
    lengths: Vec<usize>,
    /// (from, to, len), for the next callback.
    copies: Vec<(usize, usize, usize)>,
    rows: Rows,
}

/// The logits of the last callback, copied out so that the loop runs without the GIL.
enum Rows {
    F32(Vec<f32>, usize),
    F16(Vec<f16>, usize),
    Bf16(Vec<bf16>, usize),
    Candidates { ids: Vec<u32>, values: Vec<f32>, log_sum_exp: Vec<f32>, width: usize },
}

/// What an engine may answer; bfloat16 travels as its bits, since NumPy has no such type.
#[derive(FromPyObject)]
enum Answer<'py> {
    #[pyo3(annotation = "float32 [rows, V]")]
    F32(PyReadonlyArray2<'py, f32>),
    #[pyo3(annotation = "float16 [rows, V]")]
    F16(PyReadonlyArray2<'py, f16>),
    #[pyo3(annotation = "uint16 [rows, V], the bits of bfloat16")]
    Bf16(PyReadonlyArray2<'py, u16>),
    #[pyo3(annotation = "(ids int64 [rows, C], values float32 [rows, C], float32 [rows])")]
    Candidates(PyReadonlyArray2<'py, i64>, PyReadonlyArray2<'py, f32>, PyReadonlyArray1<'py, f32>),
}

impl PyModel {
    fn new(engine: &Bound<'_, PyAny>) -> PyResult<Self> {
        // A callable does not say how large its vocabulary is; ids are 32 bits wide at most.
        let vocab_size: Option<usize> = engine.getattr("vocab_size")?.extract()?;
        let limits = Limits {
            vocab_size: vocab_size.unwrap_or(UNKNOWN_VOCAB_SIZE),
            context_length: engine.getattr("context_length")?.extract()?,
            slots: engine.getattr("slots")?.extract()?,
        };
        Ok(Self {
            engine: engine.clone().unbind(),
            limits,
            lengths: vec![0; limits.slots],
            copies: Vec::new(),
            rows: Rows::F32(Vec::new(), 0),
        })
    }

    fn take(&mut self, answer: &Answer<'_>, num_rows: usize) -> PyResult<()> {
        let (shape, is_dense) = match answer {
            Answer::F32(rows) => (rows.shape(), true),
            Answer::F16(rows) => (rows.shape(), true),
            Answer::Bf16(rows) => (rows.shape(), true),
            Answer::Candidates(ids, ..) => (ids.shape(), false),
        };
        let width = shape[1];
        let fits = width == self.limits.vocab_size || self.limits.vocab_size == UNKNOWN_VOCAB_SIZE;
        if shape[0] != num_rows || width == 0 || (is_dense && !fits) {
            let Limits { vocab_size, .. } = self.limits;
            let message = format!(
                "the model answered logits of shape {shape:?}, expected [{num_rows}, {vocab_size}]"
            );
            return Err(GenerationError::new_err(message));
        }
        self.rows = match answer {
            Answer::F32(rows) => Rows::F32(rows.as_slice()?.to_vec(), width),
            Answer::F16(rows) => Rows::F16(rows.as_slice()?.to_vec(), width),
            Answer::Bf16(rows) => {
                let bits = rows.as_slice()?.iter();
                Rows::Bf16(bits.map(|&bits| bf16::from_bits(bits)).collect(), width)
            }
            Answer::Candidates(ids, values, log_sum_exp) => Rows::Candidates {
                ids: ids
                    .as_slice()?
                    .iter()
                    .map(|&id| u32::try_from(id))
                    .collect::<Result<_, _>>()?,
                values: values.as_slice()?.to_vec(),
                log_sum_exp: log_sum_exp.as_slice()?.to_vec(),
                width,
            },
        };
        Ok(())
    }
}

impl NextLogits for PyModel {
    type Error = PyErr;

    fn limits(&self) -> Limits {
        self.limits
    }

    fn extend(&mut self, work: &[Extend<'_>]) -> PyResult<()> {
        Python::attach(|py| {
            let slots: Vec<_> = work.iter().map(|w| w.slot).collect();
            let starts: Vec<_> = slots.iter().map(|&slot| self.lengths[slot]).collect();
            let counts: Vec<_> = work.iter().map(|w| w.tokens.len()).collect();
            let wanted: Vec<_> = work.iter().map(|w| w.wanted).collect();
            let tokens: Vec<_> =
                work.iter().flat_map(|w| w.tokens).map(|&t| i64::from(t)).collect();
            let num_rows = wanted.iter().sum();
            for (slot, count) in slots.iter().zip(&counts) {
                self.lengths[*slot] += count;
            }
            let copies = std::mem::take(&mut self.copies);
            let arguments = (slots, starts, counts, wanted, tokens.to_pyarray(py), copies);
            let answer = self.engine.bind(py).call_method1("extend", arguments)?;
            self.take(&answer.extract()?, num_rows)
        })
    }

    fn logits(&self) -> Logits<'_> {
        match &self.rows {
            Rows::F32(values, width) => Logits::F32(values, *width),
            Rows::F16(values, width) => Logits::F16(values, *width),
            Rows::Bf16(values, width) => Logits::Bf16(values, *width),
            Rows::Candidates { ids, values, log_sum_exp, width } => {
                Logits::Candidates { ids, values, log_sum_exp, width: *width }
            }
        }
    }

    fn copy(&mut self, from: usize, to: usize, len: usize) -> PyResult<()> {
        self.copies.push((from, to, len));
        self.lengths[to] = len;
        Ok(())
    }

    fn truncate(&mut self, slot: usize, len: usize) -> PyResult<()> {
        self.lengths[slot] = len;
        Ok(())
    }
}

/// A run of the sampling loop.
///
/// Args:
///     engine: has vocab_size, context_length, slots and the callback extend(...).
///     prompts: token ids, one list a sequence.
///     max_new_tokens: how many tokens each sequence gets at most.
///     window: the model sees this many of the newest tokens.
///     eos_id: ends a sequence; None for no such token.
///     temperature, top_k, top_p: see SamplingConfig.
///     seeds, sequences: the draws' counters, one a prompt.
/// Raises:
///     ConfigError: a setting is out of its range.
///     GenerationError: a prompt is empty.
///     TokenIdError: a prompt has an id outside the vocabulary.
#[pyclass(name = "Generation", module = "gptrs._core")]
pub struct PyGeneration(Generation<PyModel>);

/// (request, token or None, finish reason or None)
type PyEvent = (usize, Option<u32>, Option<&'static str>);

#[pymethods]
impl PyGeneration {
    #[new]
    #[pyo3(signature = (
        engine, prompts, *, max_new_tokens, window, eos_id, temperature, top_k, top_p, seeds, sequences
    ))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments of a Python class")]
    fn new(
        engine: &Bound<'_, PyAny>,
        prompts: Vec<Vec<i64>>,
        max_new_tokens: usize,
        window: usize,
        eos_id: Option<u32>,
        temperature: f64,
        top_k: Option<i64>,
        top_p: Option<f64>,
        seeds: Vec<u64>,
        sequences: Vec<u64>,
    ) -> PyResult<Self> {
        let model = PyModel::new(engine)?;
        let sampling = sampling_config(temperature, top_k, top_p)?;
        let plan = Plan { max_new_tokens, window, eos_id, sampling };
        let mut requests = Vec::with_capacity(prompts.len());
        for (row, ((prompt, seed), sequence)) in
            prompts.iter().zip(seeds).zip(sequences).enumerate()
        {
            let prompt = to_ids(row, prompt, model.limits.vocab_size)?;
            requests.push(Request { prompt, seed, sequence });
        }
        Ok(Self(Generation::new(model, plan, requests).map_err(CoreError)?))
    }

    /// Runs to the end: [(token_ids, finish_reason)], in the order of the prompts.
    ///
    /// Raises:
    ///     GenerationError: logits that nothing can be drawn from.
    ///     Anything the engine raises, unchanged.
    fn run(&mut self, py: Python<'_>) -> PyResult<Vec<(Vec<u32>, &'static str)>> {
        let outputs = py.detach(|| self.0.run()).map_err(to_py_err)?;
        Ok(outputs.into_iter().map(|o| (o.tokens, finish_reason(o.finish))).collect())
    }

    /// One token for every running sequence: [(prompt number, token or None, finish_reason or None)].
    ///
    /// Empty once all sequences have ended. Raises as run does.
    fn step(&mut self, py: Python<'_>) -> PyResult<Vec<PyEvent>> {
        let mut events = Vec::new();
        py.detach(|| self.0.step(&mut events)).map_err(to_py_err)?;
        let to_py = |e: Event| (e.request, e.token, e.finish.map(finish_reason));
        Ok(events.into_iter().map(to_py).collect())
    }
}

fn to_ids(row: usize, prompt: &[i64], vocab_size: usize) -> Result<Vec<u32>, CoreError> {
    let to_id = |(column, &id): (usize, &i64)| {
        u32::try_from(id)
            .map_err(|_| gptrs_core::Error::TokenIdInPrompt { id, row, column, vocab_size }.into())
    };
    prompt.iter().enumerate().map(to_id).collect()
}

fn to_py_err(error: GenerateError<PyErr>) -> PyErr {
    match error {
        GenerateError::Core(error) => CoreError(error).into(),
        GenerateError::Model(error) => error,
    }
}

fn finish_reason(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
    }
}
