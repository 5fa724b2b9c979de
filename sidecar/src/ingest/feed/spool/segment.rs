//! One file of the spool: a header, then appends of records, each record with its length and a checksum.
//!
//! ```text
//! header  "MERITSP2", number of the first record (u64)
//! append  0xFFFCFDFE (u32), CRC-32 (u32), bytes of its records (u64)
//! record  length of the body (u32), CRC-32 (u32), received (Unix ms, u64), body
//! ```
//!
//! Integers are little-endian. A record's checksum covers length, time, body and number, an append's its
//! bytes and the number of its first record, so that nothing passes for another one.
//!
//! An append is on the disk before the next one begins. So only the last one can be half written: it is
//! short, or sectors of it never arrived and read as zeros ([`Cursor::tail`]). Everything else that cannot be
//! read was written once and is damaged since.

use std::{fs::File, io, os::unix::fs::FileExt as _, path::Path};

use axum::body::Bytes;
use crc32fast::Hasher;

use super::super::queue::{Received, Record};

const MAGIC: &[u8; 8] = b"MERITSP2";
/// What an append begins with: no length, and in no UTF-8 text.
const APPEND: u32 = 0xFFFC_FDFE;
const HEADER_LENGTH: usize = 16;
const FRAME_LENGTH: usize = 16;
/// Length of a file's header in bytes.
pub(super) const HEADER: u64 = HEADER_LENGTH as u64;
/// What a record takes besides its body, and an append besides its records, in bytes.
pub(super) const FRAME: u64 = FRAME_LENGTH as u64;
/// The longest body that is believed, in bytes: above what a feed may be allowed to send.
pub(super) const BODY_MAX: u32 = 64 << 20;
/// What a disk writes whole or not at all, in bytes.
const SECTOR: usize = 512;
/// No rating came later, in Unix milliseconds: the year 2248.
const RECEIVED_MAX: u64 = 1 << 43;

/// Returns what a file begins with whose first record has number `first`.
pub(super) fn header(first: u64) -> [u8; HEADER_LENGTH] {
    let mut header = [0; HEADER_LENGTH];
    header[..8].copy_from_slice(MAGIC);
    header[8..].copy_from_slice(&first.to_le_bytes());
    header
}

/// Returns the checksum of a record but for its number, which comes last.
fn unnumbered(received_ms: u64, body: &[u8]) -> Hasher {
    let mut hasher = Hasher::new();
    hasher.update(&(body.len() as u64).to_le_bytes());
    hasher.update(&received_ms.to_le_bytes());
    hasher.update(body);
    hasher
}

fn numbered(mut hasher: Hasher, number: u64) -> u32 {
    hasher.update(&number.to_le_bytes());
    hasher.finalize()
}

fn append_checksum(first: u64, bytes: u64) -> u32 {
    let mut hasher = Hasher::new();
    hasher.update(&APPEND.to_le_bytes());
    hasher.update(&bytes.to_le_bytes());
    numbered(hasher, first)
}

/// Returns `ratings` as one append, whose first record has number `first`.
pub(super) fn encode(first: u64, ratings: &[Received]) -> Vec<u8> {
    let bytes = ratings.iter().map(|rating| FRAME + rating.body.len() as u64).sum::<u64>();
    let mut buffer = Vec::with_capacity(usize::try_from(bytes + FRAME).unwrap_or_default());
    buffer.extend_from_slice(&APPEND.to_le_bytes());
    buffer.extend_from_slice(&append_checksum(first, bytes).to_le_bytes());
    buffer.extend_from_slice(&bytes.to_le_bytes());
    for (rating, number) in ratings.iter().zip(first..) {
        let length = u32::try_from(rating.body.len()).expect("frames are bounded below 64 MiB");
        debug_assert!(length <= BODY_MAX && rating.received_ms < RECEIVED_MAX);
        buffer.extend_from_slice(&length.to_le_bytes());
        let checksum = numbered(unnumbered(rating.received_ms, &rating.body), number);
        buffer.extend_from_slice(&checksum.to_le_bytes());
        buffer.extend_from_slice(&rating.received_ms.to_le_bytes());
        buffer.extend_from_slice(&rating.body);
    }
    buffer
}

/// What an append or a record begins with: two words and a long one.
#[derive(Clone, Copy, Debug)]
struct Head {
    word: u32,
    checksum: u32,
    long: u64,
}

impl Head {
    fn read(bytes: [u8; FRAME_LENGTH]) -> Self {
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        let long = u64::from_le_bytes(bytes[8..].try_into().expect("8 bytes"));
        Self { word: word(0), checksum: word(4), long }
    }

    /// Returns how long the records of the append are that begins here, when `first` is the first.
    fn append(self, first: u64) -> Option<u64> {
        let is_one = self.word == APPEND && self.checksum == append_checksum(first, self.long);
        is_one.then_some(self.long)
    }
}

/// A place in a file, and the number of the record there.
#[derive(Debug)]
pub(super) struct Cursor {
    file: File,
    /// The number of the file's first record.
    pub(super) first: u64,
    /// The number of the next record.
    pub(super) number: u64,
    /// Where it begins, or the append that it is the first of.
    pub(super) offset: u64,
    /// How long the file is.
    pub(super) length: u64,
    /// Where the append ends that was begun last; 0 before the first.
    append_end: u64,
}

/// What stands behind the last whole record of a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Tail {
    /// What one append left that was not finished: nothing of it was taken.
    Torn(Vec<u8>),
    /// What had been written whole.
    Damaged,
}

impl Cursor {
    /// Opens the file at `path`; nothing when its header is not whole, so that it holds no record.
    pub(super) fn open(path: &Path) -> io::Result<Option<Self>> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        let mut found = [0; HEADER_LENGTH];
        if length < HEADER {
            return Ok(None);
        }
        file.read_exact_at(&mut found, 0)?;
        let first = u64::from_le_bytes(found[8..].try_into().expect("8 bytes"));
        if found != header(first) {
            return Ok(None);
        }
        Ok(Some(Self { file, first, number: first, offset: HEADER, length, append_end: 0 }))
    }

    /// Looks again how long the file is: it grows while it is read.
    pub(super) fn refresh(&mut self) -> io::Result<()> {
        self.length = self.file.metadata()?.len();
        Ok(())
    }

    fn head(&self, at: u64) -> io::Result<Option<Head>> {
        let mut head = [0; FRAME_LENGTH];
        if self.length.saturating_sub(at) < FRAME {
            return Ok(None);
        }
        self.file.read_exact_at(&mut head, at)?;
        Ok(Some(Head::read(head)))
    }

    /// Returns the next record and moves past it; nothing when no whole one is left.
    pub(super) fn next(&mut self) -> io::Result<Option<Record>> {
        let mut at = self.offset;
        let Some(mut head) = self.head(at)? else { return Ok(None) };
        if let Some(bytes) = head.append(self.number) {
            at += FRAME;
            self.append_end = at.saturating_add(bytes);
            let Some(next) = self.head(at)? else { return Ok(None) };
            head = next;
        }
        let Head { word: length, checksum, long: received_ms } = head;
        let end = at + FRAME + u64::from(length);
        if length > BODY_MAX || end > self.length {
            return Ok(None);
        }
        let mut body = vec![0; length as usize];
        self.file.read_exact_at(&mut body, at + FRAME)?;
        if numbered(unnumbered(received_ms, &body), self.number) != checksum {
            return Ok(None);
        }
        let rating = Received { received_ms, body: Bytes::from(body) };
        let record = Record { number: self.number, rating };
        self.offset = end;
        self.number += 1;
        Ok(Some(record))
    }

    /// Judges what stands behind the last whole record, once [`Cursor::next`] finds none; nothing when
    /// nothing does.
    pub(super) fn tail(&self) -> io::Result<Option<Tail>> {
        let length = usize::try_from(self.length.saturating_sub(self.offset)).unwrap_or_default();
        if length == 0 {
            return Ok(None);
        }
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, self.offset)?;
        // Zero when the append's own beginning cannot be read.
        let append_left = self.append_end.saturating_sub(self.offset);
        let is_torn = match found_behind(&bytes, self.number) {
            // A later append was begun.
            _ if append_left > 0 && self.length > self.append_end => false,
            Some(Found::Append) => false,
            Some(Found::Record { at }) => lacks_a_sector(&bytes, self.offset, at),
            None => {
                let is_short = (length as u64) < append_left.max(FRAME);
                is_short || lacks_a_sector(&bytes, self.offset, length)
            }
        };
        Ok(Some(if is_torn { Tail::Torn(bytes) } else { Tail::Damaged }))
    }
}

/// Something that was written whole.
enum Found {
    /// The beginning of a later append: what stands before it was on the disk.
    Append,
    /// A record, and where: maybe of the same append.
    Record { at: usize },
}

/// Returns what was written whole in `bytes`, where record `number` should begin and does not.
fn found_behind(bytes: &[u8], number: u64) -> Option<Found> {
    let mut record = None;
    for (at, window) in bytes.windows(FRAME_LENGTH).enumerate() {
        let head = Head::read(window.try_into().expect("as long as a head"));
        // So many records may stand before this place.
        let numbers = number..=number + (at / FRAME_LENGTH) as u64;
        if at > 0
            && head.word == APPEND
            && numbers.clone().any(|first| head.append(first).is_some())
        {
            return Some(Found::Append);
        }
        // Zeros are no record, and texts are neither lengths nor times.
        if record.is_some() || !(1..=BODY_MAX).contains(&head.word) || head.long >= RECEIVED_MAX {
            continue;
        }
        let body = at + FRAME_LENGTH..at + FRAME_LENGTH + head.word as usize;
        let Some(body) = bytes.get(body) else { continue };
        let hasher = unnumbered(head.long, body);
        if numbers.into_iter().any(|number| numbered(hasher.clone(), number) == head.checksum) {
            record = Some(Found::Record { at });
        }
    }
    record
}

/// Returns whether a sector before `end` reads as zeros, as far as it is in `bytes`, which stand at
/// `offset` of the file.
fn lacks_a_sector(bytes: &[u8], offset: u64, end: usize) -> bool {
    let mut from = 0;
    while from < end {
        let into = usize::try_from((offset + from as u64) % SECTOR as u64);
        let to = from + SECTOR - into.expect("a sector is short");
        // One that reaches beyond what was found there arrived, unless the file ends with it.
        if to > end && end < bytes.len() {
            return false;
        }
        if bytes[from..to.min(bytes.len())].iter().all(|byte| *byte == 0) {
            return true;
        }
        from = to;
    }
    false
}
