//! Why nobody was learned, and why an identity cannot work as configured.

use std::{sync::Arc, time::Duration};

use http::{HeaderValue, StatusCode};

use super::{
    claims::ClaimPathError,
    jwt::{Algorithm, KeySetError, KeysError, UnusableKey},
};
use crate::AgentIdError;

/// Why nobody was learned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// There is no credential, or it does not verify: 401.
    #[error("{reason}")]
    Unauthenticated {
        /// What was wrong; the caller may read it.
        reason: &'static str,
        /// False when there was no credential at all (RFC 6750 section 3.1: then no error code).
        presented: bool,
    },
    /// There is no API key, or it is not known: 401.
    #[error("{reason}")]
    ApiKey {
        /// What was wrong; the caller may read it.
        reason: &'static str,
    },
    /// The credential verifies, and names no usable agent: 403.
    #[error("{0}")]
    NoAgent(ClaimError),
    /// The credential may be good, and cannot be judged now: 503 with `Retry-After`.
    #[error("{reason}")]
    Unavailable {
        /// What is missing; the caller may read it.
        reason: &'static str,
        /// After how many seconds it is worth trying again; at least 1.
        retry_after_s: u64,
    },
}

impl IdentityError {
    /// Returns the status of the answer: 401, 403 or 503.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Unauthenticated { .. } | Self::ApiKey { .. } => StatusCode::UNAUTHORIZED,
            Self::NoAgent(_) => StatusCode::FORBIDDEN,
            Self::Unavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// Returns `Retry-After` in seconds, when the answer is a 503.
    #[must_use]
    pub fn retry_after_s(&self) -> Option<u64> {
        match self {
            Self::Unavailable { retry_after_s, .. } => Some(*retry_after_s),
            _ => None,
        }
    }

    /// Returns the `WWW-Authenticate` field that a 401 carries; nothing with another status.
    ///
    /// Characters of `realm` and of the reason that cannot stand in a quoted string are left out (RFC 6750 section 3
    /// has no `"` and `\\` in `error_description`); a `"` of the reason becomes `'`.
    #[must_use]
    pub fn challenge(&self, realm: &str) -> Option<HeaderValue> {
        let printable = |c: &char| (' '..='~').contains(c) && *c != '"' && *c != '\\';
        let quoted = |text: &str| text.chars().filter(printable).collect::<String>();
        let realm = quoted(realm);
        let text = match self {
            // RFC 6750 section 3.1: a request without credentials gets no error code.
            Self::Unauthenticated { presented: false, .. } => format!("Bearer realm=\"{realm}\""),
            Self::Unauthenticated { reason, presented: true } => format!(
                "Bearer realm=\"{realm}\", error=\"invalid_token\", error_description=\"{}\"",
                quoted(&reason.replace('"', "'"))
            ),
            // No scheme is registered for keys in fields; RFC 9110 section 11.6.1 wants one named.
            Self::ApiKey { .. } => format!("ApiKey realm=\"{realm}\""),
            Self::NoAgent(_) | Self::Unavailable { .. } => return None,
        };
        Some(HeaderValue::from_str(&text).expect("only printable characters are left"))
    }
}

/// Why a verified credential names no agent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClaimError {
    /// The claim is absent.
    #[error("token has no claim `{claim}`")]
    Missing {
        /// The claim's path.
        claim: Box<str>,
    },
    /// The claim is not a string.
    #[error("claim `{claim}` is not a string")]
    NotText {
        /// The claim's path.
        claim: Box<str>,
    },
    /// The claim is not an agent id.
    #[error("claim `{claim}` {source}")]
    Malformed {
        /// The claim's path.
        claim: Box<str>,
        /// What is wrong with it.
        source: AgentIdError,
    },
}

/// Why an identity cannot work as configured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityConfigError {
    /// The secret is shorter than the hash (RFC 7518 section 3.2).
    #[error("secret must be at least {needed} bytes long, has {length}")]
    ShortSecret {
        /// Its length in bytes.
        length: usize,
        /// The length of the longest configured hash.
        needed: usize,
    },
    /// The key cannot be read.
    #[error("{algorithm:?} public key is not usable: it must be PEM (SubjectPublicKeyInfo)")]
    Key {
        /// The algorithm it was given for.
        algorithm: Algorithm,
        /// What is wrong with it.
        #[source]
        source: jsonwebtoken::errors::Error,
    },
    /// The key can be read, and serves no signature.
    #[error("{algorithm:?} public key is not usable: {source}")]
    UnusableKey {
        /// The algorithm it was given for.
        algorithm: Algorithm,
        /// What is wrong with it.
        source: UnusableKey,
    },
    /// The configured key set cannot be in force.
    #[error("key set is not usable: {source}")]
    KeySet {
        /// What is wrong with it.
        source: KeySetError,
    },
    /// The key source gave no keys.
    #[error("no keys")]
    Keys {
        /// Why.
        #[source]
        source: Arc<KeysError>,
    },
    /// No algorithm is named.
    #[error("at least one algorithm must be named")]
    NoAlgorithm,
    /// The algorithms do not go together, or not with the kind of key.
    #[error(
        "algorithms {algorithms:?} must fit the key: one family for one key, and never symmetric \
         beside asymmetric ones"
    )]
    Algorithms {
        /// The refused algorithms.
        algorithms: Vec<Algorithm>,
    },
    /// A time is out of range.
    #[error("{name} must be {least:?} to {most:?}, is {found:?}")]
    Time {
        /// Which.
        name: &'static str,
        /// The refused time.
        found: Duration,
        /// The least that is allowed.
        least: Duration,
        /// The most that is allowed.
        most: Duration,
    },
    /// A claim's path is malformed.
    #[error("claim path {path:?} {source}")]
    ClaimPath {
        /// The refused path.
        path: String,
        /// What is wrong with it.
        source: ClaimPathError,
    },
    /// The crate was built without a signature backend.
    #[error("tower-merit was built without a signature backend: enable its feature `aws-lc-rs`")]
    NoBackend,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_reason_and_no_realm_spoils_the_challenge() {
        let reason = "bad \"token\"\r\nset-cookie: x\\ \u{e4}\u{7f}";
        let error = IdentityError::Unauthenticated { reason, presented: true };
        let field = error.challenge("a\"\n\\b").unwrap();
        assert_eq!(
            field.to_str().unwrap(),
            "Bearer realm=\"ab\", error=\"invalid_token\", \
             error_description=\"bad 'token'set-cookie: x \""
        );
    }
}
