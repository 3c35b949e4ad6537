//! How far a build is: what is saved to go on from, and what is told to those who watch.

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::store::Mark;
use crate::store::manifest::Dropped;

/// How far a build is, as `progress.json` has it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    pub position: Position,
    /// A large document of which chunks have been written.
    pub document: Option<LargeDocument>,
    pub streams: Vec<StreamProgress>,
    pub dropped: Dropped,
}

/// Where the next block starts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Position {
    pub input: usize,
    /// In the input's bytes, decompressed; of rows, in the row that is cut.
    pub offset: u64,
    /// Lines, or rows, before it.
    pub lines: u64,
    /// Of what cannot be read twice: the hash of all before it.
    pub digest: Option<u64>,
}

/// What has been seen of a document that is longer than a block.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LargeDocument {
    pub stream: usize,
    /// Where it starts.
    pub mark: Mark,
    /// The two halves of its hash so far: numbers of JSON have 64 bits.
    pub hash: [u64; 2],
    pub chars: u64,
    pub text_bytes: u64,
}

/// What one stream has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct StreamProgress {
    pub mark: Mark,
    pub text_bytes: u64,
}

/// How much was done, for those who watch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Of the inputs' files, as they lie on the disk.
    pub bytes: u64,
    /// Of the kept documents' text.
    pub text_bytes: u64,
    /// Written so far.
    pub tokens: u64,
    /// Kept so far.
    pub documents: u64,
    /// Left out so far.
    pub dropped: Dropped,
}

/// The hash of rows, from that of the rows before and of the next one.
pub fn rows_digest(before: u64, row: u128) -> u64 {
    let mut both = [0; 24];
    both[..8].copy_from_slice(&before.to_le_bytes());
    both[8..].copy_from_slice(&row.to_le_bytes());
    xxh3_64(&both)
}

/// A hash as JSON can hold it.
pub fn halves(hash: u128) -> [u64; 2] {
    [hash as u64, (hash >> 64) as u64]
}

/// The hash of which these are the halves.
pub fn whole([low, high]: [u64; 2]) -> u128 {
    u128::from(low) | u128::from(high) << 64
}
