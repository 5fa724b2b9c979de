//! Rows that are JSON objects: the wanted fields of each, borrowed from the line where possible.

use std::{borrow::Cow, fmt};

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{
    layout::{Column, Columns},
    rows::{AGENT, Fault, SCORE, TIME, USER, fault},
};

/// The fields of one row, as text.
pub(super) struct Row<'a> {
    pub(super) user: Cow<'a, str>,
    pub(super) agent: Cow<'a, str>,
    pub(super) score: &'a str,
    pub(super) time: Option<Cow<'a, str>>,
}

/// What stands under a wanted name, and how early that name stands among the field's names.
type Found<'a> = Option<(usize, &'a RawValue)>;

/// Which names a field goes by: the one that was given, else the known ones.
struct Wanted<'c>([(Option<&'c str>, &'static [&'static str]); 4]);

impl Wanted<'_> {
    fn find(&self, key: &str) -> Option<(usize, usize)> {
        self.0.iter().enumerate().find_map(|(field, (given, known))| match given {
            Some(name) => (*name == key).then_some((field, 0)),
            None => known.iter().position(|name| *name == key).map(|rank| (field, rank)),
        })
    }
}

impl<'de> DeserializeSeed<'de> for &Wanted<'_> {
    type Value = [Found<'de>; 4];

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for &Wanted<'_> {
    type Value = [Found<'de>; 4];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = [None; 4];
        while let Some(key) = map.next_key_seed(Key)? {
            let Some((field, rank)) = self.find(&key) else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            let value: &'de RawValue = map.next_value()?;
            let earlier = fields[field].is_none_or(|(found, _)| rank < found);
            if value.get() != "null" && earlier {
                fields[field] = Some((rank, value));
            }
        }
        Ok(fields)
    }
}

/// A key or a text, borrowed unless it has escapes.
struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Key {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}

/// Returns the fields of the object in `line`.
pub(super) fn row<'a>(line: &'a [u8], columns: &Columns) -> Result<Row<'a>, Fault> {
    fn given(column: &Option<Column>) -> Option<&str> {
        match column {
            Some(Column::Named(name)) => Some(name),
            _ => None,
        }
    }
    let wanted = Wanted([
        (given(&columns.user), USER),
        (given(&columns.agent), AGENT),
        (given(&columns.score), SCORE),
        (given(&columns.time), TIME),
    ]);
    let mut source = serde_json::Deserializer::from_slice(line);
    let read = wanted.deserialize(&mut source).and_then(|row| source.end().map(|()| row));
    let [user, agent, score, time] = read.map_err(|error| {
        fault("row", &String::from_utf8_lossy(line), format!("is no JSON object: {error}"))
    })?;
    let row = || String::from_utf8_lossy(line);
    let there = |field, found: Found<'a>| {
        found.map(|(_, value)| value.get()).ok_or_else(|| {
            fault(field, &row(), "is missing; name its column with --columns".to_owned())
        })
    };
    let score = there("score", score)?;
    if score.starts_with('"') {
        return Err(fault("score", score, "is a string: send a number".to_owned()));
    }
    let time = match columns.timeless {
        true => None,
        false => Some(text("time", there("time", time)?)?),
    };
    let (user, agent) =
        (text("user", there("user", user)?)?, text("agent", there("agent", agent)?)?);
    Ok(Row { user, agent, score, time })
}

/// Returns a string without its quotes and a number as it stands.
fn text<'a>(field: &'static str, raw: &'a str) -> Result<Cow<'a, str>, Fault> {
    let refuse = || fault(field, raw, "is no text: send a string or a number".to_owned());
    match raw.as_bytes().first() {
        Some(b'"') => {
            Key.deserialize(&mut serde_json::Deserializer::from_str(raw)).map_err(|_| refuse())
        }
        Some(b'-' | b'0'..=b'9') => Ok(Cow::Borrowed(raw)),
        _ => Err(refuse()),
    }
}
