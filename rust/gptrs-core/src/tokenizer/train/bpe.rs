//! Learning a byte-pair encoding: counted words -> merges, the most frequent pair first.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::pairs::Pairs;
use super::places::Places;
use super::queue::Queue;
use super::words::WordCounts;
use crate::Error;
use crate::tokenizer::cuts::parts;
use crate::tokenizer::description::{Description, MAX_IDS, Model};
use crate::tokenizer::special::segments;

/// At least how much text a thread counts at a time: a millisecond's work.
const PART_BYTES: usize = 1 << 18;

/// Learns a byte-pair encoding from texts.
///
/// ```
/// use gptrs_core::{Error, tokenizer::description::Model, tokenizer::train::BpeTrainer};
///
/// let mut trainer = BpeTrainer::new(259, vec!["<|endoftext|>".to_owned()], 1)?;
/// trainer.add("hug hugs<|endoftext|>hugging", &mut || Ok::<_, Error>(()))?;
/// let tokenizer = trainer.learn(&mut |_| Ok::<_, Error>(()))?;
/// let merges = vec![(71, 84), (256, 70)]; // h + u, hu + g: 0 is the byte "!"
/// assert_eq!(tokenizer.model, Model::Bpe { merges });
/// # Ok::<(), Error>(())
/// ```
#[derive(Debug)]
pub struct BpeTrainer {
    /// What is learned: with no merges yet.
    description: Description,
    vocab_size: usize,
    /// What each thread has counted.
    words: Vec<WordCounts>,
}

impl BpeTrainer {
    /// `vocab_size` counts the 256 bytes and the special tokens too. Special tokens that are
    /// written in a text end a segment, and are not learned from. What is learned does not depend
    /// on the number of threads.
    ///
    /// # Errors
    /// `Error::VocabSize`: `vocab_size` has no room for the bytes and the special tokens, or is
    /// over 65,536. `Error::TokenizerDescription`: these are no special tokens.
    pub fn new(
        vocab_size: usize,
        special_tokens: Vec<String>,
        num_threads: usize,
    ) -> Result<Self, Error> {
        let description = Description { model: Model::Bpe { merges: Vec::new() }, special_tokens };
        description.check()?;
        let least = description.num_ids();
        if !(least..=MAX_IDS).contains(&vocab_size) {
            return Err(Error::VocabSize { found: vocab_size, least, most: MAX_IDS });
        }
        Ok(Self {
            description,
            vocab_size,
            words: (0..num_threads.max(1)).map(|_| WordCounts::default()).collect(),
        })
    }

    /// Counts the words of `text`, with all threads if it is long.
    ///
    /// A text may come in parts that are cut before whitespace that follows anything else. Calls
    /// `check` every few milliseconds: an error that it returns ends the work.
    pub fn add<E>(
        &mut self,
        text: &str,
        check: &mut impl FnMut() -> Result<(), E>,
    ) -> Result<(), E> {
        let parts: Vec<&str> = parts(text, PART_BYTES).collect();
        let (next, stopped) = (AtomicUsize::new(0), AtomicBool::new(false));
        let next_part = || parts.get(next.fetch_add(1, Ordering::Relaxed));
        let special_tokens = &self.description.special_tokens;
        let count = |words: &mut WordCounts, part| {
            segments(part, special_tokens).for_each(|(_, segment, _)| words.add(segment));
        };
        let (ours, theirs) = self.words.split_at_mut(1);
        std::thread::scope(|scope| {
            for words in theirs.iter_mut().take(parts.len().saturating_sub(1)) {
                let (next_part, stopped, count) = (&next_part, &stopped, &count);
                scope.spawn(move || {
                    while !stopped.load(Ordering::Relaxed)
                        && let Some(part) = next_part()
                    {
                        count(words, part);
                    }
                });
            }
            while let Some(part) = next_part() {
                count(&mut ours[0], part);
                check().inspect_err(|_| stopped.store(true, Ordering::Relaxed))?;
            }
            Ok(())
        })
    }

    /// Merges the most frequent pair, again and again. A pair counts at every place where it
    /// stands, overlapping ones too ("aaa" has two); of equally frequent pairs that of the lowest
    /// left id comes first, then that of the lowest right id.
    ///
    /// Calls `check` every few milliseconds, with the number of merges so far: an error that it
    /// returns ends the work.
    ///
    /// # Errors
    /// `Error::TooFewPairs`: every word is one token before there are `vocab_size` ids.
    /// `Error::TooManyWords`: the distinct words have over 2 GiB.
    pub fn learn<E: From<Error>>(
        self,
        check: &mut impl FnMut(usize) -> Result<(), E>,
    ) -> Result<Description, E> {
        let Self { mut description, vocab_size, words, .. } = self;
        let num_merges = vocab_size - description.num_ids();
        let mut pairs = Pairs::new(place(words, &mut || check(0))?, check)?;
        let (mut queue, mut num_queued) = (Queue::new(), 0);
        let mut merges = Vec::with_capacity(num_merges);
        while merges.len() < num_merges {
            (num_queued..pairs.len()).for_each(|pair| queue.push(pair as u32, &pairs));
            num_queued = pairs.len();
            let Some(pair) = queue.pop(&mut pairs, check)? else {
                let found = vocab_size - num_merges + merges.len();
                return Err(Error::TooFewPairs { asked: vocab_size, found }.into());
            };
            merges.push((pairs.get(pair).left, pairs.get(pair).right));
            // The last merge makes no pairs that are needed, and has no id but `END`'s, perhaps.
            if merges.len() < num_merges {
                pairs.merge(pair, check)?;
            }
        }
        description.model = Model::Bpe { merges };
        Ok(description)
    }
}

/// Lays out the words that any thread has counted.
fn place<E: From<Error>>(
    counted: Vec<WordCounts>,
    check: &mut impl FnMut() -> Result<(), E>,
) -> Result<Places, E> {
    let mut counted = counted.into_iter();
    let mut words = counted.next().unwrap_or_default();
    for others in counted {
        words.absorb(others, check)?;
    }
    Places::new(&words, check)
}
