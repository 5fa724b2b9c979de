//! Claims: where one stands in a token, and the JSON that holds them, read strictly.
//!
//! A path is names separated by dots. A name that holds a dot, a bracket, a quote or a space is
//! written `["…"]`, with `\"` and `\\` inside; a dot before the bracket may be left out:
//! `act.sub`, `["https://example.com/agent"]`, `realm["a.b"].id`.

use std::{fmt, str::FromStr};

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value};

use super::ClaimError;
use crate::AgentId;

/// The longest path, in bytes.
pub const CLAIM_PATH_MAX: usize = 512;

/// The most names in a path.
pub const CLAIM_DEPTH_MAX: usize = 16;

/// Where a claim stands in a token.
///
/// ```
/// use tower_merit::identity::ClaimPath;
///
/// let path: ClaimPath = r#"act.["https://example.com/agent"]"#.parse()?;
/// assert_eq!(path.names().collect::<Vec<_>>(), ["act", "https://example.com/agent"]);
/// # Ok::<(), tower_merit::identity::ClaimPathError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimPath {
    text: Box<str>,
    names: Box<[Box<str>]>,
}

/// Why a text is no path of a claim.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClaimPathError {
    /// The path is too long or too deep.
    #[error("must be at most {CLAIM_PATH_MAX} bytes and {CLAIM_DEPTH_MAX} names long")]
    Long,
    /// A name is empty.
    #[error("has an empty name at byte {at}: write names separated by single dots")]
    Empty {
        /// Where, in bytes from 0.
        at: usize,
    },
    /// A character that a bare name cannot hold.
    #[error("has {character:?} at byte {at}: write such a name as [\"…\"]")]
    Character {
        /// The first such character.
        character: char,
        /// Where, in bytes from 0.
        at: usize,
    },
    /// A bracket is not closed, or nothing but `["…"]` stands in it.
    #[error("has a bracket at byte {at} that is not of the form [\"…\"]")]
    Bracket {
        /// Where, in bytes from 0.
        at: usize,
    },
}

impl ClaimPath {
    /// Returns the names from the outermost to the claim's own.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(AsRef::as_ref)
    }

    /// Returns the path as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns what stands at this path.
    pub(super) fn find<'a>(&self, claims: &'a Map<String, Value>) -> Option<&'a Value> {
        let (first, rest) = self.names.split_first().expect("a path has a name");
        rest.iter().try_fold(claims.get(&**first)?, |value, name| value.get(&**name))
    }

    /// Returns the agent that the claim names.
    pub(super) fn agent(&self, claims: &Map<String, Value>) -> Result<AgentId, ClaimError> {
        let claim = || self.text.clone();
        let text = self
            .find(claims)
            .ok_or_else(|| ClaimError::Missing { claim: claim() })?
            .as_str()
            .ok_or_else(|| ClaimError::NotText { claim: claim() })?;
        AgentId::claimed(text).map_err(|source| ClaimError::Malformed { claim: claim(), source })
    }
}

impl FromStr for ClaimPath {
    type Err = ClaimPathError;

    fn from_str(text: &str) -> Result<Self, ClaimPathError> {
        if text.len() > CLAIM_PATH_MAX {
            return Err(ClaimPathError::Long);
        }
        let mut names: Vec<Box<str>> = Vec::new();
        let mut rest = text;
        loop {
            let at = text.len() - rest.len();
            let (name, after) = match rest.strip_prefix('[') {
                Some(inside) => quoted(inside).ok_or(ClaimPathError::Bracket { at })?,
                None => bare(rest, at)?,
            };
            if name.is_empty() {
                return Err(ClaimPathError::Empty { at });
            }
            names.push(name.into());
            rest = match after.strip_prefix('.') {
                _ if after.is_empty() => break,
                Some(next) => next,
                None => after,
            };
        }
        if names.len() > CLAIM_DEPTH_MAX {
            return Err(ClaimPathError::Long);
        }
        Ok(Self { text: text.into(), names: names.into() })
    }
}

/// Reads a name up to the next dot or opening bracket.
fn bare(text: &str, at: usize) -> Result<(String, &str), ClaimPathError> {
    let end = text.find(['.', '[']).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let strange = |c: char| matches!(c, ']' | '"' | '\\') || c.is_whitespace() || c.is_control();
    match name.char_indices().find(|&(_, c)| strange(c)) {
        Some((offset, character)) => Err(ClaimPathError::Character { character, at: at + offset }),
        None => Ok((name.to_owned(), rest)),
    }
}

/// Reads `"…"]`; what follows must be the end, a dot or another bracket.
fn quoted(text: &str) -> Option<(String, &str)> {
    let inside = text.strip_prefix('"')?;
    let mut name = String::new();
    let mut characters = inside.char_indices();
    loop {
        match characters.next()? {
            (at, '"') => {
                let rest = inside[at + 1..].strip_prefix(']')?;
                let ends = rest.is_empty() || rest.starts_with(['.', '[']);
                return ends.then_some((name, rest));
            }
            (_, '\\') => match characters.next()? {
                (_, escaped @ ('"' | '\\')) => name.push(escaped),
                _ => return None,
            },
            (_, other) => name.push(other),
        }
    }
}

impl fmt::Display for ClaimPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Reads a JSON object in which no name stands twice, at any depth: RFC 7519 section 4 lets a parser
/// take the last of two, and then two parsers may see two different agents in one token.
pub(super) fn parse_object(json: &[u8]) -> Result<Map<String, Value>, serde_json::Error> {
    match serde_json::from_slice::<Unique>(json)?.0 {
        Value::Object(object) => Ok(object),
        _ => Err(serde_json::Error::custom("not an object")),
    }
}

/// JSON in which no name stands twice in an object.
struct Unique(Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UniqueVisitor).map(Self)
    }
}

struct UniqueVisitor;

impl<'de> Visitor<'de> for UniqueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON whose objects hold each name once")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(Unique(item)) = items.next_element()? {
            array.push(item);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some((name, Unique(value))) = members.next_entry::<String, Unique>()? {
            if object.insert(name, value).is_some() {
                return Err(A::Error::custom("a name stands twice in an object"));
            }
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn names(text: &str) -> Vec<String> {
        text.parse::<ClaimPath>().unwrap().names().map(str::to_owned).collect()
    }

    #[test]
    fn a_path_is_names_separated_by_dots_or_quoted_in_brackets() {
        assert_eq!(names("agent_id"), ["agent_id"]);
        assert_eq!(names("act.sub"), ["act", "sub"]);
        assert_eq!(names(r#"["https://a.b/c"]"#), ["https://a.b/c"]);
        assert_eq!(names(r#"a["b.c"].d.["e\"\\]f"]"#), ["a", "b.c", "d", "e\"\\]f"]);
        assert_eq!(names("urn:x:agent"), ["urn:x:agent"]);
    }

    #[test]
    fn a_malformed_path_says_where_and_what_to_write() {
        for text in ["", ".", "a.", ".a", "a..b", r#"[""]"#] {
            let error = text.parse::<ClaimPath>().unwrap_err();
            assert!(matches!(error, ClaimPathError::Empty { .. }), "{text}: {error}");
        }
        for text in ["a b", "a]", "a\"", "a\nb", "a\\b"] {
            let error = text.parse::<ClaimPath>().unwrap_err();
            assert!(matches!(error, ClaimPathError::Character { at: 1, .. }), "{text}: {error}");
        }
        for text in ["a[", "a[b]", r#"a["b"#, r#"a["b"]c"#, r#"a["b\n"]"#, "a[0]"] {
            let error = text.parse::<ClaimPath>().unwrap_err();
            assert_eq!(error, ClaimPathError::Bracket { at: 1 }, "{text}");
        }
        assert_eq!(
            "a.".repeat(17).parse::<ClaimPath>().unwrap_err(),
            ClaimPathError::Empty { at: 34 }
        );
        assert_eq!(["a"; 17].join(".").parse::<ClaimPath>().unwrap_err(), ClaimPathError::Long);
        assert_eq!("a".repeat(513).parse::<ClaimPath>().unwrap_err(), ClaimPathError::Long);
    }

    #[test]
    fn a_path_reaches_into_objects_only() {
        let claims = json!({"act": {"sub": "x", "list": ["y"]}, "a.b": 1});
        let claims = claims.as_object().unwrap();
        let find = |text: &str| text.parse::<ClaimPath>().unwrap().find(claims).cloned();
        assert_eq!(find("act.sub"), Some(json!("x")));
        assert_eq!(find(r#"["a.b"]"#), Some(json!(1)));
        for none in ["a.b", "act.sub.x", "act.list.0", "act.other"] {
            assert_eq!(find(none), None, "{none}");
        }
    }

    #[test]
    fn a_name_that_stands_twice_is_refused_at_any_depth() {
        assert!(parse_object(br#"{"a":1,"b":{"a":[{"c":1.5}]},"d":-2,"e":null}"#).is_ok());
        for twice in [r#"{"a":1,"a":1}"#, r#"{"b":{"a":1,"\u0061":2}}"#, r#"{"b":[{"a":1,"a":2}]}"#]
        {
            assert!(parse_object(twice.as_bytes()).is_err(), "{twice}");
        }
        for other in ["[]", "1", "", "{}x", "{} {}"] {
            assert!(parse_object(other.as_bytes()).is_err(), "{other}");
        }
    }
}
