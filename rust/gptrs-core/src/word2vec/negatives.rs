//! Words to tell the right one from, drawn as often as they occur to the power of 3/4 (Mikolov et al.,
//! 2013, "Distributed representations of words and phrases", section 2.2).
//!
//! An alias table (Walker, 1977; Vose, 1991): a slot has one word, or two of which a coin takes one. A
//! draw is one look at 8 bytes, exact for any counts; word2vec.c's table of 10^8 words is neither.
//!
//! ```text
//! weights   a 1/2  b 1/3  c 1/6        slot 0   slot 1   slot 2
//!                                      a ██████ b ██████ c ███
//!                                                        a ███
//! ```

use super::random::SplitMix64;

/// Of the original paper.
const POWER: f64 = 0.75;

/// Draws words.
#[derive(Debug)]
pub struct Negatives(Vec<Slot>);

#[derive(Debug, Clone, Copy)]
struct Slot {
    /// The word is the slot's own for coins below this, of 2^32.
    own: u32,
    other: u32,
}

impl Negatives {
    /// Of words that occur so often. There is one at least.
    pub fn new(counts: &[u64]) -> Self {
        let weights: Vec<f64> = counts.iter().map(|&count| (count as f64).powf(POWER)).collect();
        let scale = weights.len() as f64 / weights.iter().sum::<f64>();
        // How much of its slot a word fills; what is more than 1 goes to slots that are not full.
        let mut fills: Vec<f64> = weights.iter().map(|weight| weight * scale).collect();
        let mut slots: Vec<Slot> =
            (0..fills.len() as u32).map(|word| Slot { own: u32::MAX, other: word }).collect();
        let (mut small, mut large): (Vec<usize>, Vec<usize>) =
            (0..fills.len()).partition(|&word| fills[word] < 1.0);
        while let (Some(from), Some(slot)) = (large.last().copied(), small.pop()) {
            slots[slot] = Slot { own: (fills[slot] * 2_f64.powi(32)) as u32, other: from as u32 };
            fills[from] -= 1.0 - fills[slot];
            if fills[from] < 1.0 {
                large.pop();
                small.push(from);
            }
        }
        Self(slots)
    }

    /// A random word.
    #[inline(always)]
    pub fn draw(&self, random: &mut SplitMix64) -> u32 {
        let bits = random.next();
        let slot = (((bits >> 32) * self.0.len() as u64) >> 32) as usize;
        let Slot { own, other } = self.0[slot];
        if (bits as u32) < own { slot as u32 } else { other }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The probability of each word, as the table has it.
    fn probabilities(negatives: &Negatives) -> Vec<f64> {
        let mut found = vec![0.0; negatives.0.len()];
        for (word, slot) in negatives.0.iter().enumerate() {
            let own = f64::from(slot.own) / 2_f64.powi(32);
            found[word] += own;
            found[slot.other as usize] += 1.0 - own;
        }
        found.iter().map(|share| share / negatives.0.len() as f64).collect()
    }

    proptest! {
        #[test]
        fn each_word_has_its_share_of_the_table(
            counts in prop::collection::vec(1_u64..1_000_000_000, 1..200),
        ) {
            let weights: Vec<f64> = counts.iter().map(|&count| (count as f64).powf(0.75)).collect();
            let total: f64 = weights.iter().sum();
            for (found, weight) in probabilities(&Negatives::new(&counts)).iter().zip(weights) {
                prop_assert!((found - weight / total).abs() < 1e-9);
            }
        }
    }

    #[test]
    fn words_are_drawn_as_often_as_the_table_says() {
        let negatives = Negatives::new(&[10_000, 1_000, 1_000, 10, 1]);
        let (mut random, mut counts) = (SplitMix64::new(5, [0, 0]), [0.0; 5]);
        for _ in 0..1_000_000 {
            counts[negatives.draw(&mut random) as usize] += 1e-6;
        }
        for (found, expected) in counts.iter().zip(probabilities(&negatives)) {
            assert!((found - expected).abs() < 2e-3, "{found} {expected}");
        }
    }
}
