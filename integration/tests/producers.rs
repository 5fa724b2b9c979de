//! Producers that write to the topic by themselves, with another stack and another partitioner.

use std::{path::Path, time::Duration};

use merit_integration::{Kafka, Merit, Persistence, Redis, Role, Settings, eventually};
use tokio::process::Command;

const SETTLE: Duration = Duration::from_secs(120);
const AGENTS: u32 = 20;
const EACH: u32 = 30;
/// A quarter: sums of it are exact in any order, and an agent's ratings come from several partitions.
const ALPHA: f64 = 0.25;

/// A group takes seconds to share its partitions with a second member.
const ROUNDS_MAX: u32 = 60;

async fn kafkajs(arguments: &[&str]) -> (Option<i32>, String) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("producers");
    let output = Command::new("node")
        .arg("kafkajs.mjs")
        .args(arguments)
        .current_dir(&folder)
        .output()
        .await
        .expect("node is there: integration/test installs it");
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_producer_with_its_own_partitioner_counts_exactly_once_with_two_tuners() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let kafka = Kafka::shared().await;
    let topic = "foreign.ratings";
    let mut settings = Settings::new(&redis.url()).kafka(&kafka.brokers(), topic);
    for (name, value) in [("ALPHA", ALPHA.to_string()), ("R_MAX", "100000".to_owned())] {
        settings.environment.push((format!("MERIT__POLICY__{name}"), value));
    }
    // It makes the topic, as Merit would have it.
    Merit::start(settings.clone().role(Role::Ingest)).await.terminate().await;
    let settings = settings.role(Role::Tuner);
    let (one, two) = tokio::join!(Merit::start(settings.clone()), Merit::start(settings));

    let (brokers, agents, each) = (kafka.brokers(), AGENTS.to_string(), EACH.to_string());
    // A third of the ratings takes one from the neutral three, the others give one.
    let (lower, higher) = (f64::from(EACH.div_ceil(3)), f64::from(EACH - EACH.div_ceil(3)));
    let mut rate = 20.0;
    let folds = async |tuner: &Merit| {
        tuner.metric("merit_ratings_folded_total").await.is_some_and(|folded| folded > 0.0)
    };
    // Again until both have had a part in it: who joins late finds nothing left to fold.
    for round in 1.. {
        let (code, said) = kafkajs(&[&brokers, topic, "keyed", &agents, &each]).await;
        assert_eq!((code, said.trim()), (Some(0), "taken"), "integration/test runs npm ci");
        rate += ALPHA * (higher - lower);
        let expected = rate.to_string();
        eventually("every agent has its rate", SETTLE, || async {
            for agent in 0..AGENTS {
                let limits = redis.limits(&format!("node-{agent}")).await;
                if limits.is_none_or(|(_, found)| found != expected) {
                    return false;
                }
            }
            true
        })
        .await;
        if folds(&one).await && folds(&two).await {
            break;
        }
        assert!(round < ROUNDS_MAX, "a tuner has folded nothing after {round} rounds");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_without_a_key_is_refused_by_the_broker_of_a_compacted_topic() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let kafka = Kafka::shared().await;
    let topic = "keyless.ratings";
    let settings = Settings::new(&redis.url()).kafka(&kafka.brokers(), topic);
    Merit::start(settings.role(Role::Ingest)).await.terminate().await;
    let (code, said) = kafkajs(&[&kafka.brokers(), topic, "keyless"]).await;
    assert_eq!(code, Some(3), "{said}");
    // Error 87 of the protocol: INVALID_RECORD.
    assert!(said.contains("INVALID_RECORD") || said.contains("failed to validate"), "{said}");
}
