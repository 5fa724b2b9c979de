//! Personalised ratings under load: streams and scores of one node.
//!
//! ```text
//! integration/load events [STREAMS] [RATE] [SECONDS] [USERS]      # default 5000 10 20 1000000
//! ```
//!
//! Starts Redis and one `merit run` (ingest, tuner, gateway; bus over Redis Streams) on loopback, and prints one
//! line of JSON:
//!
//! - **streams**: STREAMS viewers listen to everything, RATE ratings a second come in for SECONDS. Delivery is
//!   from before the rating is posted to the event's arrival at a viewer. Measured twice: alone, and beside a
//!   reader that reads nothing (its receive buffer is small), after 5,000 ratings of 50 items that it should have
//!   read. In the end it reads: what newer ones replaced for it is counted. Memory is the process's resident set
//!   by stream.
//! - **scores**: USERS users have factors; 1,000 ratings a second come in while `GET /v1/rating/{item}` is asked
//!   500 times a second for SECONDS, over 16 connections.
//!
//! Client and servers share the machine: on two cores the client takes most of what streams cost.

#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "figures to look at"
)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use http::Request;
use http_body_util::Full;
use merit_integration::{Bus, Merit, Persistence, Redis, Settings, Upstream, client::Client, keys};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

/// Ratings in one post while users are made.
const BATCH: usize = 250;
/// Items that users rate.
const ITEMS: usize = 10_000;
/// How long the last events may take to arrive.
const TAIL: Duration = Duration::from_secs(5);

fn percentile(sorted: &[u64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).map_or(f64::NAN, |us| *us as f64 / 1e3)
}

fn figures(mut latencies_us: Vec<u64>) -> Value {
    latencies_us.sort_unstable();
    json!({
        "count": latencies_us.len(),
        "p50_ms": percentile(&latencies_us, 0.5),
        "p99_ms": percentile(&latencies_us, 0.99),
        "max_ms": percentile(&latencies_us, 1.0),
    })
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: usize| {
        arguments.next().map_or(Ok(default), |text| text.parse().context("not a number"))
    };
    let (streams, rate) = (number(5_000)?, number(10)?);
    let (seconds, users) = (number(20)?, number(1_000_000)?);

    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let upstream = Upstream::start();
    let mut settings = Settings::new(&redis.url()).upstream(&upstream.url());
    settings.bus = Bus::Redis { topic: "load.ratings".to_owned(), partitions: 4 };
    settings.tables = format!(
        "[personalize]\nenabled = true\n[personalize.model]\nusers_max = {}\n\
         [tuner]\nreplay_window = \"1s\"\n[personalize.events]\nconnections_max = {}\n",
        users.max(1_000_000),
        streams + 10
    );
    settings.environment.push(("MERIT__BUS__LENGTH_MAX".to_owned(), "10000000".to_owned()));
    let merit = Arc::new(Merit::start(settings).await);

    let told = listen(&merit, streams, rate, seconds).await?;
    let scores = ask(&merit, users, seconds).await?;
    println!("{}", json!({"streams": told, "scores": scores}));
    Ok(())
}

/// Opens a stream by hand: a client's buffers would be most of what is measured.
async fn open(merit: &Merit, viewer: &str, buffer: Option<u32>) -> anyhow::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    if let Some(buffer) = buffer {
        socket.set_recv_buffer_size(buffer)?;
    }
    let mut stream = socket.connect(merit.gateway_address().parse()?).await?;
    let head = format!(
        "GET /events/personalized-rating HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\r\n",
        keys::rater(viewer)
    );
    stream.write_all(head.as_bytes()).await?;
    Ok(stream)
}

/// The clock that items carry in their names: microseconds since the start.
#[derive(Clone, Copy)]
struct Clock(Instant);

impl Clock {
    fn now_us(self) -> u64 {
        self.0.elapsed().as_micros() as u64
    }
}

async fn listen(
    merit: &Arc<Merit>,
    streams: usize,
    rate: usize,
    seconds: usize,
) -> anyhow::Result<Value> {
    let clock = Clock(Instant::now());
    let before = merit.memory()?;
    let (sender, mut latencies) = mpsc::unbounded_channel::<Vec<u64>>();
    let opened = Arc::new(AtomicU64::new(0));
    let mut readers = JoinSet::new();
    let at_once = Arc::new(Semaphore::new(64));
    for n in 0..streams {
        let (merit, sender, opened) = (Arc::clone(merit), sender.clone(), Arc::clone(&opened));
        let at_once = Arc::clone(&at_once);
        readers.spawn(async move {
            let permit = at_once.acquire_owned().await?;
            let mut stream = open(&merit, &format!("viewer-{n}"), None).await?;
            let mut buffer = vec![0; 4096];
            let mut kept = Vec::new();
            // The head, and what it says of connecting again.
            while !kept.windows(6).any(|bytes| bytes == b"retry:") {
                let read = stream.read(&mut buffer).await?;
                ensure!(read > 0, "no stream: {}", String::from_utf8_lossy(&kept));
                kept.extend_from_slice(&buffer[..read]);
            }
            drop(permit);
            opened.fetch_add(1, Ordering::Relaxed);
            kept.clear();
            loop {
                let read = stream.read(&mut buffer).await?;
                ensure!(read > 0, "the stream ended");
                let now = clock.now_us();
                kept.extend_from_slice(&buffer[..read]);
                let end = kept.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
                let text = String::from_utf8_lossy(&kept[..end]).into_owned();
                kept.drain(..end);
                let posted = text.split("\"item_id\":\"t").skip(1);
                let late = posted.filter_map(|rest| {
                    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
                    Some(now.saturating_sub(digits.parse().ok()?))
                });
                let late: Vec<u64> = late.collect();
                if !late.is_empty() {
                    let _ = sender.send(late);
                }
            }
            #[allow(unreachable_code, reason = "says what the task returns")]
            Ok::<(), anyhow::Error>(())
        });
    }
    while opened.load(Ordering::Relaxed) < streams as u64 {
        tokio::select! {
            Some(ended) = readers.join_next() => ended??,
            () = tokio::time::sleep(Duration::from_millis(50)) => {}
        }
    }
    let open_memory = merit.memory()?;
    let mut take = async |expected: usize| {
        let mut all = Vec::new();
        let deadline = tokio::time::Instant::now() + TAIL;
        while all.len() < expected {
            match tokio::time::timeout_at(deadline, latencies.recv()).await {
                Ok(Some(some)) => all.extend(some),
                _ => break,
            }
        }
        all
    };
    post_at(merit, timed(clock), rate, seconds).await?;
    let alone = take(rate * seconds * streams).await;
    let after_memory = merit.memory()?;

    // One that reads nothing, and much that it should have read.
    let mut slow = open(merit, "slow", Some(4096)).await?;
    let flood = |turn: usize, n: usize| format!("flood-{}", (turn + n) % 50);
    post_at(merit, flood, 1_000, 5).await?;
    tokio::time::sleep(TAIL).await;
    post_at(merit, timed(clock), rate, seconds).await?;
    let beside = take(rate * seconds * streams).await;
    let beside_memory = merit.memory()?;
    // Now it reads: what is in buffers, then the newest of each item.
    let replaced = async || merit.metric("merit_events_replaced_total").await.unwrap_or_default();
    let replaced_before = replaced().await;
    let mut buffer = vec![0; 1 << 16];
    while let Ok(read) = tokio::time::timeout(TAIL, slow.read(&mut buffer)).await {
        ensure!(read? > 0, "the slow reader's stream ended");
    }
    let replaced = replaced().await - replaced_before;
    let expected = rate * seconds * streams;
    let by_stream = (after_memory.saturating_sub(before)) / streams.max(1) as u64;
    readers.abort_all();
    Ok(json!({
        "streams": streams, "ratings_per_second": rate, "expected": expected,
        "alone": figures(alone), "beside_a_slow_reader": figures(beside),
        "replaced_by_newer_for_the_slow_reader": replaced,
        "bytes_per_open_stream": open_memory.saturating_sub(before) / streams.max(1) as u64,
        "bytes_per_stream_in_use": by_stream,
        "megabytes": {"before": before / 1_000_000, "open": open_memory / 1_000_000,
            "in_use": after_memory / 1_000_000, "beside": beside_memory / 1_000_000},
    }))
}

/// Returns names of items that tell when they were made.
fn timed(clock: Clock) -> impl Fn(usize, usize) -> String {
    move |turn, n| format!("t{}-{turn}-{n}", clock.now_us())
}

/// Posts `rate` ratings a second, of the items that `item` names for each turn and place in it.
async fn post_at(
    merit: &Merit,
    item: impl Fn(usize, usize) -> String,
    rate: usize,
    seconds: usize,
) -> anyhow::Result<()> {
    let (client, token) = (Client::new(), keys::collector());
    let url = format!("{}/v1/ratings", merit.ingest());
    // At most a hundred posts a second: a client that posts each by itself would be measured.
    let each = rate.div_ceil(100).max(1);
    let mut turns = interval(Duration::from_secs_f64(each as f64 / rate as f64));
    turns.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut posting = JoinSet::new();
    for turn in 0..rate * seconds / each {
        turns.tick().await;
        let batch: Vec<Value> = (0..each)
            .map(|n| {
                let user = format!("user-{}", turn % 997);
                json!({"user_id": user, "item_id": item(turn, n), "rating": 4})
            })
            .collect();
        // Within what ingest takes at once: with thousands of streams beside it an answer takes its time.
        if posting.len() >= 8
            && let Some(posted) = posting.join_next().await
        {
            let answer: merit_integration::client::Answer = posted??;
            ensure!(answer.status.is_success(), "{}", answer.text());
        }
        let (client, url, token) = (client.clone(), url.clone(), token.clone());
        posting.spawn(async move { client.post(&url, &token, &Value::Array(batch)).await });
    }
    while let Some(posted) = posting.join_next().await {
        let answer = posted??;
        ensure!(answer.status.is_success(), "{}", answer.text());
    }
    Ok(())
}

async fn ask(merit: &Arc<Merit>, users: usize, seconds: usize) -> anyhow::Result<Value> {
    let (client, token) = (Client::new(), keys::collector());
    let before = merit.memory()?;
    let learned = merit.metric("merit_personalize_ratings_total").await.unwrap_or_default();
    let url = format!("{}/v1/ratings", merit.ingest());
    let mut posting = JoinSet::new();
    for first in (0..users).step_by(BATCH) {
        let batch: Vec<Value> = (first..(first + BATCH).min(users))
            .map(|n| {
                let (item, score) = (n * 7919 % ITEMS, 1 + n % 5);
                json!({"user_id": format!("user-{n}"), "item_id": format!("item-{item}"), "rating": score})
            })
            .collect();
        if posting.len() >= 8
            && let Some(posted) = posting.join_next().await
        {
            let posted: anyhow::Result<merit_integration::client::Answer> = posted?;
            ensure!(posted?.status.is_success(), "a batch was refused");
        }
        let (client, url, token) = (client.clone(), url.clone(), token.clone());
        posting.spawn(async move { client.post(&url, &token, &Value::Array(batch)).await });
    }
    while let Some(posted) = posting.join_next().await {
        ensure!(posted??.status.is_success(), "a batch was refused");
    }
    let deadline = Instant::now() + Duration::from_secs(600);
    loop {
        let now = merit.metric("merit_personalize_ratings_total").await.unwrap_or_default();
        if now - learned >= users as f64 {
            break;
        }
        ensure!(Instant::now() < deadline, "{} of {users} were learned", now - learned);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let with_users = merit.memory()?;
    let arriving = {
        let merit = Arc::clone(merit);
        tokio::spawn(
            async move { post_at(&merit, timed(Clock(Instant::now())), 1_000, seconds).await },
        )
    };
    let mut turns = interval(Duration::from_millis(2));
    turns.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut asking = JoinSet::new();
    let any = keys::hs256(&keys::claims(&json!({"sub": "shop", "scope": "ratings:read:any"})));
    let places = Arc::new(Semaphore::new(16));
    for n in 0..seconds * 500 {
        // From the turn on, so that what waits for its place counts as well.
        let due = turns.tick().await;
        let (user, item) = (n * 104_729 % users.max(1), n * 31 % ITEMS);
        let url = format!("{}/v1/rating/item-{item}?user_id=user-{user}", merit.ingest());
        let (client, any, places) = (client.clone(), any.clone(), Arc::clone(&places));
        asking.spawn(async move {
            let _place = places.acquire_owned().await?;
            let request = Request::get(url)
                .header("authorization", format!("Bearer {any}"))
                .body(Full::default())?;
            let answer = client.call(request).await?;
            ensure!(answer.status == 200, "{}", answer.text());
            Ok::<u64, anyhow::Error>(due.elapsed().as_micros() as u64)
        });
    }
    let mut latencies = Vec::new();
    while let Some(asked) = asking.join_next().await {
        latencies.push(asked??);
    }
    arriving.await??;
    Ok(json!({
        "users": merit.metric("merit_personalize_users").await, "asked_per_second": 500,
        "ratings_per_second": 1_000, "latency": figures(latencies),
        "bytes_per_user": with_users.saturating_sub(before) / users.max(1) as u64,
    }))
}
