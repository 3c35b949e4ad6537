//! One step of training: a vector is moved towards the word that it should predict, away from others.
//!
//! ```text
//! for each target (the right word: label 1; negatives: label 0)
//!     gradient = (label - sigmoid(hidden · output[target])) * alpha
//!     error          += gradient * output[target]
//!     output[target] += gradient * hidden
//! ```
//!
//! These are word2vec.c's formulas and its table of the sigmoid. All products are taken before the first
//! target changes, so that the processor waits for memory once: that differs where one word was drawn
//! twice in one step. Sums are taken lane by lane, products rounded before they are added, on every
//! processor: one thread with a seed gives the same vectors everywhere.

#![allow(
    clippy::needless_range_loop,
    reason = "iterators over lanes became no vector instructions"
)]

use super::rows::{Chunk, LANES, Row};

/// Where the sigmoid is taken for 0 or 1.
const LIMIT: f32 = 6.0;
const TABLE_SIZE: usize = 1000;

/// The sigmoid function.
pub struct Sigmoid([f32; TABLE_SIZE]);

impl Sigmoid {
    pub fn new() -> Self {
        Self(std::array::from_fn(|i| {
            let x = (2.0 * i as f32 / TABLE_SIZE as f32 - 1.0) * LIMIT;
            1.0 / (1.0 + (-x).exp())
        }))
    }

    #[inline(always)]
    fn at(&self, x: f32) -> f32 {
        if x >= LIMIT {
            return 1.0;
        }
        if x <= -LIMIT {
            return 0.0;
        }
        let place = (x + LIMIT) * (TABLE_SIZE as f32 / (2.0 * LIMIT));
        self.0[(place as usize).min(TABLE_SIZE - 1)] // NaN has a place: the first.
    }
}

/// A word that is predicted, or that should not be.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    pub output: Row<'a>,
    pub label: f32,
}

/// Room for what a step computes on its way.
#[derive(Default)]
pub struct Scratch {
    /// Of each target, its product with `hidden`, lane by lane.
    products: Vec<Chunk>,
    gradients: Vec<f32>,
}

/// Does one step for `hidden`; `error` becomes what is to be added to what `hidden` was made of.
#[inline(always)]
pub fn step(
    hidden: &[Chunk],
    error: &mut [Chunk],
    targets: &[Target<'_>],
    Scratch { products, gradients }: &mut Scratch,
    sigmoid: &Sigmoid,
    alpha: f32,
) {
    // Through memory, not in one loop: compilers would cut the lanes into pairs, for the sum's sake.
    products.clear();
    for target in targets {
        products.push(multiply(hidden, target.output));
    }
    gradients.clear();
    for (product, target) in products.iter().zip(targets) {
        gradients.push((target.label - sigmoid.at(sum(product))) * alpha);
    }
    for (place, (hidden, error)) in hidden.iter().zip(error).enumerate() {
        let mut sum = [0.0; LANES];
        for (target, &gradient) in targets.iter().zip(&*gradients) {
            let mut output = target.output.load(place);
            for lane in 0..LANES {
                sum[lane] += gradient * output.0[lane];
                output.0[lane] += gradient * hidden.0[lane];
            }
            target.output.store(place, output);
        }
        error.0 = sum;
    }
}

#[inline(always)]
fn multiply(hidden: &[Chunk], output: Row<'_>) -> Chunk {
    let mut sums = [0.0; LANES];
    for (place, hidden) in hidden.iter().enumerate() {
        let output = output.load(place);
        for lane in 0..LANES {
            sums[lane] += hidden.0[lane] * output.0[lane];
        }
    }
    Chunk(sums)
}

#[inline(always)]
fn sum(&Chunk(mut lanes): &Chunk) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// Adds `change` to a row.
#[inline(always)]
pub fn add(row: Row<'_>, change: &[Chunk]) {
    for (place, change) in change.iter().enumerate() {
        let mut chunk = row.load(place);
        for lane in 0..LANES {
            chunk.0[lane] += change.0[lane];
        }
        row.store(place, chunk);
    }
}

/// Adds a row to `sum`.
#[inline(always)]
pub fn add_to(sum: &mut [Chunk], row: Row<'_>) {
    for (place, sum) in sum.iter_mut().enumerate() {
        let chunk = row.load(place);
        for lane in 0..LANES {
            sum.0[lane] += chunk.0[lane];
        }
    }
}

/// Multiplies `chunks` by `factor`.
#[inline(always)]
pub fn scale(chunks: &mut [Chunk], factor: f32) {
    for chunk in chunks {
        for lane in &mut chunk.0 {
            *lane *= factor;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::random::SplitMix64;
    use super::super::rows::Rows;
    use super::*;
    use crate::tokenizer::simd::{Isa, Simd, Work, dispatch};

    struct Step<'a> {
        hidden: &'a [Chunk],
        error: &'a mut [Chunk],
        targets: &'a [Target<'a>],
        alpha: f32,
    }

    impl Work for Step<'_> {
        type Output = ();
        #[inline(always)]
        fn run(self, _: impl Simd) {
            let Self { hidden, error, targets, alpha } = self;
            step(hidden, error, targets, &mut Scratch::default(), &Sigmoid::new(), alpha);
        }
    }

    /// The formulas, one number after the other, in float64.
    fn slowly(hidden: &[f64], outputs: &mut [Vec<f64>], alpha: f64) -> Vec<f64> {
        let mut error = vec![0.0; hidden.len()];
        let product = |output: &Vec<f64>| hidden.iter().zip(output).map(|(h, o)| h * o).sum();
        let products: Vec<f64> = outputs.iter().map(product).collect();
        for (target, (output, product)) in outputs.iter_mut().zip(products).enumerate() {
            let label = f64::from(u8::from(target == 0));
            let gradient = (label - 1.0 / (1.0 + (-product).exp())) * alpha;
            for (place, output) in output.iter_mut().enumerate() {
                error[place] += gradient * *output;
                *output += gradient * hidden[place];
            }
        }
        error
    }

    /// A step with random numbers: the error and the targets after it; what they should be.
    fn stepped(isa: Isa, seed: u64) -> (Vec<f32>, Vec<f64>) {
        let mut random = SplitMix64::new(seed, [0, 0]);
        let (columns, num_targets) = (1 + random.below(70) as usize, 1 + random.below(9) as usize);
        let mut number = || random.uniform() * 2.0 - 1.0;
        let mut row = || (0..columns).map(|_| number()).collect::<Vec<f32>>();
        let (hidden, outputs) = (row(), (0..num_targets).map(|_| row()).collect::<Vec<_>>());
        let rows = Rows::zeros(num_targets, columns);
        for (number, output) in outputs.iter().enumerate() {
            for (place, chunk) in chunks(output).into_iter().enumerate() {
                rows.row(number as u32).store(place, chunk);
            }
        }
        let label = |target| f32::from(u8::from(target == 0));
        let targets: Vec<_> = (0..num_targets as u32)
            .map(|target| Target { output: rows.row(target), label: label(target) })
            .collect();
        let mut error = vec![Chunk([f32::NAN; LANES]); columns.div_ceil(LANES)];
        let hidden_chunks = chunks(&hidden);
        let work =
            Step { hidden: &hidden_chunks, error: &mut error, targets: &targets, alpha: 0.3 };
        dispatch(isa.found(), work);
        let mut found: Vec<f32> = error.iter().flat_map(|chunk| chunk.0).take(columns).collect();
        found.extend(rows.into_vec());

        let wide = |numbers: &Vec<f32>| numbers.iter().copied().map(f64::from).collect();
        let mut outputs: Vec<Vec<f64>> = outputs.iter().map(wide).collect();
        let mut expected = slowly(&wide(&hidden), &mut outputs, 0.3);
        expected.extend(outputs.concat());
        (found, expected)
    }

    fn chunks(numbers: &[f32]) -> Vec<Chunk> {
        let padded = |chunk: &[f32]| {
            Chunk(std::array::from_fn(|lane| chunk.get(lane).copied().unwrap_or_default()))
        };
        numbers.chunks(LANES).map(padded).collect()
    }

    #[test]
    fn a_step_follows_the_formulas_and_is_the_same_on_every_processor() {
        for seed in 0..100 {
            let (found, expected) = stepped(Isa::Portable, seed);
            for (found, expected) in found.iter().zip(expected) {
                // The table of the sigmoid has steps of 0.012.
                assert!((f64::from(*found) - expected).abs() < 0.02, "{seed}: {found} {expected}");
            }
            for isa in Isa::available() {
                let bits = |numbers: Vec<f32>| numbers.into_iter().map(f32::to_bits).collect();
                let same: Vec<u32> = bits(stepped(isa, seed).0);
                assert_eq!(same, bits(found.clone()), "{isa:?}");
            }
        }
    }

    #[test]
    fn the_sigmoid_is_right_to_a_step_of_its_table_and_ends_at_0_and_1() {
        let sigmoid = Sigmoid::new();
        for thousandth in -7_000_i16..7_000 {
            let x = f32::from(thousandth) / 1_000.0;
            let expected = 1.0 / (1.0 + (-x).exp());
            assert!((sigmoid.at(x) - expected).abs() < 0.0031, "{x}");
        }
        let ends = [-6.0, 6.0, f32::INFINITY].map(|x| sigmoid.at(x).to_bits());
        assert_eq!(ends, [0.0, 1.0, 1.0].map(f32::to_bits));
        assert!(sigmoid.at(f32::NAN) < 0.1, "it has some value");
    }
}
