//! Sixteen words at once on x86-64.

use std::arch::x86_64::{
    __m256, __m256i, __m512, __m512bh, __m512i, _mm256_and_si256, _mm256_andnot_ps,
    _mm256_blend_epi32, _mm256_castps_si256, _mm256_castsi256_ps, _mm256_cmpgt_epi32,
    _mm256_loadu_si256, _mm256_mul_epu32, _mm256_set1_epi32, _mm256_set1_epi64x, _mm256_set1_ps,
    _mm256_slli_epi32, _mm256_slli_epi64, _mm256_srli_epi32, _mm256_srli_epi64,
    _mm256_storeu_si256, _mm256_xor_si256, _mm512_and_si512, _mm512_castps_si512,
    _mm512_castsi512_ps, _mm512_cmpge_epu32_mask, _mm512_dpbf16_ps, _mm512_loadu_si512,
    _mm512_mask_blend_epi32, _mm512_maskz_mov_ps, _mm512_mul_epu32, _mm512_set1_epi32,
    _mm512_set1_epi64, _mm512_set1_ps, _mm512_setzero_si512, _mm512_shuffle_i32x4,
    _mm512_slli_epi32, _mm512_slli_epi64, _mm512_srli_epi32, _mm512_srli_epi64,
    _mm512_storeu_si512, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32,
    _mm512_unpacklo_epi64, _mm512_xor_si512,
};
use std::mem::transmute;

use half::bf16;

use super::super::words::HIGH;
use super::super::{LANES, Portable, Simd, Words};
use super::avx2::Avx2;
use super::avx512::Avx512;

// SAFETY of all below: a value says that the processor has the instructions; loads and stores need no
// alignment, and stay in the arrays that they are given.
impl Words for Avx2 {
    type F = [__m256; 2];
    type W = [__m256i; 2];

    #[inline(always)]
    fn splat_words(self, word: u32) -> Self::W {
        // SAFETY: above.
        unsafe { [_mm256_set1_epi32(word as i32); 2] }
    }

    #[inline(always)]
    fn load_words(self, from: &[u32; LANES]) -> Self::W {
        // SAFETY: above.
        unsafe {
            [
                _mm256_loadu_si256(from.as_ptr().cast()),
                _mm256_loadu_si256(from.as_ptr().add(8).cast()),
            ]
        }
    }

    #[inline(always)]
    fn load_pairs(self, from: &[bf16; 2 * LANES]) -> Self::W {
        // SAFETY: above.
        unsafe {
            [
                _mm256_loadu_si256(from.as_ptr().cast()),
                _mm256_loadu_si256(from.as_ptr().add(LANES).cast()),
            ]
        }
    }

    #[inline(always)]
    fn store_words(self, words: Self::W, to: &mut [u32; LANES]) {
        // SAFETY: above.
        unsafe {
            _mm256_storeu_si256(to.as_mut_ptr().cast(), words[0]);
            _mm256_storeu_si256(to.as_mut_ptr().add(8).cast(), words[1]);
        }
    }

    #[inline(always)]
    fn xor(self, a: Self::W, b: Self::W) -> Self::W {
        // SAFETY: above.
        unsafe { [_mm256_xor_si256(a[0], b[0]), _mm256_xor_si256(a[1], b[1])] }
    }

    #[inline(always)]
    fn multiply_words(self, a: Self::W, b: u32) -> [Self::W; 2] {
        const ODD: i32 = 0b1010_1010;
        let mut out = [a; 2];
        for half in 0..2 {
            // SAFETY: above.
            unsafe {
                let factor = _mm256_set1_epi64x(i64::from(b));
                let even = _mm256_mul_epu32(a[half], factor);
                let odd = _mm256_mul_epu32(_mm256_srli_epi64::<32>(a[half]), factor);
                out[0][half] = _mm256_blend_epi32::<ODD>(_mm256_srli_epi64::<32>(even), odd);
                out[1][half] = _mm256_blend_epi32::<ODD>(even, _mm256_slli_epi64::<32>(odd));
            }
        }
        out
    }

    #[inline(always)]
    fn choose(self, words: Self::W, threshold: u32, factor: f32) -> [Self::F; 2] {
        // SAFETY: above. Both sides of the comparison are below 2^17.
        unsafe {
            let limit = _mm256_set1_epi32(threshold as i32);
            let (mask, factor) = (_mm256_set1_epi32(0xFFFF), _mm256_set1_ps(factor));
            let mut out = [[factor; 2]; 2];
            for half in 0..2 {
                let bits =
                    [_mm256_and_si256(words[half], mask), _mm256_srli_epi32::<16>(words[half])];
                for part in 0..2 {
                    let is_below = _mm256_castsi256_ps(_mm256_cmpgt_epi32(limit, bits[part]));
                    out[part][half] = _mm256_andnot_ps(is_below, factor);
                }
            }
            out
        }
    }

    #[inline(always)]
    fn to_words(self, floats: Self::F) -> Self::W {
        // SAFETY: above.
        unsafe { [_mm256_castps_si256(floats[0]), _mm256_castps_si256(floats[1])] }
    }

    #[inline(always)]
    fn to_floats(self, words: Self::W) -> Self::F {
        // SAFETY: above.
        unsafe { [_mm256_castsi256_ps(words[0]), _mm256_castsi256_ps(words[1])] }
    }

    #[inline(always)]
    fn widen(self, words: Self::W) -> [Self::F; 2] {
        // SAFETY: above.
        unsafe {
            let high = _mm256_set1_epi32(HIGH as i32);
            [
                [
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words[0])),
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words[1])),
                ],
                [
                    _mm256_castsi256_ps(_mm256_and_si256(words[0], high)),
                    _mm256_castsi256_ps(_mm256_and_si256(words[1], high)),
                ],
            ]
        }
    }

    #[inline(always)]
    fn add_pairs(self, sums: Self::F, a: Self::W, b: Self::W) -> Self::F {
        let ([a_low, a_high], [b_low, b_high]) = (self.widen(a), self.widen(b));
        self.mul_add(a_high, b_high, self.mul_add(a_low, b_low, sums))
    }

    #[inline(always)]
    fn transpose(self, rows: [Self::W; LANES]) -> [Self::W; LANES] {
        // SAFETY: sixteen words each, in either form.
        unsafe {
            let rows = transmute::<[Self::W; LANES], [[u32; LANES]; LANES]>(rows);
            transmute::<[[u32; LANES]; LANES], _>(Portable.transpose(rows))
        }
    }
}

impl<const HAS_PAIRS: bool> Words for Avx512<HAS_PAIRS> {
    type F = __m512;
    type W = __m512i;

    #[inline(always)]
    fn splat_words(self, word: u32) -> Self::W {
        // SAFETY: above.
        unsafe { _mm512_set1_epi32(word as i32) }
    }

    #[inline(always)]
    fn load_words(self, from: &[u32; LANES]) -> Self::W {
        // SAFETY: above.
        unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn load_pairs(self, from: &[bf16; 2 * LANES]) -> Self::W {
        // SAFETY: above.
        unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn store_words(self, words: Self::W, to: &mut [u32; LANES]) {
        // SAFETY: above.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), words) }
    }

    #[inline(always)]
    fn xor(self, a: Self::W, b: Self::W) -> Self::W {
        // SAFETY: above.
        unsafe { _mm512_xor_si512(a, b) }
    }

    #[inline(always)]
    fn multiply_words(self, a: Self::W, b: u32) -> [Self::W; 2] {
        const ODD: u16 = 0b1010_1010_1010_1010;
        // SAFETY: above.
        unsafe {
            let factor = _mm512_set1_epi64(i64::from(b));
            let even = _mm512_mul_epu32(a, factor);
            let odd = _mm512_mul_epu32(_mm512_srli_epi64::<32>(a), factor);
            [
                _mm512_mask_blend_epi32(ODD, _mm512_srli_epi64::<32>(even), odd),
                _mm512_mask_blend_epi32(ODD, even, _mm512_slli_epi64::<32>(odd)),
            ]
        }
    }

    #[inline(always)]
    fn choose(self, words: Self::W, threshold: u32, factor: f32) -> [Self::F; 2] {
        // SAFETY: above.
        unsafe {
            let limit = _mm512_set1_epi32(threshold as i32);
            let factor = _mm512_set1_ps(factor);
            let low = _mm512_and_si512(words, _mm512_set1_epi32(0xFFFF));
            let high = _mm512_srli_epi32::<16>(words);
            [
                _mm512_maskz_mov_ps(_mm512_cmpge_epu32_mask(low, limit), factor),
                _mm512_maskz_mov_ps(_mm512_cmpge_epu32_mask(high, limit), factor),
            ]
        }
    }

    #[inline(always)]
    fn to_words(self, floats: Self::F) -> Self::W {
        // SAFETY: above.
        unsafe { _mm512_castps_si512(floats) }
    }

    #[inline(always)]
    fn to_floats(self, words: Self::W) -> Self::F {
        // SAFETY: above.
        unsafe { _mm512_castsi512_ps(words) }
    }

    #[inline(always)]
    fn widen(self, words: Self::W) -> [Self::F; 2] {
        // SAFETY: above.
        unsafe {
            let upper = _mm512_and_si512(words, _mm512_set1_epi32(HIGH as i32));
            [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(words)), _mm512_castsi512_ps(upper)]
        }
    }

    #[inline(always)]
    fn add_pairs(self, sums: Self::F, a: Self::W, b: Self::W) -> Self::F {
        if HAS_PAIRS {
            // SAFETY: above; with pairs it is made by `run_bf16`.
            return unsafe {
                let (a, b) = (transmute::<__m512i, __m512bh>(a), transmute::<__m512i, __m512bh>(b));
                _mm512_dpbf16_ps(sums, a, b)
            };
        }
        let ([a_low, a_high], [b_low, b_high]) = (self.widen(a), self.widen(b));
        self.mul_add(a_high, b_high, self.mul_add(a_low, b_low, sums))
    }

    #[inline(always)]
    fn transpose(self, rows: [Self::W; LANES]) -> [Self::W; LANES] {
        // SAFETY: above.
        unsafe { transposed(&rows) }
    }
}

/// Rows become columns.
#[target_feature(enable = "avx512f,avx512vl")]
pub fn transposed(rows: &[__m512i; LANES]) -> [__m512i; LANES] {
    const EVEN: i32 = 0b10_00_10_00;
    const ODD: i32 = 0b11_01_11_01;
    let zero = _mm512_setzero_si512();
    // Of every four rows, in each quarter of a register, squares of four turn.
    let mut fours = [zero; LANES];
    for i in (0..LANES).step_by(4) {
        let [a, b, c, d] = [rows[i], rows[i + 1], rows[i + 2], rows[i + 3]];
        let (ab_low, ab_high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let (cd_low, cd_high) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        fours[i] = _mm512_unpacklo_epi64(ab_low, cd_low);
        fours[i + 1] = _mm512_unpackhi_epi64(ab_low, cd_low);
        fours[i + 2] = _mm512_unpacklo_epi64(ab_high, cd_high);
        fours[i + 3] = _mm512_unpackhi_epi64(ab_high, cd_high);
    }
    // Then the quarters find their places.
    let mut columns = [zero; LANES];
    for j in 0..4 {
        let [a, b, c, d] = [fours[j], fours[4 + j], fours[8 + j], fours[12 + j]];
        let ab = [_mm512_shuffle_i32x4::<EVEN>(a, b), _mm512_shuffle_i32x4::<ODD>(a, b)];
        let cd = [_mm512_shuffle_i32x4::<EVEN>(c, d), _mm512_shuffle_i32x4::<ODD>(c, d)];
        columns[j] = _mm512_shuffle_i32x4::<EVEN>(ab[0], cd[0]);
        columns[4 + j] = _mm512_shuffle_i32x4::<EVEN>(ab[1], cd[1]);
        columns[8 + j] = _mm512_shuffle_i32x4::<ODD>(ab[0], cd[0]);
        columns[12 + j] = _mm512_shuffle_i32x4::<ODD>(ab[1], cd[1]);
    }
    columns
}
