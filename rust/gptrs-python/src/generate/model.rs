//! A Python engine as the loop sees it: one callback a step, everything else in place.
//!
//! ```text
//! loop ── tokens, starts: written into the engine's own tensors ──► step(n) or extend(...)
//!      ◄── logits: read where the engine's answer has them ────────
//! ```
//!
//! What the loop asks of slots besides costs no callback of its own as a rule: a truncation is a
//! lower start, and copies are handed over together, only when there are any.

use gptrs_core::generate::{Extend, Limits, Logits, NextLogits};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::errors::GenerationError;
use crate::tensor::{DType, TensorView, WritableTensor};

/// A callable does not say how large its vocabulary is; ids are 32 bits wide at most.
pub const UNKNOWN_VOCAB_SIZE: usize = 1 << 32;

pub struct PyModel {
    limits: Limits,
    /// The engine's methods, bound to it.
    step: Py<PyAny>,
    extend: Py<PyAny>,
    copy: Py<PyAny>,
    /// The tokens of a call, slot after slot.
    tokens: WritableTensor,
    /// How many tokens each slot of a call keeps.
    starts: WritableTensor,
    /// How many tokens each slot holds.
    lengths: Vec<usize>,
    /// (from, to, len), for the next callback.
    copies: Vec<(usize, usize, usize)>,
    answer: Answer,
}

/// The logits of the last callback, where the engine has them.
enum Answer {
    Nothing,
    Dense(TensorView, usize),
    Candidates { ids: Vec<u32>, values: TensorView, log_sum_exp: TensorView, width: usize },
}

impl PyModel {
    pub fn new(engine: &Bound<'_, PyAny>) -> PyResult<Self> {
        let vocab_size: Option<usize> = engine.getattr("vocab_size")?.extract()?;
        let limits = Limits {
            vocab_size: vocab_size.unwrap_or(UNKNOWN_VOCAB_SIZE),
            context_length: engine.getattr("context_length")?.extract()?,
            slots: engine.getattr("slots")?.extract()?,
        };
        Ok(Self {
            limits,
            step: engine.getattr("step")?.unbind(),
            extend: engine.getattr("extend")?.unbind(),
            copy: engine.getattr("copy")?.unbind(),
            tokens: WritableTensor::of(&engine.getattr("tokens")?)?,
            starts: WritableTensor::of(&engine.getattr("starts")?)?,
            lengths: vec![0; limits.slots],
            copies: Vec::new(),
            answer: Answer::Nothing,
        })
    }

    /// Writes what is appended, and to how much, into the engine's tensors.
    fn write(&mut self, work: &[Extend<'_>]) -> PyResult<()> {
        let num_tokens: usize = work.iter().map(|w| w.tokens.len()).sum();
        let room = (self.tokens.as_i64_mut(), self.starts.as_i64_mut());
        let (Some(tokens), Some(starts)) = room else {
            return Err(GenerationError::new_err("an engine's tokens and starts are int64"));
        };
        if num_tokens > tokens.len() || work.len() > starts.len() {
            return Err(GenerationError::new_err(format!(
                "a step has {num_tokens} tokens for {} slots; the engine has room for {} and {}",
                work.len(),
                tokens.len(),
                starts.len()
            )));
        }
        let new = work.iter().flat_map(|w| w.tokens);
        tokens.iter_mut().zip(new).for_each(|(to, &token)| *to = i64::from(token));
        let kept = work.iter().map(|w| self.lengths[w.slot]);
        starts.iter_mut().zip(kept).for_each(|(to, length)| *to = length as i64);
        Ok(())
    }

    fn call<'py>(&mut self, py: Python<'py>, work: &[Extend<'_>]) -> PyResult<Bound<'py, PyAny>> {
        if !self.copies.is_empty() {
            self.copy.bind(py).call1((std::mem::take(&mut self.copies),))?;
        }
        let is_step =
            |(i, w): (usize, &Extend<'_>)| (w.slot, w.tokens.len(), w.wanted) == (i, 1, 1);
        if work.iter().enumerate().all(is_step) {
            return self.step.bind(py).call1((work.len(),));
        }
        let slots: Vec<_> = work.iter().map(|w| w.slot).collect();
        let counts: Vec<_> = work.iter().map(|w| w.tokens.len()).collect();
        let wanted: Vec<_> = work.iter().map(|w| w.wanted).collect();
        self.extend.bind(py).call1((slots, counts, wanted))
    }

    /// Checks an answer of `num_rows` rows; reads it where it is.
    fn read(&self, answer: &Bound<'_, PyAny>, num_rows: usize) -> PyResult<Answer> {
        if num_rows == 0 && answer.is_none() {
            return Ok(Answer::Nothing);
        }
        if let Ok(parts) = answer.cast::<PyTuple>() {
            return read_candidates(parts, num_rows);
        }
        let view = TensorView::of(answer)?;
        let Limits { vocab_size, .. } = self.limits;
        match *view.shape() {
            [rows, width]
                if rows == num_rows
                    && width > 0
                    && (width == vocab_size || vocab_size == UNKNOWN_VOCAB_SIZE)
                    && view.dtype() != DType::I64 =>
            {
                Ok(Answer::Dense(view, width))
            }
            _ => {
                let expected = match vocab_size {
                    UNKNOWN_VOCAB_SIZE => "V".to_owned(),
                    size => size.to_string(),
                };
                Err(GenerationError::new_err(format!(
                    "the model answered logits of shape {:?} and type {:?}, expected floats \
                     [{num_rows}, {expected}]",
                    view.shape(),
                    view.dtype()
                )))
            }
        }
    }
}

/// (ids int64 [rows, C], values float32 [rows, C], log-sum-exp float32 [rows]).
fn read_candidates(parts: &Bound<'_, PyTuple>, num_rows: usize) -> PyResult<Answer> {
    let [ids, values, log_sum_exp] = parts.extract::<[Bound<'_, PyAny>; 3]>()?;
    let ids = TensorView::of(&ids)?;
    let [values, log_sum_exp] = [TensorView::of(&values)?, TensorView::of(&log_sum_exp)?];
    let shapes = [ids.shape(), values.shape(), log_sum_exp.shape()];
    let is_float = values.as_f32().is_some() && log_sum_exp.as_f32().is_some();
    let (Some(numbers), [[rows, width], values_shape, [sums]], true) =
        (ids.as_i64(), shapes, is_float)
    else {
        return Err(wrong_candidates(shapes));
    };
    if [*rows, *sums] != [num_rows; 2] || *width == 0 || *values_shape != [*rows, *width] {
        return Err(wrong_candidates(shapes));
    }
    let numbers = numbers.iter().map(|&id| u32::try_from(id)).collect::<Result<_, _>>()?;
    let width = *width;
    Ok(Answer::Candidates { ids: numbers, values, log_sum_exp, width })
}

fn wrong_candidates(shapes: [&[usize]; 3]) -> PyErr {
    GenerationError::new_err(format!(
        "an engine's candidates are int64 [rows, C], float32 [rows, C] and float32 [rows], found \
         shapes {shapes:?}"
    ))
}

impl NextLogits for PyModel {
    type Error = PyErr;

    fn limits(&self) -> Limits {
        self.limits
    }

    fn extend(&mut self, work: &[Extend<'_>]) -> PyResult<()> {
        Python::attach(|py| {
            self.answer = Answer::Nothing;
            self.write(work)?;
            let answer = self.call(py, work)?;
            self.answer = self.read(&answer, work.iter().map(|w| w.wanted).sum())?;
            for w in work {
                self.lengths[w.slot] += w.tokens.len();
            }
            // Between steps of native code too: nothing but flags is looked at.
            py.check_signals()
        })
    }

    fn logits(&self) -> Logits<'_> {
        match &self.answer {
            Answer::Nothing => Logits::F32(&[], 0),
            Answer::Dense(view, width) => match view.dtype() {
                DType::F16 => Logits::F16(view.as_f16().unwrap_or_default(), *width),
                DType::Bf16 => Logits::Bf16(view.as_bf16().unwrap_or_default(), *width),
                _ => Logits::F32(view.as_f32().unwrap_or_default(), *width),
            },
            Answer::Candidates { ids, values, log_sum_exp, width } => Logits::Candidates {
                ids,
                values: values.as_f32().unwrap_or_default(),
                log_sum_exp: log_sum_exp.as_f32().unwrap_or_default(),
                width: *width,
            },
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
