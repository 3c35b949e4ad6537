//! The versions for x86-64.

#![allow(unsafe_code, reason = "vector instructions; each use says why it is sound")]

pub mod words;

use std::arch::x86_64::{
    __cpuid, __m128, __m256, __m256i, __m512, __m512i, _MM_FROUND_NO_EXC,
    _MM_FROUND_TO_NEAREST_INT, _MM_HINT_T0, _mm_add_ps, _mm_cvtsi128_si32, _mm_cvtss_f32,
    _mm_hadd_ps, _mm_loadu_si128, _mm_max_epu32, _mm_max_ps, _mm_movehdup_ps, _mm_movehl_ps,
    _mm_packs_epi16, _mm_prefetch, _mm_set1_epi32, _mm_shuffle_epi32, _mm_storeu_ps,
    _mm_storeu_si128, _mm256_add_epi32, _mm256_add_ps, _mm256_and_si256, _mm256_castpd_ps,
    _mm256_castps256_ps128, _mm256_castsi256_ps, _mm256_castsi256_si128, _mm256_cvtepi8_epi16,
    _mm256_cvtepi32_ps, _mm256_cvtepu8_epi16, _mm256_cvtepu16_epi32, _mm256_cvtps_epi32,
    _mm256_div_ps, _mm256_extractf128_ps, _mm256_extracti128_si256, _mm256_fmadd_ps,
    _mm256_hadd_epi32, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_max_epu32,
    _mm256_max_ps, _mm256_min_ps, _mm256_mul_ps, _mm256_packs_epi32, _mm256_permute4x64_epi64,
    _mm256_round_ps, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_si256, _mm256_slli_epi32,
    _mm256_storeu_ps, _mm512_add_epi32, _mm512_add_ps, _mm512_and_si512, _mm512_castps_pd,
    _mm512_castps512_ps256, _mm512_castsi512_ps, _mm512_castsi512_si256, _mm512_cvtepi32_epi8,
    _mm512_cvtepi32_ps, _mm512_cvtepu16_epi32, _mm512_cvtps_epi32, _mm512_div_ps,
    _mm512_dpbusd_epi32, _mm512_extractf64x4_pd, _mm512_extracti64x4_epi64, _mm512_fmadd_ps,
    _mm512_loadu_ps, _mm512_loadu_si512, _mm512_max_epu32, _mm512_max_ps, _mm512_min_ps,
    _mm512_mul_ps, _mm512_roundscale_ps, _mm512_scalef_ps, _mm512_set1_epi32, _mm512_set1_ps,
    _mm512_setzero_si512, _mm512_slli_epi32, _mm512_storeu_ps,
};

use half::bf16;

use super::super::tiles::Tiles;
use super::{Found, GROUP, Kernels, LANES, MAGNITUDE, Operands, Portable, Simd, Work, finite};

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
            unsafe { run_vnni(work) }
        }
        // SAFETY: `Kernels::found` alone makes what says that the processor has these instructions.
        (Kernels::Avx512Bf16, Operands::Pairs) => unsafe { run_bf16(work) },
        (Kernels::Avx2, _) | (_, Operands::Bytes) => {
            // SAFETY: as above; who has AVX-512 has these, too.
            unsafe { run_avx2(work) }
        }
        // SAFETY: as above.
        (Kernels::Amx | Kernels::Avx512Bf16 | Kernels::Avx512, _) => unsafe { run_avx512(work) },
    }
}

#[target_feature(enable = "avx2,fma")]
fn run_avx2<W: Work>(work: W) -> W::Output {
    work.run(Avx2(()))
}

// Without VL the compiler leaves half of the registers unused, which costs half of the speed.
#[target_feature(enable = "avx2,fma,avx512f,avx512vl")]
fn run_avx512<W: Work>(work: W) -> W::Output {
    work.run(Avx512::<false>(()))
}

#[target_feature(enable = "avx2,fma,avx512f,avx512vl,avx512vnni")]
fn run_vnni<W: Work>(work: W) -> W::Output {
    work.run(Avx512::<false>(()))
}

#[target_feature(enable = "avx2,fma,avx512f,avx512vl,avx512bf16")]
fn run_bf16<W: Work>(work: W) -> W::Output {
    work.run(Avx512::<true>(()))
}

/// Made by `run_avx2` alone.
#[derive(Clone, Copy)]
struct Avx2(());

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

/// Made by `run_avx512`, `run_vnni` and `run_bf16` alone: by the second for all work with bytes, and with
/// pairs by the last.
#[derive(Clone, Copy)]
struct Avx512<const HAS_PAIRS: bool>(());

// SAFETY of all below: as above.
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
