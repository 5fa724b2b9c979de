//! What Confluent's serialisers write moves limits, and what Merit writes their deserialisers read.

use std::{path::Path, process::Stdio, time::Duration};

use merit_integration::{
    Merit, Persistence, Redis, Role, SchemaRegistry, Settings, eventually, python,
};
use merit_sidecar::{
    bus::{BusConfig, kafka::config::Config},
    rating::{Encoding, Poster, Rating, RatingRequest},
};
use rdkafka::message::{Headers as _, Message as _, OwnedMessage};
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt as _, process::Command};

use crate::{
    broker::{Kafka, publisher},
    config,
};

/// How long a rating may take to become a limit before a test calls it lost.
const LOOP_DEADLINE: Duration = Duration::from_secs(30);

/// Runs `serdes.py` with `arguments` and `lines` as its input; returns the lines that it prints.
async fn serdes(arguments: &[&str], lines: &[Value]) -> Vec<Value> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("serdes/serdes.py");
    let mut child = Command::new(python().await)
        .arg(script)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let input: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let mut pipe = child.stdin.take().unwrap();
    pipe.write_all(input.as_bytes()).await.unwrap();
    drop(pipe);
    let output = child.wait_with_output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "serdes.py {arguments:?}: {said}");
    let printed = String::from_utf8(output.stdout).unwrap();
    printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn reason(letter: &OwnedMessage) -> String {
    let headers = letter.headers().unwrap();
    let found = headers.iter().find(|header| header.key == "merit-reason").unwrap();
    String::from_utf8(found.value.unwrap().to_vec()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_confluents_serialisers_write_moves_limits_and_no_rating_is_a_dead_letter() {
    let (kafka, registry) = (Kafka::shared(), SchemaRegistry::shared().await);
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let topic = "python.ratings";
    let mut settings = Settings::new(&redis.url()).kafka(&kafka.brokers(), topic);
    settings.tables = format!("[bus.schema_registry]\nurl = \"{}\"", registry.url());
    let tuner = Merit::start(settings.role(Role::Tuner)).await;
    // The topic is made by the tuner, in the background.
    let config = Config { topic: topic.to_owned(), ..kafka.config() };
    drop(publisher(&config).await);

    let (brokers, url) = (kafka.brokers(), registry.url());
    let write = async |kind: &str, lines: &[Value]| {
        serdes(&["write", &brokers, &url, topic, kind], lines).await;
    };
    let kinds = ["avro", "avro-older", "avro-newer", "protobuf", "json"];
    for kind in kinds {
        let agent = format!("py-{kind}");
        let id = |n: u32| format!("{kind}-{n}");
        let rating = |n: u32, score: f64| json!({ "agent_id": agent, "user_id": "u", "score": score, "id": id(n) });
        let fuller = match kind {
            "avro-older" => rating(2, 4.5),
            _ => {
                let mut fuller = rating(2, 4.5);
                fuller["context"] = match kind {
                    "protobuf" => json!({ "k": { "text": "v" }, "n": { "integer": "7" } }),
                    _ => json!({ "k": "v", "n": 7 }),
                };
                fuller
            }
        };
        // Twice the same event: it counts once.
        write(kind, &[rating(1, 5.0), fuller, rating(1, 5.0)]).await;
    }
    for kind in kinds {
        let expected = Some(("40".to_owned(), "20.35".to_owned()));
        let agent = format!("py-{kind}");
        eventually(&format!("the limits of {agent}"), LOOP_DEADLINE, || async {
            redis.limits(&agent).await == expected
        })
        .await;
    }

    write("avro-order", &[json!({ "n": 1 })]).await;
    write("protobuf-value", &[json!({ "integer": "1" })]).await;
    let letters = kafka.raw(&config.dead_topic(), 0, 2);
    let order = reason(&letters[0]);
    assert!(order.ends_with("is of the record `shop.Order`, not of a `Rating`"), "{order}");
    let value = reason(&letters[1]);
    assert!(
        value.ends_with("has `merit.rating.v1.Value` as message 1, not `merit.rating.v1.Rating`"),
        "{value}"
    );
    assert_eq!(tuner.metric("merit_bus_waiting_partitions").await, Some(0.0));
    assert_eq!(tuner.metric("merit_bus_unframed_total").await, None);
}

fn rating(id: &str, context: &Value) -> Rating {
    let body = json!({
        "agent_id": "a", "user_id": "Zoë", "score": 4.5, "id": id, "item_id": "用户/7",
        "timestamp": 1_699_999_999_123_u64, "context": context,
    });
    let request = RatingRequest::from_json(body.to_string().as_bytes()).unwrap();
    request.into_rating(Poster::new("tests").unwrap(), 1_700_000_000_456_789).unwrap()
}

async fn read_by_python(encoding: Encoding, kind: &str) -> Vec<Value> {
    let (kafka, registry) = (Kafka::shared(), SchemaRegistry::shared().await);
    let config = config(&kafka, &registry, encoding);
    let publisher = BusConfig::Kafka(config.clone()).publisher().await.unwrap();
    publisher.check().await.unwrap();
    let context = json!({ "t": "v", "i": 7, "f": 0.5, "b": true });
    publisher.publish(&rating("full", &context)).await.unwrap();
    publisher.publish(&rating("plain", &json!({}))).await.unwrap();
    serdes(&["read", &kafka.brokers(), &registry.url(), &config.topic, kind, "2"], &[]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn confluents_avro_deserialiser_reads_what_merit_writes() {
    let expected = |id: &str, context: Value| {
        json!({
            "id": id, "agent_id": "a", "user_id": "Zoë", "item_id": "用户/7", "score": 4.5,
            "timestamp_ms": "2023-11-14T22:13:19.123000+00:00", "context": context, "receipt": null,
            "poster": "tests", "accepted_at_us": "2023-11-14T22:13:20.456789+00:00",
            "receipt_id": null,
        })
    };
    let context = json!({ "t": "v", "i": 7, "f": 0.5, "b": true });
    let found = read_by_python(Encoding::Avro, "avro").await;
    assert_eq!(found, [expected("full", context), expected("plain", json!({}))]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn confluents_protobuf_deserialiser_reads_what_merit_writes() {
    let expected = json!({
        "id": "full", "agent_id": "a", "user_id": "Zoë", "item_id": "用户/7", "score": 4.5,
        "timestamp_ms": "1699999999123", "poster": "tests", "accepted_at_us": "1700000000456789",
        "context": {
            "t": { "text": "v" }, "i": { "integer": "7" }, "f": { "number": 0.5 },
            "b": { "boolean": true },
        },
    });
    let found = read_by_python(Encoding::Protobuf, "protobuf").await;
    assert_eq!((&found[0], &found[1]["id"]), (&expected, &json!("plain")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn confluents_json_deserialiser_reads_what_merit_writes_and_finds_it_valid() {
    let expected = json!({
        "id": "full", "agent_id": "a", "user_id": "Zoë", "item_id": "用户/7", "score": 4.5,
        "timestamp": 1_699_999_999_123_u64, "poster": "tests",
        "accepted_at_us": 1_700_000_000_456_789_u64,
        "context": { "t": "v", "i": 7, "f": 0.5, "b": true },
    });
    let found = read_by_python(Encoding::Json, "json").await;
    assert_eq!((&found[0], &found[1]["id"]), (&expected, &json!("plain")));
}
