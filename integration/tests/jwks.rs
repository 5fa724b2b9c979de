//! Keys rotate, and the issuer's server is slow, broken, flooded or gone: who holds a good token
//! notices as little as can be.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use http::{Request, Response};
use jsonwebtoken::Algorithm;
use merit_integration::{
    AUDIENCE, ISSUER, Identity, Issuer, Merit, Persistence, Redis, Says, Settings, Upstream,
    client::Client,
    eventually,
    keys::{KeyPair, claims},
    until,
};
use serde_json::json;
use tokio::{sync::watch, task::JoinSet};
use tower::{Layer as _, Service, ServiceExt as _, service_fn};
use tower_merit::{
    AdmissionLayer, Bucket, JwtIdentity, JwtVerifier, MemoryStore, identity::jwt::JwksUrl,
};

/// How long anything may take that should take milliseconds.
const DEADLINE: Duration = Duration::from_secs(20);

fn pair() -> KeyPair {
    KeyPair::generate(Algorithm::ES256)
}

fn identity(issuer: &Issuer) -> JwtIdentity {
    let identity = JwtIdentity::jwks_url(&issuer.url()).unwrap();
    identity.issuer(ISSUER).audience(AUDIENCE)
}

fn token(pair: &KeyPair, kid: &str, n: u64) -> String {
    pair.sign_as(kid, &claims(&json!({"agent_id": format!("agent-{n}")})))
}

async fn hello(_: Request<()>) -> Result<Response<String>, Infallible> {
    Ok(Response::new("hello".to_owned()))
}

/// Asks the layer once; returns the status of the answer.
async fn ask<S, B>(service: &S, token: &str) -> u16
where
    S: Service<Request<()>, Response = Response<B>, Error = Infallible> + Clone,
{
    let request = Request::builder().header("authorization", format!("Bearer {token}"));
    service.clone().oneshot(request.body(()).unwrap()).await.unwrap().status().as_u16()
}

fn layer(verifier: &JwtVerifier) -> AdmissionLayer<MemoryStore, JwtVerifier> {
    AdmissionLayer::builder(MemoryStore::new())
        .identity(verifier.clone())
        .bucket(Bucket::per_second(9_000_000.0).capacity(9_000_000))
        .build()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_rotate_under_load_without_one_refusal() {
    const ROTATIONS: usize = 10;
    const CALLERS: usize = 16;
    let pairs: Arc<Vec<KeyPair>> = Arc::new((0..=ROTATIONS).map(|_| pair()).collect());
    let jwk = |n: usize| pairs[n].jwk(&format!("key-{n}"));
    let issuer = Issuer::start(Says::Keys(vec![jwk(0)])).await;
    let identity = identity(&issuer).refresh(Duration::from_millis(200));
    let verifier = identity.cool_down(Duration::from_millis(10)).connect().await.unwrap();
    let service = layer(&verifier).layer(service_fn(hello));

    // Which key signs; each caller says which one it used last.
    let (signing, signed_with) = watch::channel(0_usize);
    let used: Vec<_> = (0..CALLERS).map(|_| watch::channel(0_usize)).collect();
    let stop = Arc::new(AtomicBool::new(false));
    let mut callers = JoinSet::new();
    for (caller, (used, _)) in used.iter().enumerate() {
        let (service, pairs, stop) = (service.clone(), Arc::clone(&pairs), Arc::clone(&stop));
        let (signed_with, used) = (signed_with.clone(), used.clone());
        callers.spawn(async move {
            let mut answers = BTreeMap::new();
            let mut last = (usize::MAX, String::new());
            for n in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let key = *signed_with.borrow();
                // Tokens live for some requests, as they do in life.
                if last.0 != key || n % 8 == 0 {
                    let unique = (caller as u64) << 32 | n;
                    last = (key, token(&pairs[key], &format!("key-{key}"), unique));
                }
                *answers.entry(ask(&service, &last.1).await).or_insert(0_u64) += 1;
                used.send_replace(key);
                tokio::task::yield_now().await;
            }
            answers
        });
    }
    for next in 1..=ROTATIONS {
        issuer.say(Says::Keys(vec![jwk(next - 1), jwk(next)]));
        if next % 2 == 0 {
            // Announced: everybody has read it before it signs.
            let seen = issuer.asked();
            eventually("a refresh", DEADLINE, || async { issuer.asked() > seen + 1 }).await;
        }
        signing.send_replace(next);
        for (_, used) in &used {
            used.clone().wait_for(|key| *key == next).await.unwrap();
        }
        issuer.say(Says::Keys(vec![jwk(next)]));
        let seen = issuer.asked();
        eventually("a refresh", DEADLINE, || async { issuer.asked() > seen + 1 }).await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut answers = BTreeMap::new();
    while let Some(one) = callers.join_next().await {
        for (status, count) in one.unwrap() {
            *answers.entry(status).or_insert(0) += count;
        }
    }
    for old in 0..ROTATIONS {
        let old = token(&pairs[old], &format!("key-{old}"), u64::MAX);
        assert!(matches!(ask(&service, &old).await, 401 | 503), "an old key verifies still");
    }
    println!("{ROTATIONS} rotations, {} fetches, answers {answers:?}", issuer.asked());
    assert_eq!(answers.keys().copied().collect::<Vec<_>>(), [200], "{answers:?}");
    assert!(answers[&200] > 1000, "{answers:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_unknown_key_ids_makes_one_fetch_per_cool_down() {
    const COOL_DOWN: Duration = Duration::from_millis(500);
    let pair = Arc::new(pair());
    let issuer = Issuer::start(Says::Keys(vec![pair.jwk("known")])).await;
    let identity = identity(&issuer).refresh(Duration::from_secs(3600));
    let identity = identity.stale(Duration::from_secs(3600)).cool_down(COOL_DOWN);
    let verifier = identity.connect().await.unwrap();
    let service = layer(&verifier).layer(service_fn(hello));
    let before = issuer.asked();
    let began = Instant::now();
    let mut flood = JoinSet::new();
    for part in 0..50 {
        let (service, pair) = (service.clone(), Arc::clone(&pair));
        flood.spawn(async move {
            let mut statuses = BTreeMap::new();
            for n in 0..200 {
                let unknown = token(&pair, &format!("unknown-{part}-{n}"), n);
                *statuses.entry(ask(&service, &unknown).await).or_insert(0_u64) += 1;
                let good = token(&pair, "known", part << 32 | n);
                assert_eq!(ask(&service, &good).await, 200);
            }
            statuses
        });
    }
    let mut statuses = BTreeMap::new();
    while let Some(part) = flood.join_next().await {
        for (status, count) in part.unwrap() {
            *statuses.entry(status).or_insert(0) += count;
        }
    }
    let cool_downs = began.elapsed().div_duration_f64(COOL_DOWN);
    let fetches = issuer.asked() - before;
    println!("10,000 unknown ids: {fetches} fetches in {cool_downs:.1} cool-downs, {statuses:?}");
    assert!(fetches >= 1 && fetches as f64 <= cool_downs + 1.0, "{fetches} in {cool_downs}");
    assert!(statuses.keys().all(|status| [401, 503].contains(status)), "{statuses:?}");
    assert_eq!(statuses.values().sum::<u64>(), 10_000);
}

#[tokio::test]
async fn keys_serve_while_the_server_is_gone_and_not_for_ever() {
    let pair = pair();
    let issuer = Issuer::start(Says::Keys(vec![pair.jwk("k")])).await;
    let address = issuer.address();
    let stale = Duration::from_secs(2);
    let identity = identity(&issuer).refresh(Duration::from_millis(200)).stale(stale);
    let verifier = identity.connect().await.unwrap();
    let service = layer(&verifier).layer(service_fn(hello));
    assert_eq!(ask(&service, &token(&pair, "k", 0)).await, 200);
    drop(issuer);
    let gone = Instant::now();
    let ended = until("the keys are too old", DEADLINE, || async {
        match ask(&service, &token(&pair, "k", 0)).await {
            200 => None,
            status => Some((status, gone.elapsed())),
        }
    });
    let (status, served) = ended.await;
    assert_eq!(status, 503, "a good token is never called bad");
    // The last good fetch was up to a refresh before the end.
    let least = stale - Duration::from_millis(500);
    assert!((least..stale + Duration::from_secs(2)).contains(&served), "{served:?}");
    let _back = Issuer::start_at(address, Says::Keys(vec![pair.jwk("k")])).await;
    eventually("it serves again", DEADLINE, || async {
        ask(&service, &token(&pair, "k", 0)).await == 200
    })
    .await;
}

#[tokio::test]
async fn a_server_that_hangs_holds_up_nobody_whose_key_is_known() {
    let (known, new) = (pair(), pair());
    let issuer = Issuer::start(Says::Keys(vec![known.jwk("known")])).await;
    let verifier = identity(&issuer).connect().await.unwrap();
    let service = layer(&verifier).layer(service_fn(hello));
    issuer.say(Says::Nothing);
    let waiting = {
        let (service, token) = (service.clone(), token(&new, "new", 0));
        tokio::spawn(async move { ask(&service, &token).await })
    };
    eventually("the server is asked", DEADLINE, || async { issuer.asked() == 2 }).await;
    for n in 0..200 {
        assert_eq!(ask(&service, &token(&known, "known", n)).await, 200);
        assert!(!waiting.is_finished(), "known keys were held up");
    }
    let answered = tokio::time::timeout(Duration::from_secs(15), waiting).await;
    assert_eq!(answered.expect("waits within bounds").unwrap(), 503);
}

#[tokio::test]
async fn tls_is_verified_with_the_given_authority_and_with_no_other() {
    let (pair, stranger) = (pair(), Issuer::start_tls(Says::Nothing).await);
    let issuer = Issuer::start_tls(Says::Keys(vec![pair.jwk("k")])).await;
    let connect = async |authority: &str| {
        let source = JwksUrl::with_authorities(&issuer.url(), authority).unwrap();
        JwtIdentity::key_source(source).issuer(ISSUER).audience(AUDIENCE).connect().await
    };
    let verifier = connect(issuer.authority()).await.unwrap();
    assert!(verifier.verify(&token(&pair, "k", 0)).await.is_ok());
    assert!(connect(stranger.authority()).await.is_err());
    // The system's authorities do not vouch for it either, where there are any.
    if let Ok(source) = JwksUrl::new(&issuer.url()) {
        assert!(JwtIdentity::key_source(source).connect().await.is_err());
    }
}

#[tokio::test]
async fn redirects_errors_and_endless_answers_are_no_key_sets() {
    let pair = pair();
    let honest = Issuer::start(Says::Keys(vec![pair.jwk("k")])).await;
    let issuer = Issuer::start(Says::Endless).await;
    for says in [
        Says::Endless,
        Says::Elsewhere(honest.url()),
        Says::Elsewhere("/keys".to_owned()),
        Says::Status(500),
        Says::Status(204),
        Says::Status(304),
        Says::Keys(Vec::new()),
    ] {
        issuer.say(says.clone());
        let error = identity(&issuer).connect().await.unwrap_err();
        assert!(std::error::Error::source(&error).is_some(), "{says:?}: {error}");
    }
    assert_eq!(honest.asked(), 0, "a redirect was followed");
    let plain = identity(&honest).connect().await.unwrap();
    assert!(plain.verify(&token(&pair, "k", 0)).await.is_ok(), "the content type matters not");
}

#[tokio::test]
async fn the_binary_is_ready_when_it_has_keys_and_follows_a_rotation() {
    let (old, new) = (pair(), pair());
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let upstream = Upstream::start();
    let issuer = Issuer::start(Says::Status(503)).await;
    let mut settings = Settings::new(&redis.url()).upstream(&upstream.url());
    settings.identity = Identity::KeySet { url: issuer.url() };
    let mut merit = Merit::launch(settings);
    let client = Client::new();
    let url = format!("{}/hello", merit.gateway());
    let ask = async |token: &str| client.get(&url, Some(token)).await;
    let unready =
        until("the gateway answers", DEADLINE, || async { ask(&token(&old, "old", 0)).await.ok() });
    let unready = unready.await;
    assert_eq!(unready.status, 503, "{}", unready.text());
    unready.retry_after();
    let readiness = client.get(&format!("{}/readyz", merit.metrics()), None).await.unwrap();
    assert_eq!(readiness.status, 503, "{}", readiness.text());
    assert!(readiness.text().contains("identity"), "{}", readiness.text());

    issuer.say(Says::Keys(vec![old.jwk("old")]));
    merit.ready().await;
    assert_eq!(ask(&token(&old, "old", 0)).await.unwrap().status, 200);
    issuer.say(Says::Keys(vec![old.jwk("old"), new.jwk("new")]));
    for n in 0..10 {
        assert_eq!(ask(&token(&new, "new", n)).await.unwrap().status, 200);
        assert_eq!(ask(&token(&old, "old", n)).await.unwrap().status, 200);
    }
    issuer.say(Says::Keys(vec![new.jwk("new")]));
    eventually("the old key is refused", DEADLINE, || async {
        matches!(ask(&token(&old, "old", 500)).await.unwrap().status.as_u16(), 401 | 503)
    })
    .await;
    assert_eq!(ask(&token(&new, "new", 900)).await.unwrap().status, 200);
    assert_eq!(merit.metric("merit_jwks_keys").await, Some(1.0));
    assert!(merit.metric("merit_jwks_fetches_total").await.unwrap() >= 3.0);
}
