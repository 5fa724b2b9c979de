//! The endpoint that ratings are posted to: hands them on to a real Merit, and fails at random.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use axum::{Router, extract::State, routing::post};
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use merit_integration::{
    FeedServer, Sent,
    client::{Client, request},
    keys,
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::{net::TcpListener, task::AbortHandle};

/// The bearer token that the endpoint asks for.
pub(crate) const API_KEY: &str = "the-api-key-of-the-endpoint";

/// In how many of a thousand posts what happens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Faults {
    /// 500, and the rating was not taken.
    pub(crate) failed: u32,
    /// 500, and the rating was taken all the same.
    pub(crate) unsure: u32,
    /// 429 with `Retry-After`, by turns in seconds and as a date.
    pub(crate) busy: u32,
}

/// A running endpoint.
pub(crate) struct Endpoint {
    url: String,
    state: Arc<Shared>,
    task: AbortHandle,
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Shared {
    merit: Option<String>,
    collector: String,
    client: Client,
    faults: Faults,
    seen: Mutex<Seen>,
}

struct Seen {
    chance: StdRng,
    /// While false every post is answered 503.
    open: bool,
    /// Bodies that were taken, in order, repeats included; with their `Idempotency-Key`.
    taken: Vec<(Bytes, String)>,
    /// Answers by status.
    answers: BTreeMap<u16, u64>,
    /// Until when nothing new should come, and how much came all the same, at most.
    paused_until: Option<Instant>,
    came: usize,
    came_most: usize,
    pauses: u64,
}

impl Endpoint {
    /// Starts an endpoint that hands what it takes to the ingest at `merit`, if there is one.
    pub(crate) async fn start(merit: Option<String>, faults: Faults) -> Self {
        let seen = Seen {
            chance: StdRng::seed_from_u64(7),
            open: true,
            taken: Vec::new(),
            answers: BTreeMap::new(),
            paused_until: None,
            came: 0,
            came_most: 0,
            pauses: 0,
        };
        let state = Arc::new(Shared {
            merit,
            collector: keys::collector(),
            client: Client::new(),
            faults,
            seen: Mutex::new(seen),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let router = Router::new().route("/v1/rating", post(take)).with_state(Arc::clone(&state));
        let task = tokio::spawn(async move { axum::serve(listener, router).await }).abort_handle();
        Self { url: format!("http://{address}/v1/rating"), state, task }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Closes or opens the endpoint: closed, it answers 503.
    pub(crate) fn open(&self, open: bool) {
        self.state.seen().open = open;
    }

    /// Returns how often it answered `status`.
    pub(crate) fn answered(&self, status: u16) -> u64 {
        self.state.seen().answers.get(&status).copied().unwrap_or_default()
    }

    /// Returns how many posts arrived during a pause that a 429 had asked for, at most.
    pub(crate) fn came_in_a_pause(&self) -> usize {
        self.state.seen().came_most
    }

    /// Returns how many different bodies were taken.
    pub(crate) fn distinct(&self) -> usize {
        let seen = self.state.seen();
        seen.taken.iter().map(|(body, _)| body).collect::<BTreeSet<_>>().len()
    }

    /// Returns how often a rating was taken that had been taken before.
    pub(crate) fn repeats(&self) -> usize {
        let taken = self.state.seen().taken.len();
        taken - self.distinct()
    }

    /// Asserts that what was taken is what the feed sent: every rating, its exact bytes under its own name,
    /// and those of each agent for the first time in the feed's order.
    pub(crate) async fn has_all_of(&self, feed: &FeedServer) -> Vec<Sent> {
        let sent = feed.ratings().await;
        let by_text: BTreeMap<&[u8], &Sent> =
            sent.iter().map(|rating| (rating.text.as_bytes(), rating)).collect();
        assert_eq!(by_text.len(), sent.len(), "no two ratings of the feed are alike");
        let mut first: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        let mut known = BTreeSet::new();
        let seen = self.state.seen();
        for (body, key) in &seen.taken {
            let rating = by_text.get(&**body).unwrap_or_else(|| panic!("not sent: {body:?}"));
            assert_eq!(*key, format!("\"{}\"", rating.id));
            if known.insert(&rating.id) {
                first.entry(&rating.agent).or_default().push(&rating.id);
            }
        }
        let mut expected: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for rating in &sent {
            expected.entry(&rating.agent).or_default().push(&rating.id);
        }
        for (agent, ids) in &expected {
            assert_eq!(first.get(agent), Some(ids), "ratings of {agent}");
        }
        drop(seen);
        sent
    }
}

impl Shared {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Whim {
    Take,
    Fail,
    TakeAndFail,
    Busy,
    Closed,
}

async fn take(
    State(state): State<Arc<Shared>>,
    fields: HeaderMap,
    body: Bytes,
) -> (StatusCode, HeaderMap) {
    let field = |name: &str| {
        let value = fields.get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default().to_owned()
    };
    let key = field("idempotency-key");
    assert_eq!(field("content-type"), "application/json");
    let mut told = HeaderMap::new();
    let whim = state.seen().whim(state.faults);
    let status = match whim {
        _ if field("authorization") != format!("Bearer {API_KEY}") => StatusCode::UNAUTHORIZED,
        Whim::Closed => StatusCode::SERVICE_UNAVAILABLE,
        Whim::Fail => StatusCode::INTERNAL_SERVER_ERROR,
        Whim::Take => hand_on(&state, key, body).await,
        Whim::TakeAndFail => {
            hand_on(&state, key, body).await;
            StatusCode::INTERNAL_SERVER_ERROR
        }
        Whim::Busy => {
            let value = state.seen().pause();
            told.insert("retry-after", value.parse().expect("digits or a date"));
            StatusCode::TOO_MANY_REQUESTS
        }
    };
    *state.seen().answers.entry(status.as_u16()).or_default() += 1;
    (status, told)
}

impl Seen {
    /// Counts a post; returns what becomes of it.
    fn whim(&mut self, faults: Faults) -> Whim {
        if self.paused_until.is_some_and(|until| Instant::now() < until) {
            self.came += 1;
            self.came_most = self.came_most.max(self.came);
        }
        let Faults { failed, unsure, busy } = faults;
        let drawn = self.chance.random_range(0..1000);
        match drawn {
            _ if !self.open => Whim::Closed,
            _ if drawn < failed => Whim::Fail,
            _ if drawn < failed + unsure => Whim::TakeAndFail,
            _ if drawn < failed + unsure + busy => Whim::Busy,
            _ => Whim::Take,
        }
    }

    /// Begins a pause, unless there is one; returns what `Retry-After` says.
    fn pause(&mut self) -> String {
        // Another post that was in flight may have begun it.
        if self.paused_until.is_none_or(|until| until < Instant::now()) {
            self.paused_until = Some(Instant::now() + Duration::from_secs(1));
            self.came = 0;
        }
        self.pauses += 1;
        match self.pauses % 2 {
            1 => "1".to_owned(),
            _ => http_date(SystemTime::now() + Duration::from_secs(2)),
        }
    }
}

/// Posts the same body under the same name to Merit.
async fn hand_on(state: &Shared, key: String, body: Bytes) -> StatusCode {
    if let Some(merit) = &state.merit {
        let url = format!("{merit}/v1/rating");
        let fields = [("content-type", "application/json"), ("idempotency-key", &key)];
        let post = request(Method::POST, &url, Some(&state.collector), &fields, body.clone());
        let answer = state.client.call(post).await.expect("ingest answers");
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.text());
    }
    state.seen().taken.push((body, key));
    StatusCode::ACCEPTED
}

/// Returns `time` as HTTP writes it, as the system's `date` does.
fn http_date(time: SystemTime) -> String {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
    let at = format!("@{seconds}");
    let arguments = ["-u", "-d", &at, "+%a, %d %b %Y %H:%M:%S GMT"];
    let date = std::process::Command::new("date").args(arguments).env("LC_ALL", "C").output();
    let date = date.expect("date is there").stdout;
    String::from_utf8(date).expect("a date is text").trim().to_owned()
}
