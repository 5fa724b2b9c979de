//! Who posts a rating, and whom it may speak for.
//!
//! 1. A bearer token with scope [`WRITE`] rates as its own `sub`; with [`WRITE_ANY`] it may name
//!    any user. An API key is a collector's: it may name any user.
//! 2. The poster of a rating is the token's subject or `key-<name>`: ids are scoped by it, so no
//!    subject can pass for a key or a feed, nor for a foreign producer on the bus.
//! 3. A field [`API_KEY`] that is no collector's does not spoil a bearer beside it: it may be the key
//!    that the gateway knows the agent by.
//! 4. API keys are kept and looked up as SHA-256 digests; the lookup's time tells nothing of a key.

use std::{collections::HashMap, sync::Arc};

use aws_lc_rs::digest::{SHA256, digest};
use http::{HeaderName, Request, header};
use tower_merit::{
    AgentId, JwtVerifier,
    identity::{IdentityError, Token, bearer, jwt::Verifying},
};

use super::{Refusal, feed::POSTER_PREFIX as FEED_PREFIX};
use crate::{
    rating::{FOREIGN_POSTER, Poster, Rating, RatingRequest, SubjectMode},
    secret::Unset,
};

/// The scope that rates as the token's own subject.
pub const WRITE: &str = "ratings:write";
/// The scope that may name other users.
pub const WRITE_ANY: &str = "ratings:write:any";
/// The field that carries an API key; `Authorization: Bearer <key>` is taken too, and beside a key
/// that is not known.
pub const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// The shortest secret of an API key, in bytes: a random one of this length cannot be guessed.
pub const API_KEY_MIN: usize = 16;
/// The longest name of an API key, in characters.
pub const API_KEY_NAME_MAX: usize = 64;
/// The most API keys.
pub const API_KEYS_MAX: usize = 1000;

const KEY_PREFIX: &str = "key-";
const SUBJECT_PREFIX: &str = "sub:";

/// Why the API keys in the environment cannot be used. No secret is repeated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ApiKeysError {
    /// The variable is not there, or is no text.
    #[error("ingest.api_key_env: {0}")]
    Unset(#[from] Unset),
    /// A key's name is malformed.
    #[error(
        "ingest.api_key_env: name of key {number} must be 1 to {API_KEY_NAME_MAX} \
         characters of `[A-Za-z0-9._-]`; write name:secret"
    )]
    Name {
        /// Which key, from 1.
        number: usize,
    },
    /// A secret is too short or has characters that no header carries.
    #[error(
        "ingest.api_key_env: secret of key {number} must be at least {API_KEY_MIN} \
         visible ASCII characters"
    )]
    Secret {
        /// Which key, from 1.
        number: usize,
    },
    /// A name or a secret is there twice.
    #[error("ingest.api_key_env: key {number} repeats a name or secret")]
    Repeated {
        /// Which key, from 1.
        number: usize,
    },
    /// There are more than [`API_KEYS_MAX`].
    #[error("ingest.api_key_env: must hold at most {API_KEYS_MAX} keys")]
    TooMany,
}

/// API keys, by the digests of their secrets.
#[derive(Clone, Default)]
pub struct ApiKeys {
    names: Arc<HashMap<[u8; 32], Poster>>,
}

/// Secrets are not shown, nor their digests.
impl std::fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.names.values()).finish()
    }
}

impl ApiKeys {
    /// Returns the keys in `text`: `name:secret` separated by commas, or one bare secret.
    ///
    /// # Errors
    ///
    /// When a key is malformed or repeated; the error gives its number and shows no secret.
    pub fn parse(text: &str) -> Result<Self, ApiKeysError> {
        let mut names: HashMap<[u8; 32], Poster> = HashMap::new();
        for (index, key) in text.split(',').map(str::trim).enumerate() {
            let number = index + 1;
            if number > API_KEYS_MAX {
                return Err(ApiKeysError::TooMany);
            }
            let (name, secret) = key.split_once(':').unwrap_or(("default", key));
            let named = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            if name.is_empty() || name.len() > API_KEY_NAME_MAX || !name.chars().all(named) {
                return Err(ApiKeysError::Name { number });
            }
            if secret.len() < API_KEY_MIN || !secret.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(ApiKeysError::Secret { number });
            }
            let poster = Poster::new(&format!("{KEY_PREFIX}{name}")).expect("a short ASCII name");
            let taken = names.values().any(|other| *other == poster);
            if taken || names.insert(hash(secret), poster).is_some() {
                return Err(ApiKeysError::Repeated { number });
            }
        }
        Ok(Self { names: Arc::new(names) })
    }

    /// Returns the digests of the secrets, each with whom it makes the poster.
    pub(crate) fn digests(&self) -> impl Iterator<Item = (&[u8; 32], &Poster)> {
        self.names.iter()
    }

    fn poster(&self, secret: &str) -> Option<&Poster> {
        // An empty set costs no digest.
        (!self.names.is_empty()).then(|| self.names.get(&hash(secret))).flatten()
    }
}

fn hash(secret: &str) -> [u8; 32] {
    let digest = digest(&SHA256, secret.as_bytes());
    digest.as_ref().try_into().expect("a SHA-256 digest has 32 bytes")
}

/// Someone who may post ratings.
#[derive(Clone, Debug)]
pub(super) struct Rater {
    poster: Poster,
    /// The only user it may name; nothing when it may name any.
    only: Option<Box<str>>,
    /// The agent that it is itself.
    agent: Option<AgentId>,
}

/// Learns raters from credentials.
#[derive(Clone, Debug)]
pub(super) struct Raters {
    /// Absent when no keys of tokens are configured: then API keys alone may rate.
    verifier: Option<JwtVerifier>,
    keys: ApiKeys,
}

impl Raters {
    pub(super) fn new(verifier: Option<JwtVerifier>, keys: ApiKeys) -> Self {
        Self { verifier, keys }
    }

    /// Returns who sent `request`, when it may post ratings at all. The answer borrows nothing of
    /// the request, whose body may be waited for by another task.
    pub(super) fn identify<B>(
        &self,
        request: &Request<B>,
    ) -> impl Future<Output = Result<Rater, Refusal>> + Send + 'static {
        let credential = self.credential(request);
        async move {
            match credential? {
                Credential::Known(rater) => Ok(rater),
                Credential::Token(pending) => {
                    let token = pending.await.map_err(Refusal::Unauthenticated)?;
                    rater(&token)
                }
            }
        }
    }

    fn credential<B>(&self, request: &Request<B>) -> Result<Credential, Refusal> {
        if let Some(key) = request.headers().get(API_KEY) {
            let known = key.to_str().ok().and_then(|secret| self.keys.poster(secret));
            if let Some(poster) = known {
                return Ok(Credential::Known(Rater::collector(poster)));
            }
            if !request.headers().contains_key(header::AUTHORIZATION) {
                return Err(unknown_key());
            }
        }
        let credential = bearer(request).map_err(Refusal::Unauthenticated)?;
        if let Some(poster) = self.keys.poster(credential) {
            return Ok(Credential::Known(Rater::collector(poster)));
        }
        let verifier = self.verifier.as_ref().ok_or_else(unknown_key)?;
        Ok(Credential::Token(verifier.verify(credential)))
    }
}

/// What a request brings to show who sent it.
enum Credential {
    Known(Rater),
    Token(Verifying<Arc<Token>>),
}

fn rater(token: &Token) -> Result<Rater, Refusal> {
    let any = token.has_scope(WRITE_ANY);
    if !any && !token.has_scope(WRITE) {
        return Err(Refusal::Scope);
    }
    let subject = token.subject.as_deref().ok_or(Refusal::NoSubject)?;
    Ok(Rater {
        poster: subject_poster(subject)?,
        only: (!any).then(|| subject.into()),
        agent: token.agent.clone().ok(),
    })
}

fn unknown_key() -> Refusal {
    let reason = "the API key is not known";
    Refusal::Unauthenticated(IdentityError::Unauthenticated { reason, presented: true })
}

/// A subject that reads like another kind of poster is marked; no two subjects become one poster.
fn subject_poster(subject: &str) -> Result<Poster, Refusal> {
    let ambiguous = subject == FOREIGN_POSTER
        || subject.starts_with(KEY_PREFIX)
        || subject.starts_with(FEED_PREFIX)
        || subject.starts_with(SUBJECT_PREFIX);
    let poster = match ambiguous {
        true => Poster::new(&format!("{SUBJECT_PREFIX}{subject}")),
        false => Poster::new(subject),
    };
    poster.map_err(Refusal::Subject)
}

impl Rater {
    /// Returns a rater that rates as itself.
    #[cfg(test)]
    pub(super) fn of_tests(name: &str) -> Self {
        Self { poster: Poster::new(name).unwrap(), only: Some(name.into()), agent: None }
    }

    pub(super) fn collector(poster: &Poster) -> Self {
        Self { poster: poster.clone(), only: None, agent: None }
    }

    pub(super) fn poster(&self) -> &Poster {
        &self.poster
    }

    /// Returns whether this rater may speak for the user that `request` names.
    pub(super) fn may_send(&self, request: &RatingRequest) -> Result<(), Refusal> {
        match &self.only {
            Some(own) if **own != *request.user().as_str() => Err(Refusal::OtherUser),
            _ => Ok(()),
        }
    }

    /// Returns whether it may rate as anybody.
    pub(super) fn is_collector(&self) -> bool {
        self.only.is_none()
    }

    /// Returns whether this rater is somebody else than the agent that `rating` moves.
    pub(super) fn may_move(&self, rating: &Rating, mode: SubjectMode) -> Result<(), Refusal> {
        match rating.subject(mode) {
            Some(subject) if Some(&subject) == self.agent.as_ref() => Err(Refusal::OwnAgent),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> ApiKeysError {
        ApiKeys::parse(text).unwrap_err()
    }

    #[test]
    fn keys_are_found_by_their_secret_only() {
        let text = "feed:0123456789abcdef, other:fedcba9876543210";
        let keys = ApiKeys::parse(text).unwrap();
        assert_eq!(keys.poster("0123456789abcdef").unwrap().as_str(), "key-feed");
        assert_eq!(keys.poster("fedcba9876543210").unwrap().as_str(), "key-other");
        for wrong in ["", "feed", "feed:0123456789abcdef", "0123456789abcdeF"] {
            assert_eq!(keys.poster(wrong), None, "{wrong}");
        }
        let bare = ApiKeys::parse("0123456789abcdef").unwrap();
        assert_eq!(bare.poster("0123456789abcdef").unwrap().as_str(), "key-default");
    }

    #[test]
    fn a_malformed_key_is_named_by_its_number_and_never_shown() {
        for (text, number) in [
            ("", 1),
            ("short", 1),
            ("a:0123456789abcdef,b:short", 2),
            (":0123456789abcdef", 1),
            ("a b:0123456789abcdef", 1),
            ("a:0123456789 abcdef", 1),
            ("a:0123456789abcdef,a:fedcba9876543210", 2),
            ("a:0123456789abcdef,b:0123456789abcdef", 2),
        ] {
            let shown = error(text).to_string();
            assert!(shown.contains(&format!("key {number}")), "{text}: {shown}");
            assert!(!shown.contains("0123456789") && !shown.contains("short"), "{shown}");
        }
    }

    #[test]
    fn secrets_are_not_shown_in_debug_output() {
        let keys = ApiKeys::parse("feed:0123456789abcdef").unwrap();
        assert_eq!(format!("{keys:?}"), "[\"key-feed\"]");
    }

    #[test]
    fn no_subject_passes_for_a_key_a_feed_or_a_foreign_producer() {
        let poster = |subject| subject_poster(subject).unwrap().to_string();
        assert_eq!(poster("u1"), "u1");
        let marked = [poster("key-feed"), poster("bus"), poster("sub:bus")];
        assert_eq!(marked, ["sub:key-feed", "sub:bus", "sub:sub:bus"]);
        assert_eq!(poster("feed:moltbook"), "sub:feed:moltbook");
        assert!(subject_poster("a\nb").is_err());
    }
}
