//! A million agents, each with a token of its own, pass through the layer once: what stays in memory?

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, bail, ensure};
use merit_integration::{Persistence, Redis, ports};
use tokio::{process::Command, task::JoinSet};
use tower_merit::{MemoryStore, Outage, store::leased::LEASES_MAX};

use crate::{
    Arguments, crowd,
    figures::{Table, number},
    wear::{Fit, Mode},
};

/// The subcommand that is one of the processes measured.
pub(crate) const FILL: &str = "memory-of";

/// The mode in which Redis is away and the node limits by itself.
const LOCAL: &str = "local";

/// Agents that ask at the same time, over Redis.
const CONCURRENT: u32 = 64;

/// What a kept agent may take in this process, in bytes, with an id as short as here.
const AGENT_BYTES: usize = 400;

/// What the program, its threads, remembered tokens and denials may take.
const REST_BYTES: usize = 48 << 20;

/// Returns how many agents a mode keeps, as shipped.
fn kept(mode: &str) -> usize {
    match mode {
        LOCAL => LOCAL_AGENTS,
        _ if mode == Mode::InProcess.word() => MemoryStore::AGENTS_MAX,
        _ if mode == Mode::Leased.word() => LEASES_MAX,
        _ => 0,
    }
}

/// Agents that the layer limits by itself while Redis is away: `LOCAL_AGENTS_MAX` of outage.rs.
const LOCAL_AGENTS: usize = 1 << 17;

/// At which shares of the agents RSS is read, in per cent.
const SHARES: [u32; 5] = [0, 25, 50, 100, 200];

pub(crate) async fn run(arguments: &mut Arguments) -> anyhow::Result<()> {
    let agents: u32 = arguments.or(1_000_000)?;
    let mut table = Table::new([
        "mode",
        "RSS before, MiB",
        "¼",
        "½",
        "all",
        "twice as many",
        "peak, MiB",
        "bound, MiB",
        "bytes per agent (before → all)",
        "Redis bytes per agent",
    ]);
    for mode in [Mode::InProcess.word(), Mode::Exact.word(), Mode::Leased.word(), LOCAL] {
        let redis = Redis::start(Persistence::SnapshotOnDemand).await;
        let empty = used_memory(&redis).await?;
        let nobody = format!("redis://127.0.0.1:{}", ports::free());
        let url = if mode == LOCAL { nobody } else { redis.url() };
        let output = Command::new(std::env::current_exe()?)
            .args([FILL, mode, &url, &agents.to_string()])
            .kill_on_drop(true)
            .output()
            .await?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{mode}: {errors}");
        let text = String::from_utf8(output.stdout)?;
        let rss: Vec<f64> = text.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        let &[before, quarter, half, all, twice, peak] = rss.as_slice() else {
            bail!("{mode} printed {text:?}");
        };
        #[allow(clippy::cast_precision_loss, reason = "below 2^52")]
        let bound = (kept(mode) * AGENT_BYTES + REST_BYTES) as f64;
        ensure!(peak <= bound, "{mode} took {peak} bytes, which is above {bound}");
        let mebi = |bytes: f64| number(bytes / f64::from(1 << 20));
        let in_redis = (used_memory(&redis).await? - empty) / f64::from(agents) / 2.0;
        let asks_redis = mode != LOCAL && mode != Mode::InProcess.word();
        table.row([
            mode.to_owned(),
            mebi(before),
            mebi(quarter),
            mebi(half),
            mebi(all),
            mebi(twice),
            mebi(peak),
            mebi(bound),
            number((all - before) / f64::from(agents)),
            if asks_redis { number(in_redis) } else { "–".to_owned() },
        ]);
    }
    println!("{agents} agents, then as many others\n\n{table}");
    Ok(())
}

/// Sends twice as many agents as told through the layer; prints RSS on the way, in bytes, and its peak.
pub(crate) async fn fill(arguments: &mut Arguments) -> anyhow::Result<()> {
    let mode: String = arguments.required("the mode")?;
    let redis: String = arguments.required("the URL of Redis")?;
    let agents: u32 = arguments.required("how many agents")?;
    let mut fit = Fit::unlimited(&redis);
    (fit.refill_rate, fit.capacity) = (20.0, 40);
    fit.token_cache = tower_merit::identity::jwt::CACHE_DEFAULT;
    let service = if mode == LOCAL {
        (fit.on_outage, fit.timeout) = (Outage::Local, Duration::from_millis(20));
        fit.service_lazily()?
    } else {
        fit.service(mode.parse()?).await?
    };
    // Threads, connections and tables are there before the first reading.
    let warm = crowd::fields("warm");
    ensure!(service.clone().ask(&warm).await.status().is_success(), "the first request passes");

    print!("{}", status("VmRSS")?);
    let service = Arc::new(service);
    for step in SHARES.windows(2) {
        let [from, to] = [step[0], step[1]].map(|share| agents / 100 * share);
        let mut askers = JoinSet::new();
        for asker in 0..CONCURRENT {
            let mut service = (*service).clone();
            askers.spawn(async move {
                for number in (from..to).filter(|number| number % CONCURRENT == asker) {
                    let fields = crowd::fields(&crowd::name(number));
                    let status = service.ask(&fields).await.status();
                    ensure!(status.is_success(), "agent {number} was answered {status}");
                    tokio::task::consume_budget().await;
                }
                Ok(())
            });
        }
        for asker in askers.join_all().await {
            asker?;
        }
        print!(" {}", status("VmRSS")?);
    }
    println!(" {}", status("VmHWM")?);
    Ok(())
}

/// Returns a size of this process in bytes.
fn status(name: &str) -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kibi = line.and_then(|line| line.trim().strip_suffix(" kB"));
    Ok(kibi.with_context(|| format!("/proc/self/status has no {name}"))?.parse::<u64>()? * 1024)
}

async fn used_memory(redis: &Redis) -> anyhow::Result<f64> {
    let info: String = redis.ask(&["INFO", "memory"]).await;
    let line = info.lines().find_map(|line| line.strip_prefix("used_memory:"));
    Ok(line.context("INFO memory has no used_memory")?.trim().parse()?)
}
