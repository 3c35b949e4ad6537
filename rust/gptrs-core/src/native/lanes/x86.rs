//! The versions for x86-64.

#![allow(unsafe_code, reason = "vector instructions; each use says why it is sound")]

mod avx2;
mod avx512;
pub mod words;

use std::arch::x86_64::{
    __cpuid, __m128, __m256, __m256i, _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT, _MM_HINT_T0,
    _mm_add_ps, _mm_cvtsi128_si32, _mm_cvtss_f32, _mm_hadd_ps, _mm_max_epu32, _mm_max_ps,
    _mm_movehdup_ps, _mm_movehl_ps, _mm_prefetch, _mm_shuffle_epi32, _mm_storeu_ps,
    _mm256_castps256_ps128, _mm256_castsi256_si128, _mm256_extractf128_ps,
    _mm256_extracti128_si256,
};

use super::super::tiles::Tiles;
use super::{Found, Kernels, Operands, Portable, Work};

const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

/// What this processor is beyond `Kernels::Portable`, the best first.
pub fn available() -> impl Iterator<Item = Kernels> {
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    let avx512 =
        avx2 && is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl");
    let amx = avx512 && Tiles::find().is_some();
    let kinds = [
        (amx, Kernels::Amx),
        (avx512 && is_x86_feature_detected!("avx512bf16"), Kernels::Avx512Bf16),
        (avx512, Kernels::Avx512),
        (avx2, Kernels::Avx2),
    ];
    kinds.into_iter().filter_map(|(is, kernels)| is.then_some(kernels))
}

/// Whether the processor says that Intel made it.
pub fn is_intels() -> bool {
    #[allow(unused_unsafe, reason = "older compilers ask for it")]
    // SAFETY: every processor of this architecture has the instruction.
    let about = unsafe { __cpuid(0) };
    let name = [about.ebx, about.edx, about.ecx].map(u32::to_le_bytes);
    name.as_flattened() == b"GenuineIntel"
}

pub fn dispatch<W: Work>(Found(kernels): Found, work: W) -> W::Output {
    match (kernels, W::OPERANDS) {
        (Kernels::Portable, _) => work.run(Portable),
        (Kernels::Amx | Kernels::Avx512Bf16 | Kernels::Avx512, Operands::Bytes)
            if is_x86_feature_detected!("avx512vnni") =>
        {
            // SAFETY: it was just found, and `Kernels::found` alone makes what says AVX-512 or AMX.
            unsafe { avx512::run_vnni(work) }
        }
        // SAFETY: `Kernels::found` alone makes what says that the processor has these instructions.
        (Kernels::Avx512Bf16, Operands::Pairs) => unsafe { avx512::run_bf16(work) },
        (Kernels::Avx2, _) | (_, Operands::Bytes) => {
            // SAFETY: as above; who has AVX-512 has these, too.
            unsafe { avx2::run(work) }
        }
        // SAFETY: as above.
        (Kernels::Amx | Kernels::Avx512Bf16 | Kernels::Avx512, _) => unsafe { avx512::run(work) },
    }
}

/// Lanes 0 + 4, ...
#[inline(always)]
unsafe fn four_of_eight(a: __m256) -> __m128 {
    // SAFETY: the caller has AVX.
    unsafe { _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a)) }
}

/// (0 + 1) + (2 + 3).
#[inline(always)]
unsafe fn sum_of_four(a: __m128) -> f32 {
    // SAFETY: the caller has AVX, so SSE3.
    unsafe {
        let pairs = _mm_hadd_ps(a, a);
        _mm_cvtss_f32(_mm_hadd_ps(pairs, pairs))
    }
}

#[inline(always)]
unsafe fn largest_of_eight(a: __m256) -> f32 {
    // SAFETY: the caller has AVX, so SSE3.
    unsafe {
        let four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
        let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_max_ps(two, _mm_movehdup_ps(two)))
    }
}

#[inline(always)]
unsafe fn largest_word(a: __m256i) -> u32 {
    // SAFETY: the caller has AVX2, so SSE4.1.
    unsafe {
        let four = _mm_max_epu32(_mm256_castsi256_si128(a), _mm256_extracti128_si256::<1>(a));
        let two = _mm_max_epu32(four, _mm_shuffle_epi32::<0b11_10>(four));
        _mm_cvtsi128_si32(_mm_max_epu32(two, _mm_shuffle_epi32::<1>(two))) as u32
    }
}

/// (0 + 1) + (2 + 3) of each.
#[inline(always)]
unsafe fn sums_of_fours(a: __m128, b: __m128, c: __m128, d: __m128) -> [f32; 4] {
    let mut sums = [0.0; 4];
    // SAFETY: the caller has AVX, so SSE3; the array has room for four.
    unsafe {
        let all = _mm_hadd_ps(_mm_hadd_ps(a, b), _mm_hadd_ps(c, d));
        _mm_storeu_ps(sums.as_mut_ptr(), all);
    }
    sums
}

#[inline(always)]
fn prefetch<T>(place: *const T) {
    // SAFETY: a prefetch reads nothing, whatever the address; SSE is part of x86-64.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(place.cast()) }
}
