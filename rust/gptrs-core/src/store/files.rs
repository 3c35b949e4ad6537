//! Files that are written whole or not at all, and errors that name them.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::Path;

use crate::{Error, Result};

/// What went wrong with a file of a store, or with its folder: "cannot be `done`: why".
pub fn failed(path: &Path, done: &str, error: &std::io::Error) -> Error {
    let reason = match error.kind() {
        ErrorKind::NotFound => format!("cannot be {done}: there is no such file or folder"),
        ErrorKind::StorageFull => format!("cannot be {done}: no space is left on its disk"),
        _ => format!("cannot be {done}: {error}"),
    };
    refused(path, reason)
}

/// The error of a store's file that is not what it should be.
pub fn refused(path: &Path, reason: String) -> Error {
    Error::Store { path: path.display().to_string(), reason }
}

/// Writes a file under a temporary name beside it, brings it to the disk and renames it: at every
/// instant the old content is there, or the new.
///
/// # Errors
/// `Error::Store`, and then the old content stays.
pub fn write_whole(path: &Path, content: &[u8]) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let temporary = path.with_file_name(name);
    let written = File::create(&temporary)
        .and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = written {
        let _ = fs::remove_file(&temporary);
        return Err(failed(path, "written", &error));
    }
    path.parent().map_or(Ok(()), sync_folder)
}

/// Brings the names in a folder to the disk.
///
/// # Errors
/// `Error::Store`.
pub fn sync_folder(dir: &Path) -> Result<()> {
    // Only Unix can open a folder, and only there must its names be synced on their own.
    if cfg!(unix) {
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        let synced = File::open(dir).and_then(|folder| folder.sync_all());
        synced.map_err(|error| failed(dir, "synced", &error))?;
    }
    Ok(())
}

/// Makes a folder and those above it.
///
/// # Errors
/// `Error::Store`.
pub fn create_folder(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).map_err(|error| failed(dir, "made", &error))
}

/// Removes a file, which may be gone already.
///
/// # Errors
/// `Error::Store`.
pub fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed(path, "removed", &error)),
        _ => Ok(()),
    }
}
