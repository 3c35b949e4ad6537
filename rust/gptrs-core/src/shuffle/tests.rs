use super::*;
use proptest::prelude::*;

impl Permutation {
    /// The place of a number: every step backwards.
    fn place_of(&self, mut number: u64) -> u64 {
        loop {
            number = self.decrypt(number);
            if number < self.n {
                return number;
            }
        }
    }

    fn decrypt(&self, number: u64) -> u64 {
        let (mut left, mut right) = (number >> self.right_bits, number & self.right_mask);
        for keys in self.keys.as_chunks::<2>().0.iter().rev() {
            right ^= mix(left.wrapping_add(keys[1])) & self.right_mask;
            left ^= mix(right.wrapping_add(keys[0])) & self.left_mask;
        }
        left << self.right_bits | right
    }
}

fn order(n: u64, seed: u64, epoch: u64) -> Vec<u64> {
    let permutation = Permutation::new(n, seed, epoch).unwrap();
    (0..n).map(|place| permutation.at(place)).collect()
}

fn assert_permutation(n: u64, seed: u64) {
    let mut is_there = vec![false; n as usize];
    for number in order(n, seed, 0) {
        let was_there = std::mem::replace(&mut is_there[number as usize], true);
        assert!(!was_there, "{n}: {number} comes twice");
    }
}

#[test]
fn the_published_vectors_come_out() {
    // The table in ARCHITECTURE.md: n, seed, epoch, and the numbers at the first places.
    let vectors: [(u64, u64, u64, [u64; 5]); 8] = [
        (5, 0, 0, [1, 2, 4, 3, 0]),
        (5, 0, 1, [3, 4, 0, 2, 1]),
        (1000, 0, 0, [524, 539, 919, 381, 425]),
        (1000, 1, 0, [841, 145, 476, 105, 133]),
        (65_537, 123, 4, [16_507, 24_600, 785, 6_963, 31_555]),
        (1_000_000_007, 0, 0, [330_065_198, 374_492_374, 400_375_205, 540_092_640, 404_796_770]),
        (
            1 << 40,
            u64::MAX,
            u64::MAX,
            [194_935_921_223, 527_510_807_006, 283_069_423_610, 349_074_111_394, 966_989_350_583],
        ),
        (
            1 << 63,
            42,
            7,
            [
                3_788_146_741_322_164_218,
                1_049_889_271_452_601_828,
                5_966_123_564_691_911_464,
                5_824_144_527_880_418_788,
                9_114_860_929_180_072_933,
            ],
        ),
    ];
    for (n, seed, epoch, numbers) in vectors {
        let permutation = Permutation::new(n, seed, epoch).unwrap();
        let found = [0, 1, 2, 3, 4].map(|place| permutation.at(place));
        assert_eq!(found, numbers, "n {n}, seed {seed}, epoch {epoch}");
    }
}

#[test]
fn every_small_n_is_permuted() {
    assert!(Permutation::new(0, 0, 0).unwrap().is_empty());
    for n in 1..=1000 {
        assert_permutation(n, n % 3);
    }
}

#[test]
fn powers_of_two_and_their_neighbours_are_permuted() {
    for bits in 0..=20 {
        for n in [(1 << bits) - 1, 1 << bits, (1 << bits) + 1] {
            assert_permutation(n, bits);
        }
    }
}

#[test]
fn more_numbers_than_there_can_be_are_refused() {
    assert!(Permutation::new(MOST, 0, 0).is_ok());
    let error = Permutation::new(MOST + 1, 0, 0).unwrap_err();
    assert!(error.to_string().starts_with("9223372036854775809 numbers"), "{error}");
}

proptest! {
    #[test]
    fn every_place_of_any_n_can_be_found_again(
        bits in 0_u32..=63, low in any::<u64>(), place in any::<u64>(), seed in any::<u64>(),
        epoch in any::<u64>(),
    ) {
        let n = (low >> (63 - bits)).clamp(1, MOST);
        let permutation = Permutation::new(n, seed, epoch)?;
        // Neighbours too: they differ in few bits.
        for place in [place % n, (place + 1) % n, 0, n - 1] {
            let number = permutation.at(place);
            prop_assert!(number < n);
            prop_assert_eq!(permutation.place_of(number), place);
        }
    }
}

// Statistics. Seeds are fixed, so each figure is always the same; the thresholds are those that a
// random order passes but for one time in a million or less, and that a weak network misses by far.

/// How far a sum of `count` terms is from its mean, in standard deviations.
fn z_score(sum: f64, mean: f64, variance: f64) -> f64 {
    (sum - mean) / variance.sqrt()
}

/// How far a chi-square of counts that should be alike is from its mean, in standard deviations.
fn chi_square_z(counts: &[u64]) -> f64 {
    let expected = counts.iter().sum::<u64>() as f64 / counts.len() as f64;
    let chi = counts.iter().map(|&count| (count as f64 - expected).powi(2) / expected).sum::<f64>();
    let freedom = (counts.len() - 1) as f64;
    z_score(chi, freedom, 2.0 * freedom)
}

/// The z-score of the correlation of two sequences of uniform numbers in 0..n.
fn correlation_z(pairs: impl Iterator<Item = (u64, u64)>, n: u64) -> f64 {
    let centre = |number: u64| number as f64 / n as f64 - 0.5;
    let (mut sum, mut count) = (0.0, 0.0);
    for (a, b) in pairs {
        sum += centre(a) * centre(b);
        count += 1.0;
    }
    // A product of two uniform numbers around 0 has variance 1/12 x 1/12.
    z_score(sum, 0.0, count / 144.0)
}

const LENGTHS: [u64; 4] = [1000, 65_536, 65_537, 262_145];
const THRESHOLD: f64 = 5.0;

#[test]
fn neighbouring_places_are_uncorrelated() {
    for n in LENGTHS {
        for lag in [1, 2, 3, 7, 64] {
            let order = order(n, 1, 0);
            let pairs = order.iter().copied().zip(order[lag..].iter().copied());
            let z = correlation_z(pairs, n);
            assert!(z.abs() < THRESHOLD, "n {n}, lag {lag}: z {z:.1}");
        }
    }
}

#[test]
fn places_say_nothing_about_numbers() {
    const CELLS: u64 = 16;
    for n in LENGTHS {
        let order = order(n, 2, 0);
        let mut counts = vec![0; (CELLS * CELLS) as usize];
        for (place, &number) in order.iter().enumerate() {
            let (row, column) = (place as u64 * CELLS / n, number * CELLS / n);
            counts[(row * CELLS + column) as usize] += 1;
        }
        let z = chi_square_z(&counts);
        // Every row and column has its count for certain, so the sum has fewer degrees of freedom
        // than it is taken to have: z is lower by sqrt(2), never higher.
        assert!(z < THRESHOLD && z > -THRESHOLD - 1.5, "n {n}: z {z:.1}");
        let z = correlation_z((0..n).zip(order), n);
        assert!(z.abs() < THRESHOLD, "n {n}: places and numbers correlate with z {z:.1}");
    }
}

#[test]
fn steps_from_one_number_to_the_next_are_uniform() {
    const CELLS: u64 = 64;
    for n in LENGTHS {
        let order = order(n, 3, 0);
        let mut counts = vec![0; CELLS as usize];
        for pair in order.windows(2) {
            counts[((pair[1] + n - pair[0]) % n * CELLS / n) as usize] += 1;
        }
        let z = chi_square_z(&counts);
        assert!(z.abs() < THRESHOLD, "n {n}: z {z:.1}");
    }
}

#[test]
fn neighbouring_seeds_and_epochs_have_nothing_in_common() {
    for n in LENGTHS {
        let base = order(n, 7, 7);
        for (seed, epoch) in [(8, 7), (6, 7), (7, 8), (7, 6), (8, 6), (7 + (1 << 32), 7)] {
            let other = order(n, seed, epoch);
            let z = correlation_z(base.iter().copied().zip(other.iter().copied()), n);
            assert!(z.abs() < THRESHOLD, "n {n}, seed {seed}, epoch {epoch}: z {z:.1}");
            // Two random orders agree at one place on average (Poisson): 12 is one in 10^9.
            let same = base.iter().zip(&other).filter(|(a, b)| a == b).count();
            assert!(same < 12, "n {n}, seed {seed}, epoch {epoch}: {same} places are the same");
        }
    }
}

#[test]
fn each_order_of_few_numbers_is_as_likely_as_any_other() {
    const DRAWS: u64 = 100_000;
    for n in 2..=5_u64 {
        let mut counts = std::collections::BTreeMap::<Vec<u64>, u64>::new();
        for draw in 0..DRAWS {
            // Seeds and epochs count up together, as they do in use.
            *counts.entry(order(n, draw / 10, draw % 10)).or_default() += 1;
        }
        assert_eq!(counts.len() as u64, (1..=n).product::<u64>(), "n {n}: an order never comes");
        let z = chi_square_z(&counts.into_values().collect::<Vec<_>>());
        assert!(z < THRESHOLD, "n {n}: z {z:.1}");
    }
}

#[test]
fn the_first_place_goes_to_each_of_many_numbers_alike() {
    for n in [6, 100, 129, 1000] {
        let mut counts = vec![0; n as usize];
        for seed in 0..200 * n {
            counts[Permutation::new(n, seed, 0).unwrap().at(0) as usize] += 1;
        }
        let z = chi_square_z(&counts);
        assert!(z.abs() < THRESHOLD, "n {n}: z {z:.1}");
    }
}
