//! One growing `.npy` file: room for its header, then values, hashed on their way to the disk.

use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

use super::files::{failed, refused, remove_file};
use super::npy::HEADER_BYTES;
use super::writeback;
use crate::Result;
use crate::tokenizer::Check;

/// Larger portions go to the file as they are, without a copy.
const BUFFER_BYTES: usize = 1 << 16;

/// How much to write before the disk is told to begin.
const WRITE_BACK_BYTES: u64 = 1 << 22;

/// How much to hash between two checks.
const PART_BYTES: usize = 1 << 20;

/// A file that values are appended to. What it holds is not final until it is sealed.
pub(crate) struct Column {
    path: PathBuf,
    file: BufWriter<File>,
    hash: Xxh3,
    /// Bytes behind the header.
    num_bytes: u64,
    /// How many of them the disk was told of.
    written_back: u64,
    /// An earlier length and the hash up to there: to go back to it costs nothing.
    remembered: (u64, Xxh3),
}

impl Column {
    /// A new file. An old one of that name is gone from here; under other names it stays as it is.
    pub fn create(path: PathBuf) -> Result<Self> {
        remove_file(&path)?;
        let mut options = File::options();
        options.read(true).write(true).create_new(true);
        let file = options.open(&path).map_err(|error| failed(&path, "made", &error))?;
        let mut column = Self::new(path, file);
        column.write(&[0; HEADER_BYTES])?;
        Ok(column)
    }

    /// A file that has `num_bytes` of values or more: the rest is cut off.
    pub fn reopen(path: PathBuf, num_bytes: u64, check: Check<'_>) -> Result<Self> {
        let opened = File::options().read(true).write(true).open(&path);
        let file = opened.map_err(|error| failed(&path, "opened", &error))?;
        let found = file.metadata().map_err(|error| failed(&path, "read", &error))?.len();
        if found < HEADER_BYTES as u64 + num_bytes {
            return Err(refused(
                &path,
                format!(
                    "has {found} bytes, expected {} or more: it was cut off since the build was \
                     interrupted",
                    HEADER_BYTES as u64 + num_bytes
                ),
            ));
        }
        let mut column = Self::new(path, file);
        column.num_bytes = num_bytes + 1;
        column.truncate(num_bytes, check)?;
        Ok(column)
    }

    fn new(path: PathBuf, file: File) -> Self {
        let file = BufWriter::with_capacity(BUFFER_BYTES, file);
        let (hash, remembered) = (Xxh3::new(), (0, Xxh3::new()));
        Self { path, file, hash, num_bytes: 0, written_back: 0, remembered }
    }

    /// Appends values, as they lie in memory.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.hash.update(bytes);
        self.num_bytes += bytes.len() as u64;
        self.write(bytes)?;
        let num_bytes = self.num_bytes - self.written_back;
        if num_bytes >= WRITE_BACK_BYTES {
            let start = HEADER_BYTES as u64 + self.written_back;
            writeback::begin(self.file.get_ref(), start, num_bytes);
            self.written_back = self.num_bytes;
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|error| failed(&self.path, "written", &error))
    }

    /// Makes it cheap to come back to where the file is now.
    pub fn remember(&mut self) {
        self.remembered = (self.num_bytes, self.hash.clone());
    }

    /// Cuts off what lies beyond `num_bytes`.
    pub fn truncate(&mut self, num_bytes: u64, check: Check<'_>) -> Result<()> {
        if num_bytes == self.num_bytes {
            return Ok(());
        }
        self.flush()?;
        let end = HEADER_BYTES as u64 + num_bytes;
        let file = self.file.get_mut();
        let cut = file.set_len(end).and_then(|()| file.seek(SeekFrom::Start(end)));
        cut.map_err(|error| failed(&self.path, "cut", &error))?;
        self.num_bytes = num_bytes;
        self.written_back = self.written_back.min(num_bytes);
        if self.remembered.0 == num_bytes {
            self.hash = self.remembered.1.clone();
            return Ok(());
        }
        self.hash = hash_values(&self.path, num_bytes, check)?;
        self.remember();
        Ok(())
    }

    pub fn flush(&mut self) -> Result<()> {
        self.file.flush().map_err(|error| failed(&self.path, "written", &error))
    }

    /// Brings the values to the disk.
    pub fn sync(&mut self) -> Result<()> {
        self.flush()?;
        self.file.get_ref().sync_data().map_err(|error| failed(&self.path, "written", &error))
    }

    /// Writes the header. Returns the hash of the values, and what is left to be synced.
    pub fn seal(mut self, header: &[u8; HEADER_BYTES]) -> Result<(u64, Sealed)> {
        self.flush()?;
        let digest = self.hash.digest();
        let (file, _) = self.file.into_parts();
        let mut sealed = Sealed { path: self.path, file };
        let written = sealed.file.rewind().and_then(|()| sealed.file.write_all(header));
        written.map_err(|error| failed(&sealed.path, "written", &error))?;
        Ok((digest, sealed))
    }
}

/// A file with its header, perhaps not yet on the disk.
pub(crate) struct Sealed {
    path: PathBuf,
    file: File,
}

impl Sealed {
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|error| failed(&self.path, "written", &error))
    }
}

/// Hands the first `num_bytes` behind the header of a file to `f`, a portion at a time.
pub(crate) fn for_each_part(
    path: &Path,
    num_bytes: u64,
    check: Check<'_>,
    f: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let unreadable = |error| failed(path, "read", &error);
    let mut file = File::open(path).map_err(unreadable)?;
    file.seek(SeekFrom::Start(HEADER_BYTES as u64)).map_err(unreadable)?;
    let mut part = vec![0; PART_BYTES.min(num_bytes as usize)];
    let mut left = num_bytes;
    while left > 0 {
        check()?;
        let size = left.min(PART_BYTES as u64) as usize;
        file.read_exact(&mut part[..size]).map_err(unreadable)?;
        f(&part[..size])?;
        left -= size as u64;
    }
    Ok(())
}

fn hash_values(path: &Path, num_bytes: u64, check: Check<'_>) -> Result<Xxh3> {
    let mut hash = Xxh3::new();
    for_each_part(path, num_bytes, check, &mut |part| {
        hash.update(part);
        Ok(())
    })?;
    Ok(hash)
}
