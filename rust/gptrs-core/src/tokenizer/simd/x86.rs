//! The versions for x86-64.

#![allow(unsafe_code, reason = "vector instructions; each use says why it is sound")]

use std::arch::x86_64::{
    __m256i, __m512i, _MM_HINT_T0, _mm_prefetch, _mm256_cmpeq_epi8, _mm256_loadu_si256,
    _mm256_min_epu8, _mm256_movemask_epi8, _mm256_or_si256, _mm256_set1_epi8, _mm256_sub_epi8,
    _mm512_add_epi32, _mm512_cmpeq_epi8_mask, _mm512_cmple_epu8_mask, _mm512_loadu_si512,
    _mm512_maskz_compress_epi32, _mm512_movepi8_mask, _mm512_or_si512, _mm512_set1_epi8,
    _mm512_set1_epi32, _mm512_setr_epi32, _mm512_storeu_si512, _mm512_sub_epi8,
};

use super::{BLOCK, Classes, Found, Isa, Portable, Simd, Work};

/// What this processor is beyond `Isa::Portable`.
pub fn available() -> impl Iterator<Item = Isa> {
    let avx2 = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("lzcnt")
        && is_x86_feature_detected!("popcnt");
    let avx512 = avx2
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl");
    [(avx2, Isa::Avx2), (avx512, Isa::Avx512)].into_iter().filter_map(|(is, isa)| is.then_some(isa))
}

pub fn dispatch<W: Work>(Found(isa): Found, work: W) -> W::Output {
    match isa {
        Isa::Portable | Isa::Neon => work.run(Portable),
        // SAFETY: `Isa::found` alone makes what says that the processor has these instructions.
        Isa::Avx2 => unsafe { run_avx2(work) },
        // SAFETY: as above.
        Isa::Avx512 => unsafe { run_avx512(work) },
    }
}

#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
fn run_avx2<W: Work>(work: W) -> W::Output {
    work.run(Avx2(()))
}

#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt,avx512f,avx512bw,avx512vl")]
fn run_avx512<W: Work>(work: W) -> W::Output {
    work.run(Avx512(()))
}

#[inline(always)]
pub fn prefetch<T>(place: &T) {
    // SAFETY: a prefetch reads nothing, whatever the address; SSE is part of x86-64.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(place).cast()) }
}

/// Made by `run_avx2` alone.
#[derive(Clone, Copy)]
struct Avx2(());

impl Simd for Avx2 {
    #[inline(always)]
    fn classify(self, block: &[u8; BLOCK]) -> Classes {
        // SAFETY: this value exists, so `dispatch` found that the processor has the instructions.
        unsafe { classify_avx2(block) }
    }
}

/// Made by `run_avx512` alone.
#[derive(Clone, Copy)]
struct Avx512(());

impl Simd for Avx512 {
    #[inline(always)]
    fn classify(self, block: &[u8; BLOCK]) -> Classes {
        // SAFETY: this value exists, so `dispatch` found that the processor has the instructions.
        unsafe { classify_avx512(block) }
    }

    #[inline(always)]
    fn expand(self, bits: u64, first: u32, places: &mut [u32; BLOCK]) {
        // SAFETY: as above.
        unsafe { expand_avx512(bits, first, places) }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn classify_avx2(block: &[u8; BLOCK]) -> Classes {
    let [low, high] = [0, BLOCK / 2].map(|at| {
        // SAFETY: 32 bytes from 0 or 32 on lie within the block's 64.
        let bytes = unsafe { _mm256_loadu_si256(block.as_ptr().add(at).cast()) };
        classify_half(bytes)
    });
    let join = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    Classes {
        letter: join(low[0], high[0]),
        number: join(low[1], high[1]),
        space: join(low[2], high[2]),
        blank: join(low[3], high[3]),
        apostrophe: join(low[4], high[4]),
        high: join(low[5], high[5]),
        later: join(low[6], high[6]),
    }
}

/// The masks of 32 bytes, in the order of the fields of `Classes`.
#[inline]
#[target_feature(enable = "avx2")]
fn classify_half(bytes: __m256i) -> [u32; 7] {
    let equals = |byte: u8| _mm256_cmpeq_epi8(bytes, _mm256_set1_epi8(byte as i8));
    let within = |bytes: __m256i, first: u8, last: u8| {
        let offset = _mm256_sub_epi8(bytes, _mm256_set1_epi8(first as i8));
        let least = _mm256_min_epu8(offset, _mm256_set1_epi8((last - first) as i8));
        _mm256_cmpeq_epi8(least, offset)
    };
    let lower_case = _mm256_or_si256(bytes, _mm256_set1_epi8(0x20));
    let blank = equals(b' ');
    [
        within(lower_case, b'a', b'z'),
        within(bytes, b'0', b'9'),
        _mm256_or_si256(within(bytes, b'\t', b'\r'), blank),
        blank,
        equals(b'\''),
        bytes,
        within(bytes, 0x80, 0xbf),
    ]
    .map(|mask| _mm256_movemask_epi8(mask) as u32)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn classify_avx512(block: &[u8; BLOCK]) -> Classes {
    // SAFETY: the block's 64 bytes are what is read.
    let bytes = unsafe { _mm512_loadu_si512(block.as_ptr().cast()) };
    let equals = |byte: u8| _mm512_cmpeq_epi8_mask(bytes, _mm512_set1_epi8(byte as i8));
    let within = |bytes: __m512i, first: u8, last: u8| {
        let offset = _mm512_sub_epi8(bytes, _mm512_set1_epi8(first as i8));
        _mm512_cmple_epu8_mask(offset, _mm512_set1_epi8((last - first) as i8))
    };
    let blank = equals(b' ');
    Classes {
        letter: within(_mm512_or_si512(bytes, _mm512_set1_epi8(0x20)), b'a', b'z'),
        number: within(bytes, b'0', b'9'),
        space: within(bytes, b'\t', b'\r') | blank,
        blank,
        apostrophe: equals(b'\''),
        high: _mm512_movepi8_mask(bytes),
        later: within(bytes, 0x80, 0xbf),
    }
}

#[inline]
#[target_feature(enable = "avx512f,popcnt")]
fn expand_avx512(bits: u64, first: u32, places: &mut [u32; BLOCK]) {
    let mut numbers = _mm512_add_epi32(
        _mm512_set1_epi32(first as i32),
        _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
    );
    let mut len = 0;
    for shift in [0, 16, 32, 48] {
        let mask = (bits >> shift) as u16;
        let kept = _mm512_maskz_compress_epi32(mask, numbers);
        // SAFETY: at most `shift` places are full, so 16 more lie within the 64.
        unsafe { _mm512_storeu_si512(places.as_mut_ptr().add(len).cast(), kept) };
        len += mask.count_ones() as usize;
        numbers = _mm512_add_epi32(numbers, _mm512_set1_epi32(16));
    }
}
