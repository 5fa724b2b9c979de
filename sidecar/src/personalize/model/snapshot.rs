//! A model as bytes, and back: what a checkpoint holds.
//!
//! Little-endian throughout: a version, the settings that give the numbers their meaning, μ, the rows from
//! the one used longest ago, the rows of circumstances. Whoever stores it adds the checksum.

use super::{BIAS, CONTEXT_FACTORS, Config, ITEM_FACTORS, Key, Model, NUMBER_MAX, USER_FACTORS};
use crate::rating::{SCORE_MAX, SCORE_MIN};

/// What it begins with; the last byte is the version.
const MAGIC: [u8; 8] = *b"meritCF\x01";

/// Why bytes are no snapshot of this model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// It is something else, or of another version.
    #[error("it is no snapshot of a model, or one of another version")]
    Kind,
    /// It ends early, or goes on after its end.
    #[error("it does not end where it should")]
    Length,
    /// A number is not one that a model has.
    #[error("it holds a number that no model has")]
    Number,
    /// It was learned with other settings.
    #[error("it was learned with `{key}` = {found}, and the configuration says {wanted}")]
    Settings {
        /// The setting.
        key: &'static str,
        /// What the snapshot was learned with.
        found: u64,
        /// What is configured.
        wanted: u64,
    },
}

impl Model {
    /// Returns the model as bytes.
    #[must_use]
    pub fn snapshot(&self) -> Vec<u8> {
        let factors = self.config.factors;
        let rows = self.users.len() + self.items.len();
        let room = rows * (20 + 4 * (ITEM_FACTORS + factors)) + 4 * self.context.len() + 96;
        let mut bytes = Vec::with_capacity(room);
        bytes.extend(MAGIC);
        for number in [factors as u64, self.config.seed, self.config.context_rows as u64] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(self.mean.to_le_bytes());
        bytes.extend(self.ratings.to_le_bytes());
        for table in [&self.users, &self.items] {
            bytes.extend((table.len() as u64).to_le_bytes());
            for (key, count, numbers) in table.by_age() {
                bytes.extend(key.0.to_le_bytes());
                bytes.extend(count.to_le_bytes());
                numbers.iter().for_each(|number| bytes.extend(number.to_le_bytes()));
            }
        }
        // Most rows of circumstances are never used.
        let width = CONTEXT_FACTORS + factors;
        let used = || self.context_counts.iter().enumerate().filter(|(_, count)| **count > 0);
        bytes.extend((used().count() as u64).to_le_bytes());
        for (row, count) in used() {
            bytes.extend((row as u64).to_le_bytes());
            bytes.extend(count.to_le_bytes());
            let numbers = &self.context[row * width..(row + 1) * width];
            numbers.iter().for_each(|number| bytes.extend(number.to_le_bytes()));
        }
        bytes
    }

    /// Returns the model in `bytes`, to go on by `config`. With fewer rows allowed than it has, the
    /// ones used longest ago are left out.
    ///
    /// # Errors
    ///
    /// When it is no such model, or was learned with other factors, seed or rows of circumstances.
    pub fn from_snapshot(bytes: &[u8], config: Config) -> Result<Self, SnapshotError> {
        let mut reader = Reader { rest: bytes };
        if reader.take(MAGIC.len()).map_err(|_| SnapshotError::Kind)? != MAGIC {
            return Err(SnapshotError::Kind);
        }
        let settings = [
            ("factors", config.factors as u64),
            ("seed", config.seed),
            ("context_rows", config.context_rows as u64),
        ];
        for (key, wanted) in settings {
            let found = reader.u64()?;
            if found != wanted {
                return Err(SnapshotError::Settings { key, found, wanted });
            }
        }
        let mut model = Self::new(config);
        (model.mean, model.ratings) = (reader.f64()?, reader.f64()?);
        let mean = (SCORE_MIN..=SCORE_MAX).contains(&model.mean);
        if !mean || !(1.0..=1e9).contains(&model.ratings) {
            return Err(SnapshotError::Number);
        }
        let factors = model.config.factors;
        let mut numbers = Vec::new();
        for (table, before) in [(&mut model.users, USER_FACTORS), (&mut model.items, ITEM_FACTORS)]
        {
            for _ in 0..reader.u64()? {
                let key = Key(u128::from_le_bytes(reader.array()?));
                let count = reader.u32()?;
                reader.numbers(before + factors, &mut numbers)?;
                table.put_back(key, count, &numbers);
            }
        }
        let width = CONTEXT_FACTORS + factors;
        let rows = model.config.context_rows;
        for _ in 0..reader.u64()? {
            let row = usize::try_from(reader.u64()?).map_err(|_| SnapshotError::Number)?;
            let count = reader.u32()?;
            reader.numbers(width, &mut numbers)?;
            if row >= rows {
                return Err(SnapshotError::Number);
            }
            if model.context.is_empty() {
                model.context.resize(rows * width, 0.0);
                model.context_counts.resize(rows, 0);
            }
            model.context[row * width..(row + 1) * width].copy_from_slice(&numbers);
            model.context_counts[row] = count;
        }
        debug_assert_eq!(BIAS, 0, "the layout of rows is part of the version");
        if reader.rest.is_empty() { Ok(model) } else { Err(SnapshotError::Length) }
    }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], SnapshotError> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(SnapshotError::Length)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], SnapshotError> {
        Ok(self.take(N)?.try_into().expect("as many were taken"))
    }

    fn u64(&mut self) -> Result<u64, SnapshotError> {
        self.array().map(u64::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, SnapshotError> {
        self.array().map(u32::from_le_bytes)
    }

    fn f64(&mut self) -> Result<f64, SnapshotError> {
        self.array().map(f64::from_le_bytes)
    }

    fn numbers(&mut self, count: usize, into: &mut Vec<f32>) -> Result<(), SnapshotError> {
        into.clear();
        for four in self.take(count * 4)?.chunks_exact(4) {
            let number = f32::from_le_bytes(four.try_into().expect("chunks of four bytes"));
            if !(-NUMBER_MAX..=NUMBER_MAX).contains(&number) {
                return Err(SnapshotError::Number); // NaN among them
            }
            into.push(number);
        }
        Ok(())
    }
}
