//! Sixteen lanes with AVX2 and FMA: two registers.

use std::arch::x86_64::{
    __m256i, _mm_loadu_si128, _mm_packs_epi16, _mm_set1_epi32, _mm_storeu_si128, _mm256_add_epi32,
    _mm256_add_ps, _mm256_and_si256, _mm256_castsi256_ps, _mm256_castsi256_si128,
    _mm256_cvtepi8_epi16, _mm256_cvtepi32_ps, _mm256_cvtepu8_epi16, _mm256_cvtepu16_epi32,
    _mm256_cvtps_epi32, _mm256_div_ps, _mm256_extracti128_si256, _mm256_fmadd_ps,
    _mm256_hadd_epi32, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_max_epu32,
    _mm256_max_ps, _mm256_min_ps, _mm256_mul_ps, _mm256_packs_epi32, _mm256_permute4x64_epi64,
    _mm256_round_ps, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_si256, _mm256_slli_epi32,
    _mm256_storeu_ps,
};

use half::bf16;

use super::super::{GROUP, LANES, MAGNITUDE, Simd, Work, finite};
use super::{
    NEAREST, four_of_eight, largest_of_eight, largest_word, prefetch, sum_of_four, sums_of_fours,
};

#[target_feature(enable = "avx2,fma")]
pub fn run<W: Work>(work: W) -> W::Output {
    work.run(Avx2(()))
}

/// Made by `run` alone.
#[derive(Clone, Copy)]
pub struct Avx2(());

// SAFETY of all below: a value says that the processor has the instructions; loads and stores need no
// alignment, and stay in the arrays that they are given.
impl Simd for Avx2 {
    /// Of four rows each: every row has two partial sums.
    type I = [__m256i; 4];

    #[inline(always)]
    fn splat(self, value: f32) -> Self::F {
        // SAFETY: above.
        unsafe { [_mm256_set1_ps(value); 2] }
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::F {
        // SAFETY: above.
        unsafe { [_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from.as_ptr().add(8))] }
    }

    #[inline(always)]
    fn load_bf16(self, from: &[bf16; LANES]) -> Self::F {
        // SAFETY: above.
        unsafe {
            let from = from.as_ptr().cast();
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(from));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.add(1)));
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
            ]
        }
    }

    #[inline(always)]
    fn store(self, lanes: Self::F, to: &mut [f32; LANES]) {
        // SAFETY: above.
        unsafe {
            _mm256_storeu_ps(to.as_mut_ptr(), lanes[0]);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), lanes[1]);
        }
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: above.
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: above.
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: above.
        unsafe { [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: above.
        unsafe { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: above.
        unsafe { [_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: above.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }

    #[inline(always)]
    fn round(self, a: Self::F) -> Self::F {
        // SAFETY: above.
        unsafe { [_mm256_round_ps::<NEAREST>(a[0]), _mm256_round_ps::<NEAREST>(a[1])] }
    }

    #[inline(always)]
    fn scale(self, a: Self::F, n: Self::F) -> Self::F {
        // SAFETY: above.
        unsafe {
            let bias = _mm256_set1_epi32(127);
            let power = |n| {
                let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), bias);
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent))
            };
            [_mm256_mul_ps(a[0], power(n[0])), _mm256_mul_ps(a[1], power(n[1]))]
        }
    }

    #[inline(always)]
    fn sum(self, a: Self::F) -> f32 {
        // SAFETY: above.
        unsafe { sum_of_four(four_of_eight(_mm256_add_ps(a[0], a[1]))) }
    }

    #[inline(always)]
    fn largest(self, a: Self::F) -> f32 {
        // SAFETY: above.
        unsafe { largest_of_eight(_mm256_max_ps(a[0], a[1])) }
    }

    #[inline(always)]
    fn magnitude(self, rows: &[[f32; LANES]]) -> f32 {
        // SAFETY: above.
        unsafe {
            let mut most = [_mm256_setzero_si256(); 2];
            for row in rows {
                for (most, half) in most.iter_mut().zip(row.as_chunks::<8>().0) {
                    let bits = _mm256_loadu_si256(half.as_ptr().cast());
                    let magnitudes = _mm256_and_si256(bits, _mm256_set1_epi32(MAGNITUDE as i32));
                    *most = _mm256_max_epu32(*most, magnitudes);
                }
            }
            finite(largest_word(_mm256_max_epu32(most[0], most[1])))
        }
    }

    #[inline(always)]
    fn sum4(self, [a, b, c, d]: [Self::F; 4]) -> [f32; 4] {
        // SAFETY: above.
        unsafe {
            sums_of_fours(
                four_of_eight(_mm256_add_ps(a[0], a[1])),
                four_of_eight(_mm256_add_ps(b[0], b[1])),
                four_of_eight(_mm256_add_ps(c[0], c[1])),
                four_of_eight(_mm256_add_ps(d[0], d[1])),
            )
        }
    }

    #[inline(always)]
    fn to_i8(self, a: Self::F) -> [i8; LANES] {
        let mut bytes = [0; LANES];
        // SAFETY: above.
        unsafe {
            // Each packing takes the two halves of both registers in turns: 0 2 1 3.
            let words = _mm256_packs_epi32(_mm256_cvtps_epi32(a[0]), _mm256_cvtps_epi32(a[1]));
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
            let (low, high) = (_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(bytes.as_mut_ptr().cast(), _mm_packs_epi16(low, high));
        }
        bytes
    }

    #[inline(always)]
    fn no_sums(self) -> Self::I {
        // SAFETY: above.
        unsafe { [_mm256_setzero_si256(); 4] }
    }

    #[inline(always)]
    fn add_products(self, sums: Self::I, weights: &[u8; GROUP], inputs: [i8; 4]) -> Self::I {
        // SAFETY: above.
        unsafe {
            // Products of bytes can exceed 16 bits where pairs of them are added: wider first.
            let inputs =
                _mm256_cvtepi8_epi16(_mm_set1_epi32(i32::from_ne_bytes(inputs.map(|x| x as u8))));
            let add = |at: usize| {
                let weights = _mm_loadu_si128(weights.as_ptr().add(16 * at).cast());
                let pairs = _mm256_madd_epi16(_mm256_cvtepu8_epi16(weights), inputs);
                _mm256_add_epi32(sums[at], pairs)
            };
            [add(0), add(1), add(2), add(3)]
        }
    }

    #[inline(always)]
    fn add_sums(self, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: above.
        unsafe {
            [
                _mm256_add_epi32(a[0], b[0]),
                _mm256_add_epi32(a[1], b[1]),
                _mm256_add_epi32(a[2], b[2]),
                _mm256_add_epi32(a[3], b[3]),
            ]
        }
    }

    #[inline(always)]
    fn sums_to_floats(self, sums: Self::I, start: i32) -> Self::F {
        // SAFETY: above.
        unsafe {
            let start = _mm256_set1_epi32(start);
            let lanes = |low, high| {
                // `hadd` adds pairs within each half of the register: 0 1 4 5 2 3 6 7.
                let sums = _mm256_hadd_epi32(low, high);
                let sums = _mm256_permute4x64_epi64::<0b11_01_10_00>(sums);
                _mm256_cvtepi32_ps(_mm256_add_epi32(sums, start))
            };
            [lanes(sums[0], sums[1]), lanes(sums[2], sums[3])]
        }
    }

    #[inline(always)]
    fn prefetch<T>(self, place: *const T) {
        prefetch(place);
    }
}
