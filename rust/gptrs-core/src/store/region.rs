//! The numbers of one type that a file holds: mapped, and the file checked, at first touch.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use bytemuck::Pod;

use super::files::{failed, refused};
use super::map::Map;
use super::npy;
use crate::Result;

/// What stands before the numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Header {
    /// Nothing.
    None,
    /// NumPy's header, with its name for the numbers' type.
    Npy(&'static str),
    /// Other bytes.
    Bytes(Vec<u8>),
}

/// `count` numbers behind a header, and nothing else: a file that is shorter or longer is refused.
#[derive(Debug)]
pub struct Region {
    path: PathBuf,
    header: Header,
    count: u64,
    /// Bytes a number.
    width: usize,
    map: OnceLock<Map>,
}

impl Region {
    pub fn new(path: PathBuf, header: Header, count: u64, width: usize) -> Self {
        Self { path, header, count, width, map: OnceLock::new() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn width(&self) -> usize {
        self.width
    }

    /// The numbers, which are of type `T`.
    pub fn values<T: Pod>(&self) -> Result<&[T]> {
        debug_assert_eq!(size_of::<T>(), self.width);
        if self.count == 0 {
            self.map()?;
            return Ok(&[]); // No bytes, aligned or not.
        }
        Ok(bytemuck::cast_slice(self.bytes()?))
    }

    /// The numbers as bytes.
    pub fn bytes(&self) -> Result<&[u8]> {
        Ok(&self.map()?.bytes()[self.header_bytes()..])
    }

    /// Maps the file and checks it again, whatever is mapped already.
    pub fn reopened(&self) -> Self {
        Self { map: OnceLock::new(), path: self.path.clone(), header: self.header.clone(), ..*self }
    }

    fn map(&self) -> Result<&Map> {
        if let Some(map) = self.map.get() {
            return Ok(map);
        }
        let map = Map::open(&self.path).map_err(|error| failed(&self.path, "read", &error))?;
        self.check(map.bytes())?;
        // Another thread may have been as fast: its map is the same.
        Ok(self.map.get_or_init(|| map))
    }

    /// Whether there is such a file of the right size; it is not opened.
    pub fn check_size(&self) -> Result<()> {
        let found =
            std::fs::metadata(&self.path).map_err(|error| failed(&self.path, "read", &error))?;
        self.check_bytes(found.len())
    }

    fn check_bytes(&self, found: u64) -> Result<()> {
        let expected = u128::from(self.count) * self.width as u128 + self.header_bytes() as u128;
        if u128::from(found) == expected {
            return Ok(());
        }
        let count = self.count;
        let reason = format!("has {found} bytes, expected {expected} for {count} numbers");
        Err(refused(&self.path, reason))
    }

    fn check(&self, bytes: &[u8]) -> Result<()> {
        self.check_bytes(bytes.len() as u64)?;
        let header = match &self.header {
            Header::None => vec![],
            Header::Npy(descr) => npy::header(descr, self.count).to_vec(),
            Header::Bytes(bytes) => bytes.clone(),
        };
        if !bytes.starts_with(&header) {
            let descr = if let Header::Npy(descr) = self.header { descr } else { "integers" };
            let reason = format!("its header is not the one of {} values of {descr}", self.count);
            return Err(refused(&self.path, reason));
        }
        Ok(())
    }

    fn header_bytes(&self) -> usize {
        match &self.header {
            Header::None => 0,
            Header::Npy(_) => npy::HEADER_BYTES,
            Header::Bytes(bytes) => bytes.len(),
        }
    }
}
