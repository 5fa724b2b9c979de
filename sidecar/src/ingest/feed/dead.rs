//! What could not be delivered, with the reason: one JSON object a line, in a file of bounded size.
//!
//! At its bound the file becomes `<name>.1`, in place of the one before. A line is on the disk when
//! [`DeadLetters::put`] returns. Without a file the reason is logged and the frame is gone.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use serde_json::json;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tracing::warn;

/// The longest part of a frame that is kept, in bytes: every rating that ingest would take is shorter.
pub(super) const KEPT_MAX: usize = 64 << 10;

/// The log of one bridge. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct DeadLetters(Option<Arc<Mutex<Log>>>);

#[derive(Debug)]
struct Log {
    path: PathBuf,
    file: File,
    length: u64,
    max_bytes: u64,
}

impl DeadLetters {
    /// Opens the log at `path`, if there is to be one; the file is at most `max_bytes` long.
    ///
    /// # Errors
    ///
    /// When it cannot be appended to.
    pub(super) fn open(path: Option<&Path>, max_bytes: u64) -> io::Result<Self> {
        let Some(path) = path else { return Ok(Self(None)) };
        let file = append_to(path)?;
        let length = file.metadata()?.len();
        let log = Log { path: path.to_owned(), file, length, max_bytes };
        Ok(Self(Some(Arc::new(Mutex::new(log)))))
    }

    /// Puts `frame` aside for `reason`. `bytes` is how long it was, when not all of it is here.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub(super) async fn put(&self, reason: &str, frame: &[u8], bytes: u64) -> io::Result<()> {
        warn!(reason, bytes, "put aside what cannot be delivered");
        let Some(log) = &self.0 else { return Ok(()) };
        let (log, line) = (Arc::clone(log), line(reason, frame, bytes));
        let write = move || log.lock().unwrap_or_else(PoisonError::into_inner).write(&line);
        tokio::task::spawn_blocking(write).await.expect("writing does not panic")
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

fn line(reason: &str, frame: &[u8], bytes: u64) -> Vec<u8> {
    let kept = &frame[..frame.len().min(KEPT_MAX)];
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
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if self.length > 0 && self.length + line.len() as u64 > self.max_bytes {
            let mut older = self.path.clone().into_os_string();
            older.push(".1");
            fs::rename(&self.path, older)?;
            self.file = append_to(&self.path)?;
            self.length = 0;
        }
        if let Err(error) = self.file.write_all(line).and_then(|()| self.file.sync_data()) {
            // Half a line would spoil the next one.
            let _ = self.file.set_len(self.length);
            return Err(error);
        }
        self.length += line.len() as u64;
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
        dead.put("no JSON", b"{\"a\":\n\x01\xff\"", 9).await.unwrap();
        let entry = entries(&path).pop().unwrap();
        assert_eq!(entry["reason"], "no JSON");
        assert_eq!(entry["frame"], "{\"a\":\n\u{1}\u{fffd}\"");
        assert_eq!((entry["bytes"].as_u64(), &entry["truncated"]), (Some(9), &Value::Null));
        assert!(OffsetDateTime::parse(entry["time"].as_str().unwrap(), &Rfc3339).is_ok());
        for _ in 0..100 {
            dead.put("again", b"{}", 2).await.unwrap();
            assert!(fs::metadata(&path).unwrap().len() <= 2000);
        }
        assert!(fs::metadata(&older).unwrap().len() <= 2000);
        // It goes on where it was.
        let before = entries(&path).len();
        drop(dead);
        let dead = DeadLetters::open(Some(&path), 1 << 20).unwrap();
        dead.put("long", &vec![b'x'; KEPT_MAX + 1], KEPT_MAX as u64 + 1).await.unwrap();
        let all = entries(&path);
        assert_eq!(all.len(), before + 1);
        let last = all.last().unwrap();
        assert_eq!(last["truncated"], true);
        assert_eq!(last["frame"].as_str().unwrap().len(), KEPT_MAX);
        fs::remove_file(&path).unwrap();
        fs::remove_file(&older).unwrap();
    }
}
