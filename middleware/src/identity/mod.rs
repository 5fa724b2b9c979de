//! Who is asking: from a request to an [`AgentId`], or to the reason why not.
//!
//! 1. No credential, or one that does not verify, is [`IdentityError::Unauthenticated`] or
//!    [`IdentityError::ApiKey`] (401).
//! 2. A credential that verifies but names no usable agent is [`IdentityError::NoAgent`] (403).
//! 3. A credential that cannot be judged now is [`IdentityError::Unavailable`] (503), never a 401.
//! 4. Nothing in a token's header chooses a key or an algorithm: both are configured.
//!
//! | [`Selector`] | who identifies | the agent |
//! | --- | --- | --- |
//! | `jwt.claims.<path>` | [`JwtVerifier`] | what the claim says |
//! | `header.<name>` | [`ApiKeyIdentity`] | `key-<name of the key>` |
//! | `peer.ip` | [`PeerIdentity`] | `ip-<address, colons as dashes>` |
//! | your own | [`identify_fn`], [`ExtensionIdentity`] or a type of yours | what you say |

#[cfg(feature = "aws-lc-rs")]
mod backend;

#[cfg(not(feature = "aws-lc-rs"))]
#[path = "no_backend.rs"]
mod backend;

mod claims;

pub mod selector;

pub mod jwt;

pub mod api_key;

pub mod peer;

mod forwarded;

mod own;

mod error;

pub use api_key::{ApiKeyIdentity, ApiKeys};
pub use claims::{CLAIM_DEPTH_MAX, CLAIM_PATH_MAX, ClaimPath, ClaimPathError};
pub use error::{ClaimError, IdentityConfigError, IdentityError};
pub use jwt::{JwtIdentity, JwtVerifier, Token};
pub use own::{ExtensionIdentity, IdentifyFn, RequestHead, identify_fn};
pub use peer::{PeerAddr, PeerIdentity};
pub use selector::Selector;

use std::{future::Future, sync::Arc};

use http::{Request, header};
use tokio::time::Instant;

use crate::AgentId;

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

impl Caller {
    /// Returns this caller, acting for the user `rater`.
    #[must_use]
    pub fn acting_for(mut self, rater: impl Into<Arc<str>>) -> Self {
        self.rater = Some(rater.into());
        self
    }
}

/// Learns which agent a request comes from.
pub trait Identify: Send + Sync + 'static {
    /// The pending answer.
    type Future: Future<Output = Result<Caller, IdentityError>> + Send + 'static;

    /// Returns who sent `request`.
    fn identify<B>(&self, request: &Request<B>) -> Self::Future;

    /// Returns what [`Identify::identify`] would, if that takes no waiting; `None` when it might. An
    /// identity that is often known at once saves each such request some hundred nanoseconds.
    /// `now` is the present: a clock is read once for all who want to know.
    fn identify_now<B>(
        &self,
        request: &Request<B>,
        now: Instant,
    ) -> Option<Result<Caller, IdentityError>> {
        let _ = (request, now);
        None
    }
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

/// Returns the bearer token of a request (RFC 6750 section 2.1).
///
/// # Errors
///
/// When there is no `Authorization` field, more than one, or one of another scheme.
pub fn bearer<B>(request: &Request<B>) -> Result<&str, IdentityError> {
    str::from_utf8(bearer_bytes(request)?).map_err(|_| refused("`Authorization` is not text", true))
}

fn refused(reason: &'static str, presented: bool) -> IdentityError {
    IdentityError::Unauthenticated { reason, presented }
}

/// The token before anybody looked at its characters: a remembered one needs no second look.
fn bearer_bytes<B>(request: &Request<B>) -> Result<&[u8], IdentityError> {
    let mut fields = request.headers().get_all(header::AUTHORIZATION).iter();
    let Some(field) = fields.next() else {
        return Err(refused("no bearer token: send `Authorization: Bearer <token>`", false));
    };
    // Known without a look at the other fields when there is one of this name.
    if fields.size_hint().1 != Some(0) && fields.next().is_some() {
        return Err(refused("more than one `Authorization` field", true));
    }
    let field = field.as_bytes();
    let end = field.iter().position(|byte| *byte == b' ').unwrap_or(field.len());
    let (scheme, token) = field.split_at(end);
    if !scheme.eq_ignore_ascii_case(b"bearer") {
        return Err(refused("`Authorization` is not of scheme Bearer", false));
    }
    match token.trim_ascii() {
        [] => Err(refused("the bearer token is empty", true)),
        token => Ok(token),
    }
}
