//! Who is asking: from a request to an [`AgentId`], or to the reason why not.
//!
//! 1. No credential, or one that does not verify, is [`IdentityError::Unauthenticated`] (401).
//! 2. A credential that verifies but names no usable agent is [`IdentityError::NoAgent`] (403).
//! 3. Nothing in a token's header chooses a key or an algorithm: both are configured.

pub mod jwt;

pub use jwt::{JwtIdentity, JwtVerifier, Token};

use std::{
    future::{Future, Ready, ready},
    sync::Arc,
};

use http::{HeaderValue, Request, header};

use crate::{AgentId, AgentIdError};

/// Who is asking, once that is proved.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Caller {
    /// The agent whose buckets are charged.
    pub agent: AgentId,
    /// The user for whom it acts, when a verified credential names one: who may rate what it does.
    pub rater: Option<Arc<str>>,
}

impl From<AgentId> for Caller {
    fn from(agent: AgentId) -> Self {
        Self { agent, rater: None }
    }
}

/// Learns which agent a request comes from.
pub trait Identify: Send + Sync + 'static {
    /// The pending answer.
    type Future: Future<Output = Result<Caller, IdentityError>> + Send + 'static;

    /// Returns who sent `request`.
    fn identify<B>(&self, request: &Request<B>) -> Self::Future;
}

/// What [`crate::AdmissionLayer`] takes as an identity: something that identifies, or the
/// configuration of such a thing.
pub trait IntoIdentify {
    /// What identifies.
    type Identify: Identify;

    /// Returns what identifies.
    ///
    /// # Errors
    ///
    /// When the configuration cannot work, for example a key that is too short.
    fn into_identify(self) -> Result<Self::Identify, IdentityConfigError>;
}

impl<I: Identify> IntoIdentify for I {
    type Identify = I;

    fn into_identify(self) -> Result<I, IdentityConfigError> {
        Ok(self)
    }
}

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
    /// The credential verifies, and names no usable agent: 403.
    #[error("{0}")]
    NoAgent(ClaimError),
}

impl IdentityError {
    /// Returns the `WWW-Authenticate` field that a 401 carries; nothing when the answer is a 403.
    ///
    /// Characters of `realm` that cannot stand in a quoted string are left out.
    #[must_use]
    pub fn challenge(&self, realm: &str) -> Option<HeaderValue> {
        let Self::Unauthenticated { reason, presented } = self else { return None };
        let printable = |c: &char| (' '..='~').contains(c) && *c != '"' && *c != '\\';
        let realm: String = realm.chars().filter(printable).collect();
        let text = match presented {
            // RFC 6750 section 3.1: a request without credentials gets no error code.
            false => format!("Bearer realm=\"{realm}\""),
            true => format!(
                "Bearer realm=\"{realm}\", error=\"invalid_token\", error_description=\"{}\"",
                reason.replace('"', "'")
            ),
        };
        Some(HeaderValue::from_str(&text).expect("realm and reasons are printable"))
    }
}

/// Why a verified token names no agent.
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
    #[error("HS256 secret must be at least 32 bytes long, has {length}")]
    ShortSecret {
        /// Its length in bytes.
        length: usize,
    },
    /// The key cannot be read.
    #[error("{algorithm:?} public key is not usable: it must be PEM (SubjectPublicKeyInfo)")]
    Key {
        /// The algorithm it was given for.
        algorithm: jwt::Algorithm,
        /// What is wrong with it.
        #[source]
        source: jsonwebtoken::errors::Error,
    },
    /// The claim's path is empty or has an empty part.
    #[error("claim path {path:?} must be names separated by single dots")]
    ClaimPath {
        /// The refused path.
        path: String,
    },
    /// The crate was built without a signature backend.
    #[error("tower-merit was built without a signature backend: enable its feature `aws-lc-rs`")]
    NoBackend,
}

/// Returns the bearer token of a request (RFC 6750 section 2.1).
///
/// # Errors
///
/// When there is no `Authorization` field, more than one, or one of another scheme.
pub fn bearer<B>(request: &Request<B>) -> Result<&str, IdentityError> {
    let unauthenticated = |reason, presented| IdentityError::Unauthenticated { reason, presented };
    let mut fields = request.headers().get_all(header::AUTHORIZATION).iter();
    let Some(field) = fields.next() else {
        return Err(unauthenticated(
            "no bearer token: send `Authorization: Bearer <token>`",
            false,
        ));
    };
    if fields.next().is_some() {
        return Err(unauthenticated("more than one `Authorization` field", true));
    }
    let text = field.to_str().map_err(|_| unauthenticated("`Authorization` is not text", true))?;
    let (scheme, token) = text.split_once(' ').unwrap_or((text, ""));
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(unauthenticated("`Authorization` is not of scheme Bearer", false));
    }
    match token.trim() {
        "" => Err(unauthenticated("the bearer token is empty", true)),
        token => Ok(token),
    }
}

/// Takes the agent that an earlier layer left in the request's extensions: bring your own identity.
#[derive(Clone, Copy, Debug, Default)]
pub struct ExtensionIdentity;

impl Identify for ExtensionIdentity {
    type Future = Ready<Result<Caller, IdentityError>>;

    fn identify<B>(&self, request: &Request<B>) -> Self::Future {
        let reason = "no earlier layer identified the agent";
        let nobody = IdentityError::Unauthenticated { reason, presented: false };
        ready(request.extensions().get::<AgentId>().cloned().map(Caller::from).ok_or(nobody))
    }
}
