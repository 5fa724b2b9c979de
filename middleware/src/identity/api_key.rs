//! API keys: a secret in a header field, looked up by its SHA-256; the agent is `key-<name>`.
//!
//! 1. Secrets are not kept, only their digests: a file of keys opens no door to who reads it.
//!    A key is random and at least [`API_KEY_MIN`] bytes long, so its digest needs no salt.
//! 2. What the time of a lookup tells is about the digest of what was sent, which the sender knows
//!    and cannot steer towards another's.
//! 3. The secret itself is never an id, nor is it logged.

use std::{
    collections::HashMap,
    future::{Ready, ready},
    sync::{Arc, PoisonError, RwLock},
};

use http::{HeaderName, Request, header};
use tokio::time::Instant;

use super::{Caller, Identify, IdentityError, backend, bearer};
use crate::{AgentId, AgentIdError};

/// The shortest key, in bytes: a random one of this length cannot be guessed.
pub const API_KEY_MIN: usize = 16;

/// The longest key, in bytes.
pub const API_KEY_MAX: usize = 1024;

/// The longest name of a key, in characters.
pub const API_KEY_NAME_MAX: usize = 64;

/// The most keys of a table.
pub const API_KEYS_MAX: usize = 100_000;

const PREFIX: &str = "key-";

/// Why a table of API keys cannot be used. No secret is repeated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ApiKeysError {
    /// A line is not `name:digest`.
    #[error("line {line}: must be `name:` and the key's SHA-256 in 64 hexadecimal digits")]
    Line {
        /// Which, from 1.
        line: usize,
    },
    /// A name cannot be part of an agent id.
    #[error("key {name:?}: name must be 1 to {API_KEY_NAME_MAX} characters long and an agent id")]
    Name {
        /// The name, shortened.
        name: String,
        /// What is wrong with it.
        #[source]
        source: Option<AgentIdError>,
    },
    /// A key is too short, too long, or no field could carry it.
    #[error(
        "key {name:?}: must be {API_KEY_MIN} to {API_KEY_MAX} visible ascii characters, to be sent \
         in a field"
    )]
    Secret {
        /// The key's name.
        name: String,
    },
    /// A name or a key is there twice.
    #[error("key {name:?}: its name or the key itself stands twice")]
    Repeated {
        /// The name of the second.
        name: String,
    },
    /// There are more than [`API_KEYS_MAX`].
    #[error("must be at most {API_KEYS_MAX} keys")]
    Many,
    /// The crate was built without digests.
    #[error("tower-merit was built without a backend for digests: enable its feature `aws-lc-rs`")]
    NoBackend,
}

/// API keys: which name belongs to which digest.
///
/// ```
/// use tower_merit::identity::{ApiKeyIdentity, ApiKeys};
///
/// let mut keys = ApiKeys::default();
/// keys.add("partner", "8dc1b40e72f6a935")?;
/// let identity = ApiKeyIdentity::new(http::HeaderName::from_static("x-api-key"), keys);
/// # let _ = identity;
/// # Ok::<(), tower_merit::identity::api_key::ApiKeysError>(())
/// ```
#[derive(Clone, Default)]
pub struct ApiKeys {
    agents: HashMap<[u8; 32], AgentId>,
    names: std::collections::HashSet<AgentId>,
}

impl ApiKeys {
    /// Returns the keys of a file: a line `name:sha256` each, where the digest is in hexadecimal;
    /// empty lines and those that begin with `#` say nothing.
    ///
    /// # Errors
    ///
    /// With the first line that is malformed or repeats another.
    pub fn parse(text: &str) -> Result<Self, ApiKeysError> {
        let mut keys = Self::default();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let malformed = ApiKeysError::Line { line: index + 1 };
            let (name, digest) = line.split_once(':').ok_or(malformed.clone())?;
            keys.insert(name.trim(), unhex(digest.trim()).ok_or(malformed)?)?;
        }
        Ok(keys)
    }

    /// Adds a key by its secret.
    ///
    /// # Errors
    ///
    /// When the name or the secret is malformed or there already.
    pub fn add(&mut self, name: &str, secret: &str) -> Result<(), ApiKeysError> {
        self.insert(name, digest(name, secret)?)
    }

    fn insert(&mut self, name: &str, digest: [u8; 32]) -> Result<(), ApiKeysError> {
        let shown = || name.chars().take(API_KEY_NAME_MAX).collect::<String>();
        if !backend::PRESENT {
            return Err(ApiKeysError::NoBackend);
        }
        if self.agents.len() >= API_KEYS_MAX {
            return Err(ApiKeysError::Many);
        }
        if name.is_empty() || name.len() > API_KEY_NAME_MAX {
            return Err(ApiKeysError::Name { name: shown(), source: None });
        }
        let agent = AgentId::new(&format!("{PREFIX}{name}"))
            .map_err(|source| ApiKeysError::Name { name: shown(), source: Some(source) })?;
        if self.agents.contains_key(&digest) || !self.names.insert(agent.clone()) {
            return Err(ApiKeysError::Repeated { name: shown() });
        }
        self.agents.insert(digest, agent);
        Ok(())
    }

    /// Returns how many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.agents.len()
    }

    /// Returns true when there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.agents.is_empty()
    }

    /// Returns the agent whose key has this SHA-256.
    #[must_use]
    pub fn agent_of_digest(&self, digest: &[u8; 32]) -> Option<&AgentId> {
        self.agents.get(digest)
    }

    fn agent(&self, secret: &[u8]) -> Option<&AgentId> {
        // No table holds digests in a build that cannot compute any.
        (!self.is_empty()).then(|| self.agents.get(&backend::sha256(secret))).flatten()
    }
}

/// Digests are not shown.
impl std::fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.agents.values()).finish()
    }
}

/// Returns the line of a file of keys for this secret.
///
/// # Errors
///
/// When the name or the secret is malformed.
pub fn line(name: &str, secret: &str) -> Result<String, ApiKeysError> {
    ApiKeys::default().add(name, secret)?;
    let hex: String = digest(name, secret)?.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("{name}:{hex}"))
}

fn digest(name: &str, secret: &str) -> Result<[u8; 32], ApiKeysError> {
    let sound = (API_KEY_MIN..=API_KEY_MAX).contains(&secret.len())
        && secret.bytes().all(|byte| byte.is_ascii_graphic());
    match (sound, backend::PRESENT) {
        (true, true) => Ok(backend::sha256(secret.as_bytes())),
        (true, false) => Err(ApiKeysError::NoBackend),
        (false, _) => {
            Err(ApiKeysError::Secret { name: name.chars().take(API_KEY_NAME_MAX).collect() })
        }
    }
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    let bytes: Option<Vec<u8>> =
        pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect();
    bytes?.try_into().ok()
}

/// Identifies agents by the API key in a header field. Clones share the table.
#[derive(Clone, Debug)]
pub struct ApiKeyIdentity {
    field: HeaderName,
    keys: Arc<RwLock<ApiKeys>>,
}

impl ApiKeyIdentity {
    /// Returns an identity that looks for a key in `field`; in `authorization` it is a bearer token.
    #[must_use]
    pub fn new(field: HeaderName, keys: ApiKeys) -> Self {
        Self { field, keys: Arc::new(RwLock::new(keys)) }
    }

    /// Puts another table in force, from the next request on: keys are added and revoked without a
    /// restart.
    pub fn replace(&self, keys: ApiKeys) {
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
    }

    fn agent<B>(&self, request: &Request<B>) -> Result<AgentId, IdentityError> {
        let refused = |reason| IdentityError::ApiKey { reason };
        let secret = if self.field == header::AUTHORIZATION {
            bearer(request)?.as_bytes()
        } else {
            let mut fields = request.headers().get_all(&self.field).iter();
            let found = fields.next().ok_or(refused("no API key: send it in the agreed field"))?;
            if fields.next().is_some() {
                return Err(refused("more than one field with an API key"));
            }
            found.as_bytes()
        };
        // Nothing longer is digested: the time that a guess costs us is bounded.
        let sound = (API_KEY_MIN..=API_KEY_MAX).contains(&secret.len());
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let agent = Some(secret).filter(|_| sound).and_then(|secret| keys.agent(secret));
        agent.cloned().ok_or(refused("the API key is not known"))
    }
}

impl Identify for ApiKeyIdentity {
    type Future = Ready<Result<Caller, IdentityError>>;

    fn identify<B>(&self, request: &Request<B>) -> Self::Future {
        ready(self.agent(request).map(Caller::from))
    }

    fn identify_now<B>(
        &self,
        request: &Request<B>,
        _: Instant,
    ) -> Option<Result<Caller, IdentityError>> {
        Some(self.identify(request).into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "8dc1b40e72f6a935";
    const FIELD: HeaderName = HeaderName::from_static("x-api-key");

    fn identified(identity: &ApiKeyIdentity, fields: &[(&str, &str)]) -> Result<String, String> {
        let mut request = Request::builder();
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let caller = identity.identify(&request.body(()).unwrap()).into_inner();
        caller.map(|caller| caller.agent.to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_key_is_found_by_its_secret_and_the_agent_is_its_name() {
        let keys = ApiKeys::parse(&format!("# ours\n\n{}\n", line("partner", KEY).unwrap()));
        let identity = ApiKeyIdentity::new(FIELD, keys.unwrap());
        assert_eq!(identified(&identity, &[("x-api-key", KEY)]), Ok("key-partner".into()));
        let digest = line("partner", KEY).unwrap().split(':').nth(1).unwrap().to_owned();
        for wrong in
            ["", "8dc1b40e72f6a936", "8dc1b40e72f6a93", "partner", &digest, &"x".repeat(2000)]
        {
            assert!(identified(&identity, &[("x-api-key", wrong)]).is_err(), "{wrong}");
        }
        assert!(identified(&identity, &[]).unwrap_err().contains("no API key"));
        let twice = [("x-api-key", KEY), ("x-api-key", KEY)];
        assert!(identified(&identity, &twice).unwrap_err().contains("more than one"));
    }

    #[test]
    fn in_the_authorization_field_a_key_is_a_bearer_token() {
        let mut keys = ApiKeys::default();
        keys.add("partner", KEY).unwrap();
        let identity = ApiKeyIdentity::new(header::AUTHORIZATION, keys);
        let bearer = format!("Bearer {KEY}");
        let found = identified(&identity, &[("authorization", &bearer)]);
        assert_eq!(found, Ok("key-partner".into()));
        assert!(identified(&identity, &[("authorization", KEY)]).is_err());
    }

    #[test]
    fn a_table_that_is_replaced_holds_from_the_next_request_on() {
        let mut keys = ApiKeys::default();
        keys.add("old", KEY).unwrap();
        let identity = ApiKeyIdentity::new(FIELD, keys);
        let clone = identity.clone();
        identity.replace(ApiKeys::default());
        assert!(identified(&clone, &[("x-api-key", KEY)]).is_err());
    }

    #[test]
    fn malformed_tables_are_refused_and_show_no_secret() {
        let good = line("a", KEY).unwrap();
        let digest = good.strip_prefix("a:").unwrap();
        for text in [
            "a".to_owned(),
            format!("a:{KEY}"),
            format!("a:{digest}0"),
            format!("a:{}g", &digest[1..]),
            format!(":{digest}"),
            format!("a b:{digest}"),
            format!("a-:{digest}"),
            format!("{}:{digest}", "a".repeat(65)),
            format!("{good}\nb:{digest}"),
            format!("{good}\na:{}", digest.replace(char::is_numeric, "0")),
        ] {
            let error = ApiKeys::parse(&text).unwrap_err().to_string();
            assert!(!error.contains(KEY) && !error.contains(digest), "{error}");
        }
        for secret in ["", "123456789012345", "0123456789 abcdef", "0123456789abcdé"] {
            assert!(ApiKeys::default().add("a", secret).is_err(), "{secret}");
        }
    }

    #[test]
    fn neither_secrets_nor_digests_are_shown() {
        let mut keys = ApiKeys::default();
        keys.add("partner", KEY).unwrap();
        assert_eq!(format!("{keys:?}"), "[\"key-partner\"]");
    }
}
