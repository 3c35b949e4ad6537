//! The version for AArch64, all of whose processors have NEON.

#![allow(unsafe_code, reason = "vector instructions; each use says why it is sound")]

use std::arch::aarch64::{
    uint8x16_t, vandq_u8, vceqq_u8, vcgeq_u8, vcleq_u8, vdupq_n_u8, vgetq_lane_u64, vld1q_u8,
    vorrq_u8, vpaddq_u8, vreinterpretq_u64_u8, vsubq_u8,
};

use super::{BLOCK, Classes, Simd};

/// AArch64's vector instructions.
#[derive(Clone, Copy)]
pub struct Neon;

impl Simd for Neon {
    #[inline(always)]
    fn classify(self, block: &[u8; BLOCK]) -> Classes {
        // SAFETY: AArch64 as Rust's standard library knows it has NEON.
        unsafe { classify_neon(block) }
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn classify_neon(block: &[u8; BLOCK]) -> Classes {
    let quarters = [0, 16, 32, 48].map(|at| {
        // SAFETY: 16 bytes from any of these on lie within the block's 64.
        unsafe { vld1q_u8(block.as_ptr().add(at)) }
    });
    let equals = |bytes, byte| vceqq_u8(bytes, vdupq_n_u8(byte));
    let within = |bytes, first: u8, last: u8| {
        vcleq_u8(vsubq_u8(bytes, vdupq_n_u8(first)), vdupq_n_u8(last - first))
    };
    let blanks = |bytes| equals(bytes, b' ');
    Classes {
        letter: bits(quarters.map(|it| within(vorrq_u8(it, vdupq_n_u8(0x20)), b'a', b'z'))),
        number: bits(quarters.map(|it| within(it, b'0', b'9'))),
        space: bits(quarters.map(|it| vorrq_u8(within(it, b'\t', b'\r'), blanks(it)))),
        blank: bits(quarters.map(blanks)),
        apostrophe: bits(quarters.map(|it| equals(it, b'\''))),
        high: bits(quarters.map(|it| vcgeq_u8(it, vdupq_n_u8(0x80)))),
        later: bits(quarters.map(|it| within(it, 0x80, 0xbf))),
    }
}

/// A bit for each of 64 bytes that are all ones or all zeros.
#[inline]
#[target_feature(enable = "neon")]
fn bits([a, b, c, d]: [uint8x16_t; 4]) -> u64 {
    const PLACES: [u8; 16] = [1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128];
    // SAFETY: these are 16 bytes.
    let places = unsafe { vld1q_u8(PLACES.as_ptr()) };
    let place = |bytes| vandq_u8(bytes, places);
    // Three times neighbours are added, until eight bytes' bits are one byte.
    let halves = vpaddq_u8(vpaddq_u8(place(a), place(b)), vpaddq_u8(place(c), place(d)));
    vgetq_lane_u64::<0>(vreinterpretq_u64_u8(vpaddq_u8(halves, halves)))
}
