//! The agent's name: 1 to 128 well-formed characters, checked once and safe as a key ever after.
//!
//! An agent id becomes part of Redis keys, log lines and headers, so anything that could break
//! out of one (braces, spaces, newlines, control characters) never becomes an [`AgentId`].

use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

/// An agent's name: 1–128 characters of `[A-Za-z0-9._:@-]`, beginning and ending alphanumeric.
///
/// Cloning is cheap (a reference count).
///
/// ```
/// use tower_merit::AgentId;
/// let agent: AgentId = "urn:agent:7@eu.example".parse()?;
/// assert_eq!(agent.as_str(), "urn:agent:7@eu.example");
/// assert!("spaces are refused".parse::<AgentId>().is_err());
/// # Ok::<(), tower_merit::AgentIdError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AgentId(Arc<str>);

/// The longest agent id, in characters (all of them ASCII).
pub const AGENT_ID_MAX: usize = 128;

/// Prefixes that Merit gives to identities it makes itself; a token may not claim them.
const RESERVED_PREFIXES: [&str; 2] = ["ip-", "key-"];

/// Why a text is not an agent id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AgentIdError {
    /// The text is empty or longer than [`AGENT_ID_MAX`].
    #[error("must be 1 to {AGENT_ID_MAX} characters long, has {length}")]
    Length {
        /// Length of the refused text in bytes.
        length: usize,
    },
    /// A character outside the alphabet.
    #[error("may hold letters, digits and `._:@-` only, has {character:?} at position {position}")]
    Character {
        /// The first character that is not allowed.
        character: char,
        /// Its position in bytes, from 0.
        position: usize,
    },
    /// The first or last character is punctuation.
    #[error("must begin and end with a letter or a digit")]
    Edge,
    /// A token claims an identity of the kind that only Merit gives.
    #[error("may not begin with `{prefix}`, which names identities of another kind")]
    Reserved {
        /// The reserved prefix.
        prefix: &'static str,
    },
}

impl AgentId {
    /// Returns the id of an agent named `text`.
    ///
    /// # Errors
    ///
    /// When `text` is not 1–128 characters of `[A-Za-z0-9._:@-]` with alphanumeric ends.
    pub fn new(text: &str) -> Result<Self, AgentIdError> {
        let bytes = text.as_bytes();
        if bytes.is_empty() || bytes.len() > AGENT_ID_MAX {
            return Err(AgentIdError::Length { length: bytes.len() });
        }
        let allowed = |byte: u8| {
            byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b':' | b'@' | b'-')
        };
        if let Some(position) = bytes.iter().position(|&byte| !allowed(byte)) {
            // All before it are ASCII, so a character begins there.
            let character = text[position..].chars().next().expect("a byte stands there");
            return Err(AgentIdError::Character { character, position });
        }
        let edges = [bytes[0], bytes[bytes.len() - 1]];
        if !edges.iter().all(u8::is_ascii_alphanumeric) {
            return Err(AgentIdError::Edge);
        }
        Ok(Self(text.into()))
    }

    /// Returns the id that a token claims: as [`AgentId::new`], without the reserved prefixes
    /// `ip-` (peer addresses) and `key-` (API keys).
    ///
    /// # Errors
    ///
    /// As [`AgentId::new`], and [`AgentIdError::Reserved`].
    pub fn claimed(text: &str) -> Result<Self, AgentIdError> {
        let reserved = |prefix: &&&str| text.starts_with(**prefix);
        match RESERVED_PREFIXES.iter().find(reserved) {
            Some(prefix) => Err(AgentIdError::Reserved { prefix }),
            None => Self::new(text),
        }
    }

    /// Returns the id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for AgentId {
    type Err = AgentIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text)
    }
}

impl TryFrom<String> for AgentId {
    type Error = AgentIdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::new(&text)
    }
}

impl fmt::Display for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl AsRef<str> for AgentId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for AgentId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl serde::Serialize for AgentId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for AgentId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::new(&text).map_err(|error| serde::de::Error::custom(format_args!("agent id {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_of_every_allowed_character_is_taken() {
        for text in ["a", "7", "a.b_c:d@e-f", "urn:agent:1", &"x".repeat(128)] {
            assert_eq!(AgentId::new(text).unwrap().as_str(), text);
        }
    }

    #[test]
    fn whatever_could_break_out_of_a_key_is_refused() {
        let long = "x".repeat(129);
        for text in [
            "", &long, "a b", "a\n", "a{b}c", "a/b", "a%b", ":a", "a:", "-a", "a-", "ä", "a\0",
            "a*",
        ] {
            assert!(AgentId::new(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn a_token_cannot_claim_to_be_a_peer_or_an_api_key() {
        assert!(AgentId::claimed("ip-10-0-0-1").is_err());
        assert!(AgentId::claimed("key-partner").is_err());
        assert!(AgentId::claimed("ipanema").is_ok());
    }

    #[test]
    fn an_error_names_the_character_and_where_it_stands() {
        let error = AgentId::new("a b").unwrap_err().to_string();
        assert!(error.contains("' ' at position 1"), "{error}");
    }
}
