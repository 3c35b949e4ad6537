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
    /// Settings that ban every token with a finite logit.
    #[error(
        "no token can be drawn: the settings (logit_bias, n-grams, bad words, a constraint, the end \
         ids before min_new_tokens) ban every token whose logit is not -inf"
    )]
    NothingAllowed,
    /// Logits of one sequence that no token can be drawn from.
    #[error("sequence {request}: {error}")]
    InSequence {
        /// Its number, in the order in which sequences were submitted.
        request: usize,
        /// What is wrong with them.
        error: Box<Error>,
    },
    /// A prompt without tokens.
    #[error("prompt {row} has no tokens: at least one is needed to go on from")]
    EmptyPrompt {
        /// Which prompt, counted from 0.
        row: usize,
    },
    /// A prompt that fills more than the window, and may not be cropped.
    #[error(
        "prompt {row} has {found} tokens; with overflow=\"stop\" it may have at most {window}, the \
         context's length"
    )]
    PromptTooLong {
        /// Which prompt, counted from 0.
        row: usize,
        /// Its length.
        found: usize,
        /// The most it may have.
        window: usize,
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
    /// The system gives no more memory.
    #[error("there is no memory for {what}: {bytes} bytes were asked for")]
    NoMemory {
        /// What it was for.
        what: &'static str,
        /// How much.
        bytes: u64,
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
    /// More requests than the queue holds.
    #[error("the queue is full: {limit} requests wait already")]
    QueueFull {
        /// The most that may wait.
        limit: usize,
    },
    /// An id that no token has.
    #[error("token id {id} at index {index} is outside 0..{last}")]
    TokenIdOutOfVocabulary {
        /// The id, as it is written: Python's integers have no bounds.
        id: String,
        /// Where it stands among the ids.
        index: usize,
        /// The last id of the vocabulary.
        last: usize,
    },
    /// A run of text without a break that is too long to be encoded.
    #[error(
        "the piece of text that starts at byte {offset} has more than {longest} bytes without a \
         break"
    )]
    PieceTooLong {
        /// Where it starts, in bytes.
        offset: usize,
        /// The most bytes that a piece may have.
        longest: usize,
    },
    /// A character that the vocabulary does not have.
    #[error("the character {char:?} at byte {offset} is not in the tokenizer's vocabulary")]
    UnknownCharacter {
        /// The character.
        char: char,
        /// Where it stands, in bytes.
        offset: usize,
    },
    /// A file that cannot be opened or read.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: String,
        /// What the operating system says.
        reason: String,
    },
    /// A file that is not text.
    #[error("{path}: not UTF-8: byte 0x{byte:02x} at offset {offset}")]
    NotUtf8 {
        /// The file.
        path: String,
        /// The first byte that is wrong.
        byte: u8,
        /// Where it stands in the file.
        offset: usize,
    },
    /// A row of a file that is no document.
    #[error("{path}:{line}: {reason}")]
    Row {
        /// The file.
        path: String,
        /// Which line or row, counted from 1.
        line: u64,
        /// What is wrong.
        reason: String,
    },
    /// A file of a token store, or the store's folder, that cannot be used or written.
    #[error("{path}: {reason}")]
    Store {
        /// The file or the folder.
        path: String,
        /// What was found, and what was expected.
        reason: String,
    },
    /// A setting that makes no sense: the message says which, and what it may be.
    #[error("{0}")]
    Setting(String),
    /// The caller's check ended the work, and knows why.
    #[error("the work was stopped")]
    Stopped,
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
    /// Numbers that describe no tokenizer.
    #[error("no tokenizer can be made of this: {0}")]
    TokenizerDescription(String),
    /// A `tokenizer.json` that is damaged, or of a tokenizer that is not supported.
    #[error("the tokenizer's file cannot be used: {0}")]
    TokenizerFile(String),
    /// A vocabulary of a size that cannot be learned.
    #[error(
        "vocab_size is {least}..={most}, found {found}: it counts the single bytes of a byte-pair \
         encoding, and the special tokens"
    )]
    VocabSize {
        /// The size asked for.
        found: usize,
        /// The bytes and the special tokens.
        least: usize,
        /// What 16 bits can count.
        most: usize,
    },
    /// A text too small for the vocabulary.
    #[error("vocab_size is {asked}, but the text has pairs to merge for {found} ids only")]
    TooFewPairs {
        /// The ids asked for.
        asked: usize,
        /// The ids there are when every word is one token.
        found: usize,
    },
    /// A text with more characters than ids.
    #[error("the text has {found} distinct characters; the vocabulary has room for {room}")]
    TooManyChars {
        /// The characters.
        found: usize,
        /// The ids that are not special tokens.
        room: usize,
    },
    /// Words that are all too rare to have a vector.
    #[error(
        "no word occurs {min_count} times, the least for a vector: {distinct} distinct words were found, \
         the most frequent {most} times"
    )]
    EmptyVocabulary {
        /// The count that was asked for.
        min_count: u64,
        /// How many words there are.
        distinct: usize,
        /// How often the most frequent occurs.
        most: u64,
    },
    /// A text whose distinct words cannot be numbered.
    #[error("the text's distinct words have {found} bytes; at most {most} can be learned from")]
    TooManyWords {
        /// Their bytes, and one more for each.
        found: usize,
        /// The most there may be.
        most: usize,
    },
}

impl Error {
    /// The same error of a text that starts `bytes` later.
    #[must_use]
    pub fn moved_by(mut self, bytes: usize) -> Self {
        if let Self::PieceTooLong { offset, .. } | Self::UnknownCharacter { offset, .. } = &mut self
        {
            *offset += bytes;
        }
        self
    }
}
