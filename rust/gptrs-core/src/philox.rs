//! Philox 4x64-10: random numbers by counter (Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3").
//!
//! A draw is a pure function of (seed, sequence, position): it does not depend on what was drawn
//! before, on the batch or on the number of threads. `numpy.random.Philox` is the same generator.

const MULTIPLIERS: [u64; 2] = [0xD2E7_470E_E14C_6C93, 0xCA5A_8263_9512_1157];
/// The golden ratio and sqrt(3) - 1, as 64-bit fractions: added to the key after each round.
const WEYL: [u64; 2] = [0x9E37_79B9_7F4A_7C15, 0xBB67_AE85_84CA_A73B];
const ROUNDS: usize = 10;

/// The four 64-bit words that belong to `counter` under `key`.
pub fn philox4x64(mut counter: [u64; 4], mut key: [u64; 2]) -> [u64; 4] {
    for _ in 0..ROUNDS {
        let [high0, low0] = multiply(MULTIPLIERS[0], counter[0]);
        let [high1, low1] = multiply(MULTIPLIERS[1], counter[2]);
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// A uniform number in [0, 1) with 53 random bits, for one position of one sequence.
pub fn uniform(seed: u64, sequence: u64, position: u64) -> f64 {
    let [word, ..] = philox4x64([position, sequence, 0, 0], [seed, 0]);
    (word >> 11) as f64 / (1_u64 << 53) as f64
}

fn multiply(a: u64, b: u64) -> [u64; 2] {
    let product = u128::from(a) * u128::from(b);
    [(product >> 64) as u64, product as u64]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_vectors_come_out() {
        // Random123's known-answer file, philox4x64 with 10 rounds.
        assert_eq!(
            philox4x64([0; 4], [0; 2]),
            [
                0x1655_4d9e_ca36_314c,
                0xdb20_fe9d_672d_0fdc,
                0xd7e7_72ce_e186_176b,
                0x7e68_b68a_ec7b_a23b
            ],
        );
        assert_eq!(
            philox4x64([u64::MAX; 4], [u64::MAX; 2]),
            [
                0x87b0_92c3_013f_e90b,
                0x438c_3c67_be8d_0224,
                0x9cc7_d7c6_9cd7_77b6,
                0xa09c_aebf_594f_0ba0
            ],
        );
    }

    #[test]
    fn neighbours_differ() {
        let base = uniform(1, 2, 3);
        for other in [uniform(2, 2, 3), uniform(1, 3, 3), uniform(1, 2, 4)] {
            assert!((base - other).abs() > 1e-9);
        }
    }
}
