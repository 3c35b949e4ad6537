//! What the processor does to 64 bytes at once, in as many versions as there are kinds of
//! processors; the best is chosen when the program runs.
//!
//! The `unsafe` code of this is in `simd/x86.rs` and `simd/neon.rs`.

#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "x86_64")]
mod x86;

use super::classes::class_of_ascii;
use super::layout::{LETTER, NUMBER, SPACE};

/// The bytes that are looked at together.
pub const BLOCK: usize = 64;

/// Bit i says whether byte i of a block is one of these.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub struct Classes {
    /// An ASCII letter.
    pub letter: u64,
    /// An ASCII digit.
    pub number: u64,
    /// ASCII whitespace.
    pub space: u64,
    /// U+0020, the one character that may prefix a word.
    pub blank: u64,
    /// `'`
    pub apostrophe: u64,
    /// Part of a character that is not ASCII.
    pub high: u64,
    /// One that is not its first byte.
    pub later: u64,
}

/// A kind of processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// Any.
    Portable,
    /// x86-64 with AVX2, BMI1 and BMI2.
    Avx2,
    /// x86-64 with AVX-512 F, BW and VL as well.
    Avx512,
    /// AArch64.
    Neon,
}

impl Isa {
    /// All that this processor is, the best last.
    pub fn available() -> Vec<Self> {
        #[allow(unused_mut, reason = "other processors have nothing to add")]
        let mut found = vec![Self::Portable];
        #[cfg(target_arch = "x86_64")]
        found.extend(x86::available());
        #[cfg(target_arch = "aarch64")]
        found.push(Self::Neon);
        found
    }

    /// The best that this processor is.
    pub fn best() -> Self {
        Self::available().last().copied().unwrap_or(Self::Portable)
    }

    /// This kind, if this processor is one of it; else the portable.
    pub(crate) fn found(self) -> Found {
        Found(if Self::available().contains(&self) { self } else { Self::Portable })
    }
}

/// A kind of processor that this one is: looked for once, since that takes as long as merging a few
/// letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found(Isa);

/// The operations that differ. A value exists only where the processor has the instructions.
pub trait Simd: Copy {
    /// Classifies a block's bytes.
    fn classify(self, block: &[u8; BLOCK]) -> Classes;

    /// Writes `first` plus the number of each bit that is set, in order. What follows them in
    /// `places` is overwritten with anything.
    #[inline(always)]
    fn expand(self, mut bits: u64, first: u32, places: &mut [u32; BLOCK]) {
        for place in &mut places[..bits.count_ones() as usize] {
            *place = first + bits.trailing_zeros();
            bits &= bits - 1;
        }
    }
}

/// Work to be compiled once for each kind of processor: `run` has to be `#[inline(always)]`.
pub trait Work {
    /// What `run` returns.
    type Output;
    /// Does the work.
    fn run(self, simd: impl Simd) -> Self::Output;
}

/// Runs the version of `work` for a kind of processor.
pub fn dispatch<W: Work>(isa: Found, work: W) -> W::Output {
    match isa.0 {
        Isa::Portable => work.run(Portable),
        #[cfg(target_arch = "x86_64")]
        _ => x86::dispatch(isa, work),
        #[cfg(target_arch = "aarch64")]
        _ => work.run(neon::Neon),
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        _ => work.run(Portable),
    }
}

/// Asks for the cache line of `place`, which is to be read soon.
#[inline(always)]
pub fn prefetch<T>(place: &T) {
    #[cfg(target_arch = "x86_64")]
    x86::prefetch(place);
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// No instructions but those that every processor has.
#[derive(Clone, Copy)]
pub struct Portable;

impl Simd for Portable {
    #[inline(always)]
    fn classify(self, block: &[u8; BLOCK]) -> Classes {
        let mut classes = Classes::default();
        for (bytes, shift) in block.as_chunks::<8>().0.iter().zip((0..).step_by(8)) {
            let marks = u64::from_le_bytes(bytes.map(|byte| MARKS[usize::from(byte)]));
            classes.letter |= gather(marks >> LETTER_MARK) << shift;
            classes.number |= gather(marks >> NUMBER_MARK) << shift;
            classes.space |= gather(marks >> SPACE_MARK) << shift;
            classes.blank |= gather(marks >> BLANK_MARK) << shift;
            classes.apostrophe |= gather(marks >> APOSTROPHE_MARK) << shift;
            classes.high |= gather(marks >> HIGH_MARK) << shift;
            classes.later |= gather(marks >> LATER_MARK) << shift;
        }
        classes
    }
}

/// The lowest bit of each byte, in the lowest 8 bits.
#[inline(always)]
fn gather(bytes: u64) -> u64 {
    // The product moves the bit of byte i to bit 56 + i, where no carry arrives.
    (bytes & 0x0101_0101_0101_0101).wrapping_mul(0x0102_0408_1020_4080) >> 56
}

const LETTER_MARK: u32 = 0;
const NUMBER_MARK: u32 = 1;
const SPACE_MARK: u32 = 2;
const BLANK_MARK: u32 = 3;
const APOSTROPHE_MARK: u32 = 4;
const HIGH_MARK: u32 = 5;
const LATER_MARK: u32 = 6;

/// Which of the classes each byte is in, a bit a class.
static MARKS: [u8; 256] = {
    let mut marks = [1 << HIGH_MARK; 256];
    let mut later = 0x80;
    while later < 0xc0 {
        marks[later] |= 1 << LATER_MARK;
        later += 1;
    }
    let mut byte = 0;
    while byte < 128 {
        marks[byte as usize] = match class_of_ascii(byte) {
            LETTER => 1 << LETTER_MARK,
            NUMBER => 1 << NUMBER_MARK,
            SPACE if byte == b' ' => 1 << SPACE_MARK | 1 << BLANK_MARK,
            SPACE => 1 << SPACE_MARK,
            _ if byte == b'\'' => 1 << APOSTROPHE_MARK,
            _ => 0,
        };
        byte += 1;
    }
    marks
};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct Expand(u64, u32);

    impl Work for Expand {
        type Output = Vec<u32>;
        #[inline(always)]
        fn run(self, simd: impl Simd) -> Vec<u32> {
            let mut places = [0; BLOCK];
            simd.expand(self.0, self.1, &mut places);
            places[..self.0.count_ones() as usize].to_vec()
        }
    }

    struct Classify<'a>(&'a [u8; BLOCK]);

    impl Work for Classify<'_> {
        type Output = Classes;
        #[inline(always)]
        fn run(self, simd: impl Simd) -> Classes {
            simd.classify(self.0)
        }
    }

    /// The definition, a byte at a time.
    fn slowly(block: &[u8; BLOCK]) -> Classes {
        let bits = |is: fn(u8) -> bool| {
            block.iter().rev().fold(0, |bits, byte| bits << 1 | u64::from(is(*byte)))
        };
        Classes {
            letter: bits(|byte| byte.is_ascii_alphabetic()),
            number: bits(|byte| byte.is_ascii_digit()),
            space: bits(|byte| byte.is_ascii_whitespace() || byte == 0x0b),
            blank: bits(|byte| byte == b' '),
            apostrophe: bits(|byte| byte == b'\''),
            high: bits(|byte| !byte.is_ascii()),
            later: bits(|byte| matches!(byte, 0x80..=0xbf)),
        }
    }

    #[test]
    fn every_byte_at_every_place_is_classified_alike_by_every_version() {
        for isa in Isa::available() {
            for byte in 0..=u8::MAX {
                for place in 0..BLOCK {
                    let mut block = [b'~'; BLOCK];
                    block[place] = byte;
                    assert_eq!(
                        dispatch(isa.found(), Classify(&block)),
                        slowly(&block),
                        "{isa:?} {byte}"
                    );
                }
            }
        }
    }

    proptest! {
        #[test]
        fn bits_are_expanded_to_their_numbers_by_every_version(
            bits in any::<u64>(),
            fewer in any::<u64>(),
            first in 0..u32::MAX / 2,
        ) {
            for bits in [bits, bits & fewer, !0, 0, 1, 1 << 63] {
                let expected: Vec<u32> =
                    (0..64).filter(|bit| bits >> bit & 1 == 1).map(|bit| first + bit).collect();
                for isa in Isa::available() {
                    prop_assert_eq!(dispatch(isa.found(), Expand(bits, first)), &*expected);
                }
            }
        }

        #[test]
        fn any_block_is_classified_alike_by_every_version(block in any::<[u8; BLOCK]>()) {
            for isa in Isa::available() {
                prop_assert_eq!(dispatch(isa.found(), Classify(&block)), slowly(&block));
            }
        }
    }
}
