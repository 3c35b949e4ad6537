//! Sorted files of hashes: written once, looked up in place, joined into larger ones.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Seek, Write};
use std::path::PathBuf;

use crate::store::files::failed;
use crate::tokenizer::Check;
use crate::{Error, Result};

/// How many keys a look at the disk reads: 4 KiB.
const PAGE: usize = 256;

/// Bytes to read or to write at a time while runs are joined.
const BUFFER_BYTES: usize = 1 << 16;

/// How many looks trust that keys are spread evenly; from then on every other one halves the range.
const TRUSTING_LOOKS: u32 = 4;

/// A sorted file of keys.
pub struct Run {
    path: PathBuf,
    file: File,
    num_keys: u64,
    /// How many times its keys were joined with others.
    pub level: u32,
}

impl Run {
    /// Writes keys that are sorted.
    pub fn write(path: PathBuf, keys: &[u128]) -> Result<Self> {
        let mut file = create(&path)?;
        let written = file.write_all(bytemuck::cast_slice(keys));
        written.map_err(|error| failed(&path, "written", &error))?;
        Ok(Self { path, file, num_keys: keys.len() as u64, level: 0 })
    }

    pub fn remove(self) -> Result<()> {
        drop(self.file);
        fs::remove_file(&self.path).map_err(|error| failed(&self.path, "removed", &error))
    }

    /// Whether the key is here, by interpolation: one to three looks for keys that are spread evenly.
    pub fn contains(&self, key: u128) -> Result<bool> {
        let (mut low, mut high) = (0, self.num_keys);
        let (mut low_key, mut high_key) = (0, u128::MAX);
        let mut page = [0_u128; PAGE];
        for look in 0.. {
            if low >= high {
                break;
            }
            let share = if look >= TRUSTING_LOOKS && look % 2 == 1 {
                0.5
            } else {
                (key - low_key) as f64 / (high_key - low_key) as f64
            };
            let guess = low + (share * (high - low) as f64) as u64;
            let len = (high - low).min(PAGE as u64);
            let start = guess.saturating_sub(PAGE as u64 / 2).clamp(low, high - len);
            let keys = &mut page[..len as usize];
            self.read(start, keys)?;
            let (first, last) = (keys[0], keys[keys.len() - 1]);
            if key < first {
                (high, high_key) = (start, first);
            } else if key > last {
                (low, low_key) = (start + len, last);
            } else {
                return Ok(keys.binary_search(&key).is_ok());
            }
        }
        Ok(false)
    }

    fn read(&self, start: u64, keys: &mut [u128]) -> Result<()> {
        let bytes = bytemuck::cast_slice_mut(keys);
        let read = read_exact_at(&self.file, bytes, start * 16);
        read.map_err(|error| failed(&self.path, "read", &error))
    }

    /// The keys in order.
    fn keys(&self) -> Result<Keys<'_>> {
        let mut file = &self.file;
        file.rewind().map_err(|error| failed(&self.path, "read", &error))?;
        Ok(Keys {
            run: self,
            left: self.num_keys,
            file: BufReader::with_capacity(BUFFER_BYTES, file),
        })
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, bytes: &mut [u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

#[cfg(not(unix))]
fn read_exact_at(mut file: &File, bytes: &mut [u8], offset: u64) -> std::io::Result<()> {
    file.seek(std::io::SeekFrom::Start(offset))?;
    file.read_exact(bytes)
}

fn create(path: &PathBuf) -> Result<File> {
    let file = File::options().read(true).write(true).create_new(true).open(path);
    file.map_err(|error| failed(path, "made", &error))
}

/// Joins runs, no two of which have a key in common, into one of the next level.
pub fn merge(path: PathBuf, runs: &[Run], check: Check<'_>) -> Result<Run> {
    let mut file = BufWriter::with_capacity(BUFFER_BYTES, create(&path)?);
    let unwritable = |error: std::io::Error| failed(&path, "written", &error);
    let mut sources: Vec<Keys<'_>> = runs.iter().map(Run::keys).collect::<Result<_>>()?;
    let mut next = BinaryHeap::new();
    for (number, source) in sources.iter_mut().enumerate() {
        next.extend(source.next()?.map(|key| Reverse((key, number))));
    }
    let mut num_keys = 0_u64;
    while let Some(mut top) = next.peek_mut() {
        if num_keys.is_multiple_of(1 << 14) {
            check()?;
        }
        num_keys += 1;
        let Reverse((key, number)) = *top;
        file.write_all(&key.to_le_bytes()).map_err(unwritable)?;
        match sources[number].next()? {
            Some(key) => *top = Reverse((key, number)),
            None => drop(std::collections::binary_heap::PeekMut::pop(top)),
        }
    }
    let file = file.into_inner().map_err(|error| unwritable(error.into_error()))?;
    let level = runs.iter().map(|run| run.level).max().unwrap_or_default() + 1;
    drop(sources);
    Ok(Run { path, file, num_keys, level })
}

/// Reads the keys of a run one by one.
struct Keys<'a> {
    run: &'a Run,
    left: u64,
    file: BufReader<&'a File>,
}

impl Keys<'_> {
    fn next(&mut self) -> Result<Option<u128>> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let mut key = [0; 16];
        let read = self.file.read_exact(&mut key);
        read.map_err(|error| -> Error { failed(&self.run.path, "read", &error) })?;
        Ok(Some(u128::from_le_bytes(key)))
    }
}
