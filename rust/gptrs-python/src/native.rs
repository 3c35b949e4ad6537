//! `_core.NativeModel`: the native engine over a PyTorch model's own weights.
//!
//! ```text
//! Weights (Python) ─► TensorView ─► Numbers ─► gptrs_core's NativeModel ─┬─► NativeRun, in the loop
//!                     nothing copied                                     └─► extend, from Python
//! ```

mod packed;
mod run;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::available_parallelism;

use gptrs_core::Error;
use gptrs_core::generate::{Extend, Limits, Logits, NextLogits};
use gptrs_core::native::{
    Block, Kernels, Linear, Matrix, NativeModel, Norm, Numbers, Options, PackedWeights, Positions,
    Precision, Weights,
};
use numpy::{PyArray1, PyArray2, PyArrayMethods};
use pyo3::prelude::*;

pub use self::packed::PyPackedWeights;
pub use self::run::NativeRun;
use crate::errors::{ConfigError, CoreError, GenerationError};
use crate::tensor::TensorView;

/// A model that decodes without Python. Its weights are read where they lie, or packed to int8.
///
/// A loop (`Generation`, `beam_search`) takes it, and gives it back when it goes; meanwhile it cannot be asked
/// by hand, nor taken by another.
///
/// Args:
///     weights: a `gptrs.engines.native_weights.Weights`: nobody may resize or free its tensors' memory.
///     slots: sequences at once.
///     context_length: most tokens a slot holds.
///     threads: how many compute, the caller's among them.
///     int8: pack the matrices: a byte a weight.
///     packed: these very weights, packed before.
///     kernels: one of `NativeModel.available_kernels()`; None: the first of them.
/// Raises:
///     ConfigError: shapes that do not fit each other, an unknown name, no threads.
#[pyclass(name = "NativeModel", module = "gptrs._core", frozen)]
pub struct PyNativeModel {
    home: Arc<Home>,
    limits: Limits,
    kernels: &'static str,
    packed: Option<PackedWeights>,
}

/// Where a model is while no loop has it.
type Home = Mutex<Option<NativeModel>>;

#[pymethods]
impl PyNativeModel {
    #[new]
    #[pyo3(signature = (
        weights, *, slots, context_length, threads, int8=false, kernels=None, packed=None
    ))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments of a Python method")]
    fn new(
        py: Python<'_>,
        weights: PyWeights<'_>,
        slots: usize,
        context_length: usize,
        threads: usize,
        int8: bool,
        kernels: Option<&str>,
        packed: Option<&PyPackedWeights>,
    ) -> PyResult<Self> {
        let weights = weights.read()?;
        let kernels = find_kernels(kernels)?;
        let precision = if int8 { Precision::Int8 } else { Precision::AsStored };
        let options = Options { slots, context_length, threads, precision, kernels };
        // Packing reads every weight.
        let packed = packed.map(|packed| packed.packed.clone());
        let make = || NativeModel::with_packed(weights, options, packed);
        let model = py.detach(make).map_err(to_py_err)?;
        let (limits, packed) = (model.limits(), model.packed());
        Ok(Self {
            home: Arc::new(Mutex::new(Some(model))),
            limits,
            kernels: kernels.name(),
            packed,
        })
    }

    /// The names of the kernels that this processor can run, the fastest first.
    #[staticmethod]
    fn available_kernels() -> Vec<&'static str> {
        Kernels::available().into_iter().map(Kernels::name).collect()
    }

    /// How many threads can run at once here: processors, of which a container may have a share only.
    #[staticmethod]
    fn available_threads() -> usize {
        available_parallelism().map_or(1, usize::from)
    }

    /// The name of the kernels that compute.
    #[getter]
    fn kernels(&self) -> &'static str {
        self.kernels
    }

    /// Whether no loop has it.
    #[getter]
    fn is_free(&self) -> bool {
        self.lock().is_some()
    }

    /// What it packed, or was given; None without int8.
    #[getter]
    fn packed(&self) -> Option<PyPackedWeights> {
        self.packed.clone().map(PyPackedWeights::from)
    }

    /// Appends tokens to slots, which forget all but `starts` of theirs before.
    ///
    /// Args:
    ///     tokens: ids, slot after slot.
    ///     slots: ascending.
    ///     starts, counts, wanted: for each slot, how many tokens it keeps, how many it gets, and of
    ///         how many of its last positions logits are wanted.
    /// Returns:
    ///     float32 [sum of wanted, vocab_size].
    /// Raises:
    ///     GenerationError: a loop has taken the model.
    fn extend<'py>(
        &self,
        py: Python<'py>,
        tokens: Vec<u32>,
        slots: Vec<usize>,
        starts: Vec<usize>,
        counts: Vec<usize>,
        wanted: Vec<usize>,
    ) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let num_tokens: usize = counts.iter().sum();
        let lens = [starts.len(), counts.len(), wanted.len()];
        if lens != [slots.len(); 3] || tokens.len() != num_tokens {
            let message = format!(
                "{} slots need as many starts, counts and wanted, and their tokens; found {lens:?} \
                 and {} of {num_tokens} tokens",
                slots.len(),
                tokens.len()
            );
            return Err(GenerationError::new_err(message));
        }
        self.check_slots(&slots, &starts)?;
        let mut rest = &*tokens;
        let mut work = Vec::with_capacity(slots.len());
        for ((&slot, &count), &wanted) in slots.iter().zip(&counts).zip(&wanted) {
            let (tokens, behind) = rest.split_at(count);
            work.push(Extend { slot, tokens, wanted });
            rest = behind;
        }
        let rows = py.detach(|| {
            let mut model = self.lock();
            let model = model.as_mut().ok_or_else(taken)?;
            for (&slot, &start) in slots.iter().zip(&starts) {
                model.truncate(slot, start).map_err(to_py_err)?;
            }
            model.extend(&work).map_err(to_py_err)?;
            match model.logits() {
                Logits::F32(rows, _) => PyResult::Ok(rows.to_vec()),
                _ => Ok(Vec::new()),
            }
        })?;
        PyArray1::from_vec(py, rows).reshape([wanted.iter().sum(), self.limits.vocab_size])
    }

    /// The first `length` tokens of one slot become another's.
    fn copy(&self, source: usize, target: usize, length: usize) -> PyResult<()> {
        self.check_slots(&[source, target], &[length])?;
        let copied = self.lock().as_mut().ok_or_else(taken)?.copy(source, target, length);
        copied.map_err(to_py_err)
    }

    /// Goes on with other weights of the same shapes; the slots keep what they hold.
    ///
    /// If they cannot be taken, the model is lost, as if a loop had it for ever: with the old ones nobody
    /// is to go on.
    fn set_weights(&self, py: Python<'_>, weights: &Bound<'_, PyAny>) -> PyResult<()> {
        let mut lent = Lent::of(&self.home)?;
        lent.is_outdated = true;
        let weights = weights.extract::<PyWeights<'_>>()?.read()?;
        py.detach(|| lent.model_mut().set_weights(weights)).map_err(to_py_err)?;
        lent.is_outdated = false;
        Ok(())
    }
}

impl PyNativeModel {
    fn lock(&self) -> MutexGuard<'_, Option<NativeModel>> {
        self.home.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The loop asks for nothing else; a caller may.
    fn check_slots(&self, slots: &[usize], lengths: &[usize]) -> PyResult<()> {
        let Limits { slots: num_slots, context_length, .. } = self.limits;
        if slots.iter().all(|&slot| slot < num_slots)
            && lengths.iter().all(|&length| length <= context_length)
        {
            return Ok(());
        }
        Err(GenerationError::new_err(format!(
            "there are {num_slots} slots of {context_length} tokens, found slots {slots:?} with \
             {lengths:?}"
        )))
    }

    /// The model itself, for a loop; its slots are empty.
    fn lend(&self) -> PyResult<Lent> {
        let mut lent = Lent::of(&self.home)?;
        for slot in 0..self.limits.slots {
            lent.model_mut().truncate(slot, 0).map_err(to_py_err)?;
        }
        Ok(lent)
    }
}

/// A model that a loop has until this is dropped.
struct Lent {
    /// None in the end.
    model: Option<NativeModel>,
    home: Arc<Home>,
    /// Whether its weights are no longer those of the Python model: then nobody gets it back.
    is_outdated: bool,
}

impl Lent {
    fn of(home: &Arc<Home>) -> PyResult<Self> {
        let model = home.lock().unwrap_or_else(PoisonError::into_inner).take().ok_or_else(taken)?;
        Ok(Self { model: Some(model), home: Arc::clone(home), is_outdated: false })
    }

    fn model(&self) -> &NativeModel {
        self.model.as_ref().expect("it is here until the end")
    }

    fn model_mut(&mut self) -> &mut NativeModel {
        self.model.as_mut().expect("it is here until the end")
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if !self.is_outdated {
            *self.home.lock().unwrap_or_else(PoisonError::into_inner) = self.model.take();
        }
    }
}

fn to_py_err(error: Error) -> PyErr {
    CoreError(error).into()
}

fn taken() -> PyErr {
    GenerationError::new_err(
        "a loop has taken this native engine: make another one, or let the loop end",
    )
}

pub fn find_kernels(name: Option<&str>) -> PyResult<Kernels> {
    let available = Kernels::available();
    let found = match name {
        None => available.first(),
        Some(name) => available.iter().find(|kernels| kernels.name() == name),
    };
    found.copied().ok_or_else(|| {
        let names: Vec<_> = available.iter().map(|kernels| kernels.name()).collect();
        ConfigError::new_err(format!("this processor runs the kernels {names:?}, found {name:?}"))
    })
}

/// `gptrs.engines.native_weights.Weights`.
#[derive(FromPyObject)]
pub struct PyWeights<'py> {
    tokens: Bound<'py, PyAny>,
    positions: String,
    table: Option<Bound<'py, PyAny>>,
    slopes: Vec<f32>,
    num_heads: usize,
    blocks: Vec<PyBlock<'py>>,
    norm: PyNorm<'py>,
    head: PyLinear<'py>,
}

/// `gptrs.engines.native_weights.Block`.
#[derive(FromPyObject)]
struct PyBlock<'py> {
    norm1: PyNorm<'py>,
    query: PyLinear<'py>,
    key: PyLinear<'py>,
    value: PyLinear<'py>,
    scale: f32,
    out: PyLinear<'py>,
    norm2: PyNorm<'py>,
    up: PyLinear<'py>,
    down: PyLinear<'py>,
}

/// `gptrs.engines.decode_weights.Linear`.
#[derive(FromPyObject)]
struct PyLinear<'py> {
    weight: Bound<'py, PyAny>,
    bias: Option<Bound<'py, PyAny>>,
}

/// `gptrs.engines.decode_weights.Norm`.
#[derive(FromPyObject)]
struct PyNorm<'py> {
    scale: Bound<'py, PyAny>,
    shift: Bound<'py, PyAny>,
    eps: f32,
}

impl PyWeights<'_> {
    fn read(&self) -> PyResult<Weights> {
        Ok(Weights {
            tokens: matrix(&self.tokens)?,
            positions: self.positions()?,
            blocks: self.blocks.iter().map(PyBlock::read).collect::<PyResult<_>>()?,
            num_heads: self.num_heads,
            norm: self.norm.read()?,
            head: self.head.read()?,
        })
    }

    fn positions(&self) -> PyResult<Positions> {
        Ok(match (&*self.positions, &self.table) {
            ("none", None) => Positions::None,
            ("learned", Some(table)) => Positions::Learned(matrix(table)?),
            ("sinusoidal", None) => Positions::Sinusoidal,
            ("rope", None) => Positions::Rope,
            ("alibi", None) => Positions::Alibi(self.slopes.clone()),
            (kind, _) => {
                let message = format!("the native engine knows no {kind} positions");
                return Err(to_py_err(Error::Setting(message)));
            }
        })
    }
}

impl PyBlock<'_> {
    fn read(&self) -> PyResult<Block> {
        Ok(Block {
            norm1: self.norm1.read()?,
            query: self.query.read()?,
            key: self.key.read()?,
            value: self.value.read()?,
            scale: self.scale,
            out: self.out.read()?,
            norm2: self.norm2.read()?,
            up: self.up.read()?,
            down: self.down.read()?,
        })
    }
}

impl PyLinear<'_> {
    fn read(&self) -> PyResult<Linear> {
        let bias = self.bias.as_ref().map(numbers).transpose()?;
        Ok(Linear { weight: matrix(&self.weight)?, bias })
    }
}

impl PyNorm<'_> {
    fn read(&self) -> PyResult<Norm> {
        Ok(Norm { scale: numbers(&self.scale)?, shift: numbers(&self.shift)?, eps: self.eps })
    }
}

fn numbers(tensor: &Bound<'_, PyAny>) -> PyResult<Numbers> {
    TensorView::of(tensor)?.into_numbers()
}

fn matrix(tensor: &Bound<'_, PyAny>) -> PyResult<Matrix> {
    let view = TensorView::of(tensor)?;
    let &[rows, columns] = view.shape() else {
        let message = format!("a matrix of weights has 2 dimensions, found {:?}", view.shape());
        return Err(GenerationError::new_err(message));
    };
    Ok(Matrix { rows, columns, numbers: view.into_numbers()? })
}
