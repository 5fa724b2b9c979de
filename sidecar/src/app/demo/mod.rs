//! `merit demo`: the whole loop in one process, over real HTTP, with no server installed.
//!
//! Simulated agents of hidden quality ask a stand-in API through the real gateway, three times as
//! often as they may at first; raters say what they think of the answers on a sample feed, which the
//! bridge reads. What an agent may do at the end is what the loop learned of it. Nothing but loopback
//! is opened.

mod feed;
mod report;
mod world;

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal},
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use indicatif::{ProgressBar, ProgressStyle};
use metrics_exporter_prometheus::PrometheusHandle;
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use tower_merit::{
    AgentId, MemoryStore, Tune,
    store::{Bid, Quote, StoreError},
};

use self::{
    feed::Feed,
    report::{End, Report},
    world::{Tally, World},
};
use super::{AppError, serve, start_with, store::Store};
use crate::{
    admin::Health,
    config::Role,
    policy::{Market, Policy},
    tuner,
};

/// What `merit demo` was asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long the agents work.
    pub duration: Duration,
    /// How many there are, at least 2.
    pub agents: u32,
    /// Seed of their qualities and of the raters' moods.
    pub seed: u64,
    /// Print one JSON object instead of a table.
    pub json: bool,
    /// Credit each rating to an agent drawn at random: then nothing can be learned.
    pub shuffle_ratings: bool,
    /// Where the dashboard is served, on loopback.
    pub admin: SocketAddr,
}

/// Why the demo failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DemoError {
    /// A part of the system failed.
    #[error("demo")]
    App(#[from] AppError),
    /// The stand-in API cannot listen.
    #[error("stand-in API cannot listen on loopback")]
    Upstream(#[source] io::Error),
    /// The sample feed cannot listen.
    #[error("sample feed cannot listen on loopback")]
    Feed(#[source] io::Error),
    /// A development token cannot be signed.
    #[error("token not signed")]
    Token(#[from] jsonwebtoken::errors::Error),
    /// The limits cannot be read back.
    #[error("limits not read back")]
    Store(#[from] StoreError),
    /// The result cannot be printed.
    #[error("standard output is closed")]
    Output(#[from] io::Error),
    /// Simulated callers got answers that they never should get.
    #[error("{count} requests failed, the first one: {first}")]
    Traffic {
        /// How many.
        count: u64,
        /// What the first one met.
        first: String,
    },
}

/// Between two lines of progress where no terminal is.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Between two looks at the counters on a terminal.
const TICK: Duration = Duration::from_millis(250);

type HttpClient = Client<HttpConnector, Full<Bytes>>;

/// Runs the demo and prints its result.
///
/// # Errors
///
/// When a part fails, or a simulated caller gets an answer other than served, limited or accepted.
pub async fn run(options: Options, metrics: PrometheusHandle) -> Result<(), DemoError> {
    let world = Arc::new(World::new(&options)?);
    let stop_api = CancellationToken::new();
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await;
    let listener = listener.map_err(DemoError::Upstream)?;
    let api = listener.local_addr().map_err(DemoError::Upstream)?;
    let api =
        (tokio::spawn(serve::serve("openclaw", listener, world::api(), stop_api.clone())), api);

    let (feed, feed_address) = Feed::open(stop_api.clone()).await.map_err(DemoError::Feed)?;

    let store = MemoryStore::new();
    let mut config = world.config(api.1, feed_address);
    config.admin = report::dashboard(options.admin);
    let running =
        start_with(&config, Role::All, metrics, Store::Memory(store.clone()), Health::new())
            .await?;
    let address = |name| running.address(name).expect("the demo's configuration listens");
    let counts = running.bridge.as_ref().expect("the demo's configuration has a feed").counter();
    let (gateway, ingest) = (address("gateway"), address("ingest"));
    let places = [gateway, ingest, feed_address, address("metrics"), address("admin")];
    eprintln!("{}", report::welcome(&options, &world, places, config.admin.token_env.is_some()));

    // Shorter than listeners keep a silent connection: none is taken up while it is being closed.
    let client: HttpClient = Client::builder(TokioExecutor::new())
        .pool_idle_timeout(serve::HEADER_TIMEOUT / 3)
        .pool_timer(TokioTimer::new())
        .build_http();
    let ends = Instant::now() + options.duration;
    let mut agents = JoinSet::new();
    let caller = |index, chance: usize| Caller {
        world: Arc::clone(&world),
        client: client.clone(),
        index,
        rng: seeded(options.seed, chance),
        // The twins are asked for at the same moments: between them there is only the bombing.
        arrivals: seeded(!options.seed, index.max(1)),
        gateway: gateway.to_string(),
        feed: feed.clone(),
    };
    for index in 0..world.agents.len() {
        agents.spawn(caller(index, index).work(ends));
    }
    if !options.shuffle_ratings {
        let begins = ends - options.duration.mul_f64(1.0 - world::BOMBED_FROM);
        agents.spawn(caller(0, usize::MAX).bomb(begins, ends));
        agents.spawn(compare_twins(Arc::clone(&world), store.clone(), begins, ends));
    }
    show_progress(&world, &options, ends).await;
    while agents.join_next().await.is_some() {}

    let unread = feed.is_read(|| counts().taken).await;
    // The listeners close and the tuner takes what is still on the bus: then the limits are final.
    running.until(async {}).await?;
    stop_api.cancel();
    // The stand-in API has nothing in flight any more.
    let _ = api.0.await;
    let bridged = counts();
    if unread > 0 || bridged.refused > 0 || bridged.finished < bridged.taken {
        world.failed(format!("{unread} ratings were not read by the bridge: {bridged:?}"));
    }

    if let Some(first) = world.first_failure() {
        return Err(DemoError::Traffic { count: world.failures.load(Ordering::Relaxed), first });
    }
    let names: Vec<AgentId> = world.agents.iter().map(|agent| agent.id.clone()).collect();
    let records = store.load(&names).await?;
    let quote =
        store.trade(&Bid { who: "demo".to_owned(), term: Duration::ZERO, quote: None }).await?;
    let mut policy = Policy::new(&config.policy, config.default_limits());
    if let Some(Quote { price, use_share }) = quote.quote {
        policy.see(Market { price, use_share, ..*policy.market() });
    }
    let ends: BTreeMap<&AgentId, End> = names
        .iter()
        .zip(&records)
        .filter_map(|(agent, record)| {
            let record = record.as_ref().ok()?;
            let rate = record.limits?.refill().tokens();
            let explained = tuner::state_of(record).and_then(|state| policy.explain(&state));
            Some((agent, End { rate, explained }))
        })
        .collect();
    Report::new(&options, &world, &ends, quote.quote).print(options.json)?;
    Ok(())
}

/// Sums up the rates of the agent that is bombed and of its twin, from when the bombing `begins`.
async fn compare_twins(world: Arc<World>, store: MemoryStore, begins: Instant, ends: Instant) {
    let [bombed, twin, ..] = &world.agents[..] else { return };
    let twins = [bombed.id.clone(), twin.id.clone()];
    let mut looks = tokio::time::interval_at(begins, TICK);
    while looks.tick().await < ends {
        // The store is in this process: it answers.
        let Ok(records) = store.load(&twins).await else { return };
        let rates =
            records.iter().map(|record| Some(record.as_ref().ok()?.limits?.refill().micro()));
        if let Some(rates) = rates.collect::<Option<Vec<u64>>>() {
            for (sum, rate) in world.twins_rates.iter().zip(rates) {
                sum.fetch_add(rate, Ordering::Relaxed);
            }
        }
    }
}

async fn show_progress(world: &World, options: &Options, ends: Instant) {
    let terminal = io::stderr().is_terminal();
    let bar = if terminal {
        let style = "{elapsed:>4} [{bar:30}] {msg}";
        let style = ProgressStyle::with_template(style).unwrap_or(ProgressStyle::default_bar());
        ProgressBar::new(u64::try_from(options.duration.as_millis()).unwrap_or(u64::MAX))
            .with_style(style)
    } else {
        ProgressBar::hidden()
    };
    let began = ends - options.duration;
    let mut ticks = tokio::time::interval(if terminal { TICK } else { LINE_INTERVAL });
    // The first tick is at once, and there is nothing to tell yet.
    ticks.tick().await;
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(ends) => break,
            _ = ticks.tick() => {}
        }
        let Tally { admitted, denied, ratings } = world.tally();
        let line = format!("served {admitted}, limited {denied} (429), ratings {ratings}");
        if terminal {
            bar.set_position(u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX));
            bar.set_message(line);
        } else {
            eprintln!("{:>4} s  {line}", began.elapsed().as_secs());
        }
    }
    bar.finish_and_clear();
}

fn seeded(seed: u64, index: usize) -> StdRng {
    StdRng::seed_from_u64(seed ^ (index as u64).wrapping_mul(0x9e37_79b9))
}

/// One simulated agent, and the raters of what it serves.
struct Caller {
    world: Arc<World>,
    client: HttpClient,
    index: usize,
    rng: StdRng,
    arrivals: StdRng,
    gateway: String,
    feed: Feed,
}

impl Caller {
    async fn work(mut self, ends: Instant) {
        // Arrivals are Poisson: exponential pauses around the mean.
        let mean = 1.0 / self.world.demand;
        let mut next = Instant::now();
        loop {
            let pause = -mean * (1.0 - self.arrivals.random::<f64>()).ln();
            next += Duration::from_secs_f64(pause);
            if next >= ends {
                return;
            }
            tokio::time::sleep_until(next).await;
            self.ask().await;
        }
    }

    async fn ask(&mut self) {
        let world = Arc::clone(&self.world);
        let agent = &world.agents[self.index];
        let item = self.rng.random_range(1..=100u32);
        let request = Request::builder()
            .uri(format!("http://{}/v1/items/{item}", self.gateway))
            .header(header::AUTHORIZATION, &agent.authorization)
            .body(Full::default());
        match self.send(request).await {
            Ok((StatusCode::OK, _)) => {
                agent.admitted.fetch_add(1, Ordering::Relaxed);
                if self.rng.random_bool(world::RATED_SHARE) {
                    self.rate().await;
                }
            }
            Ok((StatusCode::TOO_MANY_REQUESTS, _)) => {
                agent.denied.fetch_add(1, Ordering::Relaxed);
            }
            // Somebody at the dashboard banned it.
            Ok((StatusCode::FORBIDDEN, body)) if body.contains("banned") => {
                agent.denied.fetch_add(1, Ordering::Relaxed);
            }
            Ok((status, body)) => world.failed(format!("{status} to a request: {body}")),
            Err(error) => world.failed(error),
        }
    }

    /// Ten users rate the agent down, as often as others rate it for what it is, until it `ends`.
    async fn bomb(mut self, begins: Instant, ends: Instant) {
        let world = Arc::clone(&self.world);
        tokio::time::sleep_until(begins).await;
        let mut pace = tokio::time::interval(Duration::from_secs_f64(
            1.0 / (world.demand * world::RATED_SHARE),
        ));
        while pace.tick().await < ends {
            let bomber = &world.bombers[self.rng.random_range(0..world.bombers.len())];
            let id = self.rng.next_u64();
            let agent = &world.agents[self.index].id;
            self.tell(&format!("{id:016x}"), agent, bomber, 1).await;
            world.bombs.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A user who was just served says what it was worth.
    async fn rate(&mut self) {
        let world = Arc::clone(&self.world);
        let score = world::score(world.agents[self.index].quality, &mut self.rng);
        let credited =
            if world.shuffle { self.rng.random_range(0..world.agents.len()) } else { self.index };
        let rater = &world.raters[self.rng.random_range(0..world.raters.len())];
        let agent = &world.agents[credited];
        let id = format!("{:016x}", self.rng.next_u64());
        self.tell(&id, &agent.id, rater, score).await;
        agent.rated(score);
    }

    /// Tells the feed a rating.
    async fn tell(&self, id: &str, agent: &AgentId, user: &str, score: u8) {
        let rating = serde_json::json!({
            "id": id, "agent_id": agent, "user_id": user, "score": score,
        });
        self.feed.tell(rating.to_string()).await;
    }

    async fn send(
        &self,
        request: Result<Request<Full<Bytes>>, http::Error>,
    ) -> Result<(StatusCode, String), String> {
        let request = request.map_err(|error| error.to_string())?;
        let response = self.client.request(request).await.map_err(|error| error.to_string())?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(|error| error.to_string())?;
        Ok((status, String::from_utf8_lossy(&body.to_bytes()).into_owned()))
    }
}
