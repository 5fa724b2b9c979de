//! The verifier: remembered, or proved with a key that is at hand, or waiting for one.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{SystemTime, UNIX_EPOCH},
};

use http::Request;

use super::{
    super::{Caller, Identify, IdentityError, bearer_bytes},
    cache::{Bounds, Cache, Remembered},
    keys::{Key, KeySet},
    ring::Ring,
    source::KeysError,
    verify::{Rules, Token, Unverified, invalid, no_key},
};

/// Verifies bearer tokens. Clones share the keys and the memory of verified tokens.
#[derive(Clone)]
pub struct JwtVerifier {
    inner: Arc<Inner>,
}

/// Where a verifier's keys are.
pub(super) enum Keys {
    Fixed(KeySet),
    Ring(Arc<Ring>),
}

struct Inner {
    keys: Keys,
    rules: Rules,
    cache: Cache,
}

impl JwtVerifier {
    pub(super) fn new(keys: Keys, rules: Rules, remembered: Bounds) -> Self {
        Self { inner: Arc::new(Inner { keys, rules, cache: Cache::new(remembered) }) }
    }

    /// Returns what `token` says, once it has proved true. The answer is there at once, unless the
    /// token names a key that must be fetched first.
    ///
    /// # Errors
    ///
    /// [`IdentityError::Unauthenticated`] when the token is too long, malformed, signed by another
    /// key or algorithm, expired, not yet valid, or meant for somebody else;
    /// [`IdentityError::Unavailable`] when its key cannot be fetched now.
    pub fn verify(&self, token: &str) -> Verifying<Arc<Token>> {
        self.answer(token.as_bytes(), |token| Ok(Arc::clone(token)))
    }

    /// Returns once the verifier has keys.
    ///
    /// # Errors
    ///
    /// Why there are none; it goes on trying.
    pub async fn ready(&self) -> Result<(), Arc<KeysError>> {
        match &self.inner.keys {
            Keys::Fixed(_) => Ok(()),
            Keys::Ring(ring) => ring.ready().await,
        }
    }

    /// Returns what `read` makes of a verified token.
    fn answer<T: Send + 'static>(
        &self,
        token: &[u8],
        read: impl Fn(&Arc<Token>) -> Result<T, IdentityError> + Copy + Send + 'static,
    ) -> Verifying<T> {
        let inner = &*self.inner;
        let now = unix_seconds();
        match inner.cache.get(token, inner.rules.earliest(now), read) {
            Remembered::Valid(answer) => Verifying::ready(answer),
            Remembered::Expired => Verifying::ready(Err(invalid("the token has expired"))),
            Remembered::Unknown => self.first_sight(token, now, read),
        }
    }

    #[cold]
    fn first_sight<T: Send + 'static>(
        &self,
        token: &[u8],
        now: u64,
        read: impl Fn(&Arc<Token>) -> Result<T, IdentityError> + Copy + Send + 'static,
    ) -> Verifying<T> {
        let inner = &*self.inner;
        let Ok(token) = str::from_utf8(token) else {
            return Verifying::ready(Err(invalid("`Authorization` is not text")));
        };
        let proved = Unverified::parse(token).and_then(|parsed| {
            let (kid, algorithm) = (parsed.kid.as_deref(), parsed.algorithm);
            let key = match &inner.keys {
                Keys::Fixed(set) => Some(set.pick(kid, algorithm).map(Arc::clone).map_err(no_key)?),
                Keys::Ring(ring) => ring.at_hand(kid, algorithm),
            };
            key.map(|key| inner.prove(token, &parsed, &key, now)).transpose()
        });
        match proved {
            Ok(Some(verified)) => Verifying::ready(read(&verified)),
            Err(error) => Verifying::ready(Err(error)),
            Ok(None) => {
                let (inner, token) = (Arc::clone(&self.inner), token.to_owned());
                Verifying::waiting(async move {
                    let verified = inner.wait(&token).await?;
                    read(&verified)
                })
            }
        }
    }
}

impl Inner {
    fn prove(
        &self,
        text: &str,
        parsed: &Unverified<'_>,
        key: &Arc<Key>,
        now: u64,
    ) -> Result<Arc<Token>, IdentityError> {
        let token = Arc::new(parsed.verify(key, &self.rules, now)?);
        self.cache.put(text, &token, key);
        Ok(token)
    }

    /// Waits for the token's key.
    async fn wait(&self, text: &str) -> Result<Arc<Token>, IdentityError> {
        let parsed = Unverified::parse(text)?;
        let key = match &self.keys {
            Keys::Fixed(set) => {
                Arc::clone(set.pick(parsed.kid.as_deref(), parsed.algorithm).map_err(no_key)?)
            }
            Keys::Ring(ring) => ring.find(parsed.kid.as_deref(), parsed.algorithm).await?,
        };
        self.prove(text, &parsed, &key, unix_seconds())
    }
}

impl std::fmt::Debug for JwtVerifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let claim = self.inner.rules.claim.as_str();
        f.debug_struct("JwtVerifier").field("claim", &claim).finish_non_exhaustive()
    }
}

impl Identify for JwtVerifier {
    type Future = Verifying<Caller>;

    fn identify<B>(&self, request: &Request<B>) -> Self::Future {
        match bearer_bytes(request) {
            Ok(token) => self.answer(token, caller),
            Err(error) => Verifying::ready(Err(error)),
        }
    }
}

fn caller(token: &Arc<Token>) -> Result<Caller, IdentityError> {
    let agent = token.agent.clone().map_err(IdentityError::NoAgent)?;
    Ok(Caller { agent, rater: token.rater.clone() })
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// The answer about a token: there already, as a rule, and then nothing was allocated for it.
#[must_use = "futures do nothing unless polled"]
pub struct Verifying<T> {
    state: State<T>,
}

enum State<T> {
    Ready(Option<Result<T, IdentityError>>),
    Waiting(Pin<Box<dyn Future<Output = Result<T, IdentityError>> + Send>>),
}

/// Nothing in it is ever pinned but what is in the box.
impl<T> Unpin for Verifying<T> {}

impl<T> Verifying<T> {
    fn ready(answer: Result<T, IdentityError>) -> Self {
        Self { state: State::Ready(Some(answer)) }
    }

    fn waiting(answer: impl Future<Output = Result<T, IdentityError>> + Send + 'static) -> Self {
        Self { state: State::Waiting(Box::pin(answer)) }
    }
}

impl<T> Future for Verifying<T> {
    type Output = Result<T, IdentityError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.state {
            State::Ready(answer) => Poll::Ready(answer.take().expect("polled after it was ready")),
            State::Waiting(answer) => answer.as_mut().poll(context),
        }
    }
}

impl<T> std::fmt::Debug for Verifying<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ready = matches!(self.state, State::Ready(_));
        f.debug_struct("Verifying").field("ready", &ready).finish()
    }
}
