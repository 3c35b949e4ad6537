//! All epochs, on all threads.

use std::sync::atomic::{AtomicU64, Ordering};

use super::corpus::{Corpus, Parts};
use super::learner::{Learn, Learner, Model};
use super::random::SplitMix64;
use super::vocabulary::Vocabulary;
use super::{Settings, Vectors};
use crate::tokenizer::Check;
use crate::tokenizer::simd::{Isa, dispatch};
use crate::{Result, threads};

/// After so many words, the learning rate is set anew and `check` is called: a few milliseconds.
const STEP_WORDS: usize = 500;

/// How far the training is, for those who watch.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes of files or tokens of a store that were counted, and all of them.
    pub counted: AtomicU64,
    /// See `counted`.
    pub to_count: AtomicU64,
    /// Words that were learned from, and all of them in all epochs; those without a vector are none.
    pub learned: AtomicU64,
    /// See `learned`.
    pub to_learn: AtomicU64,
}

/// Learns vectors. One thread with the same corpus, settings and seed gives the same vectors on every
/// machine; several threads give almost the same.
///
/// # Errors
/// `Error::Setting`; `Error::EmptyVocabulary`: no word occurs often enough. Those of all that reads,
/// and those of `check`.
pub fn train(
    corpus: &Corpus,
    settings: &Settings,
    progress: &Progress,
    check: Check<'_>,
) -> Result<Vectors> {
    settings.check()?;
    let vocabulary = Vocabulary::count(corpus, settings, progress, check)?;
    let to_learn = settings.epochs * vocabulary.counts().iter().sum::<u64>();
    progress.to_learn.store(to_learn, Ordering::Relaxed);
    let model = Model::new(vocabulary.counts(), settings);
    let parts = Parts::new(corpus, settings.epochs);
    let run = Run { corpus, settings, vocabulary: &vocabulary, parts: &parts, progress, to_learn };
    let job = |(): &mut (), _: usize, check: Check<'_>| {
        run.learn_parts(&model, check).inspect_err(|_| parts.stop())
    };
    threads::in_order(settings.threads, settings.threads, &|| (), &job, check)?;
    let numbers = model.input.into_vec();
    Ok(Vectors { vocabulary, numbers })
}

/// What the threads share, besides the model.
struct Run<'a> {
    corpus: &'a Corpus,
    settings: &'a Settings,
    vocabulary: &'a Vocabulary,
    parts: &'a Parts<'a>,
    progress: &'a Progress,
    to_learn: u64,
}

impl Run<'_> {
    /// One thread's work.
    fn learn_parts(&self, model: &Model, check: Check<'_>) -> Result<()> {
        let isa = Isa::best().found();
        let mut learner = Learner::new(model);
        let (mut rows, mut pending) = (Vec::new(), 0);
        let mut alpha = self.alpha();
        while let Some(part) = self.parts.next(check)? {
            learner.reseed(SplitMix64::new(self.settings.seed, [part.number, part.epoch]));
            self.corpus.for_each_sentence(&part, check, &mut |sentence, check| {
                self.vocabulary.rows(sentence, self.corpus.units(), &mut rows);
                let sampled = learner.take(&rows);
                let mut counted = 0;
                for start in (0..sampled).step_by(STEP_WORDS) {
                    let range = start..sampled.min(start + STEP_WORDS);
                    // Words that were left out count with those that were not.
                    let upto = rows.len() * range.end / sampled;
                    pending += upto - counted;
                    counted = upto;
                    dispatch(isa, Learn { learner: &mut learner, range, alpha });
                    if pending >= STEP_WORDS {
                        self.progress.learned.fetch_add(pending as u64, Ordering::Relaxed);
                        (pending, alpha) = (0, self.alpha());
                        check()?;
                    }
                }
                pending += rows.len() - counted;
                Ok(())
            })?;
        }
        self.progress.learned.fetch_add(pending as u64, Ordering::Relaxed);
        Ok(())
    }

    /// The learning rate, which falls evenly with what was learned.
    fn alpha(&self) -> f32 {
        let Settings { alpha, min_alpha, .. } = *self.settings;
        let learned = self.progress.learned.load(Ordering::Relaxed);
        let share = (learned as f64 / self.to_learn as f64).min(1.0) as f32;
        alpha - (alpha - min_alpha) * share
    }
}
