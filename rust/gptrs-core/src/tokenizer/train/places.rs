//! The distinct words one after another, as ids: a place for every byte.
//!
//! ```text
//!   END  ␣  t  h  e  END  ␣  o  f  END  …  END  ␣  z  q  x  END
//!   └ the most frequent word                └ those that stand in the text once
//! ```
//!
//! Words with the same count stand together, so that a place tells its word's count.

use std::collections::BTreeMap;

use super::words::WordCounts;
use crate::Error;
use crate::tokenizer::vocab::byte_id;

/// No token: what stands around every word. The last id that there can be is never written,
/// because no merge follows the one that makes it.
pub const END: u16 = u16::MAX;

/// Half of what a `u32` counts: a place gets at most two pairs, and pairs have numbers too.
const MOST_PLACES: usize = 1 << 31;

/// Where the words lie.
#[derive(Debug)]
pub struct Places {
    /// The words' bytes, as ids, and `END` around each.
    pub ids: Vec<u16>,
    /// For each count that words have: the place after the last of them, and the count.
    pub runs: Vec<(u32, u64)>,
}

impl Places {
    /// # Errors
    /// `Error::TooManyWords`: there are over 2 GiB of them.
    pub fn new<E: From<Error>>(
        words: &WordCounts,
        check: &mut impl FnMut() -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut sizes = BTreeMap::new();
        words.visit(check, |word, count| *sizes.entry(count).or_default() += word.len() + 1)?;
        let num_places = 1 + sizes.values().sum::<usize>();
        if num_places > MOST_PLACES {
            return Err(Error::TooManyWords { found: num_places, most: MOST_PLACES }.into());
        }

        // The starts of the counts' runs, which move to their ends as the words are written.
        let mut next = 1;
        let mut cursors = sizes;
        for cursor in cursors.values_mut().rev() {
            next += std::mem::replace(cursor, next);
        }
        let mut ids = filled(END, num_places, check)?;
        words.visit(check, |word, count| {
            if let Some(cursor) = cursors.get_mut(&count) {
                for (id, byte) in ids[*cursor..].iter_mut().zip(word) {
                    *id = byte_id(*byte);
                }
                *cursor += word.len() + 1;
            }
        })?;
        let runs = cursors.into_iter().rev().map(|(count, end)| (end as u32, count)).collect();
        Ok(Self { ids, runs })
    }
}

/// `len` times `value`. The first write to so much memory takes time too.
pub fn filled<T: Copy, E>(
    value: T,
    len: usize,
    check: &mut impl FnMut() -> Result<(), E>,
) -> Result<Vec<T>, E> {
    let mut values = Vec::with_capacity(len);
    while values.len() < len {
        check()?;
        values.resize(len.min(values.len() + (1 << 20)), value);
    }
    Ok(values)
}
