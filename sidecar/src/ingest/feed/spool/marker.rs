//! How far the spool was worked off: one number, in a file that never grows.
//!
//! Two slots are written by turns, each with a checksum: one that was being written when the machine
//! died leaves the other. Overwriting needs no space, so a full disk does not stop it.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt as _,
    path::Path,
};

/// Slots are a sector apart, so that no torn write reaches both.
const APART: u64 = 512;
const SLOT: usize = 20;

#[derive(Debug)]
pub(super) struct Marker {
    file: File,
    turn: u64,
}

impl Marker {
    /// Opens or makes the file at `path`; returns it with the number that stands there, if any.
    pub(super) fn open(path: &Path) -> io::Result<(Self, Option<u64>)> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(path)?;
        let slots = [0, 1].map(|slot| read(&file, slot));
        let newest = slots.into_iter().flatten().max();
        let (turn, number) = newest.unzip();
        let mut marker = Self { file, turn: turn.unwrap_or_default() };
        if newest.is_none() {
            // Both slots are made while nothing depends on them: later there may be no space.
            marker.write(0)?;
            marker.write(0)?;
        }
        Ok((marker, number))
    }

    /// Writes `number`; it is on the disk when this returns.
    pub(super) fn write(&mut self, number: u64) -> io::Result<()> {
        let turn = self.turn + 1;
        let mut slot = [0; SLOT];
        slot[..8].copy_from_slice(&turn.to_le_bytes());
        slot[8..16].copy_from_slice(&number.to_le_bytes());
        let sum = crc32fast::hash(&slot[..16]);
        slot[16..].copy_from_slice(&sum.to_le_bytes());
        self.file.write_all_at(&slot, (turn % 2) * APART)?;
        self.file.sync_data()?;
        self.turn = turn;
        Ok(())
    }
}

/// Returns turn and number of a slot, when it is whole.
fn read(file: &File, slot: u64) -> Option<(u64, u64)> {
    let mut found = [0; SLOT];
    file.read_exact_at(&mut found, slot * APART).ok()?;
    let (numbers, sum) = found.split_at(16);
    if crc32fast::hash(numbers).to_le_bytes() != *sum {
        return None;
    }
    let (turn, number) = numbers.split_at(8);
    let number_of = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("8 bytes"));
    Some((number_of(turn), number_of(number)))
}
