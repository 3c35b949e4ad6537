//! A whole file in memory, read-only, as the operating system brings it there page by page.

#![allow(unsafe_code, reason = "a file that is mapped can be changed by others")]

use std::fs::File;
use std::io;
use std::path::Path;

use memmap2::Mmap;

/// A file's bytes. The file itself is closed again: thousands of maps need no file descriptors.
#[derive(Debug)]
pub struct Map(Option<Mmap>);

impl Map {
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        if file.metadata()?.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        if file.metadata()?.len() == 0 {
            return Ok(Self(None)); // No page to map.
        }
        // SAFETY: the bytes must not change while they are borrowed. A store's files are renamed into
        // place when they are whole, and nothing of ours writes to them again. Whoever overwrites one
        // all the same gives its readers other numbers, and each use checks ids and document ends;
        // whoever shortens one ends the process with SIGBUS, as for every mapped file.
        Ok(Self(Some(unsafe { Mmap::map(&file) }?)))
    }

    pub fn bytes(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}
