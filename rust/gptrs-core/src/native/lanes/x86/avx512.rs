//! Sixteen lanes with AVX-512: one register.

use std::arch::x86_64::{
    __m128, __m512, __m512i, _mm_storeu_si128, _mm256_add_ps, _mm256_castpd_ps, _mm256_loadu_si256,
    _mm256_max_epu32, _mm256_max_ps, _mm512_add_epi32, _mm512_add_ps, _mm512_and_si512,
    _mm512_castps_pd, _mm512_castps512_ps256, _mm512_castsi512_ps, _mm512_castsi512_si256,
    _mm512_cvtepi32_epi8, _mm512_cvtepi32_ps, _mm512_cvtepu16_epi32, _mm512_cvtps_epi32,
    _mm512_div_ps, _mm512_dpbusd_epi32, _mm512_extractf64x4_pd, _mm512_extracti64x4_epi64,
    _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_max_epu32, _mm512_max_ps,
    _mm512_min_ps, _mm512_mul_ps, _mm512_roundscale_ps, _mm512_scalef_ps, _mm512_set1_epi32,
    _mm512_set1_ps, _mm512_setzero_si512, _mm512_slli_epi32, _mm512_storeu_ps,
};

use half::bf16;

use super::super::{GROUP, LANES, MAGNITUDE, Simd, Work, finite};
use super::{
    NEAREST, four_of_eight, largest_of_eight, largest_word, prefetch, sum_of_four, sums_of_fours,
};

// Without VL the compiler leaves half of the registers unused, which costs half of the speed.
#[target_feature(enable = "avx2,fma,avx512f,avx512vl")]
pub fn run<W: Work>(work: W) -> W::Output {
    work.run(Avx512::<false>(()))
}

#[target_feature(enable = "avx2,fma,avx512f,avx512vl,avx512vnni")]
pub fn run_vnni<W: Work>(work: W) -> W::Output {
    work.run(Avx512::<false>(()))
}

#[target_feature(enable = "avx2,fma,avx512f,avx512vl,avx512bf16")]
pub fn run_bf16<W: Work>(work: W) -> W::Output {
    work.run(Avx512::<true>(()))
}

/// Made by `run`, `run_vnni` and `run_bf16` alone: by the second for all work with bytes, and with
/// pairs by the last.
#[derive(Clone, Copy)]
pub struct Avx512<const HAS_PAIRS: bool>(());

// SAFETY of all below: a value says that the processor has the instructions; loads and stores need no
// alignment, and stay in the arrays that they are given.
impl<const HAS_PAIRS: bool> Simd for Avx512<HAS_PAIRS> {
    type I = __m512i;

    #[inline(always)]
    fn splat(self, value: f32) -> Self::F {
        // SAFETY: above.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::F {
        // SAFETY: above.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn load_bf16(self, from: &[bf16; LANES]) -> Self::F {
        // SAFETY: above.
        unsafe {
            let halves = _mm256_loadu_si256(from.as_ptr().cast());
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
        }
    }

    #[inline(always)]
    fn store(self, lanes: Self::F, to: &mut [f32; LANES]) {
        // SAFETY: above.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), lanes) }
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: above.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: above.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: above.
        unsafe { _mm512_div_ps(a, b) }
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: above.
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: above.
        unsafe { _mm512_min_ps(a, b) }
    }

    #[inline(always)]
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: above.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn round(self, a: Self::F) -> Self::F {
        // SAFETY: above.
        unsafe { _mm512_roundscale_ps::<NEAREST>(a) }
    }

    #[inline(always)]
    fn scale(self, a: Self::F, n: Self::F) -> Self::F {
        // SAFETY: above.
        unsafe { _mm512_scalef_ps(a, n) }
    }

    #[inline(always)]
    fn sum(self, a: Self::F) -> f32 {
        // SAFETY: above.
        unsafe { sum_of_four(four_of_sixteen(a)) }
    }

    #[inline(always)]
    fn largest(self, a: Self::F) -> f32 {
        // SAFETY: above.
        unsafe {
            let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(a)));
            largest_of_eight(_mm256_max_ps(_mm512_castps512_ps256(a), high))
        }
    }

    #[inline(always)]
    fn magnitude(self, rows: &[[f32; LANES]]) -> f32 {
        // SAFETY: above.
        unsafe {
            let mut most = _mm512_setzero_si512();
            for row in rows {
                let bits = _mm512_loadu_si512(row.as_ptr().cast());
                let magnitudes = _mm512_and_si512(bits, _mm512_set1_epi32(MAGNITUDE as i32));
                most = _mm512_max_epu32(most, magnitudes);
            }
            let (low, high) = (_mm512_castsi512_si256(most), _mm512_extracti64x4_epi64::<1>(most));
            finite(largest_word(_mm256_max_epu32(low, high)))
        }
    }

    #[inline(always)]
    fn sum4(self, [a, b, c, d]: [Self::F; 4]) -> [f32; 4] {
        // SAFETY: above.
        unsafe {
            sums_of_fours(
                four_of_sixteen(a),
                four_of_sixteen(b),
                four_of_sixteen(c),
                four_of_sixteen(d),
            )
        }
    }

    #[inline(always)]
    fn to_i8(self, a: Self::F) -> [i8; LANES] {
        let mut bytes = [0; LANES];
        // SAFETY: above.
        unsafe {
            let narrow = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a));
            _mm_storeu_si128(bytes.as_mut_ptr().cast(), narrow);
        }
        bytes
    }

    #[inline(always)]
    fn no_sums(self) -> Self::I {
        // SAFETY: above.
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    fn add_products(self, sums: Self::I, weights: &[u8; GROUP], inputs: [i8; 4]) -> Self::I {
        // SAFETY: above; `run_vnni` has VNNI.
        unsafe {
            let weights = _mm512_loadu_si512(weights.as_ptr().cast());
            let inputs = _mm512_set1_epi32(i32::from_ne_bytes(inputs.map(|x| x as u8)));
            _mm512_dpbusd_epi32(sums, weights, inputs)
        }
    }

    #[inline(always)]
    fn add_sums(self, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: above.
        unsafe { _mm512_add_epi32(a, b) }
    }

    #[inline(always)]
    fn sums_to_floats(self, sums: Self::I, start: i32) -> Self::F {
        // SAFETY: above.
        unsafe { _mm512_cvtepi32_ps(_mm512_add_epi32(sums, _mm512_set1_epi32(start))) }
    }

    #[inline(always)]
    fn prefetch<T>(self, place: *const T) {
        prefetch(place);
    }
}

/// Lanes 0 + 8, ..., and of these 0 + 4, ...
#[inline(always)]
unsafe fn four_of_sixteen(a: __m512) -> __m128 {
    // SAFETY: the caller has AVX-512.
    unsafe {
        let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(a)));
        four_of_eight(_mm256_add_ps(_mm512_castps512_ps256(a), high))
    }
}
