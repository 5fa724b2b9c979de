//! What could not be delivered, with the reason: one JSON object a line, in two files of bounded size.
//!
//! 1. Frames that hold no rating were never taken. At its bound their file becomes `<name>.1`, in place of
//!    the one before.
//! 2. Ratings that were taken go into a file of their own, whole. At its bound it takes no more, and who
//!    brings one waits, until somebody has moved it away: nothing that was taken is overwritten.
//! 3. A line is on the disk when a call returns. A file that was moved away is begun anew.
//!
//! Without a file the reason is logged and the frame is gone.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use serde_json::json;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tracing::warn;

/// The longest part of a frame that holds no rating that is kept, in bytes.
pub(super) const KEPT_MAX: usize = 64 << 10;

/// Why something was not put aside.
#[derive(Debug, thiserror::Error)]
pub(super) enum DeadLetterError {
    #[error("dead-letter file {}: cannot append", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "dead-letter file {} is full: move it away, or raise dead_letter_max_bytes, which is {max}; \
         ratings that are refused wait until then",
        path.display()
    )]
    Full { path: PathBuf, max: u64 },
}

/// The logs of one bridge. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct DeadLetters(Option<Arc<Logs>>);

#[derive(Debug)]
struct Logs {
    frames: Mutex<Log>,
    ratings: Mutex<Log>,
}

#[derive(Debug)]
struct Log {
    path: PathBuf,
    file: File,
    length: u64,
    max_bytes: u64,
    /// Whether the file makes room for itself at its bound.
    rotates: bool,
}

/// Returns where ratings go that were refused, when frames go to `path`.
pub(super) fn refused(path: &Path) -> PathBuf {
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push("-refused");
    if let Some(ending) = path.extension() {
        name.push(".");
        name.push(ending);
    }
    path.with_file_name(name)
}

impl DeadLetters {
    /// Opens the logs at `path` and beside it, if there are to be any; each file is at most `max_bytes`
    /// long.
    ///
    /// # Errors
    ///
    /// With the file that cannot be appended to.
    pub(super) fn open(path: Option<&Path>, max_bytes: u64) -> Result<Self, (PathBuf, io::Error)> {
        let Some(path) = path else { return Ok(Self(None)) };
        let log = |path: PathBuf, rotates| match append_to(&path) {
            Ok((file, length)) => Ok(Mutex::new(Log { path, file, length, max_bytes, rotates })),
            Err(error) => Err((path, error)),
        };
        let (frames, ratings) = (log(path.to_owned(), true)?, log(refused(path), false)?);
        Ok(Self(Some(Arc::new(Logs { frames, ratings }))))
    }

    /// Puts a frame aside for `reason`. `bytes` is how long it was, when not all of it is here.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub(super) async fn put_frame(
        &self,
        reason: &str,
        frame: &[u8],
        bytes: u64,
    ) -> Result<(), DeadLetterError> {
        warn!(reason, bytes, "put aside what is no rating");
        let kept = &frame[..frame.len().min(KEPT_MAX)];
        self.put(line(reason, kept, bytes), |logs| &logs.frames).await
    }

    /// Puts a rating aside that was taken, for `reason`.
    ///
    /// # Errors
    ///
    /// When it cannot be written, or its file is full: then it is to be tried again.
    pub(super) async fn put_rating(
        &self,
        reason: &str,
        body: &[u8],
    ) -> Result<(), DeadLetterError> {
        let bytes = body.len() as u64;
        self.put(line(reason, body, bytes), |logs| &logs.ratings).await?;
        warn!(reason, bytes, "put aside a rating that cannot be delivered");
        Ok(())
    }

    async fn put(
        &self,
        line: Vec<u8>,
        which: fn(&Logs) -> &Mutex<Log>,
    ) -> Result<(), DeadLetterError> {
        let Some(logs) = self.0.clone() else { return Ok(()) };
        let write =
            move || which(&logs).lock().unwrap_or_else(PoisonError::into_inner).write(&line);
        tokio::task::spawn_blocking(write).await.expect("writing does not panic")
    }
}

/// Opens the file at `path` where its next line begins.
fn append_to(path: &Path) -> io::Result<(File, u64)> {
    let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
    let length = file.metadata()?.len();
    let mut last = [b'\n'];
    if length > 0 {
        file.read_exact_at(&mut last, length - 1)?;
    }
    if last == [b'\n'] {
        return Ok((file, length));
    }
    // Half a line, of a process that was killed, would spoil the next one.
    file.write_all(b"\n")?;
    Ok((file, length + 1))
}

fn line(reason: &str, kept: &[u8], bytes: u64) -> Vec<u8> {
    let mut entry = json!({
        "time": OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default(),
        "reason": reason,
        "bytes": bytes,
        "frame": String::from_utf8_lossy(kept),
    });
    if kept.len() as u64 != bytes {
        entry["truncated"] = true.into();
    }
    let mut line = entry.to_string().into_bytes();
    line.push(b'\n');
    line
}

impl Log {
    fn write(&mut self, line: &[u8]) -> Result<(), DeadLetterError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| DeadLetterError::Io { path, source }
        };
        if self.was_moved().map_err(failed(&self.path))? {
            self.reopen().map_err(failed(&self.path))?;
        }
        if self.length > 0 && self.length + line.len() as u64 > self.max_bytes {
            if !self.rotates {
                return Err(DeadLetterError::Full { path: self.path.clone(), max: self.max_bytes });
            }
            let mut older = self.path.clone().into_os_string();
            older.push(".1");
            let renamed = fs::rename(&self.path, older).and_then(|()| self.reopen());
            renamed.map_err(failed(&self.path))?;
        }
        if let Err(error) = self.file.write_all(line).and_then(|()| self.file.sync_data()) {
            // Half a line would spoil the next one.
            let _ = self.file.set_len(self.length);
            return Err(failed(&self.path)(error));
        }
        self.length += line.len() as u64;
        Ok(())
    }

    /// Returns whether the file that is open is no longer the one at the path.
    fn was_moved(&self) -> io::Result<bool> {
        let ours = self.file.metadata()?;
        match fs::metadata(&self.path) {
            Ok(there) => Ok((there.dev(), there.ino()) != (ours.dev(), ours.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(error) => Err(error),
        }
    }

    fn reopen(&mut self) -> io::Result<()> {
        (self.file, self.length) = append_to(&self.path)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn entries(path: &Path) -> Vec<Value> {
        let text = fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[tokio::test]
    async fn a_frame_is_kept_with_its_reason_and_the_file_is_bounded() {
        let path = std::env::temp_dir().join(format!("merit-dead-{}.ndjson", std::process::id()));
        let older = PathBuf::from(format!("{}.1", path.display()));
        let dead = DeadLetters::open(Some(&path), 2000).unwrap();
        dead.put_frame("no JSON", b"{\"a\":\n\x01\xff\"", 9).await.unwrap();
        let entry = entries(&path).pop().unwrap();
        assert_eq!(entry["reason"], "no JSON");
        assert_eq!(entry["frame"], "{\"a\":\n\u{1}\u{fffd}\"");
        assert_eq!((entry["bytes"].as_u64(), &entry["truncated"]), (Some(9), &Value::Null));
        assert!(OffsetDateTime::parse(entry["time"].as_str().unwrap(), &Rfc3339).is_ok());
        for _ in 0..100 {
            dead.put_frame("again", b"{}", 2).await.unwrap();
            assert!(fs::metadata(&path).unwrap().len() <= 2000);
        }
        assert!(fs::metadata(&older).unwrap().len() <= 2000);
        // It goes on where it was.
        let before = entries(&path).len();
        drop(dead);
        let dead = DeadLetters::open(Some(&path), 1 << 20).unwrap();
        dead.put_frame("long", &vec![b'x'; KEPT_MAX + 1], KEPT_MAX as u64 + 1).await.unwrap();
        let all = entries(&path);
        assert_eq!(all.len(), before + 1);
        let last = all.last().unwrap();
        assert_eq!(last["truncated"], true);
        assert_eq!(last["frame"].as_str().unwrap().len(), KEPT_MAX);
        fs::remove_file(&path).unwrap();
        fs::remove_file(&older).unwrap();
        fs::remove_file(refused(&path)).unwrap();
    }

    /// Taken ratings were once overwritten by later ones.
    #[tokio::test]
    async fn a_rating_that_was_taken_is_kept_whole_until_somebody_moves_the_file_away() {
        let path =
            std::env::temp_dir().join(format!("merit-letters-{}.ndjson", std::process::id()));
        let (ratings, away) = (refused(&path), path.with_extension("away"));
        let dead = DeadLetters::open(Some(&path), 300_000).unwrap();
        let long = vec![b'x'; 2 * KEPT_MAX];
        dead.put_rating("no", &long).await.unwrap();
        dead.put_rating("no", &long).await.unwrap();
        let full = dead.put_rating("no", &long).await.unwrap_err().to_string();
        assert!(
            full.contains("is full: move it away") && full.contains("-refused.ndjson"),
            "{full}"
        );
        // Frames that hold no rating take no room from them.
        dead.put_frame("no JSON", b"x", 1).await.unwrap();
        fs::rename(&ratings, &away).unwrap();
        dead.put_rating("no", &long).await.unwrap();
        // Half a line does not spoil the next one.
        drop(dead);
        fs::write(&ratings, b"{\"time\":").unwrap();
        let dead = DeadLetters::open(Some(&path), 300_000).unwrap();
        dead.put_rating("after", b"{}").await.unwrap();
        let text = fs::read_to_string(&ratings).unwrap();
        let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert_eq!((last["reason"].as_str(), last["frame"].as_str()), (Some("after"), Some("{}")));
        let kept = entries(&away);
        assert!(kept.iter().all(|entry| entry["frame"].as_str().unwrap().len() == long.len()));
        assert_eq!((kept.len(), entries(&path).len()), (2, 1));
        for file in [&path, &ratings, &away] {
            fs::remove_file(file).unwrap();
        }
    }
}
