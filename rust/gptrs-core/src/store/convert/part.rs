//! A file that gets its name when it is whole, and is gone if it never is.

use std::fs::{self, File};
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::store::files::{failed, refused, sync_folder};
use crate::store::manifest::Dtype;
use crate::store::tokens::Ids;
use crate::{Error, Result};

/// How many bytes to write at once.
const BUFFER_BYTES: usize = 1 << 20;

/// How many ids to widen or to narrow at a time.
const PORTION: usize = 1 << 12;

/// A file under a temporary name.
pub struct Part {
    file: BufWriter<File>,
    path: PathBuf,
    temporary: PathBuf,
}

impl Part {
    pub fn new(path: &Path) -> Result<Self> {
        let temporary = temporary(path);
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(true);
        let file = options.open(&temporary).map_err(|error| failed(path, "written", &error))?;
        let file = BufWriter::with_capacity(BUFFER_BYTES, file);
        Ok(Self { file, path: path.to_owned(), temporary })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|error| failed(&self.path, "written", &error))
    }

    /// Writes ids as `dtype` has them.
    pub fn write_ids(&mut self, ids: Ids<'_>, dtype: Dtype) -> Result<()> {
        match (ids, dtype) {
            (Ids::U16(ids), Dtype::Uint16) => self.write(bytemuck::cast_slice(ids)),
            (Ids::U32(ids), Dtype::Uint32) => self.write(bytemuck::cast_slice(ids)),
            (Ids::U16(ids), Dtype::Uint32) => ids.chunks(PORTION).try_for_each(|ids| {
                let wide: Vec<u32> = ids.iter().map(|&id| id.into()).collect();
                self.write(bytemuck::cast_slice(&wide))
            }),
            (Ids::U32(ids), Dtype::Uint16) => ids.chunks(PORTION).try_for_each(|ids| {
                let narrow =
                    ids.iter().map(|&id| u16::try_from(id).map_err(|_| self.too_large(id)));
                let narrow = narrow.collect::<Result<Vec<u16>>>()?;
                self.write(bytemuck::cast_slice(&narrow))
            }),
        }
    }

    fn too_large(&self, id: u32) -> Error {
        let reason = format!("the token id {id} does not fit into the 16 bits that the format has");
        refused(&self.path, reason)
    }

    /// Writes over what is at `offset`, and goes on at the end.
    pub fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let written = self
            .file
            .seek(SeekFrom::Start(offset))
            .and_then(|_| self.file.write_all(bytes))
            .and_then(|()| self.file.seek(SeekFrom::End(0)));
        written.map(drop).map_err(|error| failed(&self.path, "written", &error))
    }

    /// Reads what is at `offset`, and goes on at the end.
    pub fn read_at(&mut self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let read = self
            .file
            .seek(SeekFrom::Start(offset))
            .and_then(|_| self.file.get_mut().read_exact(bytes))
            .and_then(|()| self.file.seek(SeekFrom::End(0)));
        read.map(drop).map_err(|error| failed(&self.path, "read", &error))
    }

    /// Cuts the file off.
    pub fn truncate(&mut self, len: u64) -> Result<()> {
        let cut = self.file.flush().and_then(|()| self.file.get_ref().set_len(len));
        let cut = cut.and_then(|()| self.file.seek(SeekFrom::End(0)));
        cut.map(drop).map_err(|error| failed(&self.path, "written", &error))
    }

    /// Brings the file to the disk and gives it its name.
    pub fn finish(mut self) -> Result<()> {
        let done = self
            .file
            .flush()
            .and_then(|()| self.file.get_ref().sync_all())
            .and_then(|()| fs::rename(&self.temporary, &self.path));
        done.map_err(|error| failed(&self.path, "written", &error))?;
        sync_folder(self.path.parent().unwrap_or(Path::new("")))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.temporary); // Renamed already, if it is whole.
    }
}

/// Refuses to write over something.
pub fn refuse_existing(path: &Path) -> Result<()> {
    if path.exists() {
        return Err(refused(path, "is there already, and nothing is written over".to_owned()));
    }
    Ok(())
}

/// The name of `path` until it is whole.
pub fn temporary(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".part");
    path.with_file_name(name)
}
