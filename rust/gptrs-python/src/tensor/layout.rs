//! Where a tensor's elements lie, asked of whichever library it is from.

use std::ptr::NonNull;
use std::slice;

use numpy::npyffi::{_PyArray_GET_ITEM_DATA, NPY_ARRAY_WRITEABLE};
use numpy::{PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::prelude::*;

use super::DType;
use super::dlpack::{find_exporter, from_dlpack, known_exporter};
use crate::errors::GenerationError;

const MAX_DIMS: usize = 4;

impl DType {
    const NAMES: &str = "float32, float16, bfloat16 or int64";

    fn num_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::I64 => 8,
        }
    }
}

/// Where a tensor's elements lie, as its library says.
pub struct Layout {
    pub data: NonNull<u8>,
    pub dtype: DType,
    num_dims: usize,
    pub shape: [usize; MAX_DIMS],
    /// In elements.
    pub strides: [isize; MAX_DIMS],
    pub is_writable: bool,
    /// Keeps the memory.
    _owner: Py<PyAny>,
}

// SAFETY: the memory belongs to `_owner`, whichever thread looks at it, and is only read through `&`.
unsafe impl Send for Layout {}
// SAFETY: as above.
unsafe impl Sync for Layout {}

impl Layout {
    pub fn of(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        if let Some(export) = known_exporter(object) {
            return from_dlpack(object, export);
        }
        if let Ok(array) = object.cast::<PyUntypedArray>() {
            return from_numpy(array);
        }
        match find_exporter(object)? {
            Some(export) => from_dlpack(object, export),
            None => from_data_ptr(object),
        }
    }

    /// Refuses what cannot be read. `dtype` is `None` if it is none of ours.
    pub fn new(
        object: &Bound<'_, PyAny>,
        data: *mut u8,
        dtype: Option<DType>,
        shape: impl ExactSizeIterator<Item = usize>,
        strides: impl Iterator<Item = isize>,
        is_writable: bool,
    ) -> PyResult<Self> {
        let Some(dtype) = dtype else {
            let found = describe(object, "dtype");
            let message = format!("a tensor is {}, found {found}", DType::NAMES);
            return Err(GenerationError::new_err(message));
        };
        let num_dims = shape.len();
        if num_dims > MAX_DIMS {
            let message = format!("a tensor has at most {MAX_DIMS} dimensions, found {num_dims}");
            return Err(GenerationError::new_err(message));
        }
        let (mut sizes, mut steps) = ([1; MAX_DIMS], [1; MAX_DIMS]);
        sizes.iter_mut().zip(shape).for_each(|(to, size)| *to = size);
        steps.iter_mut().zip(strides).for_each(|(to, stride)| *to = stride);
        // An empty tensor may lie nowhere.
        let data = if sizes.contains(&0) { None } else { NonNull::new(data) };
        let data = data.unwrap_or(NonNull::<u64>::dangling().cast());
        if !data.addr().get().is_multiple_of(dtype.num_bytes()) {
            let message = "a tensor's memory is aligned to its elements, found one that is not";
            return Err(GenerationError::new_err(message));
        }
        Ok(Self {
            data,
            dtype,
            num_dims,
            shape: sizes,
            strides: steps,
            is_writable,
            _owner: object.clone().unbind(),
        })
    }

    pub fn shape(&self) -> &[usize] {
        &self.shape[..self.num_dims]
    }

    /// Empty tensors have whatever strides, and none to follow.
    pub fn is_empty(&self) -> bool {
        self.shape().contains(&0)
    }

    pub fn check_contiguous(&self, object: &Bound<'_, PyAny>) -> PyResult<()> {
        let mut expected = 1;
        for (&size, &stride) in self.shape().iter().zip(&self.strides).rev() {
            if size > 1 && stride != expected && !self.is_empty() {
                return Err(not_contiguous(object));
            }
            expected *= size as isize;
        }
        Ok(())
    }

    /// `len` elements from number `start` on.
    ///
    /// # Safety
    /// They are elements of the tensor, one after the other, and `T` is what `dtype` stands for.
    pub unsafe fn slice<T>(&self, start: isize, len: usize) -> &[T] {
        if len == 0 {
            return &[];
        }
        // SAFETY: the caller's word; `_owner` keeps the memory, and `new` checked its alignment.
        unsafe { slice::from_raw_parts(self.data.cast::<T>().as_ptr().offset(start), len) }
    }
}

pub fn not_contiguous(object: &Bound<'_, PyAny>) -> PyErr {
    let shape = describe(object, "shape");
    GenerationError::new_err(format!(
        "a tensor that is not contiguous cannot be read in place, found one of shape {shape}: \
         call .contiguous(), or numpy.ascontiguousarray"
    ))
}

/// An attribute as text, for a message.
pub fn describe(object: &Bound<'_, PyAny>, attribute: &str) -> String {
    let text = object.getattr(attribute).and_then(|value| value.str()).map(|text| text.to_string());
    text.map_or_else(|_| "?".to_owned(), |text| text.trim_start_matches("torch.").to_owned())
}

fn from_numpy(array: &Bound<'_, PyUntypedArray>) -> PyResult<Layout> {
    let descr = array.dtype();
    let dtype = match (descr.is_native_byteorder(), descr.kind(), descr.itemsize()) {
        (Some(true), b'f', 4) => Some(DType::F32),
        (Some(true), b'f', 2) => Some(DType::F16),
        (Some(true), b'i', 8) => Some(DType::I64),
        _ => None,
    };
    // SAFETY: it is an array, and the GIL is held.
    let fields = unsafe { &*_PyArray_GET_ITEM_DATA(array.as_array_ptr()) };
    let item_bytes = descr.itemsize().max(1) as isize;
    let (shape, strides) = (array.shape().iter().copied(), array.strides());
    if strides.iter().any(|bytes| bytes % item_bytes != 0) {
        return Err(not_contiguous(array));
    }
    let strides = strides.iter().map(|bytes| bytes / item_bytes);
    let is_writable = fields.flags & NPY_ARRAY_WRITEABLE != 0;
    Layout::new(array, fields.data.cast(), dtype, shape, strides, is_writable)
}

/// A torch tensor whose class offers no exchange API: its methods are asked, one by one.
fn from_data_ptr(object: &Bound<'_, PyAny>) -> PyResult<Layout> {
    let modules = object.py().import("sys")?.getattr("modules")?;
    let torch = modules.call_method1("get", ("torch",))?;
    if torch.is_none() || !object.is_instance(&torch.getattr("Tensor")?)? {
        let found = object.get_type().name()?;
        let message = format!("a NumPy array or a torch tensor is needed, found {found}");
        return Err(GenerationError::new_err(message));
    }
    let device = describe(object, "device");
    if device != "cpu" {
        return Err(wrong_device(&device));
    }
    let dtype = match &*describe(object, "dtype") {
        "float32" => Some(DType::F32),
        "float16" => Some(DType::F16),
        "bfloat16" => Some(DType::Bf16),
        "int64" => Some(DType::I64),
        _ => None,
    };
    let shape: Vec<usize> = object.getattr("shape")?.extract()?;
    let strides: Vec<isize> = object.call_method0("stride")?.extract()?;
    let data: usize = object.call_method0("data_ptr")?.extract()?;
    let data = std::ptr::with_exposed_provenance_mut(data);
    Layout::new(object, data, dtype, shape.into_iter(), strides.into_iter(), true)
}

pub fn wrong_device(device: &str) -> PyErr {
    GenerationError::new_err(format!("a tensor on the CPU is needed, found one on {device}"))
}
