//! An axum server over loopback HTTP, without a limiter and behind each of them; `wrk` asks.

use std::{fmt::Write as _, net::Ipv4Addr, process::Stdio};

use anyhow::{Context as _, ensure};
use axum::{Router, routing::get};
use merit_integration::{Folder, Persistence, Redis};
use rand::{SeedableRng as _, rngs::SmallRng};
use tokio::{net::TcpListener, process::Command};

use crate::{
    Arguments,
    crowd::{self, AGENT_HEADER, Crowd},
    figures::{Spread, Table, micros, number},
    redis_cost::Cost,
    tools::Server,
    wear::{Fit, Mode},
};

/// The subcommand that is one of the servers.
pub(crate) const SERVE: &str = "serve";

const MODES: [Mode; 5] = [Mode::Bare, Mode::InProcess, Mode::Leased, Mode::Exact, Mode::Plain];

/// Connections that are kept alive; each has one request under way.
const CONNECTIONS: u32 = 64;

/// Requests are drawn once and asked in a circle, so that `wrk` itself costs little.
const DRAWN: usize = 20_000;

const WARM_UP_SECONDS: u64 = 2;

/// Few busy agents, and a long tail.
const CROWDS: [(u32, crowd::Spread); 2] =
    [(100, crowd::Spread::Uniform), (10_000, crowd::Spread::Zipf)];

pub(crate) async fn run(arguments: &mut Arguments) -> anyhow::Result<()> {
    let seconds: u64 = arguments.or(5)?;
    let rounds: u32 = arguments.or(5)?;
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let mut servers = Vec::new();
    for mode in MODES {
        let name = format!("serve-{}", mode.word());
        servers.push(Server::own(&name, &[SERVE, mode.word(), &redis.url()]).await?);
    }
    let mut table = Table::new([
        "agents",
        "server",
        "requests/s",
        "of no limiter",
        "p50, µs",
        "p99, µs",
        "server CPU µs per request",
        "Redis CPU µs per request",
    ]);
    for (agents, spread) in CROWDS {
        let wrk = Wrk::new(&Crowd::new(agents, spread));
        let mut seen: Vec<[Vec<f64>; 6]> = MODES.map(|_| Default::default()).into();
        for server in &servers {
            wrk.ask(server.port, WARM_UP_SECONDS).await?;
        }
        for _ in 0..rounds {
            let mut bare = None;
            for (server, seen) in servers.iter().zip(&mut seen) {
                let (before, used) = (Cost::now(&redis).await?, server.processor()?);
                let answered = wrk.ask(server.port, seconds).await?;
                let used = server.processor()? - used;
                let cost = before.since(&redis, answered.requests).await?;
                seen[0].push(answered.per_second);
                seen[1].push(answered.per_second / *bare.get_or_insert(answered.per_second));
                seen[2].push(answered.p50_us);
                seen[3].push(answered.p99_us);
                #[allow(clippy::cast_precision_loss, reason = "a figure to look at")]
                seen[4].push(micros(used) / answered.requests as f64);
                seen[5].push(cost.processor_us);
            }
        }
        for (mode, seen) in MODES.into_iter().zip(seen) {
            let [per_second, ratio, p50, p99, used, redis] = seen.map(Spread::of);
            table.row([
                format!("{}, {spread}", number(agents.into())),
                mode.to_string(),
                per_second.to_string(),
                ratio.to_string(),
                p50.to_string(),
                p99.to_string(),
                used.to_string(),
                redis.to_string(),
            ]);
        }
    }
    println!("{rounds} rounds of {seconds} s each, {CONNECTIONS} connections\n\n{table}");
    Ok(())
}

/// Serves one short text behind the mode, until killed.
pub(crate) async fn serve(arguments: &mut Arguments) -> anyhow::Result<()> {
    let mode: Mode = arguments.required("the mode")?;
    let redis: String = arguments.required("the URL of Redis")?;
    let port: u16 = arguments.required("the port")?;
    let router = Router::new().route("/", get(async || "hello"));
    let router = Fit::unlimited(&redis).router(mode, router).await?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    Ok(axum::serve(listener, router).await?)
}

/// The requests that `wrk` asks, as a script of it.
struct Wrk {
    folder: Folder,
}

struct Answered {
    requests: usize,
    per_second: f64,
    p50_us: f64,
    p99_us: f64,
}

/// Builds every request once; at the end, prints what is read below.
const SCRIPT: &str = r#"
local requests, next = {}, 0
function init()
  for line in io.lines("requests.txt") do
    local token, agent = line:match("(%S+) (%S+)")
    requests[#requests + 1] =
      wrk.format("GET", "/", { ["authorization"] = "Bearer " .. token, ["x-agent"] = agent })
  end
end
function request()
  next = next % #requests + 1
  return requests[next]
end
function done(summary, latency)
  local errors = summary.errors
  io.write(string.format("figures %d %d %d %d %d\n", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99),
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
"#;

impl Wrk {
    fn new(crowd: &Crowd) -> Self {
        let mut random = SmallRng::seed_from_u64(1);
        let mut drawn = String::new();
        for _ in 0..DRAWN {
            let fields = crowd.fields(crowd.pick(&mut random));
            let text = |name: &str| fields[name].to_str().expect("tokens and ids are ASCII");
            let token = text("authorization").trim_start_matches("Bearer ");
            writeln!(drawn, "{token} {}", text(AGENT_HEADER)).expect("a string takes all");
        }
        let folder = Folder::new("wrk");
        folder.write("requests.txt", &drawn);
        folder.write("requests.lua", SCRIPT);
        Self { folder }
    }

    async fn ask(&self, port: u16, seconds: u64) -> anyhow::Result<Answered> {
        let output = Command::new("wrk")
            .args(["-t1", &format!("-c{CONNECTIONS}"), &format!("-d{seconds}s")])
            .args(["-s", "requests.lua", &format!("http://127.0.0.1:{port}/")])
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .context("wrk does not start: apt-get install wrk")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let figures = text.lines().find_map(|line| line.strip_prefix("figures "));
        let figures: Vec<u32> = figures
            .with_context(|| format!("wrk printed {text}"))?
            .split(' ')
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        let &[requests, micros, p50_us, p99_us, errors] = figures.as_slice() else {
            anyhow::bail!("wrk printed {text}");
        };
        ensure!(errors == 0, "{errors} requests were not answered 200: {text}");
        Ok(Answered {
            requests: usize::try_from(requests)?,
            per_second: f64::from(requests) / f64::from(micros) * 1e6,
            p50_us: p50_us.into(),
            p99_us: p99_us.into(),
        })
    }
}
