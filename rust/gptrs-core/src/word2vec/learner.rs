//! Sentences to steps: which words are left out, and which predict which.
//!
//! ```text
//! sentence      the quick brown fox jumps over the lazy dog
//! sampled           quick brown fox jumps over     lazy dog       frequent words are often left out
//! window of 2             ╰───┤ fox ├───╯                         a random size of up to `window`
//! skip-gram     brown ─► fox, quick ─► fox, jumps ─► fox, …       a step each
//! CBOW          (quick + brown + jumps + over) / 4 ─► fox         one step
//! ```

use bytemuck::Zeroable;

use super::kernel::{self, Scratch, Sigmoid, Target};
use super::negatives::Negatives;
use super::random::SplitMix64;
use super::rows::{Chunk, Rows};
use super::{Algorithm, Settings};
use crate::tokenizer::simd::{Simd, Work};

/// What all threads share.
pub struct Model {
    /// The vectors that are asked for: float32 [words, vector_size].
    pub input: Rows,
    /// Those that words are predicted with.
    pub output: Rows,
    negatives: Negatives,
    sigmoid: Sigmoid,
    /// Of 2^32 random numbers, how many keep the word in a sentence.
    keep: Vec<u32>,
    algorithm: Algorithm,
    window: u32,
    negative: usize,
}

impl Model {
    /// For words that occur so often.
    pub fn new(counts: &[u64], settings: &Settings) -> Self {
        let input = Rows::zeros(counts.len(), settings.vector_size);
        for word in 0..counts.len() as u32 {
            let mut random = SplitMix64::new(settings.seed, [u64::from(word), INITIAL]);
            let mut columns = 0..settings.vector_size;
            for place in 0..input.width() {
                let lanes = std::array::from_fn(|_| {
                    let size = settings.vector_size as f32;
                    columns.next().map_or(0.0, |_| (random.uniform() - 0.5) / size)
                });
                input.row(word).store(place, Chunk(lanes));
            }
        }
        Self {
            input,
            output: Rows::zeros(counts.len(), settings.vector_size),
            negatives: Negatives::new(counts),
            sigmoid: Sigmoid::new(),
            keep: keep(counts, settings.sample),
            algorithm: settings.algorithm,
            window: settings.window as u32,
            negative: settings.negative,
        }
    }
}

/// The epoch of the random numbers that vectors start with: no epoch has it.
const INITIAL: u64 = u64::MAX;

/// How many of 2^32 random numbers keep each word, by word2vec.c's formula; all, if `sample` is 0.
fn keep(counts: &[u64], sample: f64) -> Vec<u32> {
    let total: u64 = counts.iter().sum();
    let share = |&count: &u64| {
        let frequent = sample * total as f64 / count as f64;
        if sample == 0.0 { 1.0 } else { frequent.sqrt() + frequent }
    };
    counts.iter().map(|count| (share(count) * 2_f64.powi(32)) as u32).collect()
}

/// One thread's part: its random numbers and its buffers.
pub struct Learner<'m> {
    model: &'m Model,
    random: SplitMix64,
    sentence: Vec<u32>,
    hidden: Vec<Chunk>,
    error: Vec<Chunk>,
    /// Drawn for the next step, so that the memory has time to bring them.
    drawn: Vec<u32>,
    targets: Vec<Target<'m>>,
    scratch: Scratch,
}

impl<'m> Learner<'m> {
    pub fn new(model: &'m Model) -> Self {
        let chunks = vec![Chunk::zeroed(); model.input.width()];
        Self {
            model,
            random: SplitMix64::new(0, [0, 0]),
            sentence: Vec::new(),
            hidden: chunks.clone(),
            error: chunks,
            drawn: Vec::new(),
            targets: Vec::new(),
            scratch: Scratch::default(),
        }
    }

    /// Starts other random numbers.
    pub fn reseed(&mut self, random: SplitMix64) {
        self.random = random;
        self.drawn.clear();
        self.draw();
    }

    #[inline(always)]
    fn draw(&mut self) {
        for _ in 0..self.model.negative {
            let word = self.model.negatives.draw(&mut self.random);
            self.model.output.prefetch(word);
            self.drawn.push(word);
        }
    }

    /// Takes a sentence to learn from, less what of it is left out, and returns its length.
    pub fn take(&mut self, words: &[u32]) -> usize {
        self.sentence.clear();
        for &word in words {
            let keep = self.model.keep[word as usize];
            if keep == u32::MAX || self.random.next() >> 32 < u64::from(keep) {
                self.sentence.push(word);
            }
        }
        self.sentence.len()
    }

    /// Learns to predict the sentence's words in `range`.
    #[inline(always)]
    fn learn(&mut self, range: std::ops::Range<usize>, alpha: f32) {
        for place in range {
            let size = 1 + self.random.below(self.model.window) as usize;
            let start = place.saturating_sub(size);
            let end = self.sentence.len().min(place + size + 1);
            if let Some(&next) = self.sentence.get(place + 1) {
                self.model.output.prefetch(next);
            }
            match self.model.algorithm {
                Algorithm::SkipGram => self.skip_gram(start, place, end, alpha),
                Algorithm::Cbow { mean } => self.cbow(start, place, end, alpha, mean),
            }
        }
    }

    #[inline(always)]
    fn skip_gram(&mut self, start: usize, place: usize, end: usize, alpha: f32) {
        for context in (start..end).filter(|&context| context != place) {
            let row = self.model.input.row(self.sentence[context]);
            for (place, hidden) in self.hidden.iter_mut().enumerate() {
                *hidden = row.load(place);
            }
            self.step(self.sentence[place], alpha);
            kernel::add(row, &self.error);
        }
    }

    #[inline(always)]
    fn cbow(&mut self, start: usize, place: usize, end: usize, alpha: f32, mean: bool) {
        let contexts = end - start - 1;
        if contexts == 0 {
            return;
        }
        self.hidden.fill(Chunk::zeroed());
        for context in (start..end).filter(|&context| context != place) {
            kernel::add_to(&mut self.hidden, self.model.input.row(self.sentence[context]));
        }
        let share = 1.0 / contexts as f32;
        if mean {
            kernel::scale(&mut self.hidden, share);
        }
        self.step(self.sentence[place], alpha);
        if !mean {
            // As in gensim. A mean's error goes whole to each word, as in word2vec.c.
            kernel::scale(&mut self.error, share);
        }
        for context in (start..end).filter(|&context| context != place) {
            kernel::add(self.model.input.row(self.sentence[context]), &self.error);
        }
    }

    /// Predicts `word` from `hidden`, and tells it from negatives.
    #[inline(always)]
    fn step(&mut self, word: u32, alpha: f32) {
        let output = &self.model.output;
        self.targets.clear();
        self.targets.push(Target { output: output.row(word), label: 1.0 });
        for drawn in self.drawn.drain(..).filter(|&drawn| drawn != word) {
            self.targets.push(Target { output: output.row(drawn), label: 0.0 });
        }
        self.draw();
        let (hidden, error) = (&self.hidden, &mut self.error);
        let (targets, scratch) = (&self.targets, &mut self.scratch);
        kernel::step(hidden, error, targets, scratch, &self.model.sigmoid, alpha);
    }
}

/// Lets a learner predict some of its sentence's words.
pub struct Learn<'a, 'm> {
    pub learner: &'a mut Learner<'m>,
    pub range: std::ops::Range<usize>,
    pub alpha: f32,
}

impl Work for Learn<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run(self, _: impl Simd) {
        self.learner.learn(self.range, self.alpha);
    }
}
