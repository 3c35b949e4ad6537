//! From a row of logits to a token: greedy, or temperature, top-k and top-p, then one draw by counter.
//!
//! ```text
//! logits ─► top-k ─► temperature ─► top-p ─► draw(seed, sequence, position) ─► token id
//! ```
//!
//! Top-k comes before the division by the temperature: the order of the values is the same either way,
//! and fewer of them are left to divide. Nothing is ever fully sorted.

use half::{bf16, f16};

use crate::philox::uniform;
use crate::{Error, Result};

/// How the next token is chosen. `None` switches a filter off.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplingConfig {
    /// Divides the logits; 0 takes the largest, the lowest id on a tie.
    pub temperature: f64,
    /// Keeps the k largest logits and whatever ties with the k-th.
    pub top_k: Option<usize>,
    /// Keeps the most probable tokens until their probabilities sum to this.
    pub top_p: Option<f64>,
}

impl SamplingConfig {
    /// Refuses settings outside their range.
    pub fn check(&self) -> Result<()> {
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return Err(Error::Temperature(self.temperature));
        }
        if self.top_k == Some(0) {
            return Err(Error::TopK(0));
        }
        match self.top_p {
            Some(p) if !(p > 0.0 && p <= 1.0) => Err(Error::TopP(p)),
            _ => Ok(()),
        }
    }
}

/// Which random number belongs to a token: the same one alone or in any batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draw {
    /// The caller's seed.
    pub seed: u64,
    /// The sequence's number in the batch.
    pub sequence: u64,
    /// The drawn token's index in prompt and output.
    pub position: u64,
}

/// The logits of one position.
#[derive(Debug, Clone, Copy)]
pub enum Row<'a> {
    /// One value a token of the vocabulary.
    F32(&'a [f32]),
    /// One value a token of the vocabulary.
    Bf16(&'a [bf16]),
    /// One value a token of the vocabulary.
    F16(&'a [f16]),
    /// What a device left over of the vocabulary; other tokens cannot be drawn.
    Candidates {
        /// Token ids, in any order.
        ids: &'a [u32],
        /// Their logits.
        values: &'a [f32],
        /// Natural logarithm of the sum of exp over the whole vocabulary.
        log_sum_exp: f32,
    },
}

/// Chooses tokens; keeps its buffers from row to row.
#[derive(Debug)]
pub struct Sampler {
    config: SamplingConfig,
    kept: Vec<Candidate>,
    order: Vec<Candidate>,
    values: Vec<f32>,
}

/// A token that is still in the running. `weight` is its logit first, its unnormalised probability later.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    id: u32,
    weight: f64,
}

impl Sampler {
    /// A sampler with these settings.
    pub fn new(config: SamplingConfig) -> Result<Self> {
        config.check()?;
        Ok(Self { config, kept: Vec::new(), order: Vec::new(), values: Vec::new() })
    }

    /// The next token's id.
    pub fn sample(&mut self, row: Row<'_>, draw: Draw) -> Result<u32> {
        match row {
            Row::F32(values) => self.sample_from(dense(values, |v| v), draw),
            Row::Bf16(values) => self.sample_from(dense(values, bf16::to_f32), draw),
            Row::F16(values) => self.sample_from(dense(values, f16::to_f32), draw),
            Row::Candidates { ids, values, .. } => {
                self.sample_from(ids.iter().copied().zip(values.iter().copied()), draw)
            }
        }
    }

    fn sample_from(
        &mut self,
        logits: impl Iterator<Item = (u32, f32)> + Clone,
        draw: Draw,
    ) -> Result<u32> {
        let (best_id, best) = largest(logits.clone())?;
        if self.config.temperature == 0.0 {
            return Ok(best_id);
        }
        self.keep_top_k(logits);
        self.weigh(best);
        self.keep_top_p();
        Ok(self.draw(uniform(draw.seed, draw.sequence, draw.position)))
    }

    /// Fills `kept` with the logits that may be drawn, in the order given.
    ///
    /// A threshold rises while the row streams past: whenever twice k candidates have piled up, the
    /// k-th of them becomes the threshold. Ties with it stay, so a flat row keeps everything.
    fn keep_top_k(&mut self, logits: impl Iterator<Item = (u32, f32)>) {
        self.kept.clear();
        let k = self.config.top_k.unwrap_or(usize::MAX);
        let mut full = k.saturating_mul(2).max(64);
        let mut threshold = f32::NEG_INFINITY;
        for (id, value) in logits {
            if value >= threshold && value > f32::NEG_INFINITY {
                self.kept.push(Candidate { id, weight: f64::from(value) });
                if self.kept.len() >= full {
                    threshold = self.drop_below_kth(k);
                    full = (self.kept.len() * 2).max(full);
                }
            }
        }
        if self.kept.len() > k {
            self.drop_below_kth(k);
        }
    }

    /// Drops the candidates below the k-th largest, and returns its value.
    fn drop_below_kth(&mut self, k: usize) -> f32 {
        self.values.clear();
        self.values.extend(self.kept.iter().map(|c| c.weight as f32));
        let (_, &mut kth, _) = self.values.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
        self.kept.retain(|c| c.weight >= f64::from(kth));
        kth
    }

    /// Turns logits into unnormalised probabilities; the largest becomes 1.
    fn weigh(&mut self, largest: f32) {
        for candidate in &mut self.kept {
            let above = candidate.weight - f64::from(largest);
            candidate.weight = (above / self.config.temperature).exp();
        }
    }

    /// Keeps the most probable candidates, lowest id first on a tie, up to the one that reaches `top_p`.
    fn keep_top_p(&mut self) {
        let Some(top_p) = self.config.top_p.filter(|&p| p < 1.0) else {
            return;
        };
        let wanted = top_p * self.kept.iter().map(|c| c.weight).sum::<f64>();
        self.order.clone_from(&self.kept);
        let last = last_of_nucleus(&mut self.order, wanted);
        self.kept.retain(|c| !more_probable(&last, c).is_lt());
    }

    fn draw(&self, uniform: f64) -> u32 {
        let target = uniform * self.kept.iter().map(|c| c.weight).sum::<f64>();
        let mut below = 0.0;
        for candidate in &self.kept {
            below += candidate.weight;
            if below > target {
                return candidate.id;
            }
        }
        // The sum above was rounded up past the last candidate: it is the last that has any weight.
        self.kept.iter().rfind(|c| c.weight > 0.0).map_or(0, |c| c.id)
    }
}

fn dense<'a, T: Copy>(
    values: &'a [T],
    to_f32: impl Fn(T) -> f32 + Copy + 'a,
) -> impl Iterator<Item = (u32, f32)> + Clone + 'a {
    values.iter().enumerate().map(move |(id, &value)| (id as u32, to_f32(value)))
}

/// The largest logit and its id, the lowest on a tie. NaN, +inf and rows of -inf alone are refused.
#[expect(clippy::float_cmp, reason = "a tie is two equal values, not two close ones")]
fn largest(logits: impl Iterator<Item = (u32, f32)>) -> Result<(u32, f32)> {
    let mut best = (u32::MAX, f32::NEG_INFINITY);
    for (id, value) in logits {
        if value.is_nan() || value == f32::INFINITY {
            return Err(Error::BadLogit { id, value: if value.is_nan() { "NaN" } else { "inf" } });
        }
        if value > best.1 || (value == best.1 && id < best.0 && value > f32::NEG_INFINITY) {
            best = (id, value);
        }
    }
    if best.1 == f32::NEG_INFINITY { Err(Error::NothingToDraw) } else { Ok(best) }
}

/// The order of a nucleus: by weight downwards, then by id.
fn more_probable(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.weight.total_cmp(&a.weight).then(a.id.cmp(&b.id))
}

/// The least probable candidate that is needed to reach `wanted`.
///
/// Sorts only as many as it needs: the largest 64, then eight times as many, and so on.
fn last_of_nucleus(candidates: &mut [Candidate], wanted: f64) -> Candidate {
    let mut sum = 0.0;
    let mut sorted = 0;
    let mut chunk = 64;
    loop {
        let rest = &mut candidates[sorted..];
        let size = chunk.min(rest.len());
        if size < rest.len() {
            rest.select_nth_unstable_by(size, more_probable);
        }
        rest[..size].sort_unstable_by(more_probable);
        for candidate in &rest[..size] {
            sum += candidate.weight;
            if sum >= wanted {
                return *candidate;
            }
        }
        if size == rest.len() {
            return rest[size - 1];
        }
        sorted += size;
        chunk *= 8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn config(temperature: f64, top_k: Option<usize>, top_p: Option<f64>) -> SamplingConfig {
        SamplingConfig { temperature, top_k, top_p }
    }

    fn ids_drawn(
        config: SamplingConfig,
        row: Row<'_>,
        draws: u64,
    ) -> std::collections::BTreeSet<u32> {
        let mut sampler = Sampler::new(config).unwrap();
        let draw = |position| Draw { seed: 7, sequence: 0, position };
        (0..draws).map(|position| sampler.sample(row, draw(position)).unwrap()).collect()
    }

    #[test]
    fn greedy_takes_the_lowest_id_on_a_tie() {
        let values = [0.0, 3.0, 3.0, -1.0];
        assert_eq!(ids_drawn(config(0.0, None, None), Row::F32(&values), 1), [1].into());
        let row = Row::Candidates { ids: &[9, 4], values: &[3.0, 3.0], log_sum_exp: 4.0 };
        assert_eq!(ids_drawn(config(0.0, None, None), row, 1), [4].into());
    }

    #[test]
    fn top_k_keeps_what_ties_with_the_kth() {
        let values = [1.0, 2.0, 1.0, 0.0, 1.0];
        assert_eq!(
            ids_drawn(config(1.0, Some(2), None), Row::F32(&values), 300),
            [0, 1, 2, 4].into()
        );
    }

    #[test]
    fn top_p_breaks_ties_by_the_lowest_id() {
        let values = [0.0; 4];
        assert_eq!(ids_drawn(config(1.0, None, Some(0.5)), Row::F32(&values), 200), [0, 1].into());
    }

    #[test]
    fn every_float_format_gives_the_same_tokens() {
        let values: Vec<f32> = (0..40_u16).map(|i| f32::from(i % 13) / 4.0).collect();
        let bf16: Vec<_> = values.iter().copied().map(bf16::from_f32).collect();
        let f16: Vec<_> = values.iter().copied().map(f16::from_f32).collect();
        let mut sampler = Sampler::new(config(0.9, Some(20), Some(0.9))).unwrap();
        for position in 0..50 {
            let draw = Draw { seed: 1, sequence: 2, position };
            let id = sampler.sample(Row::F32(&values), draw).unwrap();
            assert_eq!(sampler.sample(Row::Bf16(&bf16), draw).unwrap(), id);
            assert_eq!(sampler.sample(Row::F16(&f16), draw).unwrap(), id);
        }
    }

    #[test]
    fn bad_rows_and_settings_are_refused() {
        let mut sampler = Sampler::new(config(1.0, None, None)).unwrap();
        let draw = Draw { seed: 0, sequence: 0, position: 0 };
        for (row, message) in [
            (&[0.0, f32::NAN][..], "the logit of token id 1 is NaN"),
            (&[f32::INFINITY, 0.0], "the logit of token id 0 is inf"),
            (&[f32::NEG_INFINITY; 3], "no token can be drawn: every logit is -inf"),
        ] {
            assert_eq!(sampler.sample(Row::F32(row), draw).unwrap_err().to_string(), message);
        }
        assert!(Sampler::new(config(-0.1, None, None)).is_err());
        assert!(Sampler::new(config(f64::NAN, None, None)).is_err());
        assert!(Sampler::new(config(1.0, Some(0), None)).is_err());
        assert!(Sampler::new(config(1.0, None, Some(1.5))).is_err());
    }

    proptest! {
        #[test]
        fn only_the_k_largest_can_be_drawn(
            values in prop::collection::vec(-5_i8..5, 1..400), k in 1_usize..60, position in 0_u64..1000,
        ) {
            let row: Vec<f32> = values.iter().map(|&v| f32::from(v)).collect();
            let mut sorted = row.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let kth = sorted[k.min(sorted.len()) - 1];
            let mut sampler = Sampler::new(config(1.0, Some(k), None))?;
            let id = sampler.sample(Row::F32(&row), Draw { seed: 3, sequence: 1, position })?;
            prop_assert!(row[id as usize] >= kth);
            prop_assert_eq!(sampler.kept.len(), row.iter().filter(|&&v| v >= kth).count());
        }

        #[test]
        fn the_nucleus_is_what_a_full_sort_gives(
            values in prop::collection::vec(-40_i8..40, 1..900), p in 0.01_f64..1.0,
        ) {
            let mut kept: Vec<_> = values.iter().enumerate()
                .map(|(id, &v)| Candidate { id: id as u32, weight: (f64::from(v) / 20.0).exp() })
                .collect();
            let wanted = p * kept.iter().map(|c| c.weight).sum::<f64>();
            let mut sorted = kept.clone();
            sorted.sort_by(more_probable);
            let mut sum = 0.0;
            let last = sorted.iter().find(|c| { sum += c.weight; sum >= wanted }).or(sorted.last());
            prop_assert_eq!(last_of_nucleus(&mut kept, wanted).id, last.map_or(0, |c| c.id));
        }

        #[test]
        fn any_finite_row_gives_an_id_of_its_own(
            row in prop::collection::vec(-1e30_f32..1e30, 1..200),
            temperature in 1e-30_f64..1e30, k in 1_usize..300, p in 1e-9_f64..=1.0,
        ) {
            let mut sampler = Sampler::new(config(temperature, Some(k), Some(p)))?;
            let id = sampler.sample(Row::F32(&row), Draw { seed: 0, sequence: 0, position: 0 })?;
            prop_assert!((id as usize) < row.len());
        }
    }
}
