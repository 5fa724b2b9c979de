//! Decisions over one Redis: written by hand, and ours in each mode.

use std::{sync::Arc, time::Duration};

use anyhow::ensure;
use merit_integration::{Persistence, Redis};

use crate::{
    Arguments,
    crowd::{self, Crowd},
    figures::{Spread, Table, micros, number},
    load,
    redis_cost::Cost,
    wear::{Fit, Mode},
};

const AGENTS: u32 = 10_000;
const CONCURRENT: [u64; 3] = [1, 64, 256];
const MODES: [Mode; 3] = [Mode::Plain, Mode::Exact, Mode::Leased];

/// Long enough that nearly every agent has a bucket when counting begins.
const WARM_UP: Duration = Duration::from_secs(3);

#[derive(Default)]
struct Rounds {
    per_second: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
    script: Vec<f64>,
    processor: Vec<f64>,
    in_one_call: Vec<f64>,
}

pub(crate) async fn run(arguments: &mut Arguments) -> anyhow::Result<()> {
    let seconds = Duration::from_secs(arguments.or(5)?);
    let rounds: u32 = arguments.or(5)?;
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let fit = Fit::unlimited(&redis.url());
    let mut table = Table::new([
        "agents",
        "concurrent",
        "layer",
        "decisions/s",
        "p50, µs",
        "p99, µs",
        "script µs per decision",
        "of plain",
        "Redis CPU µs per decision",
        "of plain",
        "decisions per call",
    ]);
    for spread in [crowd::Spread::Uniform, crowd::Spread::Zipf] {
        let crowd = Arc::new(Crowd::new(AGENTS, spread));
        let mut services = Vec::new();
        for mode in MODES {
            let service = fit.service(mode).await?;
            load::closed(&service, &crowd, 256, WARM_UP).await;
            services.push(service);
        }
        for concurrent in CONCURRENT {
            let mut seen: Vec<Rounds> = MODES.map(|_| Rounds::default()).into();
            for _ in 0..rounds {
                for (service, seen) in services.iter().zip(&mut seen) {
                    let before = Cost::now(&redis).await?;
                    let run = load::closed(service, &crowd, concurrent, seconds).await;
                    ensure!(run.refused == 0, "{} requests were not admitted", run.refused);
                    let cost = before.since(&redis, run.samples.len()).await?;
                    seen.per_second.push(run.per_second());
                    let [p50, p99] = run.samples.quantiles([0.5, 0.99]);
                    seen.p50.push(micros(p50));
                    seen.p99.push(micros(p99));
                    seen.script.push(cost.script_us);
                    seen.processor.push(cost.processor_us);
                    seen.in_one_call.push(cost.in_one_call);
                }
            }
            let mut plain = None;
            for (mode, seen) in MODES.into_iter().zip(seen) {
                let (script, processor) = (Spread::of(seen.script), Spread::of(seen.processor));
                let (plain_script, plain_processor) =
                    *plain.get_or_insert((script.median, processor.median));
                table.row([
                    spread.to_string(),
                    concurrent.to_string(),
                    mode.to_string(),
                    Spread::of(seen.per_second).to_string(),
                    Spread::of(seen.p50).to_string(),
                    Spread::of(seen.p99).to_string(),
                    script.to_string(),
                    format!("{:.2}", script.median / plain_script),
                    processor.to_string(),
                    format!("{:.2}", processor.median / plain_processor),
                    number(Spread::of(seen.in_one_call).median),
                ]);
            }
        }
    }
    println!("{rounds} rounds of {seconds:?} each, {AGENTS} agents\n\n{table}");
    Ok(())
}
