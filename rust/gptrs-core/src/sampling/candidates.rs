//! The tokens that are still in the running, and their weights.
//!
//! ```text
//! the whole row        ids: 0 1 2 3 4 …         nothing is copied
//!     │ keep
//! a list               ids: 7 12 402 …          what the first filter has left, ascending
//! ```

use super::Row;
use super::adjust::Logits;
use super::kernels::{BLOCK, Convert, Count, Distances, Find, MeanLog, Scan, Sum, TakeOff, Weigh};
use super::select::{Cut, Select};
use crate::tokenizer::simd::{Found, dispatch};
use crate::{Error, Result};

/// What is known of each candidate; kept from row to row, so that nothing is allocated.
#[derive(Debug, Default)]
pub struct Lists {
    /// Of no use while the whole row is in the running.
    pub ids: Vec<u32>,
    /// Of no use while they are read where the model left them.
    pub logits: Vec<f32>,
    pub weights: Vec<f32>,
    /// The sum of each block of weights.
    pub sums: Vec<f64>,
    /// What a filter ranks by, if not by the weights.
    pub scores: Vec<f32>,
}

/// Buffers without a meaning between two calls.
#[derive(Debug, Default)]
pub struct Scratch {
    /// The largest logit of each block, when a row starts.
    pub maxima: Vec<f32>,
    select: Select,
    found: Vec<u32>,
}

/// The tokens that may be drawn, by ascending id. Weights are proportional to probabilities; a token
/// without weight counts as gone.
pub struct Candidates<'a> {
    pub simd: Found,
    /// The model's logits, as long as they are all in the running and nothing was changed.
    row: Option<&'a [f32]>,
    /// Whether the whole row is in the running: candidate i is token i.
    is_whole: bool,
    pub lists: &'a mut Lists,
    pub scratch: &'a mut Scratch,
    /// The largest logit.
    pub largest: f32,
    /// 1 / temperature.
    pub scale: f32,
    weighed: bool,
}

/// Which values candidates are ranked by.
#[derive(Debug, Clone, Copy)]
pub enum By {
    Logit,
    Weight,
    Score,
}

impl<'a> Candidates<'a> {
    /// Takes a row in. It is copied only if it has to be converted or is to be changed.
    pub fn read(
        row: Row<'a>,
        is_changed: bool,
        simd: Found,
        lists: &'a mut Lists,
        scratch: &'a mut Scratch,
    ) -> Self {
        let logits = &mut lists.logits;
        let (mut in_place, mut is_whole) = (None, true);
        match row {
            Row::F32(row) if !is_changed => in_place = Some(row),
            Row::F32(row) => dispatch(simd, Convert { row, logits }),
            Row::Bf16(row) => dispatch(simd, Convert { row, logits }),
            Row::F16(row) => dispatch(simd, Convert { row, logits }),
            Row::Candidates { ids, values, .. } => {
                lists.read(ids, values);
                is_whole = false;
            }
        }
        let largest = f32::NEG_INFINITY;
        Self { simd, row: in_place, is_whole, lists, scratch, largest, scale: 1.0, weighed: false }
    }

    /// Looks for the largest logit.
    ///
    /// # Errors
    /// Error::BadLogit: NaN or +inf is among them.
    pub fn scan(&mut self) -> Result<()> {
        let logits = self.row.unwrap_or(&self.lists.logits);
        let maxima = &mut self.scratch.maxima;
        let has_nan = dispatch(self.simd, Scan { logits, maxima });
        self.largest = maxima.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if !has_nan && self.largest < f32::INFINITY {
            return Ok(());
        }
        let bad = logits.iter().position(|&logit| logit.is_nan() || logit == f32::INFINITY);
        let index = bad.unwrap_or_default();
        let value = if logits[index].is_nan() { "NaN" } else { "inf" };
        Err(Error::BadLogit { id: self.id(index), value })
    }

    /// What may be changed; the row was read so.
    pub fn logits_mut(&mut self) -> Logits<'_> {
        let Lists { ids, logits, .. } = &mut *self.lists;
        Logits { values: logits, ids: (!self.is_whole).then_some(ids) }
    }

    /// The lowest id whose logit is the largest. It has been looked for.
    #[expect(clippy::float_cmp, reason = "a tie is two equal values, not two close ones")]
    pub fn argmax(&self) -> u32 {
        let is_largest = |&value: &f32| value == self.largest;
        let first = self.scratch.maxima.iter().position(is_largest).unwrap_or_default() * BLOCK;
        let rest = &self.logits()[first..];
        self.id(first + rest.iter().position(is_largest).unwrap_or_default())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.logits().len()
    }

    /// Their logits.
    pub fn logits(&self) -> &[f32] {
        self.row.unwrap_or(&self.lists.logits)
    }

    /// The id of the candidate at an index.
    pub fn id(&self, index: usize) -> u32 {
        if self.is_whole { index as u32 } else { self.lists.ids[index] }
    }

    /// Where a token is among them.
    pub fn index_of(&self, id: u32) -> Option<usize> {
        if self.is_whole {
            Some(id as usize).filter(|&index| index < self.len())
        } else {
            self.lists.ids.binary_search(&id).ok()
        }
    }

    /// Computes the weights, which `lists` then has; the largest becomes 1.
    pub fn weigh(&mut self, temperature: f64) {
        // Neither infinite, also in units of log2(e), nor 0: so that 0 or -inf times it is not NaN.
        let [least, most] = [f32::MIN_POSITIVE, f32::MAX / 2.0].map(f64::from);
        let scale = (1.0 / temperature).clamp(least, most);
        self.scale = scale as f32;
        let Lists { weights, sums, logits, .. } = &mut *self.lists;
        let logits = self.row.unwrap_or(logits);
        let (largest, scale) = (self.largest, self.scale);
        dispatch(self.simd, Weigh { logits, largest, scale, weights, sums });
        self.weighed = true;
    }

    /// The sum of the weights.
    pub fn total(&self) -> f64 {
        self.lists.sums.iter().sum()
    }

    /// A weight that nobody needs who takes the heaviest to reach a share `p`: all that are lighter
    /// sum to less than 1 - p.
    pub fn never_needed(&self, p: f64) -> f32 {
        // The hundredth is for the rounding.
        (0.99 * (1.0 - p) * self.total() / self.len() as f64) as f32
    }

    /// The mean of (logit - largest) / temperature.
    pub fn mean_log(&self) -> f64 {
        let Self { largest, scale, .. } = *self;
        let (logits, weights) = (self.logits(), &self.lists.weights);
        dispatch(self.simd, MeanLog { logits, weights, largest, scale }) / self.total()
    }

    /// Scores by how close (logit - largest) / temperature is to `mean`.
    pub fn score_by_distance(&mut self, mean: f64) {
        let Self { largest, scale, .. } = *self;
        let Lists { logits, scores, .. } = &mut *self.lists;
        let logits = self.row.unwrap_or(logits);
        let mean = mean as f32;
        dispatch(self.simd, Distances { logits, largest, scale, mean, scores });
    }

    /// The `count`-th candidate from the top, if there are as many.
    pub fn reach_count(&mut self, by: By, count: usize) -> Option<Cut> {
        let values = self.lists.values(by, self.row);
        self.scratch.select.reach(self.simd, values, |_| 1.0, count as f64)
    }

    /// The first candidate from the top with which the weights sum to `wanted`, if they do.
    pub fn reach_weight(&mut self, by: By, wanted: f64) -> Option<Cut> {
        let values = self.lists.values(by, self.row);
        let weights = &self.lists.weights;
        self.scratch.select.reach(self.simd, values, |i| f64::from(weights[i]), wanted)
    }

    /// Drops what has less than `threshold`.
    pub fn keep_at_least(&mut self, by: By, threshold: f32) {
        if !self.weighed {
            return self.list(by, threshold);
        }
        let values = self.lists.values(by, self.row);
        let num_kept = dispatch(self.simd, Count { values, threshold });
        if num_kept == self.len() {
            return;
        }
        // To take the weight off some is faster than to make a list of all the others.
        if num_kept > self.len() / 2 {
            let Lists { weights, sums, logits, scores, .. } = &mut *self.lists;
            let scores = match by {
                By::Logit => Some(self.row.unwrap_or(logits)),
                By::Score => Some(scores.as_slice()),
                By::Weight => None,
            };
            dispatch(self.simd, TakeOff { weights, scores, threshold });
            dispatch(self.simd, Sum { weights, sums });
        } else {
            self.list(by, threshold);
        }
    }

    /// Makes a list of what has at least `threshold`, if that is less than half: a filter that will not
    /// need the others has fewer to look at.
    pub fn thin_out(&mut self, by: By, threshold: f32) {
        let values = self.lists.values(by, self.row);
        if dispatch(self.simd, Count { values, threshold }) < self.len() / 2 {
            self.list(by, threshold);
        }
    }

    /// Drops what is lighter than the cut, or as light and behind it.
    #[expect(clippy::float_cmp, reason = "a tie is two equal weights, not two close ones")]
    pub fn keep_heaviest(&mut self, cut: Cut) {
        if cut.ties_follow {
            for weight in &mut self.lists.weights[cut.last + 1..] {
                *weight = if *weight == cut.score { 0.0 } else { *weight };
            }
        }
        self.keep_at_least(By::Weight, cut.score);
    }

    /// Makes a list of what has at least `threshold`.
    fn list(&mut self, by: By, threshold: f32) {
        let values = self.lists.values(by, self.row);
        let found = &mut self.scratch.found;
        dispatch(self.simd, Find { values, from: threshold, below: f32::INFINITY, found });
        let found = &self.scratch.found;
        let Lists { ids, logits, weights, sums, .. } = &mut *self.lists;
        if std::mem::take(&mut self.is_whole) {
            ids.clone_from(found);
        } else {
            gather(ids, found);
        }
        if let Some(row) = self.row.take() {
            logits.clear();
            logits.extend(found.iter().map(|&i| row[i as usize]));
        } else {
            gather(logits, found);
        }
        if self.weighed {
            gather(weights, found);
            dispatch(self.simd, Sum { weights, sums });
        }
    }
}

impl Lists {
    /// Takes in what a device left over of a row, by ascending id.
    fn read(&mut self, ids: &[u32], values: &[f32]) {
        let len = ids.len().min(values.len());
        let (ids, values) = (&ids[..len], &values[..len]);
        self.logits.clear();
        self.ids.clear();
        if ids.is_sorted() {
            self.ids.extend_from_slice(ids);
            self.logits.extend_from_slice(values);
            return;
        }
        let mut pairs: Vec<_> = ids.iter().copied().zip(values.iter().copied()).collect();
        pairs.sort_unstable_by_key(|&(id, _)| id);
        (self.ids, self.logits) = pairs.into_iter().unzip();
    }

    fn values<'a>(&'a self, by: By, row: Option<&'a [f32]>) -> &'a [f32] {
        match by {
            By::Logit => row.unwrap_or(&self.logits),
            By::Weight => &self.weights,
            By::Score => &self.scores,
        }
    }
}

/// Moves the values at ascending indices to the front, and drops the others.
fn gather<T: Copy>(values: &mut Vec<T>, indices: &[u32]) {
    for (to, &from) in indices.iter().enumerate() {
        values[to] = values[from as usize];
    }
    values.truncate(indices.len());
}
