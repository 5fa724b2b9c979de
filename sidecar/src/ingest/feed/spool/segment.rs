//! One file of the spool: a header, then records, each with its length and a checksum.
//!
//! ```text
//! header  "MERITSP1", number of the first record (u64)
//! record  length of the body (u32), CRC-32 (u32), received (Unix ms, u64), body
//! ```
//!
//! Integers are little-endian. The checksum covers length, time, body and the record's number, so
//! that no record passes for another one. What follows the last whole record was being written when
//! the process or the machine died: it was never taken.

use std::{fs::File, io, os::unix::fs::FileExt as _, path::Path};

use axum::body::Bytes;
use crc32fast::Hasher;

use super::super::queue::{Received, Record};

const MAGIC: &[u8; 8] = b"MERITSP1";
const HEADER_LENGTH: usize = 16;
const FRAME_LENGTH: usize = 16;
/// Length of a file's header in bytes.
pub(super) const HEADER: u64 = HEADER_LENGTH as u64;
/// What a record takes besides its body, in bytes.
pub(super) const FRAME: u64 = FRAME_LENGTH as u64;
/// The longest body that is believed, in bytes: above what a feed may be allowed to send.
pub(super) const BODY_MAX: u32 = 64 << 20;

/// Returns what a file begins with whose first record has number `first`.
pub(super) fn header(first: u64) -> [u8; HEADER_LENGTH] {
    let mut header = [0; HEADER_LENGTH];
    header[..8].copy_from_slice(MAGIC);
    header[8..].copy_from_slice(&first.to_le_bytes());
    header
}

fn checksum(number: u64, received_ms: u64, body: &[u8]) -> u32 {
    let mut hasher = Hasher::new();
    hasher.update(&(body.len() as u64).to_le_bytes());
    hasher.update(&number.to_le_bytes());
    hasher.update(&received_ms.to_le_bytes());
    hasher.update(body);
    hasher.finalize()
}

/// Appends record `number` to `buffer`.
pub(super) fn encode(number: u64, rating: &Received, buffer: &mut Vec<u8>) {
    let length = u32::try_from(rating.body.len()).expect("frames are bounded below 64 MiB");
    debug_assert!(length <= BODY_MAX);
    buffer.extend_from_slice(&length.to_le_bytes());
    let checksum = checksum(number, rating.received_ms, &rating.body);
    buffer.extend_from_slice(&checksum.to_le_bytes());
    buffer.extend_from_slice(&rating.received_ms.to_le_bytes());
    buffer.extend_from_slice(&rating.body);
}

/// A place in a file, and the number of the record there.
#[derive(Debug)]
pub(super) struct Cursor {
    file: File,
    /// The number of the file's first record.
    pub(super) first: u64,
    /// The number of the next record.
    pub(super) number: u64,
    /// Where it begins.
    pub(super) offset: u64,
    length: u64,
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
        Ok(Some(Self { file, first, number: first, offset: HEADER, length }))
    }

    /// Looks again how long the file is: it grows while it is read.
    pub(super) fn refresh(&mut self) -> io::Result<()> {
        self.length = self.file.metadata()?.len();
        Ok(())
    }

    /// Returns the next record and moves past it; nothing when no whole one is left.
    pub(super) fn next(&mut self) -> io::Result<Option<Record>> {
        let mut head = [0; FRAME_LENGTH];
        if self.length.saturating_sub(self.offset) < FRAME {
            return Ok(None);
        }
        self.file.read_exact_at(&mut head, self.offset)?;
        let number = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("4 bytes"));
        let (length, sum) = (number(0), number(4));
        let received_ms = u64::from_le_bytes(head[8..].try_into().expect("8 bytes"));
        let end = self.offset + FRAME + u64::from(length);
        if length > BODY_MAX || end > self.length {
            return Ok(None);
        }
        let mut body = vec![0; length as usize];
        self.file.read_exact_at(&mut body, self.offset + FRAME)?;
        if checksum(self.number, received_ms, &body) != sum {
            return Ok(None);
        }
        let rating = Received { received_ms, body: Bytes::from(body) };
        let record = Record { number: self.number, rating };
        self.offset = end;
        self.number += 1;
        Ok(Some(record))
    }
}
