//! Bearer JSON Web Tokens: verified once, remembered until they expire.
//!
//! The algorithm is the key's, never the token's: a token signed by anything else is refused before
//! its signature is looked at, so an RSA public key can never pass as an HMAC secret. `exp` is
//! required; issuer and audience are required of every token once they are configured. Keys that a
//! token's header offers (`jwk`, `jku`, `x5u`, `x5c`) are ignored.

use std::{
    future::{Ready, ready},
    hash::RandomState,
    num::NonZeroUsize,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use http::Request;
use jsonwebtoken::{DecodingKey, Validation, errors::ErrorKind};
use lru::LruCache;
use serde_json::Value;

use super::{
    Caller, ClaimError, Identify, IdentityConfigError, IdentityError, IntoIdentify, bearer,
};
use crate::AgentId;

pub use jsonwebtoken::Algorithm;

/// The longest token that is looked at, in bytes.
pub const TOKEN_MAX: usize = 8 * 1024;

/// How many verified tokens are remembered, unless configured.
pub const CACHE_DEFAULT: usize = 10_000;

/// Clock difference to the issuer that is forgiven, unless configured: 5 s.
pub const LEEWAY_DEFAULT: Duration = Duration::from_secs(5);

/// RFC 7518 section 3.2: an HMAC key is at least as long as the hash.
const HS256_SECRET_MIN: usize = 32;

const CACHE_SHARDS: usize = 16;

/// How bearer tokens are verified: a key, what the token must say, and which claim names the agent.
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
    algorithm: Algorithm,
    key: Key,
    claim: String,
    issuer: Option<String>,
    audience: Option<String>,
    leeway: Duration,
    cache: usize,
}

#[derive(Clone)]
enum Key {
    Secret(Vec<u8>),
    Pem(Vec<u8>),
}

impl JwtIdentity {
    fn new(algorithm: Algorithm, key: Key) -> Self {
        Self {
            algorithm,
            key,
            claim: "agent_id".to_owned(),
            issuer: None,
            audience: None,
            leeway: LEEWAY_DEFAULT,
            cache: CACHE_DEFAULT,
        }
    }

    /// Verifies HMAC-SHA-256 signatures with a shared secret of at least 32 bytes.
    #[must_use]
    pub fn hs256(secret: impl AsRef<[u8]>) -> Self {
        Self::new(Algorithm::HS256, Key::Secret(secret.as_ref().to_vec()))
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

    /// Verifies `algorithm` with a public key in PEM.
    #[must_use]
    pub fn public_key(algorithm: Algorithm, pem: impl AsRef<[u8]>) -> Self {
        Self::new(algorithm, Key::Pem(pem.as_ref().to_vec()))
    }

    /// Names the claim that holds the agent id; dots reach into objects. `agent_id` unless set.
    #[must_use]
    pub fn claim(mut self, path: &str) -> Self {
        path.clone_into(&mut self.claim);
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

    /// Sets the clock difference that is forgiven on `exp` and `nbf`; 5 s unless set.
    #[must_use]
    pub fn leeway(mut self, leeway: Duration) -> Self {
        self.leeway = leeway;
        self
    }

    /// Sets how many verified tokens are remembered; 10,000 unless set, 0 remembers none.
    #[must_use]
    pub fn cache(mut self, tokens: usize) -> Self {
        self.cache = tokens;
        self
    }

    /// Returns the verifier.
    ///
    /// # Errors
    ///
    /// When the key cannot be used with the algorithm, the claim's path is malformed, or the crate
    /// was built without a signature backend.
    pub fn build(self) -> Result<JwtVerifier, IdentityConfigError> {
        if !install_backend() {
            return Err(IdentityConfigError::NoBackend);
        }
        if self.claim.split('.').any(str::is_empty) {
            return Err(IdentityConfigError::ClaimPath { path: self.claim });
        }
        let algorithm = self.algorithm;
        let unusable = |source| IdentityConfigError::Key { algorithm, source };
        let key = match &self.key {
            Key::Secret(secret) if secret.len() < HS256_SECRET_MIN => {
                return Err(IdentityConfigError::ShortSecret { length: secret.len() });
            }
            Key::Secret(secret) => DecodingKey::from_secret(secret),
            Key::Pem(pem) => from_pem(algorithm, pem).map_err(unusable)?,
        };
        let mut validation = Validation::new(algorithm);
        validation.leeway = self.leeway.as_secs();
        validation.validate_nbf = true;
        // `exp` stands here so that a value of another type counts as missing, not as absent
        // (CVE-2026-25537).
        let mut required = vec!["exp"];
        if let Some(issuer) = &self.issuer {
            validation.set_issuer(&[issuer]);
            required.push("iss");
        }
        if let Some(audience) = &self.audience {
            validation.set_audience(&[audience]);
            required.push("aud");
        }
        validation.set_required_spec_claims(&required);
        Ok(JwtVerifier {
            inner: Arc::new(Inner {
                key,
                validation,
                claim: self.claim.into(),
                leeway: self.leeway,
                cache: Cache::new(self.cache),
            }),
        })
    }
}

/// Secrets are not shown.
impl std::fmt::Debug for JwtIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JwtIdentity")
            .field("algorithm", &self.algorithm)
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

/// Puts the chosen backend in place where another crate in the build may have enabled a second one;
/// jsonwebtoken would panic at the first token otherwise.
fn install_backend() -> bool {
    #[cfg(feature = "aws-lc-rs")]
    let _ = jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER.install_default();
    cfg!(feature = "aws-lc-rs")
}

fn from_pem(algorithm: Algorithm, pem: &[u8]) -> Result<DecodingKey, jsonwebtoken::errors::Error> {
    match algorithm {
        Algorithm::ES256 | Algorithm::ES384 => DecodingKey::from_ec_pem(pem),
        Algorithm::EdDSA => DecodingKey::from_ed_pem(pem),
        Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => {
            Err(ErrorKind::InvalidAlgorithm.into())
        }
        _ => DecodingKey::from_rsa_pem(pem),
    }
}

/// What a verified token says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Token {
    /// The agent it names.
    pub agent: Result<AgentId, ClaimError>,
    /// `sub`, when it is a string.
    pub subject: Option<Box<str>>,
    /// The names in `scope` (RFC 8693 section 4.2: separated by spaces).
    pub scopes: Box<[Box<str>]>,
    /// `exp`, in Unix seconds.
    pub expires_at: u64,
}

impl Token {
    /// Returns true when `scope` is among the token's scopes.
    #[must_use]
    pub fn has_scope(&self, scope: &str) -> bool {
        self.scopes.iter().any(|name| &**name == scope)
    }
}

/// Verifies bearer tokens. Clones share the memory of verified ones.
#[derive(Clone)]
pub struct JwtVerifier {
    inner: Arc<Inner>,
}

struct Inner {
    key: DecodingKey,
    validation: Validation,
    claim: Box<str>,
    leeway: Duration,
    cache: Cache,
}

impl JwtVerifier {
    /// Returns what `token` says, once it has proved true.
    ///
    /// # Errors
    ///
    /// [`IdentityError::Unauthenticated`] when the token is too long, malformed, signed by another
    /// key or algorithm, expired, not yet valid, or meant for somebody else.
    pub fn verify(&self, token: &str) -> Result<Arc<Token>, IdentityError> {
        let inner = &*self.inner;
        let now = unix_now().as_secs();
        if let Some(known) = inner.cache.get(token) {
            // The same comparison as on the first sight: remembering a token never prolongs it.
            if now.saturating_sub(inner.leeway.as_secs()) <= known.expires_at {
                return Ok(known);
            }
            return Err(invalid("the token has expired"));
        }
        if token.len() > TOKEN_MAX {
            return Err(invalid("the token is longer than 8 KiB"));
        }
        let decoded = jsonwebtoken::decode::<Value>(token, &inner.key, &inner.validation)
            .map_err(|error| invalid(reason(error.kind())))?;
        let claims = decoded.claims;
        let text = |name| claims.get(name).and_then(Value::as_str);
        let verified = Arc::new(Token {
            agent: agent(&claims, &inner.claim),
            subject: text("sub").map(Into::into),
            scopes: text("scope").unwrap_or_default().split_whitespace().map(Into::into).collect(),
            expires_at: expiry(&claims).ok_or(invalid("the token's `exp` is not a number"))?,
        });
        inner.cache.put(token, &verified);
        Ok(verified)
    }
}

impl std::fmt::Debug for JwtVerifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JwtVerifier").field("claim", &self.inner.claim).finish_non_exhaustive()
    }
}

impl Identify for JwtVerifier {
    type Future = Ready<Result<Caller, IdentityError>>;

    fn identify<B>(&self, request: &Request<B>) -> Self::Future {
        let token = bearer(request).and_then(|token| self.verify(token));
        let agent = token.and_then(|token| token.agent.clone().map_err(IdentityError::NoAgent));
        ready(agent.map(Caller::from))
    }
}

fn invalid(reason: &'static str) -> IdentityError {
    IdentityError::Unauthenticated { reason, presented: true }
}

/// Says what the caller can mend, and nothing that helps to forge.
fn reason(kind: &ErrorKind) -> &'static str {
    match kind {
        ErrorKind::ExpiredSignature => "the token has expired",
        ErrorKind::ImmatureSignature => "the token is not valid yet",
        ErrorKind::InvalidIssuer => "the token is by another issuer",
        ErrorKind::InvalidAudience => "the token is for another audience",
        ErrorKind::MissingRequiredClaim(_) | ErrorKind::InvalidClaimFormat(_) => {
            "the token lacks `exp`, `iss` or `aud`, or one of them is of the wrong type"
        }
        ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName => {
            "the token is signed with another algorithm"
        }
        ErrorKind::InvalidSignature => "the token's signature does not verify",
        _ => "the token is malformed",
    }
}

fn agent(claims: &Value, path: &str) -> Result<AgentId, ClaimError> {
    let claim = || path.into();
    let found = path.split('.').try_fold(claims, |value, name| value.get(name));
    let text = found
        .ok_or_else(|| ClaimError::Missing { claim: claim() })?
        .as_str()
        .ok_or_else(|| ClaimError::NotText { claim: claim() })?;
    AgentId::claimed(text).map_err(|source| ClaimError::Malformed { claim: claim(), source })
}

/// `exp` may have a fraction (RFC 7519 section 2, NumericDate); it is cut, never rounded up.
fn expiry(claims: &Value) -> Option<u64> {
    let exp = claims.get("exp")?;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates")]
    exp.as_u64().or_else(|| exp.as_f64().map(|seconds| seconds as u64))
}

fn unix_now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

type Shard = Mutex<LruCache<Box<str>, Arc<Token>, RandomState>>;

/// Verified tokens, by their text: no two tokens can be taken for each other.
struct Cache {
    shards: Box<[Shard]>,
}

impl Cache {
    fn new(tokens: usize) -> Self {
        let hasher = RandomState::new();
        let shards = match NonZeroUsize::new(tokens.div_ceil(CACHE_SHARDS)) {
            None => Box::default(),
            Some(each) => (0..CACHE_SHARDS)
                .map(|_| {
                    let mut shard = LruCache::unbounded_with_hasher(hasher.clone());
                    shard.resize(each);
                    Mutex::new(shard)
                })
                .collect(),
        };
        Self { shards }
    }

    /// A verified token ends in its signature, which is as good as random: hashing the whole token
    /// once more would cost as much as the look-up.
    fn shard(&self, token: &str) -> Option<&Shard> {
        let tail = token.bytes().rev().take(8);
        let mixed = tail.fold(0_usize, |sum, byte| sum.wrapping_mul(31) + usize::from(byte));
        self.shards.get(mixed % CACHE_SHARDS)
    }

    fn get(&self, token: &str) -> Option<Arc<Token>> {
        let mut shard = self.shard(token)?.lock().unwrap_or_else(PoisonError::into_inner);
        shard.get(token).cloned()
    }

    fn put(&self, token: &str, verified: &Arc<Token>) {
        if let Some(shard) = self.shard(token) {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.put(token.into(), Arc::clone(verified));
        }
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{EncodingKey, Header, encode};
    use serde_json::json;

    use super::*;

    const SECRET: &[u8] = b"a secret of at least thirty-two bytes";

    fn verifier() -> JwtVerifier {
        JwtIdentity::hs256(SECRET).issuer("issuer").audience("service").build().unwrap()
    }

    fn now() -> u64 {
        unix_now().as_secs()
    }

    fn claims(exp: Value) -> Value {
        json!({"iss": "issuer", "aud": "service", "exp": exp, "agent_id": "a1", "sub": "u1", "scope": "x ratings:write"})
    }

    fn sign(claims: &Value) -> String {
        encode(&Header::default(), claims, &EncodingKey::from_secret(SECRET)).unwrap()
    }

    fn refused(claims: &Value) -> &'static str {
        match verifier().verify(&sign(claims)) {
            Err(IdentityError::Unauthenticated { reason, presented: true }) => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_token_says_who_it_is_and_what_it_may() {
        let token = verifier().verify(&sign(&claims(json!(now() + 60)))).unwrap();
        assert_eq!(token.agent.as_ref().unwrap().as_str(), "a1");
        assert_eq!(token.subject.as_deref(), Some("u1"));
        assert!(token.has_scope("ratings:write") && !token.has_scope("ratings"));
    }

    #[test]
    fn an_expiry_that_is_past_missing_or_a_string_is_refused() {
        assert_eq!(refused(&claims(json!(now() - 60))), "the token has expired");
        for exp in [json!((now() + 60).to_string()), json!(null)] {
            assert!(refused(&claims(exp.clone())).contains("`exp`"), "{exp}");
        }
        refused(&claims(json!([now() + 60])));
        refused(&claims(json!({ "at": now() + 60 })));
        let mut none = claims(json!(0));
        none.as_object_mut().unwrap().remove("exp");
        assert!(refused(&none).contains("`exp`"));
    }

    #[test]
    fn another_issuer_or_audience_or_none_is_refused() {
        for (name, value) in
            [("iss", json!("other")), ("aud", json!("other")), ("aud", json!(["x"]))]
        {
            let mut claims = claims(json!(now() + 60));
            claims[name] = value;
            refused(&claims);
            claims.as_object_mut().unwrap().remove(name);
            refused(&claims);
        }
    }

    #[test]
    fn a_remembered_token_does_not_outlive_its_expiry() {
        let strict = JwtIdentity::hs256(SECRET)
            .issuer("issuer")
            .audience("service")
            .leeway(Duration::ZERO)
            .build()
            .unwrap();
        let token = sign(&claims(json!(now() + 3600)));
        let known = strict.verify(&token).unwrap();
        let expired = Arc::new(Token { expires_at: now() - 1, ..(*known).clone() });
        strict.inner.cache.put(&token, &expired);
        assert!(strict.verify(&token).is_err());
    }

    #[test]
    fn an_agent_that_is_missing_not_text_or_malformed_is_named_as_such() {
        let verdict = |agent: Value| {
            let mut claims = claims(json!(now() + 60));
            claims["agent_id"] = agent;
            verifier().verify(&sign(&claims)).unwrap().agent.clone()
        };
        assert!(matches!(verdict(json!(7)), Err(ClaimError::NotText { .. })));
        assert!(matches!(verdict(json!("a b")), Err(ClaimError::Malformed { .. })));
        assert!(matches!(verdict(json!("ip-1")), Err(ClaimError::Malformed { .. })));
    }

    #[test]
    fn a_nested_claim_is_reached_by_its_path() {
        let nested = JwtIdentity::hs256(SECRET).claim("act.agent").build().unwrap();
        let token = sign(&json!({"exp": now() + 60, "act": {"agent": "inner"}}));
        assert_eq!(nested.verify(&token).unwrap().agent.as_ref().unwrap().as_str(), "inner");
    }

    #[test]
    fn a_secret_shorter_than_the_hash_is_a_configuration_fault() {
        let error = JwtIdentity::hs256(b"short").build().unwrap_err();
        assert!(error.to_string().contains("at least 32 bytes"), "{error}");
    }

    #[test]
    fn secrets_are_not_shown() {
        let shown = format!("{:?}", JwtIdentity::hs256(SECRET));
        assert!(!shown.contains("secret of"), "{shown}");
    }
}
