//! A model as the loop sees it.

use half::{bf16, f16};

use crate::sampling::Row;

/// What a model can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Token ids are below this.
    pub vocab_size: usize,
    /// The most tokens a slot holds.
    pub context_length: usize,
    /// How many sequences it holds at once.
    pub slots: usize,
}

/// One slot's share of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extend<'a> {
    /// Which sequence.
    pub slot: usize,
    /// Tokens to append: a whole prompt, or the newest token.
    pub tokens: &'a [u32],
    /// For how many of the last positions logits are wanted: 0 in the middle of a long prompt.
    pub wanted: usize,
}

/// The rows that the last [`NextLogits::extend`] asked for, one after the other.
#[derive(Debug, Clone, Copy)]
pub enum Logits<'a> {
    /// `[rows, width]`.
    F32(&'a [f32], usize),
    /// `[rows, width]`.
    Bf16(&'a [bf16], usize),
    /// `[rows, width]`.
    F16(&'a [f16], usize),
    /// Reduced where they were computed; see [`Row::Candidates`].
    Candidates {
        /// `[rows, width]` token ids.
        ids: &'a [u32],
        /// `[rows, width]` logits.
        values: &'a [f32],
        /// `[rows]`.
        log_sum_exp: &'a [f32],
        /// Candidates a row.
        width: usize,
    },
}

impl<'a> Logits<'a> {
    /// Row `index`. Panics past the last, as a slice does.
    pub fn row(&self, index: usize) -> Row<'a> {
        let span = |width: usize| index * width..(index + 1) * width;
        match *self {
            Self::F32(values, width) => Row::F32(&values[span(width)]),
            Self::Bf16(values, width) => Row::Bf16(&values[span(width)]),
            Self::F16(values, width) => Row::F16(&values[span(width)]),
            Self::Candidates { ids, values, log_sum_exp, width } => Row::Candidates {
                ids: &ids[span(width)],
                values: &values[span(width)],
                log_sum_exp: log_sum_exp[index],
            },
        }
    }
}

/// A model as the loop sees it: slots that take tokens and give logits.
pub trait NextLogits {
    /// What can go wrong in the model; the loop hands it on unchanged.
    type Error;

    /// What the model can hold.
    fn limits(&self) -> Limits;
    /// Appends tokens to slots: prefill and step alike. Slots ascend, each has at least one token.
    ///
    /// After an error nothing is taken for granted: a slot is truncated, or copied to, before it is
    /// used again.
    fn extend(&mut self, work: &[Extend<'_>]) -> std::result::Result<(), Self::Error>;
    /// The rows wanted by the last `extend`, in its order.
    fn logits(&self) -> Logits<'_>;
    /// Makes slot `to` hold the first `len` tokens of another slot, `from`, and nothing else.
    fn copy(&mut self, from: usize, to: usize, len: usize) -> std::result::Result<(), Self::Error>;
    /// Forgets all but the first `len` tokens of a slot.
    fn truncate(&mut self, slot: usize, len: usize) -> std::result::Result<(), Self::Error>;
}
