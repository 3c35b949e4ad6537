//! Sixteen floats at once, on every kind of processor.
//!
//! All that is summed is summed in sixteen lanes, lane l taking numbers l, l + 16, l + 32 ...; then the
//! lanes are added in one fixed order. So a sum depends on its numbers alone, and AVX2 and AVX-512, which
//! round a product and a sum together, agree to the last bit. The portable version rounds twice where the
//! processor has no such instruction.
//!
//! The `unsafe` code of this is in `lanes/x86.rs`.

mod words;
#[cfg(target_arch = "x86_64")]
pub mod x86;

use half::bf16;

pub use self::words::Words;
use super::tiles::Tiles;

/// How many floats.
pub const LANES: usize = 16;
/// How many int8 products lie between two roundings.
pub const GROUP: usize = 64;

/// So many, filled up to whole lanes.
pub fn padded(count: usize) -> usize {
    count.next_multiple_of(LANES)
}

/// A kind of processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernels {
    /// As `Avx512`, and tiles of bytes and of bfloat16 by AMX.
    Amx,
    /// As `Avx512`, and pairs of bfloat16, whose products are added at once.
    Avx512Bf16,
    /// x86-64 with AVX-512 F and VL; with VNNI, where bytes are multiplied, or else AVX2 does that.
    Avx512,
    /// x86-64 with AVX2 and FMA.
    Avx2,
    /// Any.
    Portable,
}

impl Kernels {
    /// All that this processor is, the best first.
    pub fn available() -> Vec<Self> {
        #[cfg(target_arch = "x86_64")]
        return x86::available().chain([Self::Portable]).collect();
        #[cfg(not(target_arch = "x86_64"))]
        vec![Self::Portable]
    }

    /// The best that this processor is.
    pub fn best() -> Self {
        Self::available().first().copied().unwrap_or(Self::Portable)
    }

    /// A short name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Amx => "amx",
            Self::Avx512Bf16 => "avx512bf16",
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::Portable => "portable",
        }
    }

    /// Whether it has thirty-two registers of sixteen floats.
    pub fn has_avx512(self) -> bool {
        matches!(self, Self::Amx | Self::Avx512Bf16 | Self::Avx512)
    }

    /// Whether Intel made this processor.
    pub fn is_intels() -> bool {
        #[cfg(target_arch = "x86_64")]
        return x86::is_intels();
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// This kind, if this processor is one of it; else the portable.
    pub(crate) fn found(self) -> Found {
        Found(if Self::available().contains(&self) { self } else { Self::Portable })
    }
}

/// A kind of processor that this one is.
#[derive(Debug, Clone, Copy)]
pub struct Found(Kernels);

impl Found {
    /// Its tiles, if it has some.
    pub fn tiles(self) -> Option<Tiles> {
        if self.0 == Kernels::Amx { Tiles::find() } else { None }
    }

    /// Whether it reads ahead by itself where one input meets all rows, so that asking for memory early only
    /// costs: measured on Zen 4, the only ones with pairs and without tiles but for Cooper Lake.
    pub fn reads_ahead(self) -> bool {
        self.has_pairs()
    }

    /// Whether it multiplies pairs of bfloat16 at once.
    pub fn has_pairs(self) -> bool {
        self.0 == Kernels::Avx512Bf16
    }
}

/// What some work multiplies that not every version multiplies alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operands {
    /// None of the following.
    Floats,
    /// `Simd::add_products`.
    Bytes,
    /// `Words::add_pairs`.
    Pairs,
}

/// Something to be compiled for each kind of processor.
pub trait Work {
    /// What it gives.
    type Output;
    /// What it multiplies.
    const OPERANDS: Operands = Operands::Floats;
    /// Does it. To be marked `#[inline(always)]`, with all that it calls.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// Does it in the version for this processor.
pub fn dispatch<W: Work>(found: Found, work: W) -> W::Output {
    #[cfg(target_arch = "x86_64")]
    return x86::dispatch(found, work);
    #[cfg(not(target_arch = "x86_64"))]
    {
        let Found(_) = found;
        work.run(Portable)
    }
}

/// The operations that differ. A value exists only where the processor has the instructions.
pub trait Simd: Words {
    /// Whole numbers on their way to sums, a lane each.
    type I: Copy;

    fn splat(self, value: f32) -> Self::F;
    fn load(self, from: &[f32; LANES]) -> Self::F;
    fn load_bf16(self, from: &[bf16; LANES]) -> Self::F;
    fn store(self, lanes: Self::F, to: &mut [f32; LANES]);
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// NaN where `b` is; `b` where `a` is.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// NaN where `b` is; `b` where `a` is.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// a * b + c.
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// To the nearest whole number, halves to the even one.
    fn round(self, a: Self::F) -> Self::F;
    /// a * 2^n for whole n in -126..=127.
    fn scale(self, a: Self::F, n: Self::F) -> Self::F;
    /// Lanes 0 + 8, 1 + 9, ..., of these 0 + 4, ..., of these 0 + 1 and 2 + 3, and these two.
    fn sum(self, a: Self::F) -> f32;
    /// The largest lane, where all are numbers.
    fn largest(self, a: Self::F) -> f32;
    /// The largest magnitude there is, which is NaN where a number is infinite or none.
    fn magnitude(self, rows: &[[f32; LANES]]) -> f32;
    /// `sum` of each.
    fn sum4(self, a: [Self::F; 4]) -> [f32; 4];
    /// To the nearest whole numbers, halves to the even one, of lanes in -127..=127.
    fn to_i8(self, a: Self::F) -> [i8; LANES];
    /// Zeros.
    fn no_sums(self) -> Self::I;
    /// Adds to lane l the products of its weights, 4 l .. 4 l + 4, and the four inputs.
    fn add_products(self, sums: Self::I, weights: &[u8; GROUP], inputs: [i8; 4]) -> Self::I;
    /// Both together.
    fn add_sums(self, a: Self::I, b: Self::I) -> Self::I;
    /// The sums and `start`, exactly, as floats.
    fn sums_to_floats(self, sums: Self::I, start: i32) -> Self::F;
    /// Reads a place soon.
    fn prefetch<T>(self, place: *const T);
}

/// For any processor.
#[derive(Debug, Clone, Copy)]
pub struct Portable;

/// A float's bits without its sign: as whole numbers they are in the order of magnitudes, then come the
/// infinite one and what is none.
const MAGNITUDE: u32 = !(1 << 31);

/// The float that has these bits; NaN for the infinite one.
fn finite(bits: u32) -> f32 {
    if bits < f32::INFINITY.to_bits() { f32::from_bits(bits) } else { f32::NAN }
}

/// Whether a product and a sum can be rounded together at no cost.
const HAS_FMA: bool = cfg!(any(target_feature = "fma", target_arch = "aarch64"));

macro_rules! each {
    ($lane:ident => $value:expr) => {{
        let mut out = [0.0; LANES];
        for $lane in 0..LANES {
            out[$lane] = $value;
        }
        out
    }};
}

impl Simd for Portable {
    type I = [i32; LANES];

    #[inline(always)]
    fn splat(self, value: f32) -> Self::F {
        [value; LANES]
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::F {
        *from
    }

    #[inline(always)]
    fn load_bf16(self, from: &[bf16; LANES]) -> Self::F {
        each!(l => f32::from_bits(u32::from(from[l].to_bits()) << 16))
    }

    #[inline(always)]
    fn store(self, lanes: Self::F, to: &mut [f32; LANES]) {
        *to = lanes;
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        each!(l => a[l] + b[l])
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        each!(l => a[l] * b[l])
    }

    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        each!(l => a[l] / b[l])
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        each!(l => if a[l] > b[l] { a[l] } else { b[l] })
    }

    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        each!(l => if a[l] < b[l] { a[l] } else { b[l] })
    }

    #[inline(always)]
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        if HAS_FMA { each!(l => a[l].mul_add(b[l], c[l])) } else { each!(l => a[l] * b[l] + c[l]) }
    }

    #[inline(always)]
    fn round(self, a: Self::F) -> Self::F {
        each!(l => a[l].round_ties_even())
    }

    #[inline(always)]
    fn scale(self, a: Self::F, n: Self::F) -> Self::F {
        each!(l => a[l] * f32::from_bits(((n[l] as i32 + 127) as u32) << 23))
    }

    #[inline(always)]
    fn sum(self, a: Self::F) -> f32 {
        let mut eight = [0.0; 8];
        for l in 0..8 {
            eight[l] = a[l] + a[l + 8];
        }
        let mut four = [0.0; 4];
        for l in 0..4 {
            four[l] = eight[l] + eight[l + 4];
        }
        (four[0] + four[1]) + (four[2] + four[3])
    }

    #[inline(always)]
    fn largest(self, a: Self::F) -> f32 {
        let mut all = a;
        let mut half = LANES / 2;
        while half > 0 {
            for l in 0..half {
                all[l] = if all[l] > all[l + half] { all[l] } else { all[l + half] };
            }
            half /= 2;
        }
        all[0]
    }

    #[inline(always)]
    fn magnitude(self, rows: &[[f32; LANES]]) -> f32 {
        let mut most = [0; LANES];
        for row in rows {
            for l in 0..LANES {
                most[l] = most[l].max(row[l].to_bits() & MAGNITUDE);
            }
        }
        finite(most.into_iter().fold(0, u32::max))
    }

    #[inline(always)]
    fn sum4(self, a: [Self::F; 4]) -> [f32; 4] {
        [self.sum(a[0]), self.sum(a[1]), self.sum(a[2]), self.sum(a[3])]
    }

    #[inline(always)]
    fn to_i8(self, a: Self::F) -> [i8; LANES] {
        a.map(|x| x.round_ties_even() as i8)
    }

    #[inline(always)]
    fn no_sums(self) -> Self::I {
        [0; LANES]
    }

    #[inline(always)]
    fn add_products(self, sums: Self::I, weights: &[u8; GROUP], inputs: [i8; 4]) -> Self::I {
        let mut out = sums;
        for l in 0..LANES {
            for i in 0..4 {
                out[l] += i32::from(weights[4 * l + i]) * i32::from(inputs[i]);
            }
        }
        out
    }

    #[inline(always)]
    fn add_sums(self, mut a: Self::I, b: Self::I) -> Self::I {
        for l in 0..LANES {
            a[l] += b[l];
        }
        a
    }

    #[inline(always)]
    fn sums_to_floats(self, sums: Self::I, start: i32) -> Self::F {
        each!(l => (sums[l] + start) as f32)
    }

    #[inline(always)]
    fn prefetch<T>(self, _: *const T) {}
}
