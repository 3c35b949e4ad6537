//! Which words have a vector: those that occur often enough, the most frequent first.

use std::sync::atomic::{AtomicU64, Ordering};

use super::corpus::{Corpus, Parts, Sentence, Units};
use super::word_table::WordTable;
use super::words::WordSplitter;
use super::{Progress, Settings};
use crate::tokenizer::Check;
use crate::{Error, Result, threads};

/// The row of what has none.
const NO_ROW: u32 = u32::MAX;

/// When a thread has counted so many distinct words, it forgets the rarest: some 300 MB.
const MOST_DISTINCT: usize = 1 << 22;

/// Words, or ids of tokens, and how often each occurs.
#[derive(Debug)]
pub struct Vocabulary {
    words: Words,
    counts: Vec<u64>,
}

/// What has a row, in the rows' order.
#[derive(Debug)]
pub enum Words {
    /// Words of text.
    Text(WordTable),
    /// Ids of tokens, and every id's row.
    Ids(Vec<u32>, Vec<u32>),
}

impl Vocabulary {
    /// Counts a corpus. Words of equal counts are sorted.
    ///
    /// # Errors
    /// `Error::EmptyVocabulary`. `Error::Setting`: a pattern matched a word with whitespace in it.
    /// Those of all that reads, and of `check`.
    pub fn count(
        corpus: &Corpus,
        settings: &Settings,
        progress: &Progress,
        check: Check<'_>,
    ) -> Result<Self> {
        progress.to_count.store(corpus.size(), Ordering::Relaxed);
        let parts = Parts::new(corpus, 1);
        let job = |(): &mut (), _: usize, check: Check<'_>| {
            count_parts(corpus, &parts, &progress.counted, check).inspect_err(|_| parts.stop())
        };
        let counts = threads::in_order(settings.threads, settings.threads, &|| (), &job, check)?;
        let mut counts = counts.into_iter();
        let mut all = counts.next().unwrap_or(Counts::Ids(Vec::new()));
        counts.for_each(|counts| all.add(counts));
        match all {
            Counts::Text(words, counts) => Self::of_text(&words, &counts, settings),
            Counts::Ids(counts) => Self::of_ids(&counts, settings),
        }
    }

    fn of_text(words: &WordTable, counts: &[u64], settings: &Settings) -> Result<Self> {
        let by_count = frequent(counts, settings, |a, b| words.word(a).cmp(words.word(b)))?;
        let mut sorted = WordTable::default();
        for &number in &by_count {
            let word = words.word(number);
            if word.contains(char::is_whitespace) {
                return Err(Error::Setting(format!(
                    "a word may have no whitespace in it, and the pattern found {word:?}"
                )));
            }
            sorted.insert(word);
        }
        let counts = by_count.iter().map(|&number| counts[number]).collect();
        Ok(Self { words: Words::Text(sorted), counts })
    }

    fn of_ids(counts: &[u64], settings: &Settings) -> Result<Self> {
        let by_count = frequent(counts, settings, |a, b| a.cmp(&b))?;
        let mut rows = vec![NO_ROW; counts.len()];
        by_count.iter().enumerate().for_each(|(row, &id)| rows[id] = row as u32);
        let counts = by_count.iter().map(|&id| counts[id]).collect();
        let ids = by_count.iter().map(|&id| id as u32).collect();
        Ok(Self { words: Words::Ids(ids, rows), counts })
    }

    /// How often each occurs, the most frequent first.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// The words, in the order of their rows; `None` if they are ids.
    pub fn words(&self) -> Option<impl Iterator<Item = &str>> {
        if let Words::Text(words) = &self.words { Some(words.iter()) } else { None }
    }

    /// The ids, in the order of their rows; `None` if they are words.
    pub fn ids(&self) -> Option<&[u32]> {
        if let Words::Ids(ids, _) = &self.words { Some(ids) } else { None }
    }

    /// Puts the rows of a sentence's words into `rows`; those that have none are left out.
    pub fn rows(&self, sentence: Sentence<'_>, units: &Units, rows: &mut Vec<u32>) {
        rows.clear();
        match (sentence, &self.words, units) {
            (Sentence::Text(text), Words::Text(words), Units::Words(splitter)) => {
                splitter.for_each(text, &mut |word| rows.extend(words.find(word)));
            }
            (Sentence::Ids(ids), Words::Ids(_, row_of), _) => {
                let found = ids.iter().filter_map(|&id| row_of.get(id as usize).copied());
                rows.extend(found.filter(|&row| row != NO_ROW));
            }
            _ => {} // A sentence of another corpus.
        }
    }
}

/// The numbers of what occurs often enough, the most frequent first.
fn frequent(
    counts: &[u64],
    settings: &Settings,
    order: impl Fn(usize, usize) -> std::cmp::Ordering,
) -> Result<Vec<usize>> {
    let least = settings.min_count.max(1);
    let mut found: Vec<usize> = (0..counts.len()).filter(|&i| counts[i] >= least).collect();
    found.sort_unstable_by(|&a, &b| counts[b].cmp(&counts[a]).then_with(|| order(a, b)));
    found.truncate(settings.max_vocab.unwrap_or(usize::MAX));
    if found.is_empty() {
        return Err(Error::EmptyVocabulary {
            min_count: least,
            distinct: counts.iter().filter(|&&count| count > 0).count(),
            most: counts.iter().copied().max().unwrap_or_default(),
        });
    }
    Ok(found)
}

/// What one thread has counted.
enum Counts {
    Text(WordTable, Vec<u64>),
    /// By id.
    Ids(Vec<u64>),
}

fn count_parts(
    corpus: &Corpus,
    parts: &Parts<'_>,
    counted: &AtomicU64,
    check: Check<'_>,
) -> Result<Counts> {
    let mut counts = match corpus.units() {
        Units::Words(_) => Counts::Text(WordTable::default(), Vec::new()),
        Units::Tokens(tokenizer) => Counts::Ids(vec![0; tokenizer.n_vocab()]),
        Units::Ids { n_vocab } => Counts::Ids(vec![0; *n_vocab]),
    };
    let mut least = 1;
    while let Some(part) = parts.next(check)? {
        check()?;
        corpus.for_each_sentence(&part, check, &mut |sentence, _| {
            counts.count(&sentence, corpus.units());
            Ok(())
        })?;
        counts.forget_rarest(&mut least);
        counted.fetch_max(part.done, Ordering::Relaxed);
    }
    Ok(counts)
}

impl Counts {
    fn count(&mut self, sentence: &Sentence<'_>, units: &Units) {
        match (self, sentence, units) {
            (Self::Text(words, counts), Sentence::Text(text), Units::Words(splitter)) => {
                count_words(text, splitter, words, counts);
            }
            (Self::Ids(counts), Sentence::Ids(ids), _) => {
                for &id in *ids {
                    counts[id as usize] += 1; // A store's ids are checked when they are read.
                }
            }
            _ => {}
        }
    }

    /// Adds what another thread has counted.
    fn add(&mut self, other: Self) {
        match (self, other) {
            (Self::Text(words, counts), Self::Text(others, their_counts)) => {
                for (word, count) in others.iter().zip(their_counts) {
                    add_word(word, count, words, counts);
                }
            }
            (Self::Ids(counts), Self::Ids(others)) => {
                counts.iter_mut().zip(others).for_each(|(count, other)| *count += other);
            }
            _ => {}
        }
    }

    /// Makes room: words that were seen no more than `least` times go, and `least` grows, as in
    /// word2vec.c.
    fn forget_rarest(&mut self, least: &mut u64) {
        let Self::Text(words, counts) = self else { return };
        while words.len() > MOST_DISTINCT {
            let (mut kept, mut kept_counts) = (WordTable::default(), Vec::new());
            for (word, &count) in words.iter().zip(&*counts).filter(|(_, count)| **count > *least) {
                add_word(word, count, &mut kept, &mut kept_counts);
            }
            (*words, *counts) = (kept, kept_counts);
            *least += 1;
        }
    }
}

fn count_words(text: &str, splitter: &WordSplitter, words: &mut WordTable, counts: &mut Vec<u64>) {
    splitter.for_each(text, &mut |word| add_word(word, 1, words, counts));
}

fn add_word(word: &str, count: u64, words: &mut WordTable, counts: &mut Vec<u64>) {
    let number = words.insert(word) as usize;
    if number == counts.len() {
        counts.push(0);
    }
    counts[number] += count;
}
