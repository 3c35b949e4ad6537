//! SplitMix64: random numbers that cost a few instructions (Steele, Lea and Flood, 2014, "Fast splittable
//! pseudorandom number generators").

use crate::philox::philox4x64;

/// One stream of random numbers.
#[derive(Debug, Clone)]
pub struct SplitMix64(u64);

impl SplitMix64 {
    /// The stream that belongs to `counter` under `seed`, whatever was drawn from others.
    pub fn new(seed: u64, counter: [u64; 2]) -> Self {
        let [state, ..] = philox4x64([counter[0], counter[1], 0, 0], [seed, 0]);
        Self(state)
    }

    /// 64 random bits.
    #[inline(always)]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A number below `bound`; each is as likely as the others to 1 part in 2^32 / `bound`.
    #[inline(always)]
    pub fn below(&mut self, bound: u32) -> u32 {
        (((self.next() >> 32) * u64::from(bound)) >> 32) as u32
    }

    /// A number in [0, 1) with 24 random bits.
    pub fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1_u32 << 24) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_numbers_come_out() {
        // The reference implementation (Vigna, prng.di.unimi.it/splitmix64.c) from state 1234567.
        let mut random = SplitMix64(1_234_567);
        let expected = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
            4_593_380_528_125_082_431,
            16_408_922_859_458_223_821,
        ];
        assert_eq!(expected.map(|_| random.next()), expected);
    }

    #[test]
    fn numbers_below_a_bound_are_all_drawn_and_evenly() {
        let (mut random, mut counts) = (SplitMix64::new(1, [2, 3]), [0_i32; 7]);
        for _ in 0..70_000 {
            counts[random.below(7) as usize] += 1;
        }
        assert!(counts.iter().all(|count| (count - 10_000).abs() < 500), "{counts:?}");
    }

    #[test]
    fn another_seed_or_counter_is_another_stream() {
        let first = |seed, counter| SplitMix64::new(seed, counter).next();
        let base = first(1, [2, 3]);
        assert!([first(2, [2, 3]), first(1, [3, 3]), first(1, [2, 2])].iter().all(|&n| n != base));
    }
}
