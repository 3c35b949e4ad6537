//! NumPy arrays over a store's memory map, without a copy.

#![allow(unsafe_code, reason = "NumPy is handed memory that it does not own")]

use std::ops::Range;

use gptrs_core::store::Ids;
use numpy::ndarray::ArrayView1;
use numpy::{Element, PyArray1, PyArrayMethods};
use pyo3::prelude::*;

use super::PyTokenStore;
use crate::signals::interruptible;

/// The tokens in `range` as an array that keeps the store alive and cannot be written to; `None` if
/// they are in several shards.
pub fn of<'py>(
    store: &Bound<'py, PyTokenStore>,
    range: Range<u64>,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    let tokens = &store.get().0;
    let ids = interruptible(store.py(), |check| tokens.slice(range, check))?;
    let array = match ids {
        Some(Ids::U16(ids)) => array(store, ids)?,
        Some(Ids::U32(ids)) => array(store, ids)?,
        None => return Ok(None),
    };
    Ok(Some(array))
}

/// `ids` are `store`'s.
fn array<'py, T: Element>(
    store: &Bound<'py, PyTokenStore>,
    ids: &[T],
) -> PyResult<Bound<'py, PyAny>> {
    let ids = ArrayView1::from(ids);
    // SAFETY: the ids lie in a file's map, which neither moves nor goes before the store does. The
    // store never changes, and the array keeps it alive as its base.
    let array = unsafe { PyArray1::borrow_from_array(&ids, store.clone().into_any()) };
    // For good: NumPy makes an array writeable again only if it owns its memory or its base does.
    array.try_readwrite()?.make_nonwriteable();
    Ok(array.into_any())
}
