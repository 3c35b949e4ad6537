//! Memory that several threads fill in turns, each its own part, with a barrier between writing and
//! reading.

#![allow(unsafe_code, reason = "what the barriers order, the compiler cannot see")]

use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::NonNull;
use std::slice;

use bytemuck::Zeroable;
#[cfg(target_os = "linux")]
use memmap2::Advice;
use memmap2::MmapMut;

use crate::{Error, Result};

/// Bytes of a large page, where there are some.
const LARGE_PAGE: usize = 1 << 21;

/// Zeros at first. Pages that nobody touches take no memory.
#[derive(Debug)]
pub struct Shared<T> {
    data: NonNull<T>,
    len: usize,
    /// What they lie in.
    _memory: Option<MmapMut>,
}

// SAFETY: it owns its elements; who reads and writes which is up to the callers of the methods.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Shared<T> {}

impl<T: Zeroable + Copy> Shared<T> {
    /// `len` zeros, for `what`; they begin with a page.
    ///
    /// # Errors
    /// There is not that much memory.
    pub fn new(len: usize, what: &'static str) -> Result<Self> {
        Self::aligned(len, what, 1)
    }

    /// The same in large pages, for what is all read often: the processor finds them quicker.
    ///
    /// # Errors
    /// There is not that much memory.
    pub fn in_large_pages(len: usize, what: &'static str) -> Result<Self> {
        Self::aligned(len, what, LARGE_PAGE)
    }

    fn aligned(len: usize, what: &'static str, alignment: usize) -> Result<Self> {
        if len == 0 {
            return Ok(Self { data: NonNull::dangling(), len: 0, _memory: None });
        }
        let size = len.checked_mul(size_of::<T>()).and_then(|size| size.checked_add(alignment - 1));
        let bytes = (len as u64).saturating_mul(size_of::<T>() as u64);
        let no_memory = || Error::NoMemory { what, bytes };
        let mut memory = MmapMut::map_anon(size.ok_or_else(no_memory)?).map_err(|_| no_memory())?;
        #[cfg(target_os = "linux")]
        if alignment > 1 {
            // Where there are none, small ones do.
            let _ = memory.advise(Advice::HugePage);
        }
        let start = memory.as_ptr().align_offset(alignment);
        let data = NonNull::from(&mut memory[start..]).cast();
        Ok(Self { data, len, _memory: Some(memory) })
    }

    /// How many elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// All of it, while nobody writes: who could has borrowed it, too.
    pub fn get(&self) -> &[T] {
        // SAFETY: the elements are its own and zeros at least; parts are written by `forward` alone,
        // inside a call that borrows the whole engine.
        unsafe { slice::from_raw_parts(self.data.as_ptr(), self.len) }
    }

    /// All of it, where nobody else has any.
    pub fn get_mut(&mut self) -> &mut [T] {
        // SAFETY: the elements are its own and zeros at least.
        unsafe { slice::from_raw_parts_mut(self.data.as_ptr(), self.len) }
    }

    /// A part, to be read.
    ///
    /// # Safety
    /// Nobody writes to it for as long as the slice is used.
    pub unsafe fn read(&self, range: Range<usize>) -> &[T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        // SAFETY: in bounds; the caller answers for the rest.
        unsafe { slice::from_raw_parts(self.data.as_ptr().add(range.start), range.len()) }
    }

    /// A part, to be written.
    ///
    /// # Safety
    /// Nobody else reads or writes it for as long as the slice is used.
    #[expect(clippy::mut_from_ref, reason = "the parts of different threads do not overlap")]
    pub unsafe fn write(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        // SAFETY: in bounds; the caller answers for the rest.
        unsafe { slice::from_raw_parts_mut(self.data.as_ptr().add(range.start), range.len()) }
    }

    /// Columns of a matrix whose rows are `stride` long, to be written.
    ///
    /// # Safety
    /// Nobody else reads or writes these columns for as long as they are used.
    pub unsafe fn columns(
        &self,
        num_rows: usize,
        stride: usize,
        columns: Range<usize>,
    ) -> Columns<'_, T> {
        assert!(
            columns.start <= columns.end && columns.end <= stride && num_rows * stride <= self.len
        );
        // SAFETY: in bounds, or one behind where there are no columns.
        let start = unsafe { self.data.add(columns.start) };
        Columns { start, stride, num_rows, width: columns.len(), of: PhantomData }
    }
}

/// Some columns of all rows of a matrix.
#[derive(Debug)]
pub struct Columns<'a, T = f32> {
    start: NonNull<T>,
    stride: usize,
    num_rows: usize,
    width: usize,
    of: PhantomData<&'a mut T>,
}

impl<'a, T> Columns<'a, T> {
    /// The same without the first rows.
    pub fn skip_rows(self, row: usize) -> Columns<'a, T> {
        assert!(row <= self.num_rows, "row {row} of {}", self.num_rows);
        // SAFETY: in bounds, or behind the last row, of which nothing is then used.
        let start = unsafe { self.start.add(row * self.stride) };
        Columns { start, num_rows: self.num_rows - row, ..self }
    }

    /// Of one row.
    #[inline(always)]
    pub fn row(&mut self, row: usize) -> &mut [T] {
        assert!(row < self.num_rows, "row {row} of {}", self.num_rows);
        // SAFETY: in bounds, and this borrow is the only one.
        unsafe { slice::from_raw_parts_mut(self.start.add(row * self.stride).as_ptr(), self.width) }
    }
}

/// The heads of `[batch, tokens, heads, head_dim]`, each all of its tokens' numbers, in order.
pub fn split_heads<T>(
    all: &mut [T],
    tokens: usize,
    heads: usize,
    head_dim: usize,
) -> Vec<Columns<'_, T>> {
    let stride = heads * head_dim;
    let mut split = Vec::with_capacity(all.len() / (tokens * head_dim).max(1));
    for part in all.chunks_exact_mut((tokens * stride).max(1)) {
        let first = NonNull::from(part).cast::<T>();
        for head in 0..heads {
            // SAFETY: in bounds. The heads' numbers are apart, and all are borrowed for as long as they live.
            let start = unsafe { first.add(head * head_dim) };
            split.push(Columns {
                start,
                stride,
                num_rows: tokens,
                width: head_dim,
                of: PhantomData,
            });
        }
    }
    split
}

// SAFETY: it is a borrow of elements that nobody else has.
unsafe impl<T: Send> Send for Columns<'_, T> {}
