//! `DIR/.building`: where everything lies until a build is done, and who may write there.
//!
//! ```text
//!   lock            held by the process that builds
//!   plan.json       what is to be done; removed last
//!   progress.json   how far it is: input, place in it, each stream's mark, counts
//!   finished.json   the manifests, once all shards are final: only renaming is left
//!   all/            the shards; or train/ and val/
//!   seen/           hashes that did not fit in memory
//! ```

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::store::files::{create_folder, failed, refused, remove_file, sync_folder, write_whole};
use crate::store::manifest;
use crate::{Error, Result};

const NAME: &str = ".building";
const LOCK: &str = "lock";
const PLAN: &str = "plan.json";
const PROGRESS: &str = "progress.json";
const FINISHED: &str = "finished.json";

/// How often to try again when another process removes the folder while this one locks it.
const TRIES: usize = 100;

/// The folder of a build, locked.
pub struct Folder {
    out: PathBuf,
    path: PathBuf,
    _lock: File,
}

impl Folder {
    /// Makes and locks `out/.building`.
    ///
    /// # Errors
    /// `Error::Store`: another process holds it; it cannot be written.
    pub fn open(out: &Path) -> Result<Self> {
        let path = out.join(NAME);
        let lock_path = path.join(LOCK);
        for _ in 0..TRIES {
            create_folder(&path)?;
            let opened = File::options().create(true).truncate(false).write(true).open(&lock_path);
            let lock = match opened {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                opened => opened.map_err(|error| failed(&lock_path, "made", &error))?,
            };
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(refused(out, "another build is under way here".to_owned()));
                }
                Err(TryLockError::Error(error)) => {
                    return Err(failed(&lock_path, "locked", &error));
                }
            }
            if is_at(&lock, &lock_path) {
                return Ok(Self { out: out.to_owned(), path, _lock: lock });
            }
        }
        Err(refused(&lock_path, "is removed again and again by another process".to_owned()))
    }

    pub fn out(&self) -> &Path {
        &self.out
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// An error that says how to begin anew.
    pub fn differs(&self, how: &str) -> Error {
        let path = self.path.display();
        refused(
            &self.out,
            format!("holds a build that was begun otherwise: {how}; delete {path} to start anew"),
        )
    }

    /// What is in a file, or `None` if there is no such file.
    fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let path = self.path.join(name);
        let content = match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            content => content.map_err(|error| failed(&path, "read", &error))?,
        };
        let damaged = |error| self.differs(&format!("{} is damaged: {error}", path.display()));
        serde_json::from_slice(&content).map(Some).map_err(damaged)
    }

    fn write(&self, name: &str, content: &impl Serialize) -> Result<()> {
        let path = self.path.join(name);
        let json = serde_json::to_vec(content);
        let json = json.map_err(|error| refused(&path, format!("cannot be written: {error}")))?;
        write_whole(&path, &json)
    }

    pub fn read_plan<T: DeserializeOwned>(&self) -> Result<Option<T>> {
        self.read(PLAN)
    }

    pub fn write_plan(&self, plan: &impl Serialize) -> Result<()> {
        self.write(PLAN, plan)
    }

    pub fn read_progress<T: DeserializeOwned>(&self) -> Result<Option<T>> {
        self.read(PROGRESS)
    }

    pub fn write_progress(&self, progress: &impl Serialize) -> Result<()> {
        self.write(PROGRESS, progress)
    }

    pub fn read_finished<T: DeserializeOwned>(&self) -> Result<Option<T>> {
        self.read(FINISHED)
    }

    pub fn write_finished(&self, manifests: &impl Serialize) -> Result<()> {
        self.write(FINISHED, manifests)
    }

    /// Whether `out` holds a store, and nothing is left of its build.
    pub fn is_complete(out: &Path) -> bool {
        holds_store(out) && !out.join(NAME).exists()
    }

    /// Whether the store is there, whole.
    pub fn holds_store(&self) -> bool {
        holds_store(&self.out)
    }

    /// Removes the folder. The plan goes last: as long as it is there, this can be repeated.
    pub fn remove(&self) -> Result<()> {
        let unreadable = |error| failed(&self.path, "read", &error);
        for entry in fs::read_dir(&self.path).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let (path, name) = (entry.path(), entry.file_name());
            if name == PLAN || name == LOCK {
                continue;
            }
            if path.is_dir() {
                fs::remove_dir_all(&path).map_err(|error| failed(&path, "removed", &error))?;
            } else {
                remove_file(&path)?;
            }
        }
        remove_file(&self.path.join(PLAN))?;
        remove_file(&self.path.join(LOCK))?;
        fs::remove_dir(&self.path).map_err(|error| failed(&self.path, "removed", &error))?;
        sync_folder(&self.out)
    }
}

/// The error of a build or a merge where a store is done.
pub fn holds_store_already(out: &Path) -> Error {
    let reason = "holds a token store already: name another folder, or delete this one first";
    refused(out, reason.to_owned())
}

/// Whether a build was begun in `out` and is not done.
pub fn is_unfinished(out: &Path) -> bool {
    !holds_store(out) && out.join(NAME).exists()
}

fn holds_store(out: &Path) -> bool {
    let is_store = |dir: &Path| dir.join(manifest::FILE_NAME).exists();
    // Where there are two, this one is written last.
    is_store(out) || is_store(&out.join("train"))
}

/// Whether the file of this name still is this one.
fn is_at(file: &File, path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let (Ok(held), Ok(named)) = (file.metadata(), fs::metadata(path)) else { return false };
        (held.dev(), held.ino()) == (named.dev(), named.ino())
    }
    #[cfg(not(unix))]
    {
        let _ = file;
        path.exists()
    }
}
