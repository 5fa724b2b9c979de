//! The score and the context of a rating.

use super::{ContextKey, RatingError, error::shorten};
use std::collections::BTreeMap;

/// The lowest score.
pub const SCORE_MIN: f64 = 1.0;
/// The highest score.
pub const SCORE_MAX: f64 = 5.0;
/// The most entries that a context may have.
pub const CONTEXT_MAX: usize = 16;
/// The longest text of a context's entry, in bytes of UTF-8.
pub const CONTEXT_TEXT_MAX: usize = 256;

/// A finite number in [1, 5].
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Score(f64);

impl Score {
    /// Returns `value` as a score, or nothing when it is not a finite number in [1, 5].
    #[must_use]
    pub fn new(value: f64) -> Option<Self> {
        (SCORE_MIN..=SCORE_MAX).contains(&value).then_some(Self(value))
    }

    /// Returns the number, in [1, 5].
    #[must_use]
    pub fn value(self) -> f64 {
        self.0
    }
}

/// A value in a rating's context.
#[derive(Clone, Debug, PartialEq)]
pub enum Scalar {
    /// True or false.
    Bool(bool),
    /// A whole number that fits 64 bits with sign.
    Integer(i64),
    /// Any other finite number.
    Number(f64),
    /// A text of at most [`CONTEXT_TEXT_MAX`] bytes.
    Text(Box<str>),
}

/// What a producer told about the circumstances of a rating: at most [`CONTEXT_MAX`] scalars.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Context(BTreeMap<ContextKey, Scalar>);

impl Context {
    /// Returns the value of `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Scalar> {
        self.0.iter().find(|(name, _)| name.as_str() == key).map(|(_, value)| value)
    }

    /// Returns the entries in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&ContextKey, &Scalar)> {
        self.0.iter()
    }

    /// Returns true when there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds an entry.
    ///
    /// # Errors
    ///
    /// When the key is there already, the text too long, or the context full.
    pub(super) fn insert(&mut self, key: ContextKey, value: Scalar) -> Result<(), RatingError> {
        let refuse = |value: &str, problem: String| {
            let value = format!("`{}`: {}", key.as_str(), shorten(value));
            Err(RatingError::Invalid { field: "context", value, problem })
        };
        if let Scalar::Text(text) = &value
            && text.len() > CONTEXT_TEXT_MAX
        {
            let problem = format!("is {} bytes long; send at most {CONTEXT_TEXT_MAX}", text.len());
            return refuse(text, problem);
        }
        if self.0.contains_key(&key) {
            return refuse("", "is given twice; send it once".to_owned());
        }
        if self.0.len() == CONTEXT_MAX {
            return refuse("", format!("is one too many; send at most {CONTEXT_MAX} entries"));
        }
        self.0.insert(key, value);
        Ok(())
    }
}

impl serde::Serialize for Context {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key.as_str(), value)))
    }
}

impl serde::Serialize for Scalar {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Integer(value) => serializer.serialize_i64(*value),
            Self::Number(value) => serializer.serialize_f64(*value),
            Self::Text(value) => serializer.serialize_str(value),
        }
    }
}
