//! The formats that logits come in.

use half::{bf16, f16};

/// A floating-point format of logits.
pub trait Float: Copy {
    /// The same number in float32.
    fn widen(self) -> f32;
}

impl Float for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Float for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

impl Float for f16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        /// 2^112: what the exponents of the two formats differ by.
        const REBIAS: f32 = f32::from_bits((127 + 112) << 23);
        const INFINITY: u32 = 0x7c00 << 13;
        let bits = u32::from(self.to_bits());
        let magnitude = (bits & 0x7fff) << 13;
        // Subnormal numbers come out right, too; infinities and NaN keep an exponent of ones.
        let finite = (f32::from_bits(magnitude) * REBIAS).to_bits();
        let special = if magnitude >= INFINITY { magnitude | 0x7f80_0000 } else { finite };
        f32::from_bits(special | (bits & 0x8000) << 16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_float16_and_bfloat16_is_widened_as_the_formats_say() {
        let same = |found: f32, expected: f32| {
            found.to_bits() == expected.to_bits() || (found.is_nan() && expected.is_nan())
        };
        for bits in 0..=u16::MAX {
            assert!(same(f16::from_bits(bits).widen(), f16::from_bits(bits).to_f32()), "{bits:x}");
            assert!(
                same(bf16::from_bits(bits).widen(), bf16::from_bits(bits).to_f32()),
                "{bits:x}"
            );
        }
    }
}
