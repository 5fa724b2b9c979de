//! What was learned, on a disk: the model with the positions that it was learned up to.
//!
//! One file, little-endian: a version, the CRC-32 and the length of what follows; the log's name, its
//! positions, the model's snapshot. It is written whole or not at all (`crate::checkpoint`), and its lock is
//! held as long as the node runs: two nodes never share one.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use super::{
    Positions,
    model::{Config, Model, SnapshotError},
};
use crate::{
    bus::Partition,
    checkpoint::{FileError, hold, replace},
};

/// What it begins with; the last byte is the version.
const MAGIC: [u8; 8] = *b"meritPZ\x01";
/// Magic, checksum and length.
const HEAD: usize = 8 + 4 + 8;

/// Why a checkpoint is not gone on with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// It cannot be read.
    #[error("it cannot be read")]
    Read(#[source] io::Error),
    /// It is something else, of another version, cut off or damaged.
    #[error("it is no whole checkpoint of personalised ratings")]
    Damaged,
    /// The model in it cannot be used.
    #[error("its model cannot be used")]
    Model(#[source] SnapshotError),
}

/// The file of one node.
#[derive(Debug)]
pub(super) struct CheckpointFile {
    path: PathBuf,
    _held: File,
}

impl CheckpointFile {
    /// Takes `path` for this node alone.
    pub(super) fn open(path: &Path) -> Result<Self, FileError> {
        Ok(Self { path: path.to_owned(), _held: hold(path)? })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns what it holds; nothing when nothing was ever written.
    pub(super) fn restore(
        &self,
        config: &Config,
    ) -> Result<Option<(Model, Positions)>, RestoreError> {
        match std::fs::read(&self.path) {
            Ok(bytes) => decode(&bytes, config).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(RestoreError::Read(error)),
        }
    }

    /// Writes what [`encode`] returned.
    pub(super) fn write(&self, bytes: &[u8]) -> Result<(), FileError> {
        replace(&self.path, bytes)
    }
}

/// Returns a checkpoint as bytes.
pub(super) fn encode(model: &Model, positions: &Positions) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend((positions.source.len() as u64).to_le_bytes());
    body.extend(positions.source.as_bytes());
    body.extend((positions.next.len() as u64).to_le_bytes());
    for (partition, next) in &positions.next {
        body.extend(partition.0.to_le_bytes());
        body.extend(next.to_le_bytes());
    }
    let model = model.snapshot();
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(&body);
    checksum.update(&model);
    let mut bytes = Vec::with_capacity(HEAD + body.len() + model.len());
    bytes.extend(MAGIC);
    bytes.extend(checksum.finalize().to_le_bytes());
    bytes.extend(((body.len() + model.len()) as u64).to_le_bytes());
    bytes.extend(body);
    bytes.extend(model);
    bytes
}

fn decode(bytes: &[u8], config: &Config) -> Result<(Model, Positions), RestoreError> {
    let damaged = || RestoreError::Damaged;
    let (head, body) = bytes.split_at_checked(HEAD).ok_or_else(damaged)?;
    let checksum = u32::from_le_bytes(head[8..12].try_into().expect("four bytes"));
    let length = u64::from_le_bytes(head[12..].try_into().expect("eight bytes"));
    if head[..8] != MAGIC || length != body.len() as u64 || crc32fast::hash(body) != checksum {
        return Err(damaged());
    }
    let mut rest = body;
    let mut take = |count: u64| {
        let count = usize::try_from(count).ok()?;
        let (taken, left) = rest.split_at_checked(count)?;
        rest = left;
        Some(taken)
    };
    let mut number = |bytes: u64| {
        let taken = take(bytes)?;
        Some(taken.iter().rev().fold(0_u64, |number, byte| number << 8 | u64::from(*byte)))
    };
    let mut read = || {
        let length = number(8)?;
        let mut source = Vec::new();
        for _ in 0..length {
            source.push(u8::try_from(number(1)?).ok()?);
        }
        let mut positions = Positions::of(&String::from_utf8(source).ok()?);
        for _ in 0..number(8)? {
            let partition = Partition(u32::try_from(number(4)?).ok()?);
            positions.next.insert(partition, number(8)?);
        }
        Some(positions)
    };
    let positions = read().ok_or_else(damaged)?;
    let model = Model::from_snapshot(rest, config.clone()).map_err(RestoreError::Model)?;
    Ok((model, positions))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::personalize::model::Key;

    fn config() -> Config {
        Config { factors: 2, users_max: 10, items_max: 10, ..Config::default() }
    }

    fn learned() -> (Model, Positions) {
        let mut model = Model::new(config());
        for n in 0..20 {
            let (user, item) = (Key::user(&(n % 5).to_string()), Key::item(&(n % 3).to_string()));
            model.learn(user, item, &[], f64::from(1 + n % 5));
        }
        let mut positions = Positions::of("s0123");
        positions.advance(Partition(0), 7);
        positions.advance(Partition(11), u64::MAX);
        (model, positions)
    }

    #[test]
    fn model_and_positions_come_back_and_one_flipped_bit_is_noticed() {
        let (model, positions) = learned();
        let bytes = encode(&model, &positions);
        let (again, found) = decode(&bytes, &config()).unwrap();
        assert_eq!((again.snapshot(), found), (model.snapshot(), positions));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            assert!(decode(&damaged, &config()).is_err(), "byte {at}");
            assert!(decode(&bytes[..at], &config()).is_err(), "{at} bytes");
        }
        let other = Config { seed: 9, ..config() };
        assert!(matches!(decode(&bytes, &other), Err(RestoreError::Model(_))));
    }

    #[test]
    fn a_file_belongs_to_one_node_and_what_was_never_written_is_no_fault() {
        let folder = std::env::temp_dir().join(format!("merit-personalize-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("model.chkpt");
        let file = CheckpointFile::open(&path).unwrap();
        assert!(matches!(CheckpointFile::open(&path), Err(FileError::Busy { .. })));
        assert!(file.restore(&config()).unwrap().is_none());
        let (model, positions) = learned();
        file.write(&encode(&model, &positions)).unwrap();
        let (again, found) = file.restore(&config()).unwrap().unwrap();
        assert_eq!((again.snapshot(), found), (model.snapshot(), positions));
        drop(file);
        assert!(CheckpointFile::open(&path).is_ok(), "the next process has it");
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
