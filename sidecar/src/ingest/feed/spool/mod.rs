//! Ratings on a disk until they are delivered: nothing that was taken is lost by a crash.
//!
//! 1. Files are only appended to; a file ends at about [`SEGMENT_BYTES`] and goes when all of it is
//!    delivered. Together they stay below a bound.
//! 2. [`Spool::append`] returns when the records are on the disk. After an error none of them counts,
//!    and nothing more is written behind what may be half of one: the next file begins.
//! 3. What a crash left half written of the last append is moved into a file of its own. A file in
//!    the middle may end so as well, when the next one goes on with the number that is due. Anything
//!    else is damage: an error that names the file, and nothing is changed. A file that is not there
//!    any more was moved away by somebody who read that error: its numbers are passed over.
//! 4. The position may lag behind what was delivered, never run ahead of it. No number is given twice:
//!    where files end before the position, the next one begins at the position.
//! 5. One process at a time: a lock says so.
//!
//! All calls block on the disk.

mod marker;
mod segment;

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use axum::body::Bytes;
use tracing::{error, warn};

use self::{
    marker::Marker,
    segment::{Cursor, FRAME, HEADER, Tail},
};
use super::queue::{Received, Record};
use crate::clock::unix_time;

/// A file is closed once it is this long, in bytes: deleting one frees a good piece of the bound.
const SEGMENT_BYTES: u64 = 8 << 20;
/// At least so many files fit below the bound.
const SEGMENTS_LEAST: u64 = 8;
/// What files are named: a number and this.
const ENDING: &str = ".ratings";
/// What files are named that hold what was half written: number and offset, and when they were made.
const TORN: &str = ".torn";
const POSITION: &str = "position";
const LOCK: &str = "lock";

/// Why the spool does not work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpoolError {
    /// The operating system refuses.
    #[error("spool {}: cannot {action}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// Another process has it.
    #[error("spool {} is in use by another process: give each bridge its own spool_dir", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// What stands there is not what was written.
    #[error(
        "spool file {} is damaged at record {record}, and nothing of it was dropped: restore it, or move it \
         away to go on without its ratings",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The number of the first record that cannot be read.
        record: u64,
    },
    /// The bound is reached.
    #[error(
        "spool is full: {max} bytes wait to be delivered; raise spool_max_bytes, or look why they wait"
    )]
    Full {
        /// The bound in bytes.
        max: u64,
    },
}

impl SpoolError {
    /// Returns true when the disk, and not what stands on it, is at fault: it may pass.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Io { .. } | Self::Full { .. })
    }

    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

/// A file, and how much of it counts.
#[derive(Clone, Copy, Debug)]
struct Segment {
    first: u64,
    records: u64,
    bytes: u64,
}

impl Segment {
    fn end(&self) -> u64 {
        self.first + self.records
    }
}

/// The spool in one folder.
#[derive(Debug)]
pub(super) struct Spool {
    folder: PathBuf,
    /// Held for its lock.
    _lock: File,
    marker: Marker,
    segments: VecDeque<Segment>,
    /// The last of them, when it may be appended to.
    active: Option<File>,
    reading: Option<Cursor>,
    delivered: u64,
    bytes: u64,
    max_bytes: u64,
    segment_bytes: u64,
}

impl Spool {
    /// Opens or makes the spool in `folder`, whose files hold at most `max_bytes` together.
    ///
    /// # Errors
    ///
    /// When the folder cannot be used, another process uses it, or a file is damaged.
    pub(super) fn open(folder: &Path, max_bytes: u64) -> Result<Self, SpoolError> {
        fs::create_dir_all(folder).map_err(SpoolError::io("make the folder", folder))?;
        let path = folder.join(LOCK);
        let mut options = OpenOptions::new();
        let lock = options.write(true).create(true).truncate(false).open(&path);
        let lock = lock.map_err(SpoolError::io("open the lock", &path))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => SpoolError::InUse { path: folder.to_owned() },
            TryLockError::Error(source) => SpoolError::io("lock", &path)(source),
        })?;
        let path = folder.join(POSITION);
        let (marker, position) =
            Marker::open(&path).map_err(SpoolError::io("open the position", &path))?;
        let position = position.unwrap_or_default();
        let segments = scan(folder, position)?;
        let first = segments.front().map(|segment| segment.first);
        // Without its files the position still says which numbers were given.
        let delivered = position.max(first.unwrap_or_default());
        let mut spool = Self {
            folder: folder.to_owned(),
            _lock: lock,
            marker,
            bytes: segments.iter().map(|segment| segment.bytes).sum(),
            segments,
            active: None,
            reading: None,
            delivered,
            max_bytes,
            segment_bytes: SEGMENT_BYTES.min(max_bytes / SEGMENTS_LEAST),
        };
        spool.remove_delivered()?;
        Ok(spool)
    }

    /// Returns the number of the first record that is not delivered.
    pub(super) fn delivered(&self) -> u64 {
        self.delivered
    }

    /// Returns the number that the next record gets.
    pub(super) fn end(&self) -> u64 {
        self.segments.back().map_or(0, Segment::end).max(self.delivered)
    }

    /// Returns how many records are not delivered.
    pub(super) fn waiting(&self) -> u64 {
        let of =
            |segment: &Segment| segment.end().saturating_sub(segment.first.max(self.delivered));
        self.segments.iter().map(of).sum()
    }

    /// Returns what the files take, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the body of the record that was appended last, if its file is still there.
    pub(super) fn last(&self) -> Result<Option<Bytes>, SpoolError> {
        let newest = self.segments.iter().rev().find(|segment| segment.records > 0);
        let Some(segment) = newest else { return Ok(None) };
        let mut last = None;
        let mut cursor = self.cursor(segment.first)?;
        while cursor.number < segment.end() {
            last = Some(self.record(&mut cursor)?.rating.body);
        }
        Ok(last)
    }

    /// Appends `ratings` in order; they are on the disk when this returns.
    ///
    /// # Errors
    ///
    /// When the bound is reached, or the disk does not take them. Then none of them counts.
    pub(super) fn append(&mut self, ratings: &[Received]) -> Result<(), SpoolError> {
        if ratings.is_empty() {
            return Ok(());
        }
        let records: u64 = ratings.iter().map(|rating| FRAME + rating.body.len() as u64).sum();
        let size = FRAME + records;
        if self.bytes + HEADER + size > self.max_bytes && self.end() == self.delivered {
            // Nothing waits: what is left of the last file only takes space.
            self.retire()?;
        }
        if self.bytes + HEADER + size > self.max_bytes {
            return Err(SpoolError::Full { max: self.max_bytes });
        }
        if self.segments.back().is_some_and(|segment| segment.bytes >= self.segment_bytes) {
            self.active = None;
        }
        if self.active.is_none()
            && let Err(error) = self.begin()
        {
            if self.end() > self.delivered {
                return Err(error);
            }
            // On a full disk what was delivered makes room.
            self.retire()?;
            self.begin()?;
        }
        let segment = self.segments.back_mut().expect("the active one is the last");
        let file = self.active.as_mut().expect("just made");
        let buffer = segment::encode(segment.end(), ratings);
        debug_assert_eq!(buffer.len() as u64, size);
        if let Err(source) = file.write_all(&buffer).and_then(|()| file.sync_data()) {
            // After a failed sync nobody knows what is on the disk: nothing is written behind it.
            // When cutting it off fails too, the next file's number tells that it never counted.
            let _ = file.set_len(segment.bytes);
            let path = path_of(&self.folder, segment.first);
            self.active = None;
            return Err(SpoolError::io("append", &path)(source));
        }
        segment.records += ratings.len() as u64;
        segment.bytes += size;
        self.bytes += size;
        Ok(())
    }

    /// Begins a file at the number that is due.
    fn begin(&mut self) -> Result<(), SpoolError> {
        let first = self.end();
        if self.segments.back().is_some_and(|last| last.records == 0 && last.first == first) {
            // A file of this number was begun before and nothing in it counts.
            let empty = self.segments.pop_back().expect("it is there");
            self.bytes -= empty.bytes;
        }
        let path = path_of(&self.folder, first);
        let made = File::create(&path).and_then(|mut file| {
            file.write_all(&segment::header(first))?;
            file.sync_all()?;
            File::open(&self.folder)?.sync_all()?;
            Ok(file)
        });
        let file = made.map_err(SpoolError::io("begin a file", &path))?;
        self.active = Some(file);
        self.segments.push_back(Segment { first, records: 0, bytes: HEADER });
        self.bytes += HEADER;
        self.remove_delivered()
    }

    /// Returns up to `records` records from number `from` on, about `bytes` long together. Numbers of a
    /// file that was moved away are passed over.
    ///
    /// # Errors
    ///
    /// When a file cannot be read, or does not hold what was written.
    pub(super) fn read(
        &mut self,
        from: u64,
        records: usize,
        bytes: usize,
    ) -> Result<Vec<Record>, SpoolError> {
        debug_assert!(from >= self.delivered);
        let (mut found, mut size) = (Vec::new(), 0);
        let mut number = from;
        let mut cursor = self.reading.take().filter(|cursor| cursor.number == from);
        while number < self.end() && found.len() < records && size < bytes {
            let index = self.segments.partition_point(|segment| segment.end() <= number);
            let Some(&segment) = self.segments.get(index) else { break };
            number = number.max(segment.first);
            let mut open = match cursor.take().filter(|cursor| cursor.first == segment.first) {
                Some(mut open) => {
                    let path = path_of(&self.folder, segment.first);
                    open.refresh().map_err(SpoolError::io("read", &path))?;
                    open
                }
                None => self.cursor(segment.first)?,
            };
            while open.number < number {
                self.record(&mut open)?;
            }
            while number < segment.end() && found.len() < records && size < bytes {
                let record = self.record(&mut open)?;
                size += record.rating.body.len();
                number += 1;
                found.push(record);
            }
            cursor = Some(open);
        }
        self.reading = cursor;
        Ok(found)
    }

    fn cursor(&self, first: u64) -> Result<Cursor, SpoolError> {
        let path = path_of(&self.folder, first);
        let cursor = Cursor::open(&path).map_err(SpoolError::io("read", &path))?;
        cursor.ok_or(SpoolError::Damaged { path, record: first })
    }

    /// Returns the record at `cursor`, which must be there.
    fn record(&self, cursor: &mut Cursor) -> Result<Record, SpoolError> {
        let (path, number) = (path_of(&self.folder, cursor.first), cursor.number);
        let record = cursor.next().map_err(SpoolError::io("read", &path))?;
        record.ok_or(SpoolError::Damaged { path, record: number })
    }

    /// Notes on the disk that all records before number `to` are delivered, and frees their space.
    ///
    /// # Errors
    ///
    /// When that cannot be written; after a crash some would be delivered again then.
    pub(super) fn deliver(&mut self, to: u64) -> Result<(), SpoolError> {
        debug_assert!((self.delivered..=self.end()).contains(&to));
        if to > self.delivered {
            let path = self.folder.join(POSITION);
            self.marker.write(to).map_err(SpoolError::io("write the position", &path))?;
            self.delivered = to;
        }
        self.remove_delivered()
    }

    /// Removes the files of which everything is delivered. The last stays: it tells what came last.
    fn remove_delivered(&mut self) -> Result<(), SpoolError> {
        while self.segments.len() > 1
            && self.segments.front().is_some_and(|first| first.end() <= self.delivered)
        {
            self.remove_first()?;
        }
        Ok(())
    }

    /// Removes all files, of which everything is delivered: the position remembers the number.
    fn retire(&mut self) -> Result<(), SpoolError> {
        debug_assert_eq!(self.end(), self.delivered);
        self.active = None;
        while !self.segments.is_empty() {
            self.remove_first()?;
        }
        Ok(())
    }

    fn remove_first(&mut self) -> Result<(), SpoolError> {
        let Some(first) = self.segments.front() else { return Ok(()) };
        // A file that is open takes its space until it is closed.
        self.reading = self.reading.take().filter(|cursor| cursor.first != first.first);
        let path = path_of(&self.folder, first.first);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(SpoolError::io("remove", &path)(error));
            }
            _ => {}
        }
        self.bytes -= first.bytes;
        self.segments.pop_front();
        Ok(())
    }
}

fn path_of(folder: &Path, first: u64) -> PathBuf {
    folder.join(format!("{first:020}{ENDING}"))
}

/// Reads what the files in `folder` hold, and moves aside what was half written. All before `position`
/// is delivered.
fn scan(folder: &Path, position: u64) -> Result<VecDeque<Segment>, SpoolError> {
    let failed = || SpoolError::io("read the folder", folder);
    let mut firsts = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed())? {
        let name = entry.map_err(failed())?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(ENDING));
        firsts.extend(number.and_then(|number| number.parse::<u64>().ok()));
    }
    firsts.sort_unstable();
    let mut segments = VecDeque::new();
    for (index, &first) in firsts.iter().enumerate() {
        let (path, due) = (path_of(folder, first), firsts.get(index + 1).copied());
        let cursor = Cursor::open(&path).map_err(SpoolError::io("read", &path))?;
        let Some(mut cursor) = cursor.filter(|cursor| cursor.first == first) else {
            let length = fs::metadata(&path).map_err(SpoolError::io("read", &path))?.len();
            // The header is on the disk before a record follows it.
            if length > HEADER || due.is_some() {
                return Err(SpoolError::Damaged { path, record: first });
            }
            fs::remove_file(&path).map_err(SpoolError::io("remove", &path))?;
            continue;
        };
        // Records from the next file's number on are of a write that failed.
        while due.is_none_or(|due| cursor.number < due)
            && cursor.next().map_err(SpoolError::io("read", &path))?.is_some()
        {}
        match due {
            None => settle_tail(folder, &path, &cursor)?,
            Some(due) if due == cursor.number => {}
            Some(_) if cursor.offset < cursor.length => {
                return Err(SpoolError::Damaged { path, record: cursor.number });
            }
            Some(due) if due > position => {
                let (from, to) = (cursor.number.max(position), due - 1);
                error!(from, to, "spool lacks records: their file was moved away or lost");
            }
            Some(_) => {}
        }
        segments.push_back(Segment { first, records: cursor.number - first, bytes: cursor.offset });
    }
    Ok(segments)
}

/// Moves what was half written at the end of the newest file into a file of its own. Where that cannot be
/// made it stays: the next file's number will tell that it never counted.
fn settle_tail(folder: &Path, path: &Path, cursor: &Cursor) -> Result<(), SpoolError> {
    let tail = match cursor.tail().map_err(SpoolError::io("read", path))? {
        None => return Ok(()),
        Some(Tail::Damaged) => {
            return Err(SpoolError::Damaged { path: path.to_owned(), record: cursor.number });
        }
        Some(Tail::Torn(tail)) => tail,
    };
    let (first, offset, now) = (cursor.first, cursor.offset, unix_time().as_millis());
    let aside = folder.join(format!("{first:020}-{offset}-{now}{TORN}"));
    let moved = move_tail(path, offset, &tail, &aside);
    let (file, bytes, aside) = (path.display(), tail.len(), aside.display());
    match moved {
        Ok(()) => warn!(%file, bytes, %aside, "half-written bytes moved into a file of their own"),
        Err(error) => warn!(%file, bytes, %error, "half-written bytes stay where they are"),
    }
    Ok(())
}

fn move_tail(path: &Path, offset: u64, tail: &[u8], aside: &Path) -> io::Result<()> {
    // Zeros say nothing.
    if tail.iter().any(|byte| *byte != 0) {
        let made = OpenOptions::new().write(true).create_new(true).open(aside);
        let written = made.and_then(|mut file| file.write_all(tail).and_then(|()| file.sync_all()));
        if written.is_err() {
            // Half of it would only take space.
            let _ = fs::remove_file(aside);
        }
        written?;
        File::open(aside.parent().unwrap_or(aside))?.sync_all()?;
    }
    let file = OpenOptions::new().write(true).open(path)?;
    file.set_len(offset)?;
    file.sync_all()
}

#[cfg(test)]
mod tests;
