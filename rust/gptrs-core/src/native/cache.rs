//! Keys and values of all that the slots hold.
//!
//! ```text
//! [layers][keys, values][slots][heads][context * width]      a head's keys lie behind each other
//!
//! keys      [context / 16][width / 2] pairs      numbers 2 d and 2 d + 1 of sixteen keys: a lane is a key
//! values    [context][width / 32] pairs          numbers 32 i + l and 32 i + 16 + l of a value
//! ```
//!
//! A pair is two times sixteen numbers. `width` is a head's, filled up with zeros to whole pairs; `context`
//! to whole sixteens. Pages that nothing was written to take no memory.

#![allow(unsafe_code, reason = "each head of a slot belongs to one thread at a time")]

use bytemuck::Zeroable;

use super::lanes::{LANES, Simd};
use super::math::rounded;
use super::numbers::FloatType;
use super::shared::Shared;
use crate::{Error, Result};

/// Numbers in a pair.
pub const PAIR: usize = 2 * LANES;

/// Two times sixteen numbers, as they are stored.
pub trait Pair: Zeroable + Copy {
    /// These.
    fn of(halves: [&[f32; LANES]; 2]) -> Self;
    /// One number of each half.
    fn set(&mut self, lane: usize, numbers: [f32; 2]);
    fn load<S: Simd>(&self, simd: S) -> [S::F; 2];
}

impl Pair for [[f32; LANES]; 2] {
    #[inline(always)]
    fn of(halves: [&[f32; LANES]; 2]) -> Self {
        halves.map(|half| *half)
    }

    #[inline(always)]
    fn set(&mut self, lane: usize, numbers: [f32; 2]) {
        for (half, x) in self.iter_mut().zip(numbers) {
            half[lane] = x;
        }
    }

    #[inline(always)]
    fn load<S: Simd>(&self, simd: S) -> [S::F; 2] {
        [simd.load(&self[0]), simd.load(&self[1])]
    }
}

/// In bfloat16: the halves of words, of which one instruction each makes floats.
impl Pair for [u32; LANES] {
    #[inline(always)]
    fn of([lower, upper]: [&[f32; LANES]; 2]) -> Self {
        let mut words = [0; LANES];
        for lane in 0..LANES {
            words[lane] = word([lower[lane], upper[lane]]);
        }
        words
    }

    #[inline(always)]
    fn set(&mut self, lane: usize, numbers: [f32; 2]) {
        self[lane] = word(numbers);
    }

    #[inline(always)]
    fn load<S: Simd>(&self, simd: S) -> [S::F; 2] {
        simd.widen(simd.load_words(self))
    }
}

#[inline(always)]
fn word(numbers: [f32; 2]) -> u32 {
    u32::from(rounded(numbers[0]).to_bits()) | u32::from(rounded(numbers[1]).to_bits()) << 16
}

/// How many numbers of what.
#[derive(Debug, Clone, Copy)]
pub struct Extent {
    pub layers: usize,
    pub slots: usize,
    pub heads: usize,
    /// A multiple of `LANES`.
    pub context: usize,
    /// A multiple of `PAIR`.
    pub width: usize,
}

/// The cache.
#[derive(Debug)]
pub struct Cache {
    extent: Extent,
    stored: Stored,
}

#[derive(Debug)]
enum Stored {
    F32(Shared<[[f32; LANES]; 2]>),
    Bf16(Shared<[u32; LANES]>),
}

/// Keys and values of one head of one slot in one layer.
#[derive(Debug)]
pub enum HeadCache<'a> {
    F32([&'a mut [[[f32; LANES]; 2]]; 2]),
    Bf16([&'a mut [[u32; LANES]]; 2]),
}

impl Cache {
    pub fn new(extent: Extent, dtype: FloatType) -> Result<Self> {
        let Extent { layers, slots, heads, context, width } = extent;
        debug_assert!(width.is_multiple_of(PAIR) && context.is_multiple_of(LANES));
        let what = "keys and values";
        let len = [layers, 2, slots, heads, context, width / PAIR]
            .into_iter()
            .try_fold(1_usize, usize::checked_mul)
            .ok_or(Error::NoMemory { what, bytes: u64::MAX })?;
        let stored = match dtype {
            FloatType::F32 => Stored::F32(Shared::new(len, what)?),
            FloatType::Bf16 => Stored::Bf16(Shared::new(len, what)?),
        };
        Ok(Self { extent, stored })
    }

    pub fn extent(&self) -> Extent {
        self.extent
    }

    /// Which pair is the first of a head's keys (0) or values (1).
    fn start(&self, layer: usize, part: usize, slot: usize, head: usize) -> usize {
        let Extent { slots, heads, context, width, .. } = self.extent;
        (((layer * 2 + part) * slots + slot) * heads + head) * context * (width / PAIR)
    }

    /// Keys and values of one head.
    ///
    /// # Safety
    /// Nobody else has those of this head, slot and layer for as long as they are used.
    pub unsafe fn head(&self, layer: usize, slot: usize, head: usize) -> HeadCache<'_> {
        let len = self.extent.context * self.extent.width / PAIR;
        let [keys, values] = [0, 1].map(|part| {
            let start = self.start(layer, part, slot, head);
            start..start + len
        });
        // SAFETY: the caller answers for it, and the two do not overlap.
        unsafe {
            match &self.stored {
                Stored::F32(all) => HeadCache::F32([all.write(keys), all.write(values)]),
                Stored::Bf16(all) => HeadCache::Bf16([all.write(keys), all.write(values)]),
            }
        }
    }

    /// Makes one slot begin as another does.
    pub fn copy(&mut self, from: usize, to: usize, len: usize) {
        let Extent { layers, heads, width, .. } = self.extent;
        // Keys are there by sixteens; what is too much is nobody's.
        let len = len.next_multiple_of(LANES);
        for layer in 0..layers {
            for part in 0..2 {
                for head in 0..heads {
                    let source = self.start(layer, part, from, head);
                    let source = source..source + len * width / PAIR;
                    let target = self.start(layer, part, to, head);
                    match &mut self.stored {
                        Stored::F32(all) => all.get_mut().copy_within(source, target),
                        Stored::Bf16(all) => all.get_mut().copy_within(source, target),
                    }
                }
            }
        }
    }
}
