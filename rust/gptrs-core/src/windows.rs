//! Sliding windows: where each (input, target) pair starts. Keeps no index and copies only on request.
//!
//! ```text
//! tokens   0 1 2 3 4 5     length 4, stride 1
//! input 0  0 1 2 3         target 0    1 2 3 4
//! input 1    1 2 3 4       target 1      2 3 4 5
//! ```
//!
//! ```
//! let windows = gptrs_core::Windows::new(6, 4, 1)?;
//! assert_eq!(windows.len(), 2);
//! let (mut inputs, mut targets) = ([0; 4], [0; 4]);
//! windows.fill(&[0_u16, 1, 2, 3, 4, 5], &[1], &mut inputs, &mut targets)?;
//! assert_eq!((inputs, targets), ([1, 2, 3, 4], [2, 3, 4, 5]));
//! # Ok::<(), gptrs_core::Error>(())
//! ```

mod documents;

pub use documents::{DocumentWindows, ForEachBoundary};

use crate::{Error, Result};

/// The windows of a stream of tokens, by arithmetic alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Windows {
    num_tokens: usize,
    length: usize,
    stride: usize,
}

impl Windows {
    /// Windows of `length` tokens over a stream of `num_tokens`, each `stride` after the one before.
    pub fn new(num_tokens: usize, length: i64, stride: i64) -> Result<Self> {
        match (usize::try_from(length), usize::try_from(stride)) {
            (Ok(length @ 1..), Ok(stride @ 1..)) => Ok(Self { num_tokens, length, stride }),
            _ => Err(Error::EmptyWindow { length, stride }),
        }
    }

    /// How many windows there are: the book's `len(range(0, num_tokens - length, stride))`.
    ///
    /// The last token of the stream is only ever a target, so a stream of exactly `length` has none.
    pub fn len(&self) -> usize {
        self.num_tokens.saturating_sub(self.length).div_ceil(self.stride)
    }

    /// Whether the stream is too short for a single window.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where window `index` starts in the stream; -1 is the last window, as in a Python list.
    pub fn start(&self, index: i64) -> Result<usize> {
        let len = self.len();
        let from_start = if index < 0 { index.wrapping_add(len as i64) } else { index };
        match usize::try_from(from_start) {
            Ok(i) if i < len => Ok(i * self.stride),
            _ => Err(Error::WindowOutOfRange { index, len }),
        }
    }

    /// Copies the windows `indices` into `inputs` and their targets into `targets`, row by row.
    ///
    /// `tokens` is the whole stream; `inputs` and `targets` hold `indices.len() * length` ids.
    /// On an error nothing was written.
    pub fn fill<T: Copy + Into<i64>>(
        &self,
        tokens: &[T],
        indices: &[i64],
        inputs: &mut [i64],
        targets: &mut [i64],
    ) -> Result<()> {
        check_len("tokens", tokens.len(), self.num_tokens)?;
        self.fill_rows(indices, inputs, targets, |start, input, target| {
            let window = &tokens[start..][..=self.length];
            widen(&window[..self.length], input);
            widen(&window[1..], target);
            Ok(())
        })
    }

    /// Calls `fill_row` with each window's start, and with the rows for its tokens and its targets.
    ///
    /// If an index is bad or a buffer's length is wrong, it is not called at all.
    pub fn fill_rows(
        &self,
        indices: &[i64],
        inputs: &mut [i64],
        targets: &mut [i64],
        mut fill_row: impl FnMut(usize, &mut [i64], &mut [i64]) -> Result<()>,
    ) -> Result<()> {
        check_len("inputs", inputs.len(), indices.len() * self.length)?;
        check_len("targets", targets.len(), indices.len() * self.length)?;
        for &index in indices {
            self.start(index)?;
        }
        let rows = inputs.chunks_exact_mut(self.length).zip(targets.chunks_exact_mut(self.length));
        for (&index, (input, target)) in indices.iter().zip(rows) {
            fill_row(self.start(index)?, input, target)?;
        }
        Ok(())
    }

    /// How many tokens are in no window, neither as input nor as target.
    pub fn dropped_tokens(&self) -> usize {
        // A window and its last target; a longer stride leaves gaps.
        let span = self.length.saturating_add(1);
        let seen = match self.len() {
            0 => 0,
            len if self.stride >= span => len * span,
            len => (len - 1) * self.stride + span,
        };
        self.num_tokens - seen
    }
}

fn widen<T: Copy + Into<i64>>(from: &[T], to: &mut [i64]) {
    for (to, &from) in to.iter_mut().zip(from) {
        *to = from.into();
    }
}

fn check_len(what: &'static str, found: usize, expected: usize) -> Result<()> {
    if found == expected { Ok(()) } else { Err(Error::WrongLength { what, found, expected }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_token_is_dropped_if_no_window_has_it(
            n in 0_usize..200, length in 1_i64..40, stride in 1_i64..80,
        ) {
            let windows = Windows::new(n, length, stride)?;
            let mut is_seen = vec![false; n];
            for index in 0..windows.len() {
                let start = windows.start(index as i64)?;
                is_seen[start..=start + length as usize].fill(true);
            }
            let dropped = is_seen.iter().filter(|is_seen| !*is_seen).count();
            prop_assert_eq!(windows.dropped_tokens(), dropped);
        }

        #[test]
        fn there_are_as_many_windows_as_the_books_range_has_steps(
            n in 0_i64..300, length in 1_i64..64, stride in 1_i64..64,
        ) {
            let steps = (0..n - length).step_by(stride as usize).count();
            prop_assert_eq!(Windows::new(n as usize, length, stride)?.len(), steps);
        }

        #[test]
        fn a_target_is_its_input_one_token_later(
            n in 2_u32..300, length in 1_i64..64, stride in 1_i64..64,
        ) {
            let tokens: Vec<u32> = (0..n).map(|t| t * 7919).collect();
            let windows = Windows::new(tokens.len(), length, stride)?;
            let size = length as usize;
            for index in 0..windows.len() {
                let (mut inputs, mut targets) = (vec![0; size], vec![0; size]);
                windows.fill(&tokens, &[index as i64], &mut inputs, &mut targets)?;
                for j in 0..size {
                    let at = index * stride as usize + j;
                    prop_assert_eq!(inputs[j], i64::from(tokens[at]));
                    prop_assert_eq!(targets[j], i64::from(tokens[at + 1]));
                }
            }
        }
    }

    #[test]
    fn a_bad_index_writes_nothing() {
        let windows = Windows::new(6, 4, 1).unwrap();
        let (mut inputs, mut targets) = ([-1; 8], [-1; 8]);
        let error = windows.fill(&[0_u16; 6], &[0, 2], &mut inputs, &mut targets).unwrap_err();
        assert_eq!(error.to_string(), "window 2 is out of range: there are 2 windows");
        assert_eq!((inputs, targets), ([-1; 8], [-1; 8]));
    }

    #[test]
    fn negative_indices_count_from_the_end() {
        let windows = Windows::new(6, 4, 1).unwrap();
        assert_eq!((windows.start(-1), windows.start(-2)), (Ok(1), Ok(0)));
        assert_eq!(windows.start(-3), Err(Error::WindowOutOfRange { index: -3, len: 2 }));
        assert!(windows.start(i64::MIN).is_err());
    }

    #[test]
    fn a_window_of_no_tokens_is_refused() {
        assert_eq!(Windows::new(6, -1, 1), Err(Error::EmptyWindow { length: -1, stride: 1 }));
        assert_eq!(Windows::new(6, 4, 0), Err(Error::EmptyWindow { length: 4, stride: 0 }));
    }
}
