//! The files of parts, checked as far as they are read.

use std::fs::{self, File};
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

use super::parts::Part;
use crate::Result;
use crate::store::Shard;
use crate::store::column::{Column, for_each_part};
use crate::store::files::{failed, refused};
use crate::store::manifest::{ends_name, hashes_name};
use crate::store::npy::{HEADER_BYTES, header, pairs_header};
use crate::tokenizer::Check;

/// The ends and hashes of a shard's documents.
pub struct Documents {
    ends: BufReader<File>,
    hashes: BufReader<File>,
    ends_path: PathBuf,
    hashes_path: PathBuf,
    hash: Xxh3,
    shard: Shard,
}

impl Documents {
    /// Those of shard `number`.
    pub fn open(part: &Part, number: usize) -> Result<Self> {
        let shard = part.manifest.shards[number];
        let (count, hashes_path) = (shard.num_documents, part.dir.join(hashes_name(number)));
        let ends_path = part.dir.join(ends_name(number));
        let ends = open_checked(&ends_path, &header("<u8", count), count * 8)?;
        let hashes = open_checked(&hashes_path, &pairs_header("<u8", count), count * 16)?;
        let (ends, hashes) = (BufReader::new(ends), BufReader::new(hashes));
        Ok(Self { ends, hashes, ends_path, hashes_path, hash: Xxh3::new(), shard })
    }

    /// The next document's end, which is `start` or later, and its hash.
    pub fn next(&mut self, start: u64) -> Result<(u64, u128)> {
        let (mut end, mut hash) = ([0; 8], [0; 16]);
        let read = self.ends.read_exact(&mut end);
        read.map_err(|error| failed(&self.ends_path, "read", &error))?;
        let read = self.hashes.read_exact(&mut hash);
        read.map_err(|error| failed(&self.hashes_path, "read", &error))?;
        self.hash.update(&hash);
        let (end, last) = (u64::from_le_bytes(end), self.shard.num_tokens);
        if end < start || end > last {
            let reason = format!("is damaged: a document ends at {end}, expected {start}..={last}");
            return Err(refused(&self.ends_path, reason));
        }
        Ok((end, u128::from_le_bytes(hash)))
    }

    /// Refuses hashes, all of which were read, that are not those that were written.
    pub fn check(self) -> Result<()> {
        let expected = self.shard.hashes_xxh3.unwrap_or_default();
        check_digest(&self.hashes_path, self.hash.digest(), expected)
    }
}

/// Opens a file at its values, if its size and header are what they have to be.
fn open_checked(path: &Path, header: &[u8; HEADER_BYTES], num_bytes: u64) -> Result<File> {
    let unreadable = |error| failed(path, "read", &error);
    let mut file = File::open(path).map_err(unreadable)?;
    let (found, expected) =
        (file.metadata().map_err(unreadable)?.len(), HEADER_BYTES as u64 + num_bytes);
    if found != expected {
        let reason = format!("is damaged: it has {found} bytes, expected {expected}");
        return Err(refused(path, reason));
    }
    let mut found = [0; HEADER_BYTES];
    file.read_exact(&mut found).map_err(unreadable)?;
    if found != *header {
        return Err(refused(path, "is damaged: its header is not what it has to be".to_owned()));
    }
    file.seek(SeekFrom::Start(HEADER_BYTES as u64)).map_err(unreadable)?;
    Ok(file)
}

/// Gives a file one more name, or copies it where the disk cannot do that.
pub fn link_or_copy(
    from: &Path,
    to: &Path,
    header: &[u8; HEADER_BYTES],
    num_bytes: u64,
    expected: u64,
    check: Check<'_>,
) -> Result<()> {
    check()?;
    drop(open_checked(from, header, num_bytes)?);
    if fs::hard_link(from, to).is_ok() {
        return Ok(());
    }
    copy(from, to, header, num_bytes, expected, check)
}

fn copy(
    from: &Path,
    to: &Path,
    header: &[u8; HEADER_BYTES],
    num_bytes: u64,
    expected: u64,
    check: Check<'_>,
) -> Result<()> {
    let mut copy = Column::create(to.to_owned())?;
    for_each_part(from, num_bytes, check, &mut |bytes| copy.append(bytes))?;
    let (digest, file) = copy.seal(header)?;
    check_digest(from, digest, expected)?;
    file.sync()
}

/// Refuses a file that has not the checksum that its manifest says.
pub fn check_digest(path: &Path, found: u64, expected: u64) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    let reason = format!("is damaged: its checksum is {found:016x}, expected {expected:016x}");
    Err(refused(path, reason))
}

#[cfg(test)]
mod tests {
    use xxhash_rust::xxh3::xxh3_64;

    use super::*;
    use crate::store::scratch::Scratch;

    #[test]
    fn a_copy_has_the_same_bytes_or_is_refused() {
        let dir = Scratch::new();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let values: Vec<u8> = (0..3_000_000_u32).map(|byte| (byte % 251) as u8).collect();
        let header = header("<u2", 1_500_000);
        fs::write(&from, [&header[..], &values[..]].concat()).unwrap();
        let copied = |expected| copy(&from, &to, &header, 3_000_000, expected, &mut || Ok(()));
        let message = copied(1).unwrap_err().to_string();
        assert!(message.contains("from: is damaged: its checksum is"), "{message}");
        copied(xxh3_64(&values)).unwrap();
        assert!(fs::read(&from).unwrap() == fs::read(&to).unwrap());
    }
}
