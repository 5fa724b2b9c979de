//! A key set that is fetched again and again, so that an issuer may rotate its keys under load.
//!
//! 1. One task fetches, so at most one fetch is under way, and everybody who waits shares it.
//! 2. It fetches at once, then every refresh interval; after a failure sooner, in doubling steps.
//! 3. A token with an unknown key id makes it fetch too, once per cool-down. Neither the start, with
//!    or without success, nor a refresh begins a cool-down: a rotation right after is found at once.
//! 4. "Unknown" is first said on the word of a fetch that began after the token came. While that
//!    cannot be had (the source is away, the cool-down runs) the answer is
//!    [`IdentityError::Unavailable`]. It is then said again, without a fetch, for one cool-down: a
//!    token that was sent before its key was published is refused for that long.
//! 5. A fetch that fails, or brings a set that is refused whole, leaves the keys as they are, until
//!    the last good fetch is [`STALE_DEFAULT`] old; then none is left.
//! 6. A key that a new set no longer has goes out of force at once, and with it every token that
//!    was verified with it.

use std::{
    error::Error as _,
    fmt,
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use jsonwebtoken::Algorithm;
use lru::LruCache;
use metrics::{Counter, Gauge, counter, gauge};
use tokio::{
    runtime::Handle,
    sync::{Notify, Semaphore, watch},
    task::JoinHandle,
    time::{Instant, timeout, timeout_at},
};
use tracing::{info, warn};

use super::{
    super::{IdentityConfigError, IdentityError},
    jwks::{self, Parsed},
    keys::{Key, KeySet, NoKey, UnusableKey},
    source::{KeySource, KeysError},
    verify::no_key,
};

/// How often a key set is fetched anew, unless configured: 5 min.
pub const REFRESH_DEFAULT: Duration = Duration::from_secs(300);

/// How long keys serve after the last good fetch, unless configured: 1 h.
pub const STALE_DEFAULT: Duration = Duration::from_secs(3600);

/// The pause between two fetches for the sake of unknown key ids, unless configured: 10 s.
pub const COOL_DOWN_DEFAULT: Duration = Duration::from_secs(10);

/// The most key ids that are remembered as unknown; each for one cool-down.
pub const UNKNOWN_KIDS_MAX: usize = 1024;

/// The most tokens that wait for a fetch; with that many, a further one is told to come again.
pub const WAITING_MAX: usize = 1024;

/// The longest a fetch takes.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// The first pause after a fetch that failed; it doubles up to the refresh interval or
/// [`RETRY_MOST`].
const RETRY_FIRST: Duration = Duration::from_secs(1);

/// The longest pause after a fetch that failed.
const RETRY_MOST: Duration = Duration::from_secs(30);

/// How often the age of the set is shown.
const AGE_EVERY: Duration = Duration::from_secs(10);

/// When a source is asked, and how long its word holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    pub(super) refresh: Duration,
    pub(super) stale: Duration,
    pub(super) cool_down: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self { refresh: REFRESH_DEFAULT, stale: STALE_DEFAULT, cool_down: COOL_DOWN_DEFAULT }
    }
}

impl Times {
    pub(super) fn check(&self) -> Result<(), IdentityConfigError> {
        let (ms, day) = (Duration::from_millis, Duration::from_secs(24 * 3600));
        for (name, found, least, most) in [
            ("refresh", self.refresh, ms(100), day),
            ("stale", self.stale, self.refresh, 7 * day),
            ("cool_down", self.cool_down, ms(10), day),
        ] {
            if !(least..=most).contains(&found) {
                return Err(IdentityConfigError::Time { name, found, least, most });
            }
        }
        Ok(())
    }
}

/// The keys in force, and how they are kept up to date.
pub(super) struct Ring {
    source: Arc<dyn KeySource>,
    algorithms: Vec<Algorithm>,
    times: Times,
    state: Mutex<State>,
    /// Counts fetches that ended; whoever waits for one subscribes.
    ended: watch::Sender<u64>,
    /// Wakes the task: a fetch is wanted, or nobody is left.
    wanted: Arc<Notify>,
    waiting: Semaphore,
    metrics: Metrics,
}

struct State {
    set: Option<Arc<KeySet>>,
    /// How many fetches were begun; their numbers run from 1.
    begun: u64,
    /// The number of the fetch that is under way or wanted.
    flight: Option<u64>,
    /// The number of the fetch that ended last, however it ended.
    tried: u64,
    /// The number of the last good fetch, and when it ended.
    good: Option<(u64, Instant)>,
    /// When the task fetches next, if nobody wants it earlier.
    next: Instant,
    /// No fetch for the sake of unknown key ids before.
    cooled: Option<Instant>,
    /// Key ids that a fetch has proved unknown, and when.
    unknown: LruCache<Box<str>, Instant>,
    failures: u32,
    error: Option<Arc<KeysError>>,
    unusable: Vec<(String, UnusableKey)>,
    task: Option<JoinHandle<()>>,
}

struct Metrics {
    fetched: Counter,
    failed: Counter,
    refused: Counter,
    keys: Gauge,
    age: Gauge,
}

impl Metrics {
    fn new() -> Self {
        let fetches =
            |outcome: &'static str| counter!("merit_jwks_fetches_total", "outcome" => outcome);
        Self {
            fetched: fetches("ok"),
            failed: fetches("failed"),
            refused: fetches("refused"),
            keys: gauge!("merit_jwks_keys"),
            age: gauge!("merit_jwks_age_seconds"),
        }
    }
}

/// What a look at the keys says.
enum Look {
    Found(Arc<Key>),
    Refused(NoKey),
    Away(Duration),
    Wait,
}

impl Ring {
    pub(super) fn new(
        source: Arc<dyn KeySource>,
        algorithms: Vec<Algorithm>,
        times: Times,
    ) -> Arc<Self> {
        let unknown = NonZeroUsize::new(UNKNOWN_KIDS_MAX).expect("some are remembered");
        let ring = Arc::new(Self {
            source,
            algorithms,
            times,
            state: Mutex::new(State {
                set: None,
                begun: 0,
                flight: None,
                tried: 0,
                good: None,
                next: Instant::now(),
                cooled: None,
                unknown: LruCache::new(unknown),
                failures: 0,
                error: None,
                unusable: Vec::new(),
                task: None,
            }),
            ended: watch::Sender::new(0),
            wanted: Arc::default(),
            waiting: Semaphore::new(WAITING_MAX),
            metrics: Metrics::new(),
        });
        ring.attended(&mut ring.lock());
        ring
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the key for a token, if it is there now.
    pub(super) fn at_hand(&self, kid: Option<&str>, algorithm: Algorithm) -> Option<Arc<Key>> {
        self.lock().set.as_ref()?.pick(kid, algorithm).ok().cloned()
    }

    /// Returns the key for a token, fetching the set anew where that can help.
    pub(super) async fn find(
        self: &Arc<Self>,
        kid: Option<&str>,
        algorithm: Algorithm,
    ) -> Result<Arc<Key>, IdentityError> {
        let asked = self.lock().begun;
        let _place = self.waiting.try_acquire().map_err(|_| away(Duration::ZERO))?;
        loop {
            // Subscribed before looking: a fetch that ends in between is not missed.
            let mut ended = self.ended.subscribe();
            match self.look(kid, algorithm, asked) {
                Look::Found(key) => return Ok(key),
                Look::Refused(why) => return Err(no_key(why)),
                Look::Away(pause) => return Err(away(pause)),
                Look::Wait => {
                    let _ = ended.changed().await;
                }
            }
        }
    }

    fn look(self: &Arc<Self>, kid: Option<&str>, algorithm: Algorithm, asked: u64) -> Look {
        let mut state = self.lock();
        let now = Instant::now();
        if !self.attended(&mut state) {
            return Look::Away(RETRY_FIRST);
        }
        if let Some(set) = &state.set {
            match (set.pick(kid, algorithm), kid) {
                (Ok(key), _) => return Look::Found(Arc::clone(key)),
                (Err(NoKey::Unknown), Some(kid)) => {
                    let proved = |at: &Instant| *at + self.times.cool_down > now;
                    if state.unknown.get(kid).is_some_and(proved) {
                        return Look::Refused(NoKey::Unknown);
                    }
                    if state.good.is_some_and(|(flight, _)| flight > asked) {
                        state.unknown.put(kid.into(), now);
                        return Look::Refused(NoKey::Unknown);
                    }
                }
                (Err(why), _) => return Look::Refused(why),
            }
        }
        if state.flight.is_some() {
            return Look::Wait;
        }
        // Without a set the task tries soon by itself; a cool-down that began then would hold up
        // the first rotation after it.
        let cooled = state.cooled.filter(|cooled| *cooled > now);
        if state.set.is_none() || state.tried > asked || cooled.is_some() {
            let soonest = cooled.map_or(state.next, |cooled| cooled.min(state.next));
            return Look::Away(soonest.saturating_duration_since(now));
        }
        state.cooled = Some(now + self.times.cool_down);
        state.begin();
        self.wanted.notify_one();
        Look::Wait
    }

    /// Returns once the keys are there, or the last fetch failed.
    pub(super) async fn ready(self: &Arc<Self>) -> Result<(), Arc<KeysError>> {
        loop {
            let mut ended = self.ended.subscribe();
            {
                let mut state = self.lock();
                if !self.attended(&mut state) {
                    return Err(Arc::new(KeysError::NoRuntime { name: self.name() }));
                }
                if state.set.is_some() {
                    return Ok(());
                }
                if let (Some(error), None) = (&state.error, state.flight) {
                    return Err(Arc::clone(error));
                }
            }
            let _ = ended.changed().await;
        }
    }

    fn name(&self) -> String {
        self.source.name().to_owned()
    }

    /// Sees to it that the task runs; returns false outside of a runtime.
    fn attended(self: &Arc<Self>, state: &mut State) -> bool {
        if state.task.as_ref().is_some_and(|task| !task.is_finished()) {
            return true;
        }
        let Ok(runtime) = Handle::try_current() else { return false };
        state.begin();
        let task = attend(Arc::downgrade(self), Arc::clone(&self.wanted));
        state.task = Some(runtime.spawn(task));
        true
    }

    /// Fetches once, and puts what came in force.
    async fn fetch(&self) {
        let flight = {
            let mut state = self.lock();
            state.flight.unwrap_or_else(|| state.begin())
        };
        let fetched = timeout(FETCH_TIMEOUT, self.source.fetch()).await;
        let parsed = match fetched {
            Ok(Ok(document)) => jwks::parse(&document, &self.algorithms)
                .map_err(|source| KeysError::Refused { name: self.name(), source }),
            Ok(Err(source)) => Err(KeysError::Fetch { name: self.name(), source }),
            Err(_) => {
                let timeout_ms = FETCH_TIMEOUT.as_millis();
                Err(KeysError::Timeout { name: self.name(), timeout_ms })
            }
        };
        let mut state = self.lock();
        match parsed {
            Ok(parsed) => self.take(&mut state, parsed, flight),
            Err(error) => self.fail(&mut state, error),
        }
        state.tried = flight;
        state.flight = None;
        self.show(&state);
        drop(state);
        self.ended.send_modify(|count| *count += 1);
    }

    fn take(&self, state: &mut State, parsed: Parsed, flight: u64) {
        let source = self.source.name();
        self.metrics.fetched.increment(1);
        if parsed.unusable != state.unusable {
            for (kid, reason) in &parsed.unusable {
                warn!(source, kid, %reason, "key of the key set is not used");
            }
            state.unusable = parsed.unusable;
        }
        let next = Arc::new(KeySet::published(parsed.keys, state.set.as_deref()));
        if let Some(before) = &state.set {
            before.retire_for(Some(&next));
        }
        if state.failures > 0 || state.set.is_none() {
            info!(source, keys = next.len(), "key set is in force");
        }
        let now = Instant::now();
        state.set = Some(next);
        state.good = Some((flight, now));
        state.next = now + self.times.refresh;
        state.failures = 0;
        state.error = None;
    }

    fn fail(&self, state: &mut State, error: KeysError) {
        match &error {
            KeysError::Refused { .. } => self.metrics.refused.increment(1),
            _ => self.metrics.failed.increment(1),
        }
        let cause = error.source().map(ToString::to_string).unwrap_or_default();
        warn!(%error, cause, keys_stay = state.set.is_some(), "key set is not refreshed");
        let pause =
            RETRY_FIRST.saturating_mul(1_u32.checked_shl(state.failures).unwrap_or(u32::MAX));
        state.next = Instant::now() + pause.min(RETRY_MOST).min(self.times.refresh);
        state.failures = state.failures.saturating_add(1);
        state.error = Some(Arc::new(error));
    }

    /// Takes stock: keys that are too old go out of force. Returns when to wake next, or nothing
    /// when it is time to fetch.
    fn stock(&self) -> Option<Instant> {
        let mut state = self.lock();
        let now = Instant::now();
        let stale = state.good.map(|(_, ended)| ended + self.times.stale);
        if stale.is_some_and(|stale| stale <= now) && state.set.is_some() {
            warn!(source = self.source.name(), "key set is too old: no token is taken");
            state.forget();
        }
        self.show(&state);
        if state.flight.is_some() || state.next <= now {
            return None;
        }
        let stale = stale.filter(|_| state.set.is_some()).unwrap_or(state.next);
        Some(state.next.min(stale).min(now + AGE_EVERY))
    }

    #[allow(clippy::cast_precision_loss, reason = "a count of keys")]
    fn show(&self, state: &State) {
        self.metrics.keys.set(state.set.as_ref().map_or(0, |set| set.len()) as f64);
        if let Some((_, ended)) = state.good {
            self.metrics.age.set(ended.elapsed().as_secs_f64());
        }
    }
}

impl State {
    fn begin(&mut self) -> u64 {
        self.begun += 1;
        self.flight = Some(self.begun);
        self.begun
    }

    fn forget(&mut self) {
        if let Some(set) = self.set.take() {
            set.retire_for(None);
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.wanted.notify_one();
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").field("source", &self.source.name()).finish_non_exhaustive()
    }
}

/// The time until a token may be sent again.
fn away(pause: Duration) -> IdentityError {
    let seconds = pause.as_millis().div_ceil(1000).max(1);
    IdentityError::Unavailable {
        reason: "the keys that tokens are signed with cannot be fetched now",
        retry_after_s: u64::try_from(seconds).unwrap_or(u64::MAX),
    }
}

/// Fetches until the ring is gone.
async fn attend(ring: Weak<Ring>, wanted: Arc<Notify>) {
    let _watch = Unattended(ring.clone());
    loop {
        let Some(attended) = ring.upgrade() else { return };
        let Some(wake) = attended.stock() else {
            attended.fetch().await;
            continue;
        };
        drop(attended);
        // Woken or due: either way the stock is taken anew.
        let _ = timeout_at(wake, wanted.notified()).await;
    }
}

/// When the task ends while the ring lives, because its runtime ended or the source panicked, no
/// key stays in force that nobody would ever take out of it.
struct Unattended(Weak<Ring>);

impl Drop for Unattended {
    fn drop(&mut self) {
        if let Some(ring) = self.0.upgrade() {
            let mut state = ring.lock();
            state.forget();
            state.tried = state.flight.take().unwrap_or(state.tried);
            state.error = Some(Arc::new(KeysError::NoRuntime { name: ring.name() }));
            drop(state);
            ring.ended.send_modify(|count| *count += 1);
        }
    }
}
