//! What may be chosen about a build.

use crate::{Error, Result};

/// What the program takes, the words that its tokenizer remembers, and each thread's buffers.
const BASE_BYTES: u64 = 84 << 20;
const THREAD_BYTES: u64 = 2 << 20;

/// How documents are found, chosen and stored.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::struct_excessive_bools, reason = "each is a choice of its own")]
pub struct Options {
    /// The field of a line of JSON that has the text.
    pub text_key: String,
    /// What is between two documents of a text; `None` if all of it is one.
    pub split_on: Option<String>,
    /// Rows that are no documents are left out and counted, not refused.
    pub skip_invalid: bool,
    /// Bytes that are not UTF-8 become U+FFFD.
    pub replace_invalid: bool,
    /// Special tokens in a text are special.
    pub allow_special: bool,
    /// Documents of fewer characters are left out.
    pub min_chars: u64,
    /// Documents that equal an earlier one are left out.
    pub deduplicate: bool,
    /// The share of documents that are kept for validation.
    pub val_fraction: f64,
    /// Which part of how many this builds.
    pub task: Option<(u64, u64)>,
    /// The tokens of a full shard.
    pub shard_tokens: u64,
    /// About how many bytes of memory all this may take.
    pub memory: u64,
    /// How many threads work.
    pub threads: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            text_key: "text".to_owned(),
            split_on: None,
            skip_invalid: false,
            replace_invalid: false,
            allow_special: false,
            min_chars: 0,
            deduplicate: false,
            val_fraction: 0.0,
            task: None,
            shard_tokens: 1 << 28,
            memory: 512 << 20,
            threads: 1,
        }
    }
}

impl Options {
    /// Refuses what makes no sense.
    pub(super) fn check(&self) -> Result<()> {
        let refuse = |reason: String| Err(Error::Setting(reason));
        if !(0.0..1.0).contains(&self.val_fraction) {
            let found = self.val_fraction;
            return refuse(format!("val_fraction is at least 0 and below 1, found {found}"));
        }
        if let Some((part, parts)) = self.task
            && part >= parts
        {
            return refuse(format!("task is (i, n) with i in 0..n, found ({part}, {parts})"));
        }
        if self.split_on.as_ref().is_some_and(String::is_empty) {
            return refuse("split_on is None or at least one character, found \"\"".to_owned());
        }
        if self.shard_tokens == 0 {
            return refuse("shard_tokens is at least 1, found 0".to_owned());
        }
        Ok(())
    }

    /// What blocks in flight, and hashes of documents, may take in memory.
    pub(super) fn shares_of_memory(&self) -> (usize, usize) {
        let own = BASE_BYTES + THREAD_BYTES * self.threads as u64;
        let left = self.memory.saturating_sub(own);
        let seen = if self.deduplicate { left / 2 } else { 0 };
        let share = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        (share((left - seen) / 2), share(seen.max(1 << 20)))
    }
}
