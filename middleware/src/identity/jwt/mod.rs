//! Bearer JSON Web Tokens: verified once, remembered until they expire.
//!
//! 1. The algorithms are the key's, never the token's: a token signed by anything else is refused
//!    before its signature is looked at, so an RSA public key can never pass as an HMAC secret.
//! 2. `exp` is required; issuer and audience are required of every token once they are configured.
//! 3. Keys are configured, or come from a key set that is refreshed (`ring.rs`). Keys that a token's
//!    header offers (`jwk`, `jku`, `x5u`, `x5c`) are ignored.
//! 4. A good token is never refused because its key could not be fetched: then the answer is
//!    [`IdentityError::Unavailable`](super::IdentityError::Unavailable), and it may be sent again.

mod cache;

mod keys;

mod jwks;

mod source;

mod ring;

mod verify;

mod verifier;

#[cfg(feature = "jwks")]
mod http;

use std::{path::PathBuf, sync::Arc, time::Duration};

use super::{IdentityConfigError, IntoIdentify, backend, claims::ClaimPath};

#[cfg(feature = "jwks")]
pub use http::{JwksUrl, JwksUrlError};
pub use jsonwebtoken::Algorithm;
pub use jwks::{KEY_SET_MAX, KEYS_MAX, KeySetError};
pub use keys::UnusableKey;
pub use ring::{COOL_DOWN_DEFAULT, REFRESH_DEFAULT, STALE_DEFAULT, UNKNOWN_KIDS_MAX, WAITING_MAX};
pub use source::{FetchError, KeyFile, KeySource, KeysError};
pub use verifier::{JwtVerifier, Verifying};
pub use verify::{RATER_MAX, Token};

use keys::{Key, KeySet, PemError};
use ring::{Ring, Times};
use verifier::Keys;
use verify::Rules;

/// The longest token that is looked at, in bytes.
pub const TOKEN_MAX: usize = 8 * 1024;

/// The longest key id, in bytes; a token or key with a longer one is malformed.
pub const KID_MAX: usize = 256;

/// How many verified tokens are remembered, unless configured.
pub const CACHE_DEFAULT: usize = 10_000;

/// How many bytes remembered tokens may take, unless configured: 16 MiB.
pub const CACHE_BYTES_DEFAULT: usize = 16 * 1024 * 1024;

/// Clock difference to the issuer that is forgiven, unless configured: 5 s.
pub const LEEWAY_DEFAULT: Duration = Duration::from_secs(5);

/// How bearer tokens are verified: with which keys, what they must say, and which claim names the
/// agent.
///
/// ```
/// use tower_merit::JwtIdentity;
///
/// let identity = JwtIdentity::hs256(b"a secret of at least thirty-two bytes")
///     .claim("agent_id")
///     .issuer("https://id.example.com/")
///     .audience("openclaw");
/// ```
#[derive(Clone)]
pub struct JwtIdentity {
    algorithms: Vec<Algorithm>,
    from: KeysFrom,
    claim: String,
    rater_claim: Option<String>,
    issuer: Option<String>,
    audience: Option<String>,
    leeway: Duration,
    cache: cache::Bounds,
    times: Times,
}

/// Where keys come from.
#[derive(Clone)]
enum KeysFrom {
    Secret(Vec<u8>),
    Pem(Vec<u8>),
    Set(Vec<u8>),
    Source(Arc<dyn KeySource>),
}

/// What serves when nothing else is configured for a key set: every asymmetric algorithm there is.
const ASYMMETRIC: &[Algorithm] = &[
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

impl JwtIdentity {
    fn new(algorithms: impl IntoIterator<Item = Algorithm>, from: KeysFrom) -> Self {
        Self {
            algorithms: algorithms.into_iter().collect(),
            from,
            claim: "agent_id".to_owned(),
            rater_claim: None,
            issuer: None,
            audience: None,
            leeway: LEEWAY_DEFAULT,
            cache: cache::Bounds { tokens: CACHE_DEFAULT, bytes: CACHE_BYTES_DEFAULT },
            times: Times::default(),
        }
    }

    /// Verifies HMAC-SHA-256 signatures with a shared secret of at least 32 bytes.
    #[must_use]
    pub fn hs256(secret: impl AsRef<[u8]>) -> Self {
        Self::secret(Algorithm::HS256, secret)
    }

    /// Verifies RSASSA-PKCS1-v1_5 with SHA-256; the key is a public key in PEM, at least 2048 bits.
    #[must_use]
    pub fn rs256(public_key_pem: impl AsRef<[u8]>) -> Self {
        Self::public_key(Algorithm::RS256, public_key_pem)
    }

    /// Verifies ECDSA on P-256 with SHA-256; the key is a public key in PEM.
    #[must_use]
    pub fn es256(public_key_pem: impl AsRef<[u8]>) -> Self {
        Self::public_key(Algorithm::ES256, public_key_pem)
    }

    /// Verifies Ed25519; the key is a public key in PEM.
    #[must_use]
    pub fn eddsa(public_key_pem: impl AsRef<[u8]>) -> Self {
        Self::public_key(Algorithm::EdDSA, public_key_pem)
    }

    /// Verifies HMAC with a shared secret at least as long as the hash: 32, 48 or 64 bytes.
    #[must_use]
    pub fn secret(algorithm: Algorithm, secret: impl AsRef<[u8]>) -> Self {
        Self::new([algorithm], KeysFrom::Secret(secret.as_ref().to_vec()))
    }

    /// Verifies `algorithm` with a public key in PEM (SubjectPublicKeyInfo).
    #[must_use]
    pub fn public_key(algorithm: Algorithm, pem: impl AsRef<[u8]>) -> Self {
        Self::new([algorithm], KeysFrom::Pem(pem.as_ref().to_vec()))
    }

    /// Verifies with the keys of a JSON Web Key Set that does not change.
    #[must_use]
    pub fn key_set(json: impl AsRef<[u8]>) -> Self {
        Self::new(ASYMMETRIC.iter().copied(), KeysFrom::Set(json.as_ref().to_vec()))
    }

    /// Verifies with the keys of a JSON Web Key Set that is fetched from `source` again and again:
    /// `JwksUrl` (feature `jwks`), a [`KeyFile`], or your own.
    #[must_use]
    pub fn key_source(source: impl KeySource) -> Self {
        Self::new(ASYMMETRIC.iter().copied(), KeysFrom::Source(Arc::new(source)))
    }

    /// Verifies with the keys of a JSON Web Key Set in a file, read again at every refresh.
    #[must_use]
    pub fn key_file(path: impl Into<PathBuf>) -> Self {
        Self::key_source(KeyFile::new(path))
    }

    /// Sets the algorithms that are taken. Those of one key must be of its family. Of a key set any
    /// asymmetric ones may stand together, for each key is pinned to those that it fits; a key set
    /// takes all of them unless told.
    #[must_use]
    pub fn algorithms(mut self, algorithms: impl IntoIterator<Item = Algorithm>) -> Self {
        self.algorithms = algorithms.into_iter().collect();
        self
    }

    /// Names the claim that holds the agent id, as a [`ClaimPath`]; `agent_id` unless set.
    #[must_use]
    pub fn claim(mut self, path: &str) -> Self {
        path.clone_into(&mut self.claim);
        self
    }

    /// Names the claim that holds the user for whom an agent acts, as a [`ClaimPath`]. In a token of
    /// RFC 8693 (section 4.1) that is `sub`, and the agent is `act.sub`, for [`claim`](Self::claim).
    /// Without it no token names one.
    #[must_use]
    pub fn rater_claim(mut self, path: &str) -> Self {
        self.rater_claim = Some(path.to_owned());
        self
    }

    /// Requires `iss` to be this.
    #[must_use]
    pub fn issuer(mut self, issuer: &str) -> Self {
        self.issuer = Some(issuer.to_owned());
        self
    }

    /// Requires `aud` to be or to contain this. Without it, a token that has an `aud` is refused
    /// (RFC 7519 section 4.1.3).
    #[must_use]
    pub fn audience(mut self, audience: &str) -> Self {
        self.audience = Some(audience.to_owned());
        self
    }

    /// Sets the clock difference that is forgiven on `exp` and `nbf`, in whole seconds; 5 s unless
    /// set. A remembered token may pass for up to a second more: the time of day is read once in it.
    #[must_use]
    pub fn leeway(mut self, leeway: Duration) -> Self {
        self.leeway = leeway;
        self
    }

    /// Sets how many verified tokens are remembered; 10,000 unless set, 0 remembers none.
    #[must_use]
    pub fn cache(mut self, tokens: usize) -> Self {
        self.cache.tokens = tokens;
        self
    }

    /// Sets how many bytes remembered tokens may take; 16 MiB unless set.
    #[must_use]
    pub fn cache_bytes(mut self, bytes: usize) -> Self {
        self.cache.bytes = bytes;
        self
    }

    /// Sets how often a key source is asked anew; [`REFRESH_DEFAULT`] unless set.
    #[must_use]
    pub fn refresh(mut self, every: Duration) -> Self {
        self.times.refresh = every;
        self
    }

    /// Sets how long keys serve after they were last fetched, when the source no longer answers;
    /// [`STALE_DEFAULT`] unless set. At least the refresh interval.
    #[must_use]
    pub fn stale(mut self, after: Duration) -> Self {
        self.times.stale = after;
        self
    }

    /// Sets the pause between two fetches for the sake of unknown key ids;
    /// [`COOL_DOWN_DEFAULT`] unless set.
    #[must_use]
    pub fn cool_down(mut self, pause: Duration) -> Self {
        self.times.cool_down = pause;
        self
    }

    /// Returns the verifier. With a key source it needs no answer yet: keys are fetched in the
    /// background, at once when called inside a tokio runtime, otherwise with the first token.
    ///
    /// # Errors
    ///
    /// When a key cannot be used with the algorithms, a claim's path is malformed, a time is out of
    /// range, or the crate was built without a signature backend.
    pub fn build(self) -> Result<JwtVerifier, IdentityConfigError> {
        if !backend::PRESENT {
            return Err(IdentityConfigError::NoBackend);
        }
        backend::install();
        let path = |path: String| match path.parse::<ClaimPath>() {
            Ok(path) => Ok(path),
            Err(source) => Err(IdentityConfigError::ClaimPath { path, source }),
        };
        let rules = Rules {
            claim: path(self.claim)?,
            rater: self.rater_claim.map(path).transpose()?,
            issuer: self.issuer,
            audience: self.audience,
            leeway: self.leeway.as_secs(),
        };
        let keys = keys(self.from, self.algorithms, self.times)?;
        Ok(JwtVerifier::new(keys, rules, self.cache))
    }

    /// Returns the verifier once its keys are there.
    ///
    /// # Errors
    ///
    /// As [`JwtIdentity::build`], and when the key source does not give usable keys now.
    pub async fn connect(self) -> Result<JwtVerifier, IdentityConfigError> {
        let verifier = self.build()?;
        verifier.ready().await.map_err(|source| IdentityConfigError::Keys { source })?;
        Ok(verifier)
    }
}

fn keys(
    from: KeysFrom,
    algorithms: Vec<Algorithm>,
    times: Times,
) -> Result<Keys, IdentityConfigError> {
    let first = *algorithms.first().ok_or(IdentityConfigError::NoAlgorithm)?;
    let symmetric = |one: &Algorithm| one.family() == jsonwebtoken::AlgorithmFamily::Hmac;
    let one_family = algorithms.iter().all(|one| one.family() == first.family());
    let separate = algorithms.iter().all(symmetric) || !algorithms.iter().any(symmetric);
    let together = match &from {
        KeysFrom::Secret(_) => algorithms.iter().all(symmetric),
        KeysFrom::Pem(_) => one_family,
        KeysFrom::Set(_) | KeysFrom::Source(_) => separate,
    };
    if !together {
        return Err(IdentityConfigError::Algorithms { algorithms });
    }
    let alone = |key| Ok(Keys::Fixed(KeySet::alone(key)));
    match from {
        KeysFrom::Secret(secret) => {
            let length = secret.len();
            let key = Key::new(None, &keys::Material::Hmac(secret), &algorithms, None);
            match key {
                Ok(key) if algorithms.iter().all(|one| key.serves(*one)) => alone(key),
                Ok(_) | Err(_) => Err(IdentityConfigError::ShortSecret {
                    length,
                    needed: algorithms.iter().copied().map(keys::hash_bytes).max().unwrap_or(0),
                }),
            }
        }
        KeysFrom::Pem(pem) => Key::from_pem(&pem, &algorithms).map_or_else(
            |error| {
                Err(match error {
                    PemError::Unreadable(source) => {
                        IdentityConfigError::Key { algorithm: first, source }
                    }
                    PemError::Unusable(source) => {
                        IdentityConfigError::UnusableKey { algorithm: first, source }
                    }
                })
            },
            alone,
        ),
        KeysFrom::Set(json) => {
            let parsed = jwks::parse(&json, &algorithms)
                .map_err(|source| IdentityConfigError::KeySet { source })?;
            for (kid, reason) in &parsed.unusable {
                tracing::warn!(kid, %reason, "key of the key set is not used");
            }
            Ok(Keys::Fixed(KeySet::published(parsed.keys, None)))
        }
        KeysFrom::Source(source) => {
            times.check()?;
            Ok(Keys::Ring(Ring::new(source, algorithms, times)))
        }
    }
}

/// Secrets are not shown.
impl std::fmt::Debug for JwtIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JwtIdentity")
            .field("algorithms", &self.algorithms)
            .field("claim", &self.claim)
            .finish_non_exhaustive()
    }
}

impl IntoIdentify for JwtIdentity {
    type Identify = JwtVerifier;

    fn into_identify(self) -> Result<JwtVerifier, IdentityConfigError> {
        self.build()
    }
}
