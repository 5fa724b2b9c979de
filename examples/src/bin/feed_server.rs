//! Lesson 6: a rating feed as Moltbook might have one, for the bridge to read.
//!
//! ```text
//! cargo run -p merit-examples --bin feed_server -- --rate 20 --drop-every 10
//! merit run --role feed --config deploy/merit.feed.toml             # in another terminal
//! ```
//!
//! Simulated users rate simulated agents whose quality is drawn from the seed. Every client hears all
//! ratings from when it connects on; one that names the last id it has, `?after=<id>`, hears what came
//! since as well, as far as the feed remembers. With `--drop-every` the feed loses its clients now and
//! then, as feeds do: without a word.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use clap::Parser;
use futures_util::{SinkExt, StreamExt};
use http::Uri;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::broadcast,
    time::{Instant, interval, sleep_until},
};
use tokio_tungstenite::{
    accept_hdr_async,
    tungstenite::{
        Message,
        handshake::server::{Request, Response},
    },
};

/// Ratings that the feed remembers.
const MEMORY: usize = 10_000;

/// A sample rating feed over WebSocket, on loopback.
#[derive(Clone, Debug, Parser)]
struct Options {
    /// Where to listen on 127.0.0.1
    #[arg(long, default_value_t = 9101)]
    port: u16,
    /// Ratings per second, 0.1 to 10000
    #[arg(long, default_value_t = 10.0, value_parser = rate)]
    rate: f64,
    /// Agents that are rated
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    agents: u32,
    /// Seed of qualities and ratings
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Lose every client after so many seconds; 0 is never
    #[arg(long, default_value_t = 0)]
    drop_every: u64,
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate| (0.1..=10_000.0).contains(rate));
    rate.ok_or_else(|| "must be a number from 0.1 to 10000".to_owned())
}

/// What was told lately, and whoever listens.
struct Feed {
    memory: Mutex<VecDeque<(String, String)>>,
    live: broadcast::Sender<String>,
}

impl Feed {
    fn tell(&self, id: String, rating: String) {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        if memory.len() == MEMORY {
            memory.pop_front();
        }
        memory.push_back((id, rating.clone()));
        // Nobody may be listening.
        let _ = self.live.send(rating);
    }

    /// Returns what came after the rating `id`, and what comes from now on.
    fn since(&self, id: Option<&str>) -> (Vec<String>, broadcast::Receiver<String>) {
        let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let known = id.and_then(|id| memory.iter().position(|(known, _)| known == id));
        let missed = known.into_iter().flat_map(|at| memory.iter().skip(at + 1));
        (missed.map(|(_, rating)| rating.clone()).collect(), self.live.subscribe())
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let taken = || format!("cannot listen on 127.0.0.1:{}: choose another --port", options.port);
    let listener = TcpListener::bind(("127.0.0.1", options.port)).await;
    let listener = listener.with_context(taken)?;
    println!("ws://{}/ratings", listener.local_addr()?);

    let feed = Arc::new(Feed { memory: Mutex::default(), live: broadcast::Sender::new(MEMORY) });
    tokio::spawn(users(Arc::clone(&feed), options.clone()));
    loop {
        let (stream, peer) = listener.accept().await?;
        let (feed, drop_every) = (Arc::clone(&feed), options.drop_every);
        tokio::spawn(async move {
            println!("{peer} connects");
            let why = serve(&feed, stream, drop_every).await;
            println!(
                "{peer} is gone: {}",
                why.map_or_else(|error| error.to_string(), str::to_owned)
            );
        });
    }
}

/// Users who rate agents, for ever.
async fn users(feed: Arc<Feed>, options: Options) {
    let mut chance = StdRng::seed_from_u64(options.seed);
    let qualities: Vec<f64> = (0..options.agents).map(|_| chance.random_range(1.5..4.8)).collect();
    // Names of another run are other events.
    let run = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut pace = interval(Duration::from_secs_f64(1.0 / options.rate));
    for number in 1_u64.. {
        pace.tick().await;
        let agent = chance.random_range(0..qualities.len());
        let mood = chance.random_range(-1.0..=1.0);
        let score = (qualities[agent] + mood).round().clamp(1.0, 5.0);
        let user = chance.random_range(1..=200_u32);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let id = format!("molt-{run}-{number}");
        let rating = serde_json::json!({
            "id": id,
            "agent_id": format!("molt-agent-{}", agent + 1),
            "user_id": format!("user-{user}"),
            "score": score,
            "timestamp": u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
        });
        feed.tell(id, rating.to_string());
    }
}

/// Tells one client everything; returns why it ended.
async fn serve(feed: &Feed, stream: TcpStream, drop_every: u64) -> anyhow::Result<&'static str> {
    let mut asked = Uri::default();
    // The error is an answer to the client, which this feed never gives.
    #[allow(clippy::result_large_err, reason = "tungstenite's own type")]
    let look = |request: &Request, response: Response| {
        asked = request.uri().clone();
        Ok(response)
    };
    let mut client = accept_hdr_async(stream, look).await?;
    let query = asked.query().unwrap_or_default();
    let after = query.split('&').find_map(|pair| pair.strip_prefix("after="));
    let (missed, mut live) = feed.since(after);
    for rating in missed {
        client.send(Message::text(rating)).await?;
    }
    let lost = Instant::now() + Duration::from_secs(drop_every);
    loop {
        tokio::select! {
            rating = live.recv() => match rating {
                Ok(rating) => client.send(Message::text(rating)).await?,
                Err(_) => return Ok("too slow"),
            },
            said = client.next() => match said {
                // Reading answers its pings.
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error.into()),
                None => return Ok("it left"),
            },
            () = sleep_until(lost), if drop_every > 0 => return Ok("dropped, as asked"),
        }
    }
}
