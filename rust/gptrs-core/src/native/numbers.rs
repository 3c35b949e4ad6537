//! Floats and bytes that somebody else owns, read where they lie.

#![allow(unsafe_code, reason = "memory that belongs to PyTorch")]

use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::slice;
use std::sync::Arc;

use half::bf16;

use super::shared::Shared;

/// How a number is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FloatType {
    /// IEEE 754 single precision.
    F32,
    /// Its upper half.
    Bf16,
}

impl FloatType {
    /// What people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::Bf16 => "bfloat16",
        }
    }
}

/// A run of floats, each behind the other.
///
/// Whoever owns them may write to them: what is read is what is there then, as in PyTorch's own
/// operators.
#[derive(Clone)]
pub struct Numbers {
    data: *const u8,
    dtype: FloatType,
    len: usize,
    /// Keeps the memory.
    _owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: it is only read, and `new` demands memory that any thread may read.
unsafe impl Send for Numbers {}
// SAFETY: as above.
unsafe impl Sync for Numbers {}

impl Numbers {
    /// Numbers at an address.
    ///
    /// # Safety
    /// For as long as `owner` lives, `data` points to `len` elements of `dtype`, aligned to their size,
    /// which any thread may read.
    pub unsafe fn new(
        data: *const u8,
        dtype: FloatType,
        len: usize,
        owner: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        Self { data, dtype, len, _owner: owner }
    }

    /// Numbers of its own.
    pub fn of_f32(values: Vec<f32>) -> Self {
        let (data, len) = (values.as_ptr().cast(), values.len());
        // SAFETY: the vector owns these elements, and moving it does not move them.
        unsafe { Self::new(data, FloatType::F32, len, Arc::new(values)) }
    }

    /// Numbers of its own.
    pub fn of_bf16(values: Vec<bf16>) -> Self {
        let (data, len) = (values.as_ptr().cast(), values.len());
        // SAFETY: the vector owns these elements, and moving it does not move them.
        unsafe { Self::new(data, FloatType::Bf16, len, Arc::new(values)) }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How they are stored.
    pub fn dtype(&self) -> FloatType {
        self.dtype
    }

    /// All of them, as they lie there.
    pub(super) fn floats(&self) -> Floats<'_> {
        // SAFETY: `new` demands it; an empty run may have no address.
        unsafe {
            match self.dtype {
                _ if self.len == 0 => Floats::F32(&[]),
                FloatType::F32 => Floats::F32(slice::from_raw_parts(self.data.cast(), self.len)),
                FloatType::Bf16 => Floats::Bf16(slice::from_raw_parts(self.data.cast(), self.len)),
            }
        }
    }
}

impl fmt::Debug for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} x {}", self.len, self.dtype.name())
    }
}

/// A run of bytes, which nobody changes.
#[derive(Clone)]
pub struct Bytes {
    data: *const u8,
    len: usize,
    /// Keeps the memory.
    _owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: it is only read, and `new` demands memory that any thread may read.
unsafe impl Send for Bytes {}
// SAFETY: as above.
unsafe impl Sync for Bytes {}

impl Bytes {
    /// Bytes at an address.
    ///
    /// # Safety
    /// For as long as `owner` lives, `data` points to `len` bytes which any thread may read.
    pub unsafe fn new(data: *const u8, len: usize, owner: Arc<dyn Any + Send + Sync>) -> Self {
        Self { data, len, _owner: owner }
    }

    /// A part of what several have.
    ///
    /// # Safety
    /// Nobody writes to it any more.
    pub(super) unsafe fn part(all: &Arc<Shared<u8>>, range: Range<usize>) -> Self {
        // SAFETY: the caller's; the memory stays where it is while somebody has a part.
        unsafe {
            let bytes = all.read(range);
            Self::new(bytes.as_ptr(), bytes.len(), Arc::<Shared<u8>>::clone(all))
        }
    }

    /// All of them.
    pub fn get(&self) -> &[u8] {
        if self.len == 0 {
            return &[]; // An empty run may have no address.
        }
        // SAFETY: `new` demands it.
        unsafe { slice::from_raw_parts(self.data, self.len) }
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.len)
    }
}

/// Stored floats.
#[derive(Debug, Clone, Copy)]
pub(super) enum Floats<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
}

impl<'a> Floats<'a> {
    /// `len` of them.
    pub fn part(self, start: usize, len: usize) -> Self {
        match self {
            Self::F32(values) => Self::F32(&values[start..start + len]),
            Self::Bf16(values) => Self::Bf16(&values[start..start + len]),
        }
    }

    /// As float32; `room` is where they are widened, if they must be.
    pub fn widened<'b>(self, room: &'b mut Vec<f32>) -> &'b [f32]
    where
        'a: 'b,
    {
        match self {
            Self::F32(values) => values,
            Self::Bf16(values) => {
                room.clear();
                room.extend(values.iter().map(|value| value.to_f32()));
                room
            }
        }
    }
}
