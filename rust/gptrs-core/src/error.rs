//! The one error of the crate. Every message says what was asked and what was found.

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong without Python: bad text, ids, windows, sampling settings or logits.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// A window was asked for that the stream does not have.
    #[error("window {index} is out of range: there are {len} windows")]
    WindowOutOfRange {
        /// The window asked for; negative numbers count from the end.
        index: i64,
        /// How many windows there are.
        len: usize,
    },
    /// A window of no tokens, or one that never moves on.
    #[error("max_length and stride are at least 1; max_length is {length}, stride is {stride}")]
    EmptyWindow {
        /// Tokens a window.
        length: i64,
        /// Tokens from one window's start to the next.
        stride: i64,
    },
    /// A buffer does not have the length that the other arguments call for.
    #[error("{what} has {found} elements, expected {expected}")]
    WrongLength {
        /// Which buffer.
        what: &'static str,
        /// Its length.
        found: usize,
        /// The length it should have.
        expected: usize,
    },
    /// A temperature below 0, infinite or NaN.
    #[error("temperature is a finite number of at least 0, found {0}")]
    Temperature(f64),
    /// Top-k below 1 would leave nothing to draw.
    #[error("top_k is at least 1, or None to keep the whole vocabulary; found {0}")]
    TopK(i64),
    /// Top-p outside (0, 1].
    #[error("top_p is above 0 and at most 1, or None to keep the whole vocabulary; found {0}")]
    TopP(f64),
    /// A logit that no probability can be made of.
    #[error("the logit of token id {id} is {value}")]
    BadLogit {
        /// Whose logit.
        id: u32,
        /// "NaN" or "inf".
        value: &'static str,
    },
    /// A row without a finite logit.
    #[error("no token can be drawn: every logit is -inf")]
    NothingToDraw,
    /// A prompt without tokens.
    #[error("prompt {row} has no tokens: at least one is needed to go on from")]
    EmptyPrompt {
        /// Which prompt, counted from 0.
        row: usize,
    },
    /// A prompt's id is not in the model's vocabulary.
    #[error("token id {id} at [{row}, {column}] is outside 0..{}", .vocab_size - 1)]
    TokenIdInPrompt {
        /// The id.
        id: i64,
        /// Which prompt.
        row: usize,
        /// Where in the prompt.
        column: usize,
        /// The number of ids there are.
        vocab_size: usize,
    },
    /// A window or a model that holds no tokens.
    #[error(
        "context_size is at least 1 and a model has at least 1 slot; found {window} and {slots}"
    )]
    NoRoom {
        /// Tokens that the model may see.
        window: usize,
        /// Sequences that the model holds.
        slots: usize,
    },
    /// An id that no token has.
    #[error("token id {id} at index {index} is outside 0..{last}")]
    TokenIdOutOfVocabulary {
        /// The id, as it is written: Python's integers have no bounds.
        id: String,
        /// Where it stands among the ids.
        index: usize,
        /// The last id of the vocabulary.
        last: u16,
    },
    /// A text has a special token that it may not have.
    #[error(
        "the text has the special token {token:?} at character {offset}; allow it with \
         allowed_special={{{token:?}}}, or take it as ordinary text with disallowed_special=()"
    )]
    DisallowedSpecial {
        /// The token.
        token: String,
        /// How many characters come before it.
        offset: usize,
    },
}
