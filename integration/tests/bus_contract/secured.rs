//! Servers that want TLS and a login: who has both comes in, who has not is told why, and comes in
//! once it is put right.

use std::{error::Error, time::Duration};

use merit_integration::{
    Authority, Folder, Nats, Persistence, Redis,
    acl::{STREAMS, allow},
    eventually,
};
use merit_sidecar::{
    bus::{BusConfig, Event, PublishError, nats, redis_streams},
    secret::File,
};
use tokio::time::timeout;

use crate::contract::{PATIENCE, rating};

fn secret(folder: &Folder, text: &str) -> Option<File> {
    folder.write("password", text);
    Some(File::from(&folder.path().join("password")))
}

/// Publishes, and takes what was published off again.
async fn works(config: &BusConfig) {
    let (publisher, mut consumer) = config.both().await.expect("the bus can be used");
    publisher.check().await.expect("it answers");
    publisher.publish(&rating("a", "one")).await.expect("there is room");
    loop {
        let event = timeout(PATIENCE, consumer.next()).await.expect("in time").expect("no failure");
        if let Event::Batch { deliveries, positions } = event {
            assert_eq!(deliveries[0].rating.id().as_str(), "one");
            consumer.commit(&positions).expect("it can be committed");
            break;
        }
    }
    consumer.close().await;
}

/// Publishes in vain, and returns what that says; it is no secret.
async fn refused(config: &BusConfig) -> String {
    let publisher = config.publisher().await.expect("the client takes its settings");
    let error = publisher.publish(&rating("a", "outside")).await.expect_err("it is refused");
    assert!(matches!(error, PublishError::Unavailable { .. }), "{error:?}");
    let (mut told, mut cause) = (error.to_string(), error.source());
    while let Some(error) = cause {
        told = format!("{told}: {error}");
        cause = error.source();
    }
    assert!(!told.contains("hunter"), "{told}");
    told.to_lowercase()
}

fn sound(config: &BusConfig) {
    let mut faults = Vec::new();
    config.validate("bus", &mut faults);
    assert_eq!(faults, [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_over_tls_as_a_user_with_the_documented_rights() {
    let (authority, folder) = (Authority::new(), Folder::new("secret"));
    let (redis, url) = authority.redis("no").await;
    allow(&redis, &STREAMS).await;
    let config = redis_streams::config::Config {
        url: Some(url.as_str().into()),
        username: Some("merit".to_owned()),
        password_file: secret(&folder, "hunter2\n"),
        tls_ca_file: Some(authority.file("ca.pem").into()),
        delivery_timeout: Duration::from_secs(5),
        ..Default::default()
    };
    sound(&BusConfig::Redis(config.clone()));
    works(&BusConfig::Redis(config.clone())).await;

    let another = Authority::new();
    let stranger = redis_streams::config::Config {
        tls_ca_file: Some(another.file("ca.pem").into()),
        ..config.clone()
    };
    let told = refused(&BusConfig::Redis(stranger)).await;
    assert!(told.contains("certificate"), "{told}");

    let wrong =
        redis_streams::config::Config { password_file: secret(&folder, "hunter3"), ..config };
    let told = refused(&BusConfig::Redis(wrong.clone())).await;
    assert!(told.contains("password") || told.contains("auth"), "{told}");
    // Put right at the server, it comes in without a new start.
    let publisher = BusConfig::Redis(wrong).publisher().await.expect("the client takes it");
    publisher.publish(&rating("a", "early")).await.expect_err("the password is wrong");
    let _: String = redis.ask(&["ACL", "SETUSER", "merit", ">hunter3"]).await;
    publisher.publish(&rating("a", "late")).await.expect("the password is right now");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nats_over_tls_with_a_login() {
    let (authority, folder) = (Authority::new(), Folder::new("secret"));
    let (chain, key) = (authority.file("server.pem"), authority.file("server.key"));
    let mut options = vec!["--tls", "--tlscert", &chain, "--tlskey", &key];
    options.extend(["--user", "merit", "--pass", "hunter2"]);
    let server = Nats::start_with(&options).await;
    let config = nats::config::Config {
        url: server.url().replace("nats://", "tls://").as_str().into(),
        username: Some("merit".to_owned()),
        password_file: secret(&folder, "hunter2\n"),
        tls_ca_file: Some(authority.file("ca.pem").into()),
        delivery_timeout: Duration::from_secs(5),
        ..Default::default()
    };
    sound(&BusConfig::Nats(config.clone()));
    works(&BusConfig::Nats(config.clone())).await;

    let another = Authority::new();
    let stranger = nats::config::Config {
        tls_ca_file: Some(another.file("ca.pem").into()),
        delivery_timeout: Duration::from_secs(2),
        ..config.clone()
    };
    let told = refused(&BusConfig::Nats(stranger)).await;
    assert!(told.contains("certificate"), "{told}");

    let wrong = nats::config::Config {
        password_file: secret(&folder, "hunter3"),
        delivery_timeout: Duration::from_secs(2),
        ..config
    };
    let told = refused(&BusConfig::Nats(wrong)).await;
    assert!(told.contains("authorization"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nats_that_is_killed_is_unavailable_and_everything_goes_on_when_it_is_back() {
    let mut server = Nats::start().await;
    let config = BusConfig::Nats(nats::config::Config {
        url: server.url().as_str().into(),
        delivery_timeout: Duration::from_secs(1),
        lease: Duration::from_secs(2),
        partitions: 2,
        ..Default::default()
    });
    let (publisher, mut consumer) = config.both().await.expect("the bus can be used");
    publisher.publish(&rating("a", "before")).await.expect("there is room");
    server.kill9();
    let error = publisher.publish(&rating("a", "away")).await.expect_err("nobody is there");
    assert!(error.retry_after().is_some(), "{error:?}");
    publisher.check().await.expect_err("nobody is there");
    server.restart().await;
    eventually("it takes ratings again", PATIENCE, || {
        let publisher = publisher.clone();
        async move { publisher.publish(&rating("a", "after")).await.is_ok() }
    })
    .await;
    let mut seen = Vec::new();
    while !seen.iter().any(|id| id == "after") {
        let event = timeout(PATIENCE, consumer.next()).await.expect("in time").expect("no failure");
        if let Event::Batch { deliveries, .. } = event {
            seen.extend(deliveries.iter().map(|delivery| delivery.rating.id().to_string()));
        }
    }
    assert!(seen.iter().any(|id| id == "before"), "{seen:?}");
}

#[tokio::test]
async fn an_address_without_a_server_is_waited_for() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let url = redis.url();
    drop(redis);
    let config = BusConfig::Redis(redis_streams::config::Config {
        url: Some(url.as_str().into()),
        delivery_timeout: Duration::from_secs(1),
        ..Default::default()
    });
    let told = refused(&config).await;
    assert!(told.contains("refused"), "{told}");
    let mut consumer = config.consumer().await.expect("it waits");
    let waited = timeout(Duration::from_millis(500), consumer.next()).await;
    assert!(waited.is_err(), "{waited:?}");
}
