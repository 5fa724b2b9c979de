//! The commands against a listener of our own that answers by docs/admin.md.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use clap::{Parser, Subcommand};
use http::{Method, StatusCode, header};
use serde_json::json;

use super::*;

/// The commands, as `merit` has them.
#[derive(Debug, Parser)]
struct Line {
    #[command(subcommand)]
    words: Words,
}

#[derive(Debug, Subcommand)]
enum Words {
    Agents(Box<Agents>),
    Buckets(Box<Buckets>),
    Explain(Explain),
    Policy(Policy),
    Health(Health),
    Top(Top),
}

const TOKEN: &str = "0123456789abcdef";

/// What the listener was asked, and what it holds.
#[derive(Default)]
struct Held {
    asked: Vec<(String, String, Value)>,
    tokens: Vec<Option<String>>,
    rev: u64,
    buckets: Option<Value>,
    /// The revision grows behind the back of whoever has just read it.
    raced: bool,
    /// Answers every request, instead of what the contract says.
    instead: Option<(StatusCode, &'static str)>,
    ready: bool,
}

type Shared = Arc<Mutex<Held>>;

struct Listener {
    address: SocketAddr,
    held: Shared,
}

impl Listener {
    async fn start() -> Self {
        let held = Shared::default();
        held.lock().unwrap().ready = true;
        let router = Router::new().fallback(answer).with_state(Arc::clone(&held));
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(socket, router).await });
        Self { address, held }
    }

    /// Runs `merit` with these words against it.
    async fn run(&self, words: &str) -> Result<(), OperatorError> {
        run_at(&format!("http://{}", self.address), words).await
    }

    fn last(&self) -> (String, String, Value) {
        self.held.lock().unwrap().asked.last().cloned().unwrap()
    }

    fn hold(&self, change: impl FnOnce(&mut Held)) {
        change(&mut self.held.lock().unwrap());
    }
}

async fn run_at(url: &str, words: &str) -> Result<(), OperatorError> {
    let line = ["merit"].into_iter().chain(words.split(' ')).chain(["--admin", url]);
    let asked = match Line::try_parse_from(line).map_err(|error| error.to_string()).unwrap().words {
        Words::Agents(options) => Asked::Agents(*options),
        Words::Buckets(options) => Asked::Buckets(*options),
        Words::Explain(options) => Asked::Explain(options),
        Words::Policy(options) => Asked::Policy(options),
        Words::Health(options) => Asked::Health(options, None),
        Words::Top(options) => Asked::Top(options),
    };
    run(asked).await
}

fn agent(id: &str) -> Value {
    json!({"agent_id": id, "refill_rate": 20.0, "capacity": 40, "held": "none", "operator": false, "known": true,
        "buckets": [], "moves": [], "why": {"sentences": ["It is as configured."]}})
}

fn problem(status: StatusCode, detail: &str, more: Value) -> Response {
    let mut body = json!({"type": "about:blank", "status": status.as_u16(), "detail": detail});
    for (key, value) in more.as_object().into_iter().flatten() {
        body[key] = value.clone();
    }
    let kind = [(header::CONTENT_TYPE, "application/problem+json")];
    (status, kind, Body::from(body.to_string())).into_response()
}

async fn answer(State(shared): State<Shared>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let body = to_bytes(body, 1 << 20).await.unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let mut held = shared.lock().unwrap();
    let path = head.uri.path_and_query().unwrap().to_string();
    held.asked.push((head.method.to_string(), path.clone(), body.clone()));
    let shown = head.headers.get(header::AUTHORIZATION).map(|it| it.to_str().unwrap().to_owned());
    held.tokens.push(shown);
    if let Some((status, text)) = held.instead {
        return (status, text).into_response();
    }
    let json = |value: Value| Body::from(value.to_string()).into_response();
    let document = json!({"rev": held.rev, "source": if held.buckets.is_some() { "store" } else { "file" },
        "buckets": [{"bucket_name": "main", "refill_rate": 20.0, "capacity": 40, "key_selector": "jwt.claims.agent_id", "default": true}],
        "routes": []});
    let mut document = held.buckets.clone().unwrap_or(document);
    document["rev"] = held.rev.into();
    let (route, _) = path.split_once('?').unwrap_or((&path, ""));
    match (&head.method, route) {
        (&Method::GET, "/readyz") => {
            let status = if held.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            let part = match held.ready {
                true => json!({"name": "store", "ok": true}),
                false => json!({"name": "store", "ok": false, "error": "redis is away"}),
            };
            let body = json!({"ready": held.ready, "draining": false, "parts": [part]});
            (status, body.to_string()).into_response()
        }
        (&Method::GET, "/overview") => json(json!({"at_ms": 1, "role": "all"})),
        (&Method::GET, "/policy") => json(json!({"kind": "additive", "config": {}})),
        (&Method::GET, "/agents") => {
            json(json!({"total": 1, "matching": 1, "page": 1, "pages": 1, "agents": [agent("a1")]}))
        }
        (&Method::GET, path) if path.starts_with("/agents/") => json(agent(&path[8..])),
        (&Method::POST, path) if path.starts_with("/agents/a") => json(agent("a1")),
        (&Method::POST, _) => problem(
            StatusCode::UNPROCESSABLE_ENTITY,
            "the limits are no limits",
            json!({"faults": ["refill_rate: must be above 0\u{1b}[2J", {"path": "capacity", "detail": "too large"}]}),
        ),
        (&Method::GET, "/buckets") => {
            if held.raced {
                held.rev += 1;
            }
            json(document)
        }
        (&Method::PUT, "/buckets") if body["rev"] == held.rev => {
            held.rev += 1;
            let mut next = body;
            next["rev"] = held.rev.into();
            next["source"] = "store".into();
            held.buckets = Some(next.clone());
            json(next)
        }
        (&Method::PUT, "/buckets") => {
            problem(StatusCode::CONFLICT, "revision 0 is past", json!({}))
        }
        (&Method::DELETE, "/buckets") => {
            held.buckets = None;
            StatusCode::NO_CONTENT.into_response()
        }
        _ => problem(StatusCode::NOT_FOUND, "no such route", json!({})),
    }
}

#[tokio::test]
async fn every_command_asks_what_the_contract_has() {
    let listener = Listener::start().await;
    for (words, method, path, body) in [
        ("agents list", "GET", "/agents?sort=-refill_rate&page=1&page_size=50", Value::Null),
        (
            "agents list --query a&b --sort quality --only banned --page 2 --page-size 5",
            "GET",
            "/agents?sort=quality&page=2&page_size=5&q=a%26b&only=banned",
            Value::Null,
        ),
        ("agents show a1", "GET", "/agents/a1", Value::Null),
        ("explain key-x@h:1", "GET", "/agents/key-x@h:1", Value::Null),
        ("agents set a1 --rate 30", "POST", "/agents/a1/set", json!({"refill_rate": 30.0})),
        (
            "agents set a1 --rate 0.5 --capacity 9 --bucket writes",
            "POST",
            "/agents/a1/set",
            json!({"refill_rate": 0.5, "capacity": 9, "bucket_name": "writes"}),
        ),
        ("agents freeze a1", "POST", "/agents/a1/freeze", json!({})),
        ("agents unfreeze a1", "POST", "/agents/a1/unfreeze", json!({})),
        ("agents ban a1 --for 1h", "POST", "/agents/a1/ban", json!({"for": "1h"})),
        (
            "agents ban a1 --until 2027-01-01T00:00:00Z",
            "POST",
            "/agents/a1/ban",
            json!({"until_ms": 1_798_761_600_000_u64}),
        ),
        ("agents unban a1", "POST", "/agents/a1/unban", json!({})),
        ("agents reset a1", "POST", "/agents/a1/reset", json!({})),
        ("policy --json", "GET", "/policy", Value::Null),
        ("buckets list", "GET", "/buckets", Value::Null),
        ("buckets export main", "GET", "/buckets", Value::Null),
        ("health", "GET", "/readyz", Value::Null),
        (
            "top --once --interval 200ms",
            "GET",
            "/agents?sort=-refill_rate&page=1&page_size=100",
            Value::Null,
        ),
    ] {
        listener.run(words).await.unwrap();
        assert_eq!(listener.last(), (method.to_owned(), path.to_owned(), body), "{words}");
    }
}

#[tokio::test]
async fn buckets_are_read_changed_and_written_under_the_revision_that_was_read() {
    let listener = Listener::start().await;
    listener.run("buckets add writes --rate 2 --capacity 10").await.unwrap();
    let (method, path, body) = listener.last();
    assert_eq!((method.as_str(), path.as_str(), &body["rev"]), ("PUT", "/buckets", &json!(0)));
    assert_eq!(body["buckets"][1]["key_selector"], "jwt.claims.agent_id");
    listener.run("buckets bind /v1/orders/* --methods post --bucket writes").await.unwrap();
    let (_, _, body) = listener.last();
    assert_eq!(body["rev"], 1);
    assert_eq!(
        body["routes"],
        json!([{"path": "/v1/orders/*", "methods": ["POST"], "buckets": ["writes"]}])
    );
    // Nothing to change, and a dry run, write nothing.
    listener.run("buckets set writes --rate 2").await.unwrap();
    assert_eq!(listener.last().0, "GET");
    listener.run("buckets set writes --rate 3 --dry-run").await.unwrap();
    assert_eq!(listener.last().0, "GET");
    let fault = listener.run("buckets remove writes").await.unwrap_err();
    assert!(fault.to_string().contains("unbind"), "{fault}");
    listener.run("buckets clear").await.unwrap();
    assert!(listener.held.lock().unwrap().buckets.is_none());
}

#[tokio::test]
async fn a_change_by_somebody_else_is_told_and_not_overwritten() {
    let listener = Listener::start().await;
    listener.hold(|held| held.raced = true);
    let error = listener.run("buckets set main --rate 5").await.unwrap_err();
    assert!(!error.is_usage());
    let text = error.to_string();
    assert!(
        text.contains("somebody else")
            && text.contains("nothing of yours")
            && text.ends_with("(409)"),
        "{text}"
    );
    assert!(listener.held.lock().unwrap().buckets.is_none());
}

#[tokio::test]
async fn a_file_is_applied_to_the_revision_that_it_was_exported_from() {
    let listener = Listener::start().await;
    let file = std::env::temp_dir().join(format!("merit-apply-{}.json", std::process::id()));
    let apply = format!("buckets apply {}", file.display());
    let document = |rev: Value, rate: f64| json!({"rev": rev, "source": "file", "buckets": [{"bucket_name": "main", "refill_rate": rate, "capacity": 40}], "routes": []});
    std::fs::write(&file, document(json!(0), 7.0).to_string()).unwrap();
    listener.run(&apply).await.unwrap();
    assert_eq!(listener.last().2["buckets"][0]["refill_rate"], 7);
    std::fs::write(&file, document(json!(0), 8.0).to_string()).unwrap();
    let error = listener.run(&apply).await.unwrap_err().to_string();
    assert!(error.contains("revision 0") && error.contains("revision 1"), "{error}");
    std::fs::write(&file, document(Value::Null, 8.0).to_string()).unwrap();
    listener.run(&apply).await.unwrap();
    std::fs::write(&file, r#"{"bucket_name":"writes","refill_rate":2,"capacity":10}"#).unwrap();
    listener.run(&apply).await.unwrap();
    let names: Vec<Value> = listener.last().2["buckets"]
        .as_array()
        .unwrap()
        .iter()
        .map(|bucket| bucket["bucket_name"].clone())
        .collect();
    assert_eq!(names, ["main", "writes"]);
    for (text, fault) in [("{", "no JSON"), ("{}", "buckets: ")] {
        std::fs::write(&file, text).unwrap();
        let error = listener.run(&apply).await.unwrap_err();
        assert!(error.is_usage() && error.to_string().contains(fault), "{error}");
    }
    std::fs::remove_file(&file).unwrap();
    assert!(listener.run(&apply).await.unwrap_err().is_usage());
}

#[tokio::test]
async fn a_refusal_is_told_in_its_own_words_with_every_fault() {
    let listener = Listener::start().await;
    let error = listener.run("agents set bad --rate 1").await.unwrap_err();
    assert!(error.is_usage(), "what was typed is wrong");
    let text = "the limits are no limits\n  refill_rate: must be above 0\\u{1b}[2J\n  capacity: too large (422)";
    assert_eq!(error.to_string(), text);
    for (status, body, told) in [
        (StatusCode::UNAUTHORIZED, r#"{"detail":"send a token"}"#, "send a token; put the token"),
        (StatusCode::FORBIDDEN, r#"{"title":"no token_env"}"#, "no token_env (403)"),
        (
            StatusCode::NOT_FOUND,
            "not here",
            "is no admin listener of this version of merit: /policy is answered 404",
        ),
        (StatusCode::FOUND, "", "is answered 302"),
        (StatusCode::OK, "<html>", "/policy is no JSON"),
        (StatusCode::OK, r#"{"kind":7}"#, "/policy: invalid type"),
    ] {
        listener.hold(|held| held.instead = Some((status, body)));
        let error = listener.run("policy").await.unwrap_err();
        assert!(!error.is_usage() && error.to_string().contains(told), "{status}: {error}");
    }
}

#[tokio::test]
async fn a_token_goes_to_this_machine_and_to_no_other_in_the_clear() {
    // Cargo sets this one for every test; it stands for a variable with a token.
    let listener = Listener::start().await;
    let named = "policy --token-env MERIT_TEST_NO_SUCH_VARIABLE";
    let error = listener.run(named).await.unwrap_err();
    assert!(
        error.is_usage() && error.to_string().contains("MERIT_TEST_NO_SUCH_VARIABLE"),
        "{error}"
    );
    listener.run("policy --token-env CARGO_MANIFEST_DIR").await.unwrap();
    let shown = format!("Bearer {}", env!("CARGO_MANIFEST_DIR"));
    assert_eq!(listener.held.lock().unwrap().tokens.last(), Some(&Some(shown)));
    // Nobody is asked: the address is one that no packet reaches.
    for url in ["http://192.0.2.1:9900", "http://merit.invalid"] {
        let error = run_at(url, "policy --token-env CARGO_MANIFEST_DIR").await.unwrap_err();
        let text = error.to_string();
        assert!(
            error.is_usage() && text.contains("unencrypted") && text.contains("ssh -L"),
            "{text}"
        );
        assert!(!text.contains(env!("CARGO_MANIFEST_DIR")), "{text}");
    }
    // A probe shows no token, so it may go anywhere.
    let url = format!("http://{}", listener.address);
    run_at("http://192.0.2.1:9900", &format!("health --url {url}/readyz")).await.unwrap();
    assert_eq!(listener.held.lock().unwrap().tokens.last(), Some(&None));
    // What may be the token itself is not repeated.
    let error = listener.run(&format!("policy --token-env {TOKEN}")).await.unwrap_err();
    assert!(error.is_usage() && !error.to_string().contains(TOKEN), "{error}");
}

#[tokio::test]
async fn who_is_not_there_is_told_with_the_remedy() {
    let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", socket.local_addr().unwrap());
    // It takes the connection and says nothing.
    let error = run_at(&url, "policy --timeout 100ms").await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("{url} did not answer within 100 ms; --timeout waits longer")
    );
    drop(socket);
    let error = run_at(&url, "policy").await.unwrap_err();
    assert!(!error.is_usage());
    let text = error.to_string();
    for part in [url.as_str(), "refused", "[admin] listen", "--admin", "MERIT_ADMIN_URL"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    // TLS to somebody who speaks none.
    let listener = Listener::start().await;
    let error = run_at(&format!("https://{}", listener.address), "policy").await.unwrap_err();
    assert!(matches!(error, OperatorError::Away { .. }), "{error}");
}

#[tokio::test]
async fn an_answer_without_end_is_not_read_to_its_end() {
    let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", socket.local_addr().unwrap());
    let endless = || async {
        let piece = axum::body::Bytes::from(vec![b' '; 1 << 16]);
        Body::from_stream(futures_util::stream::repeat_with(move || {
            Ok::<_, io::Error>(piece.clone())
        }))
    };
    tokio::spawn(async move { axum::serve(socket, Router::new().fallback(endless)).await });
    let error = run_at(&url, "policy --timeout 30s").await.unwrap_err();
    assert!(error.to_string().contains("length limit exceeded"), "{error}");
}

#[tokio::test]
async fn health_is_whether_the_process_is_ready() {
    let listener = Listener::start().await;
    listener.run("health").await.unwrap();
    listener.hold(|held| held.ready = false);
    let error = listener.run("health").await.unwrap_err();
    assert!(!error.is_usage() && error.to_string().ends_with("is not ready: store"), "{error}");
    listener.hold(|held| held.instead = Some((StatusCode::SERVICE_UNAVAILABLE, "no upstream")));
    assert!(matches!(listener.run("health").await.unwrap_err(), OperatorError::Foreign { .. }));
}

#[tokio::test]
async fn top_needs_a_terminal_unless_once() {
    let listener = Listener::start().await;
    let error = listener.run("top --json").await.unwrap_err();
    assert!(error.is_usage() && error.to_string().contains("--once"), "{error}");
}

#[test]
fn what_no_command_takes_is_refused_before_anybody_is_asked() {
    for words in [
        "agents set a1",
        "agents set a1 --rate -1",
        "agents set a1 --rate nan",
        "agents set a1 --capacity 0",
        "agents set bad/id --rate 1",
        "agents ban a1",
        "agents ban a1 --for 1h --until 2027-01-01T00:00:00Z",
        "agents ban a1 --for 0s",
        "agents list --sort size",
        "agents list --page-size 501",
        "agents list --page 0",
        "agents show ../policy",
        "buckets set main",
        "buckets bind /x",
        "buckets bind /x --bucket a --methods G(T",
        "health --url http://h --config f",
        "top --interval 10ms",
    ] {
        let line = ["merit"].into_iter().chain(words.split(' '));
        assert!(Line::try_parse_from(line).is_err(), "{words}");
    }
    assert_eq!(Duration::from_secs(5), {
        let cli = Line::try_parse_from(["merit", "policy"]).unwrap();
        let Words::Policy(policy) = cli.words else { panic!("it is another command") };
        policy.reach.timeout
    });
}
