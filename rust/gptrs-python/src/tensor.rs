//! Tensors of PyTorch and arrays of NumPy, read and written in place.
//!
//! ```text
//! torch.Tensor ─► __dlpack_c_exchange_api__ ┐
//! numpy.ndarray ─► its fields               ├─► Layout ─► TensorView, WritableTensor, Matrix
//! an older torch's Tensor ─► data_ptr()     ┘
//! ```
//!
//! Nothing is copied: a view keeps its object alive and can be used without the GIL. As in PyTorch's
//! own operators, nobody may resize the object or write to it from another thread meanwhile.

#![allow(unsafe_code, reason = "memory that belongs to NumPy or PyTorch")]

mod dlpack;
mod layout;

use std::array;
use std::slice;
use std::sync::Arc;

use gptrs_core::native::{Bytes, FloatType, Numbers};
use gptrs_core::sampling::Row;
use half::{bf16, f16};
use pyo3::buffer::PyBuffer;
use pyo3::intern;
use pyo3::prelude::*;

use self::layout::{Layout, not_contiguous};
use crate::errors::GenerationError;

/// What a tensor's elements are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DType {
    F32,
    F16,
    Bf16,
    I64,
}

/// A C-contiguous tensor, to be read.
pub struct TensorView(Layout);

impl TensorView {
    /// A view of a NumPy array or of a torch tensor on the CPU.
    ///
    /// # Errors
    /// `GenerationError`, with what was found: another kind of object, another device or dtype, or
    /// elements that do not lie one after the other.
    pub fn of(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let layout = Layout::of(object)?;
        layout.check_contiguous(object)?;
        Ok(Self(layout))
    }

    pub fn shape(&self) -> &[usize] {
        self.0.shape()
    }

    pub fn dtype(&self) -> DType {
        self.0.dtype
    }

    /// The numbers of a float32 or bfloat16 tensor, which keep its object.
    ///
    /// # Errors
    /// `GenerationError`: it is of another type.
    pub fn into_numbers(self) -> PyResult<Numbers> {
        let dtype = match self.dtype() {
            DType::F32 => FloatType::F32,
            DType::Bf16 => FloatType::Bf16,
            found => {
                let message = format!("weights are float32 or bfloat16, found {found:?}");
                return Err(GenerationError::new_err(message));
            }
        };
        let (data, len) = (self.0.data.as_ptr(), self.shape().iter().product());
        // SAFETY: `of` found so many elements of this type, one after the other and aligned; the
        // layout keeps the object that has their memory, and whoever hands over weights has seen to
        // it that the object never moves them.
        Ok(unsafe { Numbers::new(data, dtype, len, Arc::new(self.0)) })
    }

    pub fn as_f32(&self) -> Option<&[f32]> {
        self.elements(DType::F32)
    }

    pub fn as_f16(&self) -> Option<&[f16]> {
        self.elements(DType::F16)
    }

    pub fn as_bf16(&self) -> Option<&[bf16]> {
        self.elements(DType::Bf16)
    }

    pub fn as_i64(&self) -> Option<&[i64]> {
        self.elements(DType::I64)
    }

    /// All elements, if they are of this type; `T` is the type that `dtype` stands for.
    fn elements<T>(&self, dtype: DType) -> Option<&[T]> {
        let len = self.shape().iter().product();
        // SAFETY: contiguous, and `T` is the elements' type.
        (self.0.dtype == dtype).then(|| unsafe { self.0.slice(0, len) })
    }
}

/// A C-contiguous tensor, to be written.
pub struct WritableTensor(TensorView);

impl WritableTensor {
    /// As `TensorView::of`; NumPy and autograd must allow writing, too.
    pub fn of(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let view = TensorView::of(object)?;
        let flag = object.getattr_opt(intern!(object.py(), "requires_grad"))?;
        if !view.0.is_writable || flag.is_some_and(|flag| flag.is_truthy().unwrap_or(true)) {
            let message =
                "a tensor that is written in place is neither read-only nor requires grad";
            return Err(GenerationError::new_err(message));
        }
        Ok(Self(view))
    }

    pub fn shape(&self) -> &[usize] {
        self.0.shape()
    }

    pub fn as_i64_mut(&mut self) -> Option<&mut [i64]> {
        self.elements_mut()
    }

    /// All elements, if they are of this type. Whoever calls it sees to it that nobody else looks at the
    /// memory for as long as the slice is used.
    pub fn elements_mut<T: Element>(&mut self) -> Option<&mut [T]> {
        let len = self.0.elements::<T>(T::DTYPE)?.len();
        // SAFETY: contiguous and writable, as `of` found. As in PyTorch's own operators, nobody else may
        // use the memory meanwhile.
        Some(unsafe { slice::from_raw_parts_mut(self.0.0.data.cast().as_ptr(), len) })
    }
}

/// A type of Rust that a tensor's elements may be.
pub trait Element: Copy {
    const DTYPE: DType;
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;
}

impl Element for bf16 {
    const DTYPE: DType = DType::Bf16;
}

impl Element for i64 {
    const DTYPE: DType = DType::I64;
}

/// A tensor of `D` dimensions, to be read, whose elements need not lie one after the other.
pub struct StridedView<const D: usize>(Layout);

impl<const D: usize> StridedView<D> {
    /// A view, if one after the other is where elements lie along one of these dimensions.
    ///
    /// # Errors
    /// `GenerationError`, as `TensorView::of`, with what was `needed` where the number of dimensions is
    /// another; or strides are below zero.
    pub fn of(object: &Bound<'_, PyAny>, dims: &[usize], needed: &str) -> PyResult<Self> {
        let layout = Layout::of(object)?;
        if layout.shape().len() != D {
            let message = format!("{needed}, found {:?}", layout.shape());
            return Err(GenerationError::new_err(message));
        }
        let is_dense = |&dim: &usize| layout.shape[dim] <= 1 || layout.strides[dim] == 1;
        let is_readable = dims.iter().any(is_dense) && layout.strides.iter().all(|&step| step >= 0);
        if !layout.is_empty() && !is_readable {
            return Err(not_contiguous(object));
        }
        Ok(Self(layout))
    }

    pub fn shape(&self) -> [usize; D] {
        array::from_fn(|dim| self.0.shape[dim])
    }

    pub fn dtype(&self) -> DType {
        self.0.dtype
    }

    /// From one element to the next, along each dimension.
    pub fn strides(&self) -> [usize; D] {
        array::from_fn(|dim| self.0.strides[dim] as usize)
    }

    /// From the first element to the last, whatever lies between, if they are of this type.
    pub fn span<T: Element>(&self) -> Option<&[T]> {
        let sides = self.0.shape.iter().zip(&self.0.strides);
        let last: usize =
            sides.map(|(&side, &stride)| side.saturating_sub(1) * stride as usize).sum();
        let len = if self.0.is_empty() { 0 } else { last + 1 };
        // SAFETY: strides are not negative, so all lies between the first and the last element, in one
        // allocation of a tensor of this type, whose bits are numbers whatever they are.
        (self.0.dtype == T::DTYPE).then(|| unsafe { self.0.slice(0, len) })
    }
}

/// The bytes of any object that shows them, which keeps the object; nobody may write to them meanwhile.
///
/// # Errors
/// `GenerationError`: they do not lie one after the other. What the object itself raises.
pub fn bytes(object: &Bound<'_, PyAny>) -> PyResult<Bytes> {
    let buffer = PyBuffer::<u8>::get(object)?;
    if !buffer.is_c_contiguous() {
        return Err(not_contiguous(object));
    }
    let (data, len) = (buffer.buf_ptr().cast_const().cast(), buffer.item_count());
    // SAFETY: so many contiguous bytes, which stay where they are for as long as the buffer is held.
    Ok(unsafe { Bytes::new(data, len, Arc::new(buffer)) })
}

/// Rows of logits, each contiguous, though perhaps not beside each other, as in `logits[:, -1]`.
pub struct Matrix(Layout);

impl Matrix {
    /// A view of float32, float16 or bfloat16 [rows, width].
    ///
    /// # Errors
    /// `GenerationError`, as `TensorView::of`.
    pub fn of(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let layout = Layout::of(object)?;
        if layout.dtype == DType::I64 {
            let message = "logits are float32, float16 or bfloat16, found int64";
            return Err(GenerationError::new_err(message));
        }
        let &[_, width] = layout.shape() else {
            let message = format!("logits have shape {:?}, expected [B, V]", layout.shape());
            return Err(GenerationError::new_err(message));
        };
        if width > 1 && layout.strides[1] != 1 && !layout.is_empty() {
            return Err(not_contiguous(object));
        }
        Ok(Self(layout))
    }

    pub fn num_rows(&self) -> usize {
        self.0.shape[0]
    }

    pub fn width(&self) -> usize {
        self.0.shape[1]
    }

    /// Row `index`. Panics past the last, as a slice does.
    pub fn row(&self, index: usize) -> Row<'_> {
        assert!(index < self.num_rows(), "row {index} of {}", self.num_rows());
        let (start, len) = (index as isize * self.0.strides[0], self.width());
        // SAFETY: the row is one of the matrix's, its elements follow each other, and are of the
        // type that the dtype says.
        unsafe {
            match self.0.dtype {
                DType::F32 => Row::F32(self.0.slice(start, len)),
                DType::F16 => Row::F16(self.0.slice(start, len)),
                DType::Bf16 => Row::Bf16(self.0.slice(start, len)),
                DType::I64 => unreachable!("Matrix::of refuses it"),
            }
        }
    }
}
