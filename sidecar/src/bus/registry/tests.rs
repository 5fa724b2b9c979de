//! The client against answers that a real registry gives seldom; `integration/tests/registry` has a real one.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, body::Bytes, extract::State, response::IntoResponse as _};
use http::{HeaderMap, Method, StatusCode, Uri, header};
use tokio::net::TcpListener;

use super::{Config, Found, Schemas, Subject};
use crate::{
    causes::with_causes,
    rating::{Codec, confluent::SchemaId},
    secret::{Address, File},
};

const JSON: &str = r#"{"schemaType":"JSON","schema":"{}"}"#;
const UNKNOWN: &str = r#"{"error_code":40403,"message":"Schema not found"}"#;

/// One question, and what it was asked with.
type Asked = (Method, String, HeaderMap, Bytes);

/// Answers that are given in order, the last one again and again, and the questions.
#[derive(Clone, Default)]
struct Script {
    answers: Arc<Mutex<VecDeque<(u16, String)>>>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Script {
    fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

async fn answer(
    State(script): State<Script>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> axum::response::Response {
    script.asked.lock().unwrap().push((method, uri.to_string(), headers, body));
    let mut answers = script.answers.lock().unwrap();
    let next = answers.front().cloned().unwrap();
    if answers.len() > 1 {
        answers.pop_front();
    }
    drop(answers);
    let (status, body) = next;
    let moved = [(header::LOCATION, "/elsewhere")];
    (StatusCode::from_u16(status).unwrap(), moved, body).into_response()
}

/// Serves `answers`; returns the configuration that leads there.
async fn serve(answers: &[(u16, &str)]) -> (Config, Script) {
    let script = Script::default();
    let answers = answers.iter().map(|(status, body)| (*status, (*body).to_owned()));
    script.answers.lock().unwrap().extend(answers);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/api/", listener.local_addr().unwrap());
    let router = Router::new().fallback(answer).with_state(script.clone());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (Config { url: Address::from(url.as_str()), ..Config::default() }, script)
}

/// Returns what `id` means once that is known.
async fn found(schemas: &mut Schemas, id: SchemaId) -> Found {
    loop {
        match schemas.find(id) {
            Found::Asked => schemas.answered().await,
            known => return known,
        }
    }
}

#[tokio::test]
async fn what_is_no_word_about_the_schema_is_asked_again_until_there_is_one() {
    let (config, script) = serve(&[
        (500, ""),
        (404, "<html>no such page</html>"),
        (404, r#"{"error_code":404,"message":"HTTP 404 Not Found"}"#),
        (302, ""),
        (200, "no JSON"),
        (200, JSON),
    ])
    .await;
    let mut schemas = Schemas::new(&config).unwrap();
    let id = SchemaId(7);
    for _ in 0..100 {
        assert!(matches!(schemas.find(id), Found::Asked));
    }
    assert!(matches!(found(&mut schemas, id).await, Found::Schema(_)));
    assert_eq!(script.asked(), 6, "one question at a time");
    assert!(matches!(schemas.find(id), Found::Schema(_)));
    assert_eq!(script.asked(), 6, "and none for what is known");
    let (method, path, ..) = script.asked.lock().unwrap()[5].clone();
    assert_eq!((method, path.as_str()), (Method::GET, "/api/schemas/ids/7"));
}

#[tokio::test]
async fn a_schema_is_unknown_when_the_registry_has_said_so_twice() {
    let (config, script) = serve(&[(404, UNKNOWN), (200, JSON)]).await;
    let mut late = Schemas::new(&config).unwrap();
    assert!(matches!(found(&mut late, SchemaId(1)).await, Found::Schema(_)));
    assert_eq!(script.asked(), 2, "a replica was behind");
    let (config, script) = serve(&[(404, UNKNOWN)]).await;
    let mut schemas = Schemas::new(&config).unwrap();
    for _ in 0..3 {
        let Found::Refused(reason) = found(&mut schemas, SchemaId(1)).await else { panic!() };
        assert!(reason.starts_with("is not known to it"), "{reason}");
    }
    assert_eq!(script.asked(), 2, "believed for a while");
}

#[tokio::test]
async fn failures_name_the_remedy_and_no_secret() {
    let file = std::env::temp_dir().join(format!("merit-registry-client-{}", std::process::id()));
    std::fs::write(&file, "hunter2").unwrap();
    for (status, body, said) in [
        (401, "", "answers 401 Unauthorized; check who bus.schema_registry logs in as"),
        (404, "no", "check the path in bus.schema_registry.url"),
        (301, "", "set bus.schema_registry.url to their target"),
        (409, r#"{"message":"reader lacks x"}"#, "registered there: reader lacks x; name another"),
        (422, r#"{"error_code":42201,"message":"bad\nschema"}"#, ": bad\\nschema; check that"),
        (200, "{}", "answers what is no answer of its API: missing field `id`"),
    ] {
        let (config, script) = serve(&[(status, body)]).await;
        let login = (Some("merit".to_owned()), Some(File::from(&file)));
        let config = Config { username: login.0, password_file: login.1, ..config };
        let subject = Subject::begin(&config, "a b/c", Codec::Json).unwrap();
        let error = with_causes(&subject.id().await.unwrap_err());
        assert!(error.contains(said), "{said} is not in {error}");
        assert!(!error.contains("hunter2"));
        let (method, path, headers, body) = script.asked.lock().unwrap()[0].clone();
        assert_eq!(
            (method, path.as_str()),
            (Method::POST, "/api/subjects/a%20b%2Fc-value/versions")
        );
        assert_eq!(headers[header::AUTHORIZATION], "Basic bWVyaXQ6aHVudGVyMg==");
        assert_eq!(headers[header::CONTENT_TYPE], "application/vnd.schemaregistry.v1+json");
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["schemaType"], "JSON");
    }
    std::fs::remove_file(&file).unwrap();
}

#[tokio::test]
async fn a_registry_that_says_nothing_is_late_and_one_that_is_not_there_away() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let timeout = Duration::from_millis(100);
    let config = Config { url: Address::from(url.as_str()), timeout, ..Config::default() };
    let id = Subject::begin(&config, "t", Codec::Json).unwrap().id().await;
    let late = with_causes(&id.unwrap_err());
    assert!(late.contains("did not answer within 100 ms"), "{late}");
    drop(silent);
    let id = Subject::begin(&config, "t", Codec::Json).unwrap().id().await;
    let away = with_causes(&id.unwrap_err());
    assert!(away.contains("cannot be reached"), "{away}");
}
