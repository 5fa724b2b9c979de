//! Single ratings at a fixed rate, over gRPC or HTTP: how many a second are taken, and how long each waits for its answer.
//!
//! ```text
//! integration/load singles grpc|http [RATE] [SECONDS]      # default 5000 20
//! ```
//!
//! For `stand`, which starts everything and says where it is. Ratings are sent at their times whether or not earlier ones
//! were answered, by one process that does nothing else; over gRPC as unary calls on four HTTP/2 connections, over HTTP on
//! as many HTTP/1.1 connections as calls are on their way. That are at most [`IN_FLIGHT`]; a rating that finds no place
//! waits for one, and its time counts from when it was due. A third of the seconds is put before as a
//! warm-up that is not counted. Prints one line of JSON.

#![allow(clippy::cast_precision_loss, reason = "figures to look at")]

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use merit_integration::{
    client::Client,
    rating_v1::{RateRequest, Rating, rating_service_client::RatingServiceClient},
};
use serde_json::json;
use tokio::{
    sync::{Semaphore, mpsc},
    time::MissedTickBehavior,
};
use tonic::{Request, transport::Channel};

/// Calls at a time: a little less than what ingest takes (`ingest.max_in_flight`).
const IN_FLIGHT: usize = 1000;
/// Connections of gRPC.
const CONNECTIONS: usize = 4;
const AGENTS: u64 = 1000;
const USERS: u64 = 500;
/// How often is looked which ratings are due.
const PACE: Duration = Duration::from_millis(1);

/// How a rating is sent.
enum Way {
    Grpc { clients: Vec<RatingServiceClient<Channel>>, bearer: tonic::metadata::AsciiMetadataValue },
    Http { client: Box<Client>, url: String, token: String },
}

impl Way {
    async fn new(name: &str) -> anyhow::Result<Self> {
        let at = |name: &str| std::env::var(name).with_context(|| format!("{name} is not set"));
        let token = at("MERIT_COLLECTOR")?;
        match name {
            "grpc" => {
                let mut clients = Vec::new();
                for _ in 0..CONNECTIONS {
                    let channel = Channel::from_shared(at("MERIT_GRPC")?)?.connect().await?;
                    clients.push(RatingServiceClient::new(channel));
                }
                Ok(Self::Grpc { clients, bearer: format!("Bearer {token}").parse()? })
            }
            "http" => {
                let url = format!("{}/v1/rating", at("MERIT_INGEST")?);
                Ok(Self::Http { client: Box::default(), url, token })
            }
            other => bail!("`{other}` is no way: grpc or http"),
        }
    }

    /// Sends rating `number`; returns what it was refused with, if it was.
    async fn rate(&self, number: u64) -> Result<(), String> {
        let agent = format!("load-{}", number % AGENTS);
        let user = format!("user-{}", number % USERS);
        // Scores around neutral, so that no rate meets its bounds and every limit changes.
        let score = if number.is_multiple_of(2) { 3.5 } else { 2.5 };
        match self {
            Self::Grpc { clients, bearer } => {
                let rating =
                    Rating { agent_id: Some(agent), user_id: user, score, ..Rating::default() };
                let mut request = Request::new(RateRequest { rating: Some(rating) });
                request.metadata_mut().insert("authorization", bearer.clone());
                let client = &clients[usize::try_from(number).unwrap_or(0) % clients.len()];
                let answer = client.clone().rate(request).await;
                answer.map(drop).map_err(|status| format!("{:?}", status.code()))
            }
            Self::Http { client, url, token } => {
                let body = json!({"agent_id": agent, "user_id": user, "score": score});
                match client.post(url, token, &body).await {
                    Ok(answer) if answer.status == 202 => Ok(()),
                    Ok(answer) => Err(answer.status.to_string()),
                    Err(error) => Err(error.to_string()),
                }
            }
        }
    }
}

/// What became of one rating, and how long after it was due.
type Outcome = (Result<(), String>, Duration);

/// Sends `rate` ratings a second for `duration` and returns what became of each, and the seconds until the last answer.
async fn flow(way: &Arc<Way>, rate: f64, duration: Duration) -> (Vec<Outcome>, f64) {
    let places = Arc::new(Semaphore::new(IN_FLIGHT));
    let (tell, mut told) = mpsc::unbounded_channel();
    let collected = tokio::spawn(async move {
        let mut outcomes = Vec::new();
        while let Some(outcome) = told.recv().await {
            outcomes.push(outcome);
        }
        outcomes
    });
    let began = Instant::now();
    let mut pace = tokio::time::interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut number = 0_u64;
    let due = |number: u64| Duration::from_secs_f64(number as f64 / rate);
    while due(number) < duration {
        pace.tick().await;
        while due(number) < duration && due(number) <= began.elapsed() {
            let place = Arc::clone(&places).acquire_owned().await.expect("it is never closed");
            let (way, tell, at) = (Arc::clone(way), tell.clone(), began + due(number));
            tokio::spawn(async move {
                let outcome = way.rate(number).await;
                let _ = tell.send((outcome, at.elapsed()));
                drop(place);
            });
            number += 1;
        }
    }
    drop(tell);
    let outcomes = collected.await.expect("it does not panic");
    (outcomes, began.elapsed().as_secs_f64())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().context("which way? grpc or http")?;
    let mut number = |default: f64| {
        arguments.next().map_or(Ok(default), |text| text.parse().context("not a number"))
    };
    let (rate, seconds) = (number(5000.0)?, number(20.0)?);

    let way = Arc::new(Way::new(&name).await?);
    let duration = Duration::from_secs_f64(seconds);
    flow(&way, rate, duration / 3).await;
    let (outcomes, took) = flow(&way, rate, duration).await;

    let mut refused: BTreeMap<&str, usize> = BTreeMap::new();
    let mut waited = Vec::with_capacity(outcomes.len());
    for (outcome, after) in &outcomes {
        match outcome {
            Ok(()) => waited.push(*after),
            Err(why) => *refused.entry(why).or_default() += 1,
        }
    }
    waited.sort_unstable();
    let at = |percent: usize| {
        let index = (waited.len() * percent / 100).min(waited.len().saturating_sub(1));
        waited.get(index).map(|waited| waited.as_secs_f64() * 1e3)
    };
    println!(
        "{}",
        json!({
            "way": name, "offered_per_second": rate, "seconds": took,
            "accepted": waited.len(), "accepted_per_second": waited.len() as f64 / took,
            "refused": refused,
            "answered_ms": {"p50": at(50), "p95": at(95), "p99": at(99), "max": at(100)},
        })
    );
    Ok(())
}
