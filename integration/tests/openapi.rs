//! `GET /openapi.json` of each listener is true: what it names is there, what is there it names, and the real binary's
//! answers are what it says.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use http::{HeaderMap, Method};
use http_body_util::BodyExt as _;
use merit_integration::{
    Merit, Persistence, Redis, Settings, Upstream,
    client::{Client, request},
    keys, ports,
};
use merit_sidecar::{
    gateway::LIMITS_PAGE,
    openapi::{Listener, document},
};
use serde_json::{Value, json};

const LISTENERS: [Listener; 3] = [Listener::Ingest, Listener::Gateway, Listener::Admin];
/// What goes to the service behind: no route of ours.
const ANY: &str = "/{path}";
/// What stands for parameters of paths.
const PARAMETERS: [(&str, &str); 7] = [
    ("{name}", "moltbook-agent-bucket"),
    ("{part}", "app.js"),
    ("{item_id}", "tea"),
    ("{format}", "json"),
    ("{agent_id}", "a1"),
    ("{action}", "set"),
    ("{path}", "any"),
];
/// What opens the admin listener to writes.
const ADMIN_TOKEN: &str = "0123456789abcdef";

/// The operations of `document`: path, method and what is said of it.
fn operations(document: &Value) -> Vec<(&str, Method, &Value)> {
    let mut found = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (key, operation) in item.as_object().unwrap() {
            if operation.get("responses").is_some() {
                let method = key.to_ascii_uppercase().parse().unwrap();
                found.push((path.as_str(), method, operation));
            }
        }
    }
    assert!(!found.is_empty());
    found
}

/// Follows a reference within `document`.
fn resolve<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    let Some(target) = value.get("$ref") else { return value };
    let pointer = target.as_str().unwrap().strip_prefix('#').expect("references stay inside");
    document.pointer(pointer).unwrap_or_else(|| panic!("{pointer} is not there"))
}

fn all_references_lead_somewhere(document: &Value, value: &Value) {
    match value {
        Value::Object(members) => {
            if members.get("$ref").is_some_and(Value::is_string) {
                resolve(document, value);
            }
            members.values().for_each(|member| all_references_lead_somewhere(document, member));
        }
        Value::Array(items) => {
            items.iter().for_each(|item| all_references_lead_somewhere(document, item));
        }
        _ => {}
    }
}

#[test]
fn a_document_is_whole_and_has_no_name_twice() {
    for listener in LISTENERS {
        for personalised in [false, true] {
            if !personalised && listener == Listener::Gateway {
                continue; // it has no document then
            }
            let document = document(listener, personalised);
            assert!(document["openapi"].as_str().unwrap().starts_with("3.1."));
            all_references_lead_somewhere(&document, &document);
            let mut names = BTreeSet::new();
            for (path, method, operation) in operations(&document) {
                let name = operation["operationId"].as_str().unwrap();
                assert!(names.insert(name), "{name} is there twice");
                for parameter in path.split('/').filter_map(|part| part.strip_prefix('{')) {
                    let name = parameter.trim_end_matches('}');
                    let list = operation["parameters"].as_array().unwrap();
                    let named = |found: &Value| resolve(&document, found)["name"] == name;
                    assert!(list.iter().any(named), "{method} {path}: {name} is not described");
                }
                let refusals = operation["responses"].as_object().unwrap().iter();
                for (status, answer) in refusals.filter(|(status, _)| status.as_str() >= "400") {
                    let content = &resolve(&document, answer)["content"];
                    let health = path == "/readyz" && status == "503";
                    let told = content.get("application/problem+json").is_some();
                    assert!(told || health || status == "default", "{method} {path} {status}");
                }
            }
            assert_eq!(names.contains("events"), personalised && listener == Listener::Gateway);
        }
    }
}

/// Returns the argument list that begins behind the parenthesis before `text`, up to its end.
fn arguments(text: &str) -> &str {
    let (mut depth, mut quoted, mut escaped) = (1, false, false);
    for (at, letter) in text.char_indices() {
        match letter {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '(' | '[' | '{' if !quoted => depth += 1,
            ')' | ']' | '}' if !quoted => {
                depth -= 1;
                if depth == 0 {
                    return &text[..at];
                }
            }
            _ => {}
        }
    }
    panic!("an argument list that does not end: {}", &text[..text.len().min(80)]);
}

/// Returns the methods that a route's handler names: `get(…).options(…)` is both.
fn methods(handler: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut rest = handler;
    while let Some(open) = rest.find('(') {
        let name: String = rest[..open].chars().rev().take_while(|c| c.is_alphabetic()).collect();
        found.insert(name.chars().rev().collect::<String>().to_ascii_uppercase());
        let inside = arguments(&rest[open + 1..]);
        rest = &rest[open + 1 + inside.len() + 1..];
    }
    found
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        match path.is_dir() {
            true => sources(&path, found),
            false => found.push(path),
        }
    }
}

/// Returns the routes of all listeners but gRPC's, as the sources have them: path, then methods.
fn routes() -> BTreeMap<String, BTreeSet<String>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sidecar/src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut routes: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in files {
        let within = file.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
        // Tests, the demo's stand-in world, what speaks gRPC alone, and admission's routes.
        let other = ["app/", "ingest/grpc/", "rls/", "config/"];
        let skipped = other.iter().any(|folder| within.starts_with(folder));
        if !within.ends_with(".rs") || within.contains("tests") || skipped {
            continue;
        }
        let text = std::fs::read_to_string(&file).unwrap();
        let text = text.split("#[cfg(test)]").next().unwrap();
        for (at, call) in text.match_indices(".route(") {
            let all = arguments(&text[at + call.len()..]);
            let (path, handler) = all.split_once(',').unwrap();
            let Some(path) = path.trim().strip_prefix('"').and_then(|path| path.strip_suffix('"'))
            else {
                // Each listener says where its document is, and the limits page where it is.
                let known = within == "openapi.rs" || within == "gateway/limits.rs";
                assert!(known, "{within}: a route whose path is not written there: {all}");
                continue;
            };
            routes.entry(path.to_owned()).or_default().extend(methods(handler));
        }
    }
    routes.entry(LIMITS_PAGE.to_owned()).or_default().insert("GET".to_owned());
    for listener in LISTENERS {
        routes.entry(listener.path().to_owned()).or_default().insert("GET".to_owned());
    }
    routes
}

#[test]
fn what_the_routers_have_is_documented_and_nothing_else() {
    let mut documented: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for listener in LISTENERS {
        let document = document(listener, true);
        for (path, method, _) in operations(&document).into_iter().filter(|found| found.0 != ANY) {
            documented.entry(path.to_owned()).or_default().insert(method.to_string());
        }
    }
    assert_eq!(documented, routes());
}

/// The binary with every listener that speaks HTTP.
struct Stand {
    merit: Merit,
    admin: String,
    client: Client,
    _servers: (Redis, Upstream),
}

impl Stand {
    async fn start() -> Self {
        let (redis, upstream) =
            (Redis::start(Persistence::SnapshotOnDemand).await, Upstream::start());
        let port = ports::free();
        let mut settings = Settings::new(&redis.url()).upstream(&upstream.url());
        settings.tables = format!(
            "[admin]\nlisten = \"127.0.0.1:{port}\"\ntoken_env = \"MERIT_ADMIN_TOKEN\"\n\n[personalize]\nenabled = true\nnode = \"one\"\n"
        );
        settings.environment.push(("MERIT__INGEST__RATER_BURST".to_owned(), "2".to_owned()));
        settings.environment.push(("MERIT__INGEST__RATER_RATE".to_owned(), "0.001".to_owned()));
        settings.environment.push(("MERIT_ADMIN_TOKEN".to_owned(), ADMIN_TOKEN.to_owned()));
        let merit = Merit::start(settings).await;
        let admin = format!("http://127.0.0.1:{port}");
        Self { merit, admin, client: Client::new(), _servers: (redis, upstream) }
    }

    fn url(&self, listener: Listener) -> String {
        match listener {
            Listener::Ingest => self.merit.ingest(),
            Listener::Gateway => self.merit.gateway(),
            Listener::Admin => self.admin.clone(),
        }
    }

    async fn document(&self, listener: Listener) -> Value {
        let url = format!("{}{}", self.url(listener), listener.path());
        let answer = self.client.get(&url, None).await.unwrap();
        assert_eq!(
            (answer.status.as_u16(), answer.header("content-type")),
            (200, "application/json")
        );
        assert_eq!(answer.json(), document(listener, true));
        answer.json()
    }

    /// Sends a request of an operation of `listener` and holds the answer to what is said of it; returns the status.
    async fn ask(
        &self,
        (listener, method, path): (Listener, &Method, &str),
        token: Option<&str>,
        fields: &[(&str, &str)],
        body: &str,
    ) -> u16 {
        let document = document(listener, true);
        let mut target = path.to_owned();
        for (parameter, value) in PARAMETERS {
            target = target.replace(parameter, value);
        }
        if path == "/v1/ratings" && method == Method::GET {
            target.push_str("?item_id=tea&item_id=ink");
        }
        let url = format!("{}{target}", self.url(listener));
        let request = request(method.clone(), &url, token, fields, body.to_owned());
        let answer = self.client.send(request).await.unwrap();
        let (status, head) = (answer.status().as_u16(), answer.headers().clone());
        let operation = &document["paths"][path][method.as_str().to_ascii_lowercase()];
        let said = operation["responses"].get(status.to_string());
        let said = said.or_else(|| operation["responses"].get("default").filter(|_| status < 400));
        let said =
            said.unwrap_or_else(|| panic!("{method} {target} answers {status}, undocumented"));
        // A stream has no end to wait for.
        let body = match kind(&head) {
            "text/event-stream" => Value::Null,
            _ => {
                let bytes = answer.into_body().collect().await.unwrap().to_bytes();
                serde_json::from_slice(&bytes).unwrap_or(Value::Null)
            }
        };
        let said = resolve(&document, said);
        for name in said["headers"].as_object().into_iter().flatten().map(|(name, _)| name) {
            // A refusal by the breaker, by Host or by a batch's items may have less.
            let always = matches!(status, 200..=202 | 401 | 429);
            assert!(!always || head.contains_key(name), "{method} {target} {status}: no {name}");
        }
        if let Some(contents) = said["content"].as_object() {
            let content = contents.get(kind(&head));
            let content = content.unwrap_or_else(|| panic!("{method} {target} {status}: {head:?}"));
            if kind(&head).ends_with("json") {
                holds(&document, &content["schema"], &body);
            }
        }
        status
    }
}

/// Returns the media type without its parameters.
fn kind(head: &HeaderMap) -> &str {
    let text = head.get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default();
    text.split(';').next().unwrap_or_default()
}

/// Holds `value` to `schema`, which may refer to the components of `document`.
fn holds(document: &Value, schema: &Value, value: &Value) {
    let schema = json!({"allOf": [schema], "components": document["components"]});
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    let faults: Vec<String> = validator.iter_errors(value).map(|fault| fault.to_string()).collect();
    assert!(faults.is_empty(), "{faults:?}: {value}");
}

/// What each operation with a body is sent.
fn example(operation: &str) -> (&'static [(&'static str, &'static str)], &'static str) {
    match operation {
        "rate" => (
            &[("content-type", "application/json")],
            r#"{"agent_id":"a2","user_id":"u1","item_id":"tea","score":4.5}"#,
        ),
        "rateMany" => (
            &[("content-type", "application/json")],
            r#"[{"agent_id":"a2","user_id":"u1","score":4.5},{"item_id":"ink","user_id":"u1","score":2}]"#,
        ),
        "putBuckets" => (
            &[],
            r#"{"rev":0,"buckets":[{"bucket_name":"moltbook-agent-bucket","default":true,"refill_rate":20,"capacity":40}],"routes":[]}"#,
        ),
        "act" => (&[], r#"{"refill_rate":30}"#),
        _ => (&[], ""),
    }
}

#[tokio::test]
async fn every_documented_operation_answers_as_documented_to_strangers_and_to_whoever_may() {
    let stand = Stand::start().await;
    let scope = "ratings:write:any ratings:read:any";
    let claims = json!({"sub": "collector", "agent_id": "a1", "scope": scope});
    let token = keys::hs256(&keys::claims(&claims));
    for listener in LISTENERS {
        let document = stand.document(listener).await;
        let token = if listener == Listener::Admin { ADMIN_TOKEN } else { &token };
        for (path, method, operation) in operations(&document) {
            let name = operation["operationId"].as_str().unwrap();
            let (fields, body) = example(name);
            let asked = (listener, &method, path);
            let known = stand.ask(asked, Some(token), fields, body).await;
            assert!(known < 300, "{method} {path}: {known}");
            let stranger = stand.ask(asked, None, fields, body).await;
            let open = operation["security"].as_array().unwrap();
            let open = open.is_empty() || open.contains(&json!({}));
            assert_eq!(stranger == 401, !open, "{method} {path}: {stranger}");
        }
        // What is no path of a listener is none of its document either.
        let unknown = format!("{}/no/such/path", stand.url(listener));
        let answer = stand.client.get(&unknown, Some(token)).await.unwrap();
        assert_eq!(answer.status == 404, listener != Listener::Gateway, "{unknown}");
    }
}

#[tokio::test]
async fn refusals_are_the_problems_that_are_documented() {
    let stand = Stand::start().await;
    let (any, own) = (keys::collector(), keys::rater("u1"));
    let json: &[(&str, &str)] = &[("content-type", "application/json")];
    let rate = (Listener::Ingest, &Method::POST, "/v1/rating");
    let many = (Listener::Ingest, &Method::POST, "/v1/ratings");
    let rating = r#"{"agent_id":"a2","user_id":"u1","score":4.5}"#;
    let long = format!("{{\"agent_id\":\"{}\"}}", "x".repeat(70_000));
    for (asked, token, fields, body, status) in [
        (rate, &any, json, "{", 400),
        (rate, &any, json, r#"{"agent_id":"a2","user_id":"u1","score":6}"#, 422),
        (rate, &any, &[("content-type", "text/plain")], rating, 415),
        (rate, &any, json, &*long, 413),
        (rate, &own, json, r#"{"agent_id":"a2","user_id":"u2","score":4}"#, 403),
        (many, &any, json, "[]", 422),
        (many, &any, json, "{}", 400),
        (many, &any, json, r#"[{"agent_id":"a2","user_id":"u1","score":4},{}]"#, 207),
        // Two are what a rater may post here at once.
        (rate, &own, json, rating, 202),
        (rate, &own, json, rating, 202),
        (rate, &own, json, rating, 429),
        (many, &own, json, r#"[{"agent_id":"a2","user_id":"u1","score":4}]"#, 429),
    ] {
        let found = stand.ask(asked, Some(token), fields, body).await;
        assert_eq!(found, status, "{} {body}", asked.2);
    }
    let pass = (Listener::Gateway, &Method::GET, ANY);
    let agent = keys::agent("a1");
    let mut denied = 0;
    for _ in 0..60 {
        denied += u32::from(stand.ask(pass, Some(&agent), &[], "").await == 429);
    }
    assert!(denied > 0, "forty are in a bucket");
    let act = (Listener::Admin, &Method::POST, "/agents/{agent_id}/{action}");
    assert_eq!(stand.ask(act, Some(ADMIN_TOKEN), &[], r#"{"refill_rate":-1}"#).await, 422);
    assert_eq!(stand.ask(act, Some("another-token-here"), &[], "{}").await, 401);
    let ready = (Listener::Admin, &Method::GET, "/readyz");
    assert_eq!(stand.ask(ready, None, &[("host", "evil.example")], "").await, 421);
}
