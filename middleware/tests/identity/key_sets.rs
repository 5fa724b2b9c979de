//! A key set that changes, is late, is broken or is gone, on a paused clock.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::keys::{Pair, claims, ec256, set};
use bytes::Bytes;
use serde_json::json;
use tokio::{
    sync::Semaphore,
    time::{Instant, advance, sleep},
};
use tower_merit::{
    JwtIdentity, JwtVerifier,
    identity::{
        IdentityConfigError, IdentityError,
        jwt::{Algorithm, FetchError, KeySource, KeysError},
    },
};

const REFRESH: Duration = Duration::from_secs(300);
const STALE: Duration = Duration::from_secs(3600);
const COOL_DOWN: Duration = Duration::from_secs(10);

/// An issuer's server: says what it is told, when it is let, and counts who asks.
#[derive(Clone)]
struct Issuer {
    document: Arc<Mutex<Result<String, String>>>,
    fetches: Arc<AtomicUsize>,
    /// One permit for each answer; many unless the test holds answers back.
    answers: Arc<Semaphore>,
}

impl Issuer {
    fn publishing(document: String) -> Self {
        Self {
            document: Arc::new(Mutex::new(Ok(document))),
            fetches: Arc::default(),
            answers: Arc::new(Semaphore::new(1_000_000)),
        }
    }

    fn publish(&self, document: String) {
        *self.document.lock().unwrap() = Ok(document);
    }

    fn fail(&self) {
        *self.document.lock().unwrap() = Err("connection refused".to_owned());
    }

    fn hold(&self) {
        self.answers.forget_permits(usize::MAX);
    }

    fn answer(&self) {
        self.answers.add_permits(1);
    }

    fn fetches(&self) -> usize {
        self.fetches.load(Ordering::SeqCst)
    }
}

impl KeySource for Issuer {
    fn fetch(&self) -> Pin<Box<dyn Future<Output = Result<Bytes, FetchError>> + Send + '_>> {
        Box::pin(async move {
            self.fetches.fetch_add(1, Ordering::SeqCst);
            // As with a real server, the answer is what was published when it was made.
            let document = self.document.lock().unwrap().clone();
            self.answers.acquire().await?.forget();
            Ok(document?.into())
        })
    }

    fn name(&self) -> &str {
        "the issuer"
    }
}

fn identity(issuer: &Issuer) -> JwtIdentity {
    JwtIdentity::key_source(issuer.clone()).issuer("issuer").audience("service")
}

async fn connected(issuer: &Issuer) -> JwtVerifier {
    identity(issuer).connect().await.unwrap()
}

fn token(pair: &Pair, kid: &str) -> String {
    pair.sign(Algorithm::ES256, Some(kid), &claims(json!({})))
}

#[derive(Debug, PartialEq)]
enum Outcome {
    Taken,
    Refused,
    Later(u64),
}
use Outcome::{Later, Refused, Taken};

async fn outcome(verifier: &JwtVerifier, token: &str) -> Outcome {
    match verifier.verify(token).await {
        Ok(_) => Taken,
        Err(IdentityError::Unauthenticated { .. }) => Refused,
        Err(IdentityError::Unavailable { retry_after_s, .. }) => Later(retry_after_s),
        Err(other) => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn the_set_is_fetched_at_once_and_then_every_refresh_interval() {
    let pair = ec256();
    let issuer = Issuer::publishing(set(&[pair.jwk("a")]));
    let verifier = connected(&issuer).await;
    assert_eq!(issuer.fetches(), 1);
    sleep(REFRESH * 3 + Duration::from_secs(1)).await;
    assert_eq!(issuer.fetches(), 4);
    assert_eq!(outcome(&verifier, &token(&pair, "a")).await, Taken);
    drop(verifier);
    sleep(REFRESH * 3).await;
    assert_eq!(issuer.fetches(), 4, "nobody is left, and somebody fetches");
}

#[tokio::test(start_paused = true)]
async fn a_rotation_right_after_the_start_or_a_refresh_is_found_at_once() {
    let pairs = [ec256(), ec256(), ec256()];
    let issuer = Issuer::publishing(set(&[pairs[0].jwk("0")]));
    let verifier = connected(&issuer).await;
    issuer.publish(set(&[pairs[0].jwk("0"), pairs[1].jwk("1")]));
    let began = Instant::now();
    assert_eq!(outcome(&verifier, &token(&pairs[1], "1")).await, Taken);
    assert_eq!((issuer.fetches(), began.elapsed()), (2, Duration::ZERO));
    sleep(REFRESH + Duration::from_secs(1)).await;
    assert_eq!(issuer.fetches(), 3);
    issuer.publish(set(&[pairs[2].jwk("2")]));
    assert_eq!(outcome(&verifier, &token(&pairs[2], "2")).await, Taken);
}

#[tokio::test(start_paused = true)]
async fn a_token_is_forgotten_the_moment_its_key_leaves_the_set_and_not_before() {
    let (old, new) = (ec256(), ec256());
    let issuer = Issuer::publishing(set(&[old.jwk("old")]));
    let verifier = connected(&issuer).await;
    let (first, second) = (token(&old, "old"), token(&new, "new"));
    assert_eq!(outcome(&verifier, &first).await, Taken);
    issuer.publish(set(&[old.jwk("old"), new.jwk("new")]));
    assert_eq!(outcome(&verifier, &second).await, Taken);
    assert_eq!(outcome(&verifier, &first).await, Taken);
    issuer.publish(set(&[new.jwk("new")]));
    sleep(REFRESH + Duration::from_secs(1)).await;
    assert_eq!(outcome(&verifier, &first).await, Refused);
    assert_eq!(outcome(&verifier, &second).await, Taken);
    // Another key under an id that was in force before.
    let reused = ec256();
    issuer.publish(set(&[reused.jwk("new")]));
    sleep(REFRESH + Duration::from_secs(1)).await;
    assert_eq!(outcome(&verifier, &second).await, Refused);
    assert_eq!(outcome(&verifier, &token(&reused, "new")).await, Taken);
}

#[tokio::test(start_paused = true)]
async fn everybody_who_waits_shares_one_fetch() {
    let (old, new) = (ec256(), ec256());
    let issuer = Issuer::publishing(set(&[old.jwk("old")]));
    let verifier = connected(&issuer).await;
    issuer.publish(set(&[old.jwk("old"), new.jwk("new")]));
    issuer.hold();
    let waiting: Vec<_> = (0..100)
        .map(|_| {
            let (verifier, token) = (verifier.clone(), token(&new, "new"));
            tokio::spawn(async move { outcome(&verifier, &token).await })
        })
        .collect();
    sleep(Duration::from_millis(10)).await;
    assert_eq!(issuer.fetches(), 2);
    assert_eq!(
        outcome(&verifier, &token(&old, "old")).await,
        Taken,
        "a known key waits for nobody"
    );
    issuer.answer();
    for one in waiting {
        assert_eq!(one.await.unwrap(), Taken);
    }
    assert_eq!(issuer.fetches(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_unknown_key_ids_makes_one_fetch_per_cool_down() {
    let pair = ec256();
    let issuer = Issuer::publishing(set(&[pair.jwk("a")]));
    let verifier = connected(&issuer).await;
    let before = issuer.fetches();
    let began = Instant::now();
    for n in 0..10_000 {
        let answer = outcome(&verifier, &token(&pair, &format!("unknown-{n}"))).await;
        assert!(matches!(answer, Refused | Later(1..=10)), "{answer:?}");
        advance(Duration::from_millis(5)).await;
    }
    let cool_downs = began.elapsed().as_secs_f64() / COOL_DOWN.as_secs_f64();
    let fetches = issuer.fetches() - before;
    assert!((5..=6).contains(&fetches) && fetches as f64 <= cool_downs + 1.0, "{fetches}");
}

#[tokio::test(start_paused = true)]
async fn a_key_that_appears_during_a_flood_is_never_called_bad() {
    let (old, new) = (ec256(), ec256());
    let issuer = Issuer::publishing(set(&[old.jwk("old")]));
    let verifier = connected(&issuer).await;
    assert_eq!(outcome(&verifier, &token(&old, "nonsense")).await, Refused);
    // The cool-down runs. The issuer rotates now.
    issuer.publish(set(&[new.jwk("new")]));
    let good = token(&new, "new");
    assert_eq!(outcome(&verifier, &good).await, Later(10));
    assert_eq!(outcome(&verifier, &token(&old, "nonsense")).await, Refused, "known to be unknown");
    sleep(Duration::from_secs(7)).await;
    assert_eq!(outcome(&verifier, &good).await, Later(3));
    sleep(Duration::from_secs(3)).await;
    assert_eq!(outcome(&verifier, &good).await, Taken);
}

#[tokio::test(start_paused = true)]
async fn unknown_is_said_only_on_the_word_of_a_fetch_that_began_after_the_token_came() {
    let (old, new) = (ec256(), ec256());
    let issuer = Issuer::publishing(set(&[old.jwk("old")]));
    let verifier = connected(&issuer).await;
    issuer.hold();
    // The refresh has read the old set, and its answer is on the way, when the key appears.
    sleep(REFRESH).await;
    sleep(Duration::from_millis(1)).await;
    assert_eq!(issuer.fetches(), 2);
    issuer.publish(set(&[old.jwk("old"), new.jwk("new")]));
    let waiting = {
        let (verifier, token) = (verifier.clone(), token(&new, "new"));
        tokio::spawn(async move { outcome(&verifier, &token).await })
    };
    sleep(Duration::from_millis(1)).await;
    issuer.answer();
    sleep(Duration::from_millis(1)).await;
    assert_eq!(issuer.fetches(), 3, "the first answer proves nothing, so it is asked again");
    issuer.answer();
    assert_eq!(waiting.await.unwrap(), Taken);
}

#[tokio::test(start_paused = true)]
async fn keys_serve_while_the_issuer_is_away_until_they_are_too_old() {
    let pair = ec256();
    let issuer = Issuer::publishing(set(&[pair.jwk("a")]));
    let verifier = connected(&issuer).await;
    let remembered = token(&pair, "a");
    assert_eq!(outcome(&verifier, &remembered).await, Taken);
    issuer.fail();
    sleep(STALE - Duration::from_secs(1)).await;
    assert_eq!(outcome(&verifier, &remembered).await, Taken);
    let fresh = pair.sign(Algorithm::ES256, Some("a"), &claims(json!({"sub": "fresh"})));
    assert_eq!(outcome(&verifier, &fresh).await, Taken);
    assert!(verifier.ready().await.is_ok());
    sleep(Duration::from_secs(2)).await;
    for token in [&remembered, &fresh] {
        assert!(matches!(outcome(&verifier, token).await, Later(_)), "never a 401");
    }
    assert!(matches!(*verifier.ready().await.unwrap_err(), KeysError::Fetch { .. }));
    issuer.publish(set(&[pair.jwk("a")]));
    sleep(REFRESH).await;
    assert_eq!(outcome(&verifier, &remembered).await, Taken);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_key_id_while_the_issuer_is_away_is_no_proof() {
    let (old, new) = (ec256(), ec256());
    let issuer = Issuer::publishing(set(&[old.jwk("old")]));
    let verifier = connected(&issuer).await;
    issuer.fail();
    assert!(matches!(outcome(&verifier, &token(&new, "new")).await, Later(_)));
    assert_eq!(outcome(&verifier, &token(&old, "old")).await, Taken);
    issuer.publish(set(&[new.jwk("new")]));
    // Found by the retry that follows a failure, before the cool-down is over.
    sleep(Duration::from_secs(2)).await;
    assert_eq!(outcome(&verifier, &token(&new, "new")).await, Taken);
}

#[tokio::test(start_paused = true)]
async fn an_issuer_that_hangs_delays_unknown_keys_by_a_bounded_time_and_known_ones_not_at_all() {
    let (old, new) = (ec256(), ec256());
    let issuer = Issuer::publishing(set(&[old.jwk("old")]));
    let verifier = connected(&issuer).await;
    issuer.hold();
    let began = Instant::now();
    let waiting = {
        let (verifier, token) = (verifier.clone(), token(&new, "new"));
        tokio::spawn(async move { (outcome(&verifier, &token).await, Instant::now()) })
    };
    sleep(Duration::from_secs(1)).await;
    let known = Instant::now();
    let fresh = old.sign(Algorithm::ES256, Some("old"), &claims(json!({"sub": "fresh"})));
    assert_eq!(outcome(&verifier, &fresh).await, Taken);
    assert_eq!(known.elapsed(), Duration::ZERO);
    let (answer, at) = waiting.await.unwrap();
    assert!(matches!(answer, Later(_)), "{answer:?}");
    assert!(at - began <= Duration::from_secs(5), "{:?}", at - began);
}

#[tokio::test(start_paused = true)]
async fn at_most_so_many_tokens_wait() {
    let pair = ec256();
    let issuer = Issuer::publishing(set(&[pair.jwk("a")]));
    let verifier = connected(&issuer).await;
    issuer.hold();
    let good = token(&pair, "unknown");
    let waiting: Vec<_> = (0..1_500)
        .map(|_| {
            let (verifier, token) = (verifier.clone(), good.clone());
            tokio::spawn(async move { (outcome(&verifier, &token).await, Instant::now()) })
        })
        .collect();
    let began = Instant::now();
    let mut at_once = 0;
    for one in waiting {
        let (answer, at) = one.await.unwrap();
        assert!(matches!(answer, Later(_)));
        at_once += usize::from(at == began);
    }
    assert_eq!(at_once, 1_500 - tower_merit::identity::jwt::WAITING_MAX);
}

#[tokio::test(start_paused = true)]
async fn a_set_that_is_refused_whole_leaves_the_last_good_one_in_force() {
    let (good, other) = (ec256(), ec256());
    let issuer = Issuer::publishing(set(&[good.jwk("a")]));
    let verifier = connected(&issuer).await;
    for bad in [
        set(&[good.jwk("a"), other.jwk("a")]),
        set(&[good.jwk("a"), Pair::Hmac(vec![7; 64]).jwk("s")]),
        set(&[]),
        "<html>maintenance</html>".to_owned(),
        String::new(),
    ] {
        issuer.publish(bad.clone());
        sleep(REFRESH).await;
        let fresh = good.sign(Algorithm::ES256, Some("a"), &claims(json!({"sub": bad.len()})));
        assert_eq!(outcome(&verifier, &fresh).await, Taken, "{bad}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_start_without_the_issuer_is_possible_or_an_error_as_one_asks() {
    let pair = ec256();
    let issuer = Issuer::publishing(String::new());
    issuer.fail();
    let error = identity(&issuer).connect().await.unwrap_err();
    assert!(matches!(error, IdentityConfigError::Keys { .. }), "{error}");
    let verifier = identity(&issuer).build().unwrap();
    let good = token(&pair, "a");
    assert!(matches!(outcome(&verifier, &good).await, Later(_)));
    issuer.publish(set(&[pair.jwk("a")]));
    sleep(Duration::from_secs(4)).await;
    assert_eq!(outcome(&verifier, &good).await, Taken);
    // What was asked in vain began no cool-down: the first rotation is found at once.
    let next = ec256();
    issuer.publish(set(&[pair.jwk("a"), next.jwk("b")]));
    assert_eq!(outcome(&verifier, &token(&next, "b")).await, Taken);
}

#[tokio::test(start_paused = true)]
async fn failures_are_retried_in_doubling_steps() {
    let issuer = Issuer::publishing(String::new());
    issuer.fail();
    let _verifier = identity(&issuer).build().unwrap();
    let mut seen = Vec::new();
    for second in 0..70 {
        if issuer.fetches() > seen.len() {
            seen.push(second);
        }
        sleep(Duration::from_secs(1)).await;
    }
    // Looked at once a second: at 0, 1, 3, 7, 15, 31, 61 s.
    assert_eq!(seen.len(), 7, "{seen:?}");
}

#[test]
fn a_verifier_built_outside_of_a_runtime_fetches_with_the_first_token() {
    let pair = ec256();
    let issuer = Issuer::publishing(set(&[pair.jwk("a")]));
    let verifier = identity(&issuer).build().unwrap();
    assert_eq!(issuer.fetches(), 0);
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(outcome(&verifier, &token(&pair, "a")))
    };
    assert_eq!(run(), Taken);
    // The runtime is gone, and with it whoever refreshed: another one starts anew.
    assert_eq!(run(), Taken);
    assert_eq!(issuer.fetches(), 2);
}

#[tokio::test]
async fn a_file_is_a_source_too() {
    let (old, new) = (ec256(), ec256());
    let path = std::env::temp_dir().join(format!("merit-keys-{}.json", std::process::id()));
    std::fs::write(&path, set(&[old.jwk("old")])).unwrap();
    let identity = JwtIdentity::key_file(&path).issuer("issuer").audience("service");
    let verifier = identity.connect().await.unwrap();
    assert_eq!(outcome(&verifier, &token(&old, "old")).await, Taken);
    std::fs::write(&path, set(&[new.jwk("new")])).unwrap();
    assert_eq!(outcome(&verifier, &token(&new, "new")).await, Taken);
    assert_eq!(outcome(&verifier, &token(&old, "old")).await, Later(10));
    std::fs::remove_file(&path).unwrap();
    assert!(JwtIdentity::key_file(&path).connect().await.is_err());
}

#[test]
fn times_out_of_range_are_a_fault() {
    let issuer = Issuer::publishing(String::new());
    let day = Duration::from_secs(24 * 3600);
    for identity in [
        identity(&issuer).refresh(Duration::from_millis(99)),
        identity(&issuer).refresh(day * 2),
        identity(&issuer).stale(REFRESH - Duration::from_secs(1)),
        identity(&issuer).stale(day * 8),
        identity(&issuer).cool_down(Duration::ZERO),
    ] {
        assert!(matches!(identity.build(), Err(IdentityConfigError::Time { .. })));
    }
}
