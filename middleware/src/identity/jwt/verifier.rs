//! The verifier: remembered, or proved with a key that is at hand, or waiting for one.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{SystemTime, UNIX_EPOCH},
};

use http::Request;
use tokio::time::Instant;

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
    clock: Clock,
}

impl JwtVerifier {
    pub(super) fn new(keys: Keys, rules: Rules, remembered: Bounds) -> Self {
        Self {
            inner: Arc::new(Inner {
                keys,
                rules,
                cache: Cache::new(remembered),
                clock: Clock::new(),
            }),
        }
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
        let now = unix_seconds();
        match self.inner.remembered(token, now, read) {
            Some(answer) => Verifying::ready(answer),
            None => self.first_sight(token, now, read),
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
    /// Returns what `read` makes of a token that was verified before; `None` when it was not.
    fn remembered<T>(
        &self,
        token: &[u8],
        now: u64,
        read: impl FnOnce(&Arc<Token>) -> Result<T, IdentityError>,
    ) -> Option<Result<T, IdentityError>> {
        match self.cache.get(token, self.rules.earliest(now), read) {
            Remembered::Valid(answer) => Some(answer),
            Remembered::Expired => Some(Err(invalid("the token has expired"))),
            Remembered::Unknown => None,
        }
    }

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

    fn identify_now<B>(
        &self,
        request: &Request<B>,
        now: Instant,
    ) -> Option<Result<Caller, IdentityError>> {
        match bearer_bytes(request) {
            Ok(token) => self.inner.remembered(token, self.inner.clock.unix_seconds(now), caller),
            Err(error) => Some(Err(error)),
        }
    }
}

fn caller(token: &Arc<Token>) -> Result<Caller, IdentityError> {
    let agent = token.agent.clone().map_err(IdentityError::NoAgent)?;
    Ok(Caller { agent, rater: token.rater.clone() })
}

/// The time of day, read once in a second: nobody need read it again who has the present `Instant`.
struct Clock {
    started: Instant,
    /// Whole seconds since `started`, and the Unix time that was read in that second.
    read: AtomicU64,
}

impl Clock {
    fn new() -> Self {
        Self { started: Instant::now(), read: AtomicU64::new(u64::MAX) }
    }

    /// Returns the Unix time, at most a second old.
    fn unix_seconds(&self, now: Instant) -> u64 {
        const LOW: u64 = u32::MAX as u64;
        let second = now.saturating_duration_since(self.started).as_secs() & LOW;
        let read = self.read.load(Ordering::Relaxed);
        if read & LOW == second {
            return read >> 32;
        }
        let unix = unix_seconds();
        // From 2106 on it is read every time.
        if unix <= LOW {
            self.read.store(unix << 32 | second, Ordering::Relaxed);
        }
        unix
    }
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_time_of_day_is_read_anew_in_another_second_and_not_before() {
        let clock = Clock::new();
        let read = |after_ms| clock.unix_seconds(clock.started + Duration::from_millis(after_ms));
        let present = read(0);
        assert!(present.abs_diff(unix_seconds()) <= 1);
        // As if it had been read long ago: what is remembered shows which of the two is told.
        clock.read.store(7 << 32, Ordering::Relaxed);
        assert_eq!((read(0), read(999)), (7, 7));
        assert!(read(1000) >= present, "another second, and the clock was not read");
        assert!(read(0) >= present, "the second before, and the clock was not read");
    }
}
