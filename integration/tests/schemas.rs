//! The schemas that are published say what the code does.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use jsonschema::Validator;
use merit_integration::{Merit, Persistence, Redis, Settings, client::Client};
use merit_sidecar::rating::RatingRequest;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::{Map, Value, json};

const JSON: &str = include_str!("../../sidecar/schema/merit/rating/v1/rating.v1.schema.json");
const PROTO: &str = include_str!("../../sidecar/schema/merit/rating/v1/rating.proto");
const AVRO: &str = include_str!("../../sidecar/schema/merit/rating/v1/rating.v1.avsc");

fn validator() -> Validator {
    let schema: Value = serde_json::from_str(JSON).unwrap();
    jsonschema::draft202012::meta::validate(&schema).expect("it is a schema of draft 2020-12");
    jsonschema::options().should_validate_formats(true).build(&schema).unwrap()
}

fn taken(body: &Value) -> bool {
    RatingRequest::from_json(body.to_string().as_bytes()).is_ok()
}

/// Returns values that a field may be given, right and wrong ones.
fn values(field: &str) -> Vec<Value> {
    let any = [json!(null), json!(true), json!(7), json!(-1.5), json!([]), json!({}), json!("")];
    let long = |length: usize| "x".repeat(length).into();
    let own: Vec<Value> = match field {
        "agent_id" | "agentId" => {
            let texts = ["a", "a1", "A.b_c:d@e-9", ".a", "a.", "a b", "é", "a\n", "-"];
            texts.iter().map(|text| json!(text)).chain([long(128), long(129)]).collect()
        }
        "user_id" | "userId" | "item_id" | "itemId" => {
            let texts = ["u", "Zoë Müller", "用户", "a\nb", "a\u{7f}", "a\u{85}b", " ", "\u{200b}"];
            texts.iter().map(|text| json!(text)).chain([long(256), long(257)]).collect()
        }
        "id" => ["r1", "~!", "a b", "é", "a\t"]
            .iter()
            .map(|text| json!(text))
            .chain([long(128), long(129)])
            .collect(),
        "receipt" => vec![json!("x"), json!("a b"), long(2048), long(2049)],
        "score" | "rating" => {
            vec![
                json!(1),
                json!(5),
                json!(1.0),
                json!(4.5),
                json!(0.999),
                json!(5.001),
                json!("5"),
                json!(6),
                json!(3),
            ]
        }
        "timestamp" => {
            let texts = [
                "2023-11-14T22:13:20Z",
                "2023-11-14t22:13:20.125+01:00",
                "1999-12-31T23:59:59-23:59",
                "2024-02-29T00:00:00Z",
                "2023-02-29T00:00:00Z",
                "2023-11-14T22:13:20",
                "2023-11-14",
                "2023-13-01T00:00:00Z",
                "2023-11-14T25:00:00Z",
                "yesterday",
                "1700000000",
            ];
            let numbers = [
                0.0,
                1.7e9,
                1.7e12,
                1.7e9 + 0.125,
                253_402_300_799_999.0,
                253_402_300_800_000.0,
                1e300,
            ];
            let numbers = numbers.iter().map(|number| json!(number));
            texts.iter().map(|text| json!(text)).chain(numbers).collect()
        }
        "context" => vec![
            json!({"a": 1}),
            json!({"a": "x", "b": 1.5, "c": true, "d": -3, "e": null}),
            json!({"a": {}}),
            json!({"a": [1]}),
            json!({"": 1}),
            json!({"a\n": 1}),
            json!({"a": "x".repeat(256)}),
            json!({"a": "x".repeat(257)}),
            json!({"k".repeat(64): 1}),
            json!({"k".repeat(65): 1}),
        ],
        _ => Vec::new(),
    };
    any.into_iter().chain(own).collect()
}

const FIELDS: &[&str] = &[
    "id",
    "agent_id",
    "agentId",
    "user_id",
    "userId",
    "item_id",
    "itemId",
    "score",
    "rating",
    "timestamp",
    "context",
    "receipt",
    "unknown",
];

fn body(fields: impl IntoIterator<Item = (&'static str, Value)>) -> Value {
    let mut body = Map::new();
    for (field, value) in fields {
        body.insert(field.to_owned(), value);
    }
    body.into()
}

#[test]
fn every_value_of_every_field_is_valid_by_the_schema_when_the_parser_takes_it() {
    let validator = validator();
    let good = [("agent_id", json!("a")), ("user_id", json!("u")), ("score", json!(5))];
    for field in FIELDS {
        for value in values(field) {
            // In place of what it would say again, and beside it.
            let twin = match *field {
                "agentId" => "agent_id",
                "userId" => "user_id",
                "rating" => "score",
                field => field,
            };
            let others = good.clone().into_iter().filter(|(name, _)| *name != twin);
            let instead = body(others.chain([(*field, value.clone())]));
            let beside = body(good.clone().into_iter().chain([(*field, value.clone())]));
            for body in [instead, beside] {
                assert_eq!(validator.is_valid(&body), taken(&body), "{body}");
            }
        }
    }
}

#[test]
fn a_body_is_valid_by_the_schema_exactly_when_the_parser_takes_it() {
    let (validator, mut random) = (validator(), StdRng::seed_from_u64(6));
    let choices: Vec<_> = FIELDS.iter().map(|field| (*field, values(field))).collect();
    let (mut accepted, count) = (0, 20_000);
    for _ in 0..count {
        let fields = choices.iter().filter_map(|(field, values)| {
            let likely = ["agent_id", "user_id", "score"].contains(field);
            let there = random.random_bool(if likely { 0.8 } else { 0.15 });
            // Mostly right, or nothing would be taken.
            let right = values.iter().find(|value| {
                let rest = [("item_id", json!("i")), ("user_id", json!("u")), ("score", json!(5))];
                let rest = rest.into_iter().filter(|(name, _)| name != field);
                taken(&body(rest.chain([(*field, (*value).clone())]))) && !value.is_null()
            });
            let value = match (random.random_bool(0.7), right) {
                (true, Some(right)) => right.clone(),
                _ => values[random.random_range(0..values.len())].clone(),
            };
            there.then_some((*field, value))
        });
        let body = body(fields.collect::<Vec<_>>());
        let taken = taken(&body);
        assert_eq!(validator.is_valid(&body), taken, "{body}");
        accepted += u32::from(taken);
    }
    // The test would hold of nothing if all were of one kind.
    assert!((count / 20..count / 2).contains(&accepted), "{accepted} of {count} are ratings");
}

#[test]
fn what_is_no_object_is_refused_by_both() {
    let validator = validator();
    for body in [json!([]), json!(7), json!("x"), json!(null), json!(true), json!([{"score": 5}])] {
        assert!(!validator.is_valid(&body) && !taken(&body), "{body}");
    }
}

/// The rules that the schema's description names as beyond it: the parser alone knows them.
#[test]
fn the_rules_that_a_schema_cannot_say_are_the_parsers() {
    let validator = validator();
    let rating = |fields: Value| {
        let mut body = json!({"agent_id": "a", "user_id": "u", "score": 5});
        for (name, value) in fields.as_object().unwrap() {
            body[name] = value.clone();
        }
        body
    };
    let entries: Map<_, _> = (0..17).map(|n| (format!("k{n}"), json!(n))).collect();
    for body in [
        rating(json!({"user_id": "é".repeat(129)})),
        rating(json!({"context": entries})),
        rating(json!({"timestamp": "1969-12-31T23:59:59Z"})),
    ] {
        assert!(validator.is_valid(&body) && !taken(&body), "{body}");
    }
    let twice = r#"{"agent_id":"a","user_id":"u","score":5,"score":5}"#;
    assert!(validator.is_valid(&serde_json::from_str(twice).unwrap()));
    assert!(RatingRequest::from_json(twice.as_bytes()).is_err());
    let null_beside = rating(json!({"context": {"a": null}}));
    assert!(validator.is_valid(&null_beside) && taken(&null_beside));
}

#[tokio::test]
async fn ingest_serves_the_schemas() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let merit = Merit::start(Settings::new(&redis.url())).await;
    for (format, kind, text) in [
        ("json", "application/schema+json", JSON),
        ("proto", "text/plain; charset=utf-8", PROTO),
        ("avro", "application/json", AVRO),
    ] {
        let url = format!("{}/v1/schema/{format}", merit.ingest());
        let answer = Client::new().get(&url, None).await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.header("content-type")), (200, kind));
        assert_eq!(answer.text(), text);
    }
    let url = format!("{}/v1/schema/xml", merit.ingest());
    let answer = Client::new().get(&url, None).await.unwrap();
    assert_eq!(answer.status, 404);
    answer.problem();
}
