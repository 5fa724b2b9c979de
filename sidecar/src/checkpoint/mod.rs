//! Checkpoints on a disk: written whole or not at all, the last good one kept beside.
//!
//! A checkpoint `model.chkpt` lies on a volume that workers share. Beside it lie `model.chkpt.good` (what
//! `model.chkpt` was before the last write, if that could be read), `model.chkpt.new` (while one is being
//! written) and `model.chkpt.lock`.
//!
//! 1. Whoever reads sees an old checkpoint or the new one, never a part: bytes are written to `.new`,
//!    synced, and renamed; then the folder is synced, so that the name survives a power cut too.
//! 2. `.good` is replaced only by a checkpoint that was read back whole a moment ago.
//! 3. One writer at a time: a second one is told so, and writes nothing.
//! 4. A checkpoint that cannot be read is an error that brings the last good one along, if there is one.
//!    Which to go on with is the caller's decision.
//!
//! What the bytes mean is `policy::ppo`'s business.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use crate::policy::ppo::{BYTES_MAX, Checkpoint, CheckpointError, Expected, Head};

/// Why a checkpoint was not written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The disk did not do what it was asked for.
    #[error("{doing} {}", path.display())]
    Io {
        /// For example "reading".
        doing: &'static str,
        /// Which file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Somebody else is writing it.
    #[error("checkpoint {} is being written by another process", path.display())]
    Busy {
        /// Which.
        path: PathBuf,
    },
    /// What is there is no checkpoint that can be used, or what should be written is none.
    #[error("checkpoint {}", path.display())]
    Refused {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: CheckpointError,
    },
}

impl FileError {
    /// Returns true when there is no file: nothing was ever saved.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// Returns true when the same call may succeed a moment later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Busy { .. })
    }
}

/// A checkpoint that could not be read, and the one before it.
#[derive(Debug, thiserror::Error)]
#[error("no use of the checkpoint")]
pub struct LoadError<H: Head> {
    /// What was wrong with it.
    #[source]
    pub error: FileError,
    /// The last good one, read and verified.
    pub last_good: Option<Box<Checkpoint<H>>>,
}

fn failed<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> FileError + 'a {
    move |source| FileError::Io { doing, path: path.to_owned(), source }
}

fn refused(path: &Path) -> impl FnOnce(CheckpointError) -> FileError + '_ {
    move |source| FileError::Refused { path: path.to_owned(), source }
}

/// Returns the path of the last good checkpoint beside `path`.
#[must_use]
pub fn last_good_path(path: &Path) -> PathBuf {
    beside(path, ".good")
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(ending);
    PathBuf::from(name)
}

/// Writes `checkpoint` to `path`, and keeps what was there as the last good one when it is whole.
///
/// # Errors
///
/// [`FileError`]; then what was at `path` still is.
pub fn save<H: Head>(path: &Path, checkpoint: &Checkpoint<H>) -> Result<(), FileError> {
    let bytes = checkpoint.encode().map_err(refused(path))?;
    let _held = hold(path)?;
    let new = beside(path, ".new");
    keep(path, checkpoint, &new)?;
    put(&new, path, &bytes)
}

/// Returns the lock of `path`; nobody else writes there until it is dropped.
///
/// # Errors
///
/// [`FileError::Busy`] when somebody else holds it.
pub fn hold(path: &Path) -> Result<File, FileError> {
    let lock = beside(path, ".lock");
    let held = OpenOptions::new().create(true).truncate(false).write(true).open(&lock);
    let held = held.map_err(failed("opening", &lock))?;
    match held.try_lock() {
        Ok(()) => Ok(held),
        Err(TryLockError::WouldBlock) => Err(FileError::Busy { path: path.to_owned() }),
        Err(TryLockError::Error(source)) => Err(failed("locking", &lock)(source)),
    }
}

/// Writes `bytes` to `path`, whole or not at all, for somebody who holds its lock.
///
/// # Errors
///
/// [`FileError`]; then what was at `path` still is.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    put(&beside(path, ".new"), path, bytes)
}

/// Makes what is at `path` the last good checkpoint, if it is a checkpoint of the kind of `next`.
fn keep<H: Head>(path: &Path, next: &Checkpoint<H>, new: &Path) -> Result<(), FileError> {
    let network = next.learner.network();
    let expected = Expected {
        policy: next.policy.clone(),
        head: *network.head(),
        inputs: network.actor().inputs,
        config: next.learner.config().clone(),
    };
    let Ok(bytes) = read(path) else { return Ok(()) };
    if Checkpoint::decode(&bytes, &expected).is_err() {
        return Ok(());
    }
    put(new, &last_good_path(path), &bytes)
}

/// Puts `bytes` at `path` by way of `new`.
fn put(new: &Path, path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let mut file = File::create(new).map_err(failed("creating", new))?;
    file.write_all(bytes).map_err(failed("writing", new))?;
    file.sync_all().map_err(failed("syncing", new))?;
    drop(file);
    fs::rename(new, path).map_err(failed("renaming to", path))?;
    sync_folder(path)
}

/// Makes a rename last: a folder's entries are its own data.
fn sync_folder(path: &Path) -> Result<(), FileError> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(failed("syncing", folder))
}

/// Reads the checkpoint at `path`.
///
/// # Errors
///
/// [`LoadError`], with the last good checkpoint when there is one that can be read.
pub fn load<H: Head>(path: &Path, expected: &Expected<H>) -> Result<Checkpoint<H>, LoadError<H>> {
    decode(path, expected).map_err(|error| LoadError {
        error,
        last_good: decode(&last_good_path(path), expected).ok().map(Box::new),
    })
}

fn decode<H: Head>(path: &Path, expected: &Expected<H>) -> Result<Checkpoint<H>, FileError> {
    let bytes = read(path)?;
    Checkpoint::decode(&bytes, expected).map_err(refused(path))
}

/// Reads a file, of which no more than one byte beyond the largest checkpoint is looked at.
fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    let file = File::open(path).map_err(failed("opening", path))?;
    let mut bytes = Vec::new();
    let most = BYTES_MAX as u64 + 1;
    file.take(most).read_to_end(&mut bytes).map_err(failed("reading", path))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
