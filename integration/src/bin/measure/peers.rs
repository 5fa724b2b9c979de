//! Beside `envoyproxy/ratelimit`: the same Redis, the same protocol, the same client.

use std::{
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use http::HeaderValue;
use merit_integration::{Folder, Persistence, Redis, ports};
use rand::{SeedableRng as _, rngs::SmallRng};
use tokio::{net::TcpListener, task::JoinSet};
use tonic::{client::Grpc, metadata::MetadataMap, transport::Endpoint};

use crate::{
    Arguments,
    crowd::{self, Crowd},
    figures::{Samples, Spread, Table, micros},
    load,
    redis_cost::Cost,
    rls::{self, Descriptor, Entry, RateLimitRequest},
    tools::{Server, tool},
    wear::{Fit, Mode},
};

/// The subcommand that is our side's server.
pub(crate) const SERVE: &str = "serve-grpc";

const AGENTS: u32 = 10_000;
const CONCURRENT: u32 = 64;

/// HTTP/2 connections that the concurrent requests share, as Envoy has one per worker thread.
const CHANNELS: u32 = 2;

const WARM_UP: Duration = Duration::from_secs(3);

const DOMAIN: &str = "merit";
const KEY: &str = "agent";

/// Our modes that are served.
const MODES: [Mode; 2] = [Mode::Exact, Mode::Leased];

/// `REDIS_PIPELINE_WINDOW` and `REDIS_PIPELINE_LIMIT`: off as shipped, and as its README suggests.
const PIPELINES: [Option<(&str, &str)>; 2] = [None, Some(("150us", "8"))];

pub(crate) async fn run(arguments: &mut Arguments) -> anyhow::Result<()> {
    let seconds = Duration::from_secs(arguments.or(5)?);
    let rounds: u32 = arguments.or(5)?;
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let crowd = Arc::new(Crowd::new(AGENTS, crowd::Spread::Uniform));

    let mut rivals = Vec::new();
    for pipeline in PIPELINES {
        let name = match pipeline {
            None => "envoyproxy/ratelimit, as shipped".to_owned(),
            Some((window, limit)) => format!("envoyproxy/ratelimit, pipeline {window}, {limit}"),
        };
        rivals.push((name, Rival::Served(ratelimit(&redis, pipeline).await?)));
    }
    for mode in MODES {
        let server = Server::own(mode.word(), &[SERVE, mode.word(), &redis.url()]).await?;
        rivals.push((format!("{mode}, behind gRPC"), Rival::Served(server)));
    }
    for mode in MODES {
        let server = merit(&redis, mode).await?;
        rivals.push((format!("`merit --role rls`, {mode}"), Rival::Served(server)));
    }
    for mode in MODES {
        let service = Fit::unlimited(&redis.url()).service(mode).await?;
        rivals.push((format!("{mode}, as a layer"), Rival::Layer(service)));
    }

    let mut seen: Vec<[Vec<f64>; 5]> = rivals.iter().map(|_| Default::default()).collect();
    for (_, rival) in &rivals {
        rival.ask(&crowd, WARM_UP).await?;
    }
    for _ in 0..rounds {
        for ((_, rival), seen) in rivals.iter().zip(&mut seen) {
            let (before, used) = (Cost::now(&redis).await?, rival.processor()?);
            let (samples, lasted) = rival.ask(&crowd, seconds).await?;
            let used = rival.processor()? - used;
            let cost = before.since(&redis, samples.len()).await?;
            #[allow(clippy::cast_precision_loss, reason = "a figure to look at")]
            let decisions = samples.len() as f64;
            seen[0].push(decisions / lasted.as_secs_f64());
            seen[4].push(micros(used) / decisions);
            let [p50, p99] = samples.quantiles([0.5, 0.99]);
            seen[1].push(micros(p50));
            seen[2].push(micros(p99));
            seen[3].push(cost.processor_us);
        }
    }
    let mut table = Table::new([
        "what decides",
        "decisions/s",
        "p50, µs",
        "p99, µs",
        "Redis CPU µs per decision",
        "its own CPU µs per decision",
    ]);
    for ((name, rival), seen) in rivals.iter().zip(seen) {
        let [per_second, p50, p99, redis, own] = seen.map(|values| Spread::of(values).to_string());
        let own = if matches!(rival, Rival::Served(_)) { own } else { "–".to_owned() };
        table.row([name.clone(), per_second, p50, p99, redis, own]);
    }
    println!(
        "{rounds} rounds of {seconds:?} each, {AGENTS} agents, {CONCURRENT} concurrent\n\n{table}"
    );
    Ok(())
}

/// Serves the protocol behind our layer, until killed.
pub(crate) async fn serve(arguments: &mut Arguments) -> anyhow::Result<()> {
    let mode: Mode = arguments.required("the mode")?;
    let redis: String = arguments.required("the URL of Redis")?;
    let port: u16 = arguments.required("the port")?;
    let router = Fit::unlimited(&redis).router(mode, rls::router()).await?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    Ok(axum::serve(listener, router).await?)
}

enum Rival {
    Served(Server),
    Layer(crate::wear::Worn),
}

impl Rival {
    /// Returns the processor time of a server; a layer's cannot be told from its caller's.
    fn processor(&self) -> anyhow::Result<Duration> {
        match self {
            Self::Served(server) => server.processor(),
            Self::Layer(_) => Ok(Duration::ZERO),
        }
    }

    /// Asks for `duration`; every decision must be a yes.
    async fn ask(
        &self,
        crowd: &Arc<Crowd>,
        duration: Duration,
    ) -> anyhow::Result<(Samples, Duration)> {
        let server = match self {
            Self::Served(server) => server,
            Self::Layer(service) => {
                let run = load::closed(service, crowd, CONCURRENT.into(), duration).await;
                ensure!(run.refused == 0, "{} decisions were not a yes", run.refused);
                return Ok((run.samples, run.lasted));
            }
        };
        let begun = Instant::now();
        let ends = begun + duration;
        let mut askers = JoinSet::new();
        for channel in 0..CHANNELS {
            let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{}", server.port))?;
            let channel = (channel, endpoint.tcp_nodelay(true).connect().await?);
            for asker in 0..CONCURRENT / CHANNELS {
                let mut grpc = Grpc::new(channel.1.clone());
                let crowd = Arc::clone(crowd);
                let mut random = SmallRng::seed_from_u64((channel.0 * CONCURRENT + asker).into());
                askers.spawn(async move {
                    let mut samples = Samples::default();
                    let mut now = Instant::now();
                    while now < ends {
                        let code =
                            rls::ask(&mut grpc, request(&crowd, crowd.pick(&mut random))).await?;
                        ensure!(code == rls::OK, "a decision was {code}");
                        let answered = Instant::now();
                        samples.push(answered - now);
                        now = answered;
                    }
                    Ok(samples)
                });
            }
        }
        let mut all = Samples::default();
        for samples in askers.join_all().await {
            all.append(samples?);
        }
        Ok((all, begun.elapsed()))
    }
}

fn request(crowd: &Crowd, agent: usize) -> tonic::Request<RateLimitRequest> {
    let fields = crowd.fields(agent);
    let text = |value: &HeaderValue| value.to_str().expect("ids are ASCII").to_owned();
    let entry = Entry { key: KEY.to_owned(), value: text(&fields[crowd::AGENT_HEADER]) };
    let message = RateLimitRequest {
        domain: DOMAIN.to_owned(),
        descriptors: vec![Descriptor { entries: vec![entry] }],
    };
    let mut request = tonic::Request::new(message);
    *request.metadata_mut() = MetadataMap::from_headers(fields.clone());
    request
}

/// Starts our rate limit service with limits that nobody meets: the program beside this one.
async fn merit(redis: &Redis, mode: Mode) -> anyhow::Result<Server> {
    let program = std::env::current_exe()?.with_file_name("merit");
    let program = program.to_str().context("the path is not text")?;
    let (folder, port) = (Folder::new("merit-rls"), ports::free());
    let (url, mode) = (redis.url(), mode.word());
    folder.write(
        "merit.toml",
        &format!(
            "[rls]\nlisten = \"127.0.0.1:{port}\"\ndomain = \"{DOMAIN}\"\nagent_key = \"{KEY}\"\n\
             [store]\nkind = \"redis\"\nurl = \"{url}\"\nmode = \"{mode}\"\n\
             [[bucket]]\nbucket_name = \"requests\"\nrefill_rate = 1000000\ncapacity = 1000000\n"
        ),
    );
    let arguments = ["run", "--config", "merit.toml", "--role", "rls"].map(str::to_owned);
    Server::start("merit-rls", program, &arguments, &[], folder, port).await
}

/// Starts `envoyproxy/ratelimit` with limits that nobody meets.
async fn ratelimit(redis: &Redis, pipeline: Option<(&str, &str)>) -> anyhow::Result<Server> {
    let folder = Folder::new("ratelimit");
    let config = folder.path().join("ratelimit/config");
    std::fs::create_dir_all(&config)?;
    std::fs::write(
        config.join("config.yaml"),
        format!(
            "domain: {DOMAIN}\ndescriptors:\n  - key: {KEY}\n    rate_limit:\n      \
             unit: second\n      requests_per_unit: 9000000\n"
        ),
    )?;
    let run = ports::free_run(3);
    let address = redis.url().trim_start_matches("redis://").to_owned();
    let root = folder.path().to_str().expect("the folder's name is text").to_owned();
    let mut environment: Vec<(&str, String)> = vec![
        ("RUNTIME_ROOT", root),
        ("RUNTIME_SUBDIRECTORY", "ratelimit".to_owned()),
        ("RUNTIME_WATCH_ROOT", "false".to_owned()),
        ("BACKEND_TYPE", "redis".to_owned()),
        ("REDIS_SOCKET_TYPE", "tcp".to_owned()),
        ("REDIS_URL", address),
        ("USE_STATSD", "false".to_owned()),
        ("LOG_LEVEL", "error".to_owned()),
        ("HOST", "127.0.0.1".to_owned()),
        ("PORT", run.to_string()),
        ("GRPC_HOST", "127.0.0.1".to_owned()),
        ("GRPC_PORT", (run + 1).to_string()),
        ("DEBUG_HOST", "127.0.0.1".to_owned()),
        ("DEBUG_PORT", (run + 2).to_string()),
    ];
    if let Some((window, limit)) = pipeline {
        environment.push(("REDIS_PIPELINE_WINDOW", window.to_owned()));
        environment.push(("REDIS_PIPELINE_LIMIT", limit.to_owned()));
    }
    let environment: Vec<(String, String)> =
        environment.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    Server::start("ratelimit", &tool("ratelimit")?, &[], &environment, folder, run + 1).await
}
