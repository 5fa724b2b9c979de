//! The Redis store over TLS, and as an ACL user with no more rights than it needs.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{error::Error, time::Duration};

use merit_integration::{
    Authority, Persistence, Redis,
    acl::{GATEWAY, LIVE, TICKETS, TUNER, USAGE, allow},
};
use tower_merit::{
    AgentId, RedisStore,
    store::{Bid, ByHand, Cursor, Spend, StoreError, Tune, contract},
};

/// Returns an error with all of its causes.
fn causes(error: &StoreError) -> String {
    let (mut text, mut cause) = (error.to_string(), error.source());
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[tokio::test]
async fn a_server_is_spoken_to_over_tls_when_the_given_authority_vouches_for_it() {
    let authority = Authority::new();
    let (redis, url) = authority.redis("no").await;
    let trusting = RedisStore::builder(&url).ca_certificates(authority.pem("ca.pem"));
    let store = trusting.timeout(Duration::from_secs(5)).connect().await.unwrap();
    let agent: AgentId = "a1".parse().unwrap();
    contract::spend_one(&store, &agent).await;
    contract::write_next(&store, &agent).await;
    assert!(redis.limits("a1").await.is_some());

    let another = RedisStore::builder(&url).ca_certificates(Authority::new().pem("ca.pem"));
    let error = causes(&another.connect().await.unwrap_err());
    assert!(error.contains("certificate"), "{error}");
    let system = causes(&RedisStore::connect(&url).await.unwrap_err());
    assert!(system.contains("certificate"), "{system}");
    // A certificate for 127.0.0.1 is none for this name.
    let misnamed = RedisStore::builder(&url.replace("127.0.0.1", "localhost"));
    let misnamed = misnamed.ca_certificates(authority.pem("ca.pem")).connect().await;
    let error = causes(&misnamed.unwrap_err());
    assert!(error.contains("certificate"), "{error}");
    // Nothing is sent in the clear to a server that wants TLS, nor answered.
    let plain = url.replace("rediss", "redis");
    RedisStore::connect(&plain).await.unwrap_err();
}

#[tokio::test]
async fn a_server_that_asks_for_a_certificate_is_shown_the_configured_one() {
    let authority = Authority::new();
    let (_redis, url) = authority.redis("yes").await;
    let trusting = RedisStore::builder(&url).ca_certificates(authority.pem("ca.pem"));
    let nobody = trusting.clone().connect().await.unwrap_err();
    assert!(matches!(nobody, StoreError::Unavailable { .. }), "{nobody:?}");
    let (chain, key) = (authority.pem("client.pem"), authority.pem("client.key"));
    let store = trusting.client_certificate(chain, key).connect().await.unwrap();
    store.ping().await.unwrap();
    store.life().await.unwrap();
}

async fn connect(redis: &Redis) -> Result<RedisStore, StoreError> {
    let url = redis.url().replace("redis://", "redis://merit:hunter2@");
    RedisStore::builder(&url).timeout(Duration::from_secs(5)).connect().await
}

/// Does what a gateway does.
async fn admit(redis: &Redis) -> Result<(), StoreError> {
    let store = connect(redis).await?;
    let agent: AgentId = "a1".parse().unwrap();
    let charge = contract::one_token(&agent);
    store.spend(charge).await.map(drop)
}

/// Does what a gateway does where capacity has a price.
async fn admit_and_tell(redis: &Redis) -> Result<(), StoreError> {
    let store = connect(redis).await?;
    let agent: AgentId = "a1".parse().unwrap();
    store.spend(contract::one_token(&agent)).await?;
    store.tell_use().await
}

/// Does what a gateway does where browsers open streams by ticket.
async fn admit_by_ticket(redis: &Redis) -> Result<(), StoreError> {
    let store = connect(redis).await?;
    let agent: AgentId = "a1".parse().unwrap();
    store.spend(contract::one_token(&agent)).await?;
    let _: bool = store.leave("merit:ticket:t", "u1", Duration::from_secs(60)).await?;
    let viewer = store.take("merit:ticket:t").await?;
    assert_eq!(viewer.as_deref(), Some("u1"));
    Ok(())
}

/// Does what a tuner does.
async fn tune(redis: &Redis) -> Result<(), StoreError> {
    let store = connect(redis).await?;
    let agent: AgentId = "a1".parse().unwrap();
    store.life().await?;
    store.begin_epoch("e").await?;
    store.note_progress(&[("s/0".to_owned(), 1)]).await?;
    store.progress().await?;
    store.used().await?;
    store.agents(Cursor::START, 10).await?;
    let term = Duration::from_millis(1);
    store.trade(&Bid { who: "tuner".to_owned(), term, quote: None }).await?;
    store.by_hand(&agent, &ByHand::Ban { until_ms: 0 }).await?;
    store.demand(std::slice::from_ref(&agent)).await?.remove(0)?;
    let record = store.load(std::slice::from_ref(&agent)).await?.remove(0)?;
    store.write(&[contract::next_change(&agent, record.rev)]).await?.remove(0).map(drop)
}

/// What a gateway does beside its decisions.
async fn admit_and_look(redis: &Redis) -> Result<(), StoreError> {
    admit(redis).await?;
    let store = connect(redis).await?;
    let document = store.document().await?;
    store.keep_document(document.rev, Some("{}")).await?;
    store.look(&AgentId::new("a1").expect("a name")).await.map(drop)
}

/// Runs `work` with all of `rights`, and once without each of them.
async fn least<E: Future<Output = Result<(), StoreError>>>(
    redis: &Redis,
    rights: &[&str],
    spared: &[&str],
    work: impl Fn() -> E,
) {
    allow(redis, rights).await;
    work().await.unwrap_or_else(|error| panic!("with all of {rights:?}: {}", causes(&error)));
    for left_out in rights {
        let rest: Vec<&str> = rights.iter().copied().filter(|right| right != left_out).collect();
        allow(redis, &rest).await;
        // So that the scripts are sent anew, and the bucket is new.
        let _: String = redis.ask(&["SCRIPT", "FLUSH"]).await;
        let _: u64 = redis.ask(&["DEL", "tb:a1", "merit:{tb:a1}"]).await;
        match work().await {
            Ok(()) => assert!(spared.contains(left_out), "{left_out} is not needed"),
            Err(error) => {
                assert!(!spared.contains(left_out), "{left_out} is needed: {}", causes(&error));
                let told = causes(&error);
                let clear = told.contains("NOPERM") || told.to_lowercase().contains("permission");
                assert!(clear || told.contains("can't run this command"), "{left_out}: {told}");
                assert!(!told.contains("hunter2"), "{told}");
            }
        }
    }
}

#[tokio::test]
async fn each_right_of_the_documented_acl_users_is_needed_and_missing_ones_are_told() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    least(&redis, &GATEWAY, &[], || admit(&redis)).await;
    let telling: Vec<&str> = GATEWAY.into_iter().chain(USAGE).collect();
    least(&redis, &telling, &[], || admit_and_tell(&redis)).await;
    let ticketing: Vec<&str> = GATEWAY.into_iter().chain(TICKETS).collect();
    least(&redis, &ticketing, &[], || admit_by_ticket(&redis)).await;
    let live: Vec<&str> = GATEWAY.into_iter().chain(LIVE).collect();
    least(&redis, &live, &[], || admit_and_look(&redis)).await;
    // `~merit:*` covers the records.
    let tuner: Vec<&str> = GATEWAY.into_iter().chain(TUNER).collect();
    least(&redis, &tuner, &["~merit:{tb:*"], || tune(&redis)).await;
}

#[tokio::test]
async fn a_wrong_password_is_told_at_once_and_not_shown() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    allow(&redis, &GATEWAY).await;
    let url = redis.url();
    let store = RedisStore::builder(&url).username("merit").password("hunter3");
    let error = store.connect().await.unwrap_err();
    let told = causes(&error);
    assert!(told.to_lowercase().contains("auth") && !told.contains("hunter"), "{told}");
}
