//! Selectors: what in a request says who is asking, as configuration writes it.
//!
//! `jwt.claims.<path>` ([`ClaimPath`]: `jwt.claims.act.sub`, `jwt.claims.["https://a.example/id"]`),
//! `header.<name>` (an API key), `peer.ip`.

use std::{fmt, str::FromStr};

use http::HeaderName;

use super::{ClaimPath, ClaimPathError};

const CLAIMS: &str = "jwt.claims";
const HEADER: &str = "header.";
const PEER: &str = "peer.ip";

/// What in a request says who is asking.
///
/// ```
/// use tower_merit::identity::Selector;
///
/// let selector: Selector = "jwt.claims.agent_id".parse()?;
/// assert!(matches!(&selector, Selector::Claim(path) if path.as_str() == "agent_id"));
/// # Ok::<(), tower_merit::identity::selector::SelectorError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Selector {
    /// A claim of a bearer token.
    Claim(ClaimPath),
    /// A field that carries an API key.
    Header(HeaderName),
    /// The address of the peer.
    Peer,
}

/// Why a text is no selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SelectorError {
    /// Of none of the three kinds.
    #[error("selector {selector:?} must be `jwt.claims.<path>`, `header.<name>` or `peer.ip`")]
    Kind {
        /// The refused text.
        selector: String,
    },
    /// The path of the claim is malformed.
    #[error("selector {selector:?}: claim path {source}")]
    Claim {
        /// The refused text.
        selector: String,
        /// What is wrong with the path.
        source: ClaimPathError,
    },
    /// The name is no name of a header field.
    #[error("selector {selector:?}: must name a header field, in letters, digits and `-`")]
    Header {
        /// The refused text.
        selector: String,
    },
}

impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        let selector = || text.to_owned();
        if text == PEER {
            return Ok(Self::Peer);
        }
        if let Some(name) = text.strip_prefix(HEADER) {
            let name = HeaderName::from_bytes(name.as_bytes());
            return name
                .map(Self::Header)
                .map_err(|_| SelectorError::Header { selector: selector() });
        }
        // `jwt.claims.x`, `jwt.claims.["x"]` and `jwt.claims["x"]`.
        let path = text.strip_prefix(CLAIMS).and_then(|rest| {
            rest.strip_prefix('.').or_else(|| rest.starts_with('[').then_some(rest))
        });
        match path {
            Some(path) => path
                .parse()
                .map(Self::Claim)
                .map_err(|source| SelectorError::Claim { selector: selector(), source }),
            None => Err(SelectorError::Kind { selector: selector() }),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Claim(path) => write!(f, "{CLAIMS}.{path}"),
            Self::Header(name) => write!(f, "{HEADER}{name}"),
            Self::Peer => f.write_str(PEER),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_kinds_are_read_and_shown_as_they_were_written() {
        for text in [
            "jwt.claims.agent_id",
            "jwt.claims.a.b",
            "header.x-api-key",
            "peer.ip",
            r#"jwt.claims.["a.b"]"#,
        ] {
            assert_eq!(text.parse::<Selector>().unwrap().to_string(), text);
        }
        let bracket: Selector = r#"jwt.claims["a.b"]"#.parse().unwrap();
        assert_eq!(bracket.to_string(), r#"jwt.claims.["a.b"]"#);
        let upper: Selector = "header.X-API-Key".parse().unwrap();
        assert_eq!(upper.to_string(), "header.x-api-key");
    }

    #[test]
    fn anything_else_is_refused_and_says_what_to_write() {
        for text in
            ["", "jwt", "jwt.claims", "jwt.claim.x", "peer", "peer.port", "cookie.x", " peer.ip"]
        {
            let error = text.parse::<Selector>().unwrap_err();
            assert!(matches!(error, SelectorError::Kind { .. }), "{text}");
            assert!(error.to_string().contains("must be `jwt.claims.<path>`"), "{error}");
        }
        for text in ["jwt.claims.", "jwt.claims.a..b", "jwt.claims[0]"] {
            let error = text.parse::<Selector>().unwrap_err();
            assert!(matches!(error, SelectorError::Claim { .. }), "{text}");
        }
        for text in ["header.", "header.a b", "header.ä", "header.a:b"] {
            let error = text.parse::<Selector>().unwrap_err();
            assert!(matches!(error, SelectorError::Header { .. }), "{text}");
        }
    }
}
