//! DLPack's C exchange API: where a tensor lies, in one call of a C function.

use std::ffi::{c_int, c_void};
use std::slice;

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyCapsule, PyType};
use pyo3::{ffi, intern};

use super::DType;
use super::layout::{Layout, describe, wrong_device};
use crate::errors::GenerationError;

/// Fills in where a tensor of the exporter's class lies; the memory and the shape stay the tensor's.
pub type Export = unsafe extern "C" fn(*mut ffi::PyObject, *mut DlTensor) -> c_int;

/// `DLTensor` of DLPack 1.
#[repr(C)]
pub struct DlTensor {
    data: *mut c_void,
    device_type: i32,
    device_id: i32,
    num_dims: i32,
    type_code: u8,
    type_bits: u8,
    type_lanes: u16,
    shape: *const i64,
    strides: *const i64,
    byte_offset: u64,
}

/// `DLPackExchangeAPIHeader`: what stays the same in every version.
#[repr(C)]
struct ExchangeHeader {
    major: u32,
    minor: u32,
    older: *const ExchangeHeader,
}

/// `DLPackExchangeAPI` of version 1; functions that are not called here are only pointers.
#[repr(C)]
struct ExchangeApi {
    header: ExchangeHeader,
    managed_tensor_allocator: *const c_void,
    managed_tensor_from_py_object: *const c_void,
    managed_tensor_to_py_object: *const c_void,
    dltensor_from_py_object: Option<Export>,
    current_work_stream: *const c_void,
}

const DLPACK_MAJOR_VERSION: u32 = 1;
/// `kDLCPU`, and the host memory of CUDA and ROCm.
const READABLE_DEVICES: [i32; 3] = [1, 3, 11];

/// The first class that an exporter was found for, which is torch's but in odd programs.
static KNOWN: PyOnceLock<(Py<PyType>, Export)> = PyOnceLock::new();

pub fn known_exporter(object: &Bound<'_, PyAny>) -> Option<Export> {
    let (class, export) = KNOWN.get(object.py())?;
    (class.as_ptr() == object.get_type_ptr().cast()).then_some(*export)
}

/// The function of `type(object).__dlpack_c_exchange_api__`, if there is one of this version.
pub fn find_exporter(object: &Bound<'_, PyAny>) -> PyResult<Option<Export>> {
    let (py, class) = (object.py(), object.get_type());
    let Some(capsule) = class.getattr_opt(intern!(py, "__dlpack_c_exchange_api__"))? else {
        return Ok(None);
    };
    let Ok(capsule) = capsule.cast_into::<PyCapsule>() else {
        return Ok(None);
    };
    let pointer = capsule.pointer_checked(Some(c"dlpack_exchange_api"))?;
    let mut header = pointer.as_ptr().cast_const().cast::<ExchangeHeader>();
    // SAFETY: a capsule of this name holds an exchange API, which lives as long as the process; so
    // do the older ones that it leads to, up to a null pointer.
    while let Some(api) = unsafe { header.as_ref() } {
        if api.major == DLPACK_MAJOR_VERSION {
            // SAFETY: the struct of this version starts with the header.
            let export = unsafe { (*header.cast::<ExchangeApi>()).dltensor_from_py_object };
            if let Some(export) = export {
                let _ = KNOWN.set(py, (class.unbind(), export));
            }
            return Ok(export);
        }
        header = api.older;
    }
    Ok(None)
}

pub fn from_dlpack(object: &Bound<'_, PyAny>, export: Export) -> PyResult<Layout> {
    let mut tensor = std::mem::MaybeUninit::<DlTensor>::zeroed();
    // SAFETY: the object's class is the one that the function was found at; the GIL is held.
    if unsafe { export(object.as_ptr(), tensor.as_mut_ptr()) } != 0 {
        let reason = PyErr::fetch(object.py());
        let message = format!("a tensor cannot be read in place: {reason}");
        return Err(GenerationError::new_err(message));
    }
    // SAFETY: every field may be zero, and the function has filled them in.
    let tensor = unsafe { tensor.assume_init() };
    if !READABLE_DEVICES.contains(&tensor.device_type) {
        return Err(wrong_device(&describe(object, "device")));
    }
    let dtype = match (tensor.type_code, tensor.type_bits, tensor.type_lanes) {
        (2, 32, 1) => Some(DType::F32),
        (2, 16, 1) => Some(DType::F16),
        (4, 16, 1) => Some(DType::Bf16),
        (0, 64, 1) => Some(DType::I64),
        _ => None,
    };
    let num_dims = tensor.num_dims as usize;
    let [shape, strides] = [tensor.shape, tensor.strides].map(|numbers| {
        if num_dims == 0 || numbers.is_null() {
            return &[][..];
        }
        // SAFETY: both point to `num_dims` numbers, which live until Python code runs.
        unsafe { slice::from_raw_parts(numbers, num_dims) }
    });
    let data = tensor.data.cast::<u8>().wrapping_add(tensor.byte_offset as usize);
    let (shape, strides) = (shape.iter().map(|&n| n as usize), strides.iter().map(|&n| n as isize));
    Layout::new(object, data, dtype, shape, strides, true)
}
