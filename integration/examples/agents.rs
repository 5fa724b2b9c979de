//! What agents take in the memory of a tuner, and that it stays flat past `[tuner] agents_max`.
//!
//! ```text
//! integration/load agents [POLICY] [AGENTS] [AGENTS_MAX] [RATINGS]   # default additive 1000000 200000 1
//! ```
//!
//! A whole tuner over the in-process bus and a store that takes every write and keeps nothing, so that what is
//! resident is the tuner's. Every agent is rated RATINGS times (a full window of ids is 544), then as many others
//! are. Prints one line of JSON: MiB of RSS before, at each quarter, after all, after the others; and bytes per
//! agent held.

#![allow(clippy::cast_precision_loss, reason = "figures to look at")]

use std::time::Duration;

use anyhow::Context;
use merit_sidecar::{
    bus::{Consumer, PublishError, Publisher, in_process},
    policy::{self, Kind},
    rating::{Poster, RatingRequest},
    tuner::{Plan, Tuner},
};
use tokio_util::sync::CancellationToken;
use tower_merit::{
    AgentId,
    bucket::Limits,
    store::{
        Bid, ByHand, Change, Cursor, Demand, Document, Kept, Life, Quote, Record, StoreError,
        Traded, Tune, Written,
    },
};

const MIB: f64 = 1024.0 * 1024.0;
/// How long the loop is left alone when its queue is full.
const PAUSE: Duration = Duration::from_micros(200);

/// A store that takes every write and keeps nothing.
struct Nowhere;

impl Tune for Nowhere {
    async fn load(
        &self,
        agents: &[AgentId],
    ) -> Result<Vec<Result<Record, StoreError>>, StoreError> {
        Ok(agents.iter().map(|_| Ok(Record::default())).collect())
    }

    async fn demand(
        &self,
        agents: &[AgentId],
    ) -> Result<Vec<Result<Demand, StoreError>>, StoreError> {
        Ok(agents.iter().map(|_| Ok(Demand::default())).collect())
    }

    async fn write(
        &self,
        changes: &[Change],
    ) -> Result<Vec<Result<Written, StoreError>>, StoreError> {
        let done =
            |change: &Change| Written::Done { rev: change.rev + 1, demand: Demand::default() };
        Ok(changes.iter().map(|change| Ok(done(change))).collect())
    }

    async fn agents(
        &self,
        _: Cursor,
        _: usize,
    ) -> Result<(Vec<AgentId>, Option<Cursor>), StoreError> {
        Ok((Vec::new(), None))
    }

    async fn used(&self) -> Result<Vec<(String, u64)>, StoreError> {
        Ok(Vec::new())
    }

    async fn trade(&self, _: &Bid) -> Result<Traded, StoreError> {
        Ok(Traded { leads: true, quote: Some(Quote { price: 0.0, use_share: 1.0 }) })
    }

    async fn by_hand(&self, _: &AgentId, _: &ByHand) -> Result<(), StoreError> {
        Ok(())
    }

    async fn life(&self) -> Result<Life, StoreError> {
        Ok(Life { run_id: "nowhere".to_owned(), epoch: Some("1".to_owned()) })
    }

    async fn begin_epoch(&self, _: &str) -> Result<(), StoreError> {
        Ok(())
    }

    async fn progress(&self) -> Result<Vec<(String, u64)>, StoreError> {
        Ok(Vec::new())
    }

    async fn note_progress(&self, _: &[(String, u64)]) -> Result<(), StoreError> {
        Ok(())
    }

    async fn document(&self) -> Result<Document, StoreError> {
        Ok(Document::default())
    }

    async fn keep_document(&self, rev: u64, _: Option<&str>) -> Result<Kept, StoreError> {
        Ok(Kept::Done { rev: rev + 1 })
    }

    async fn look(&self, _: &AgentId) -> Result<Record, StoreError> {
        Ok(Record::default())
    }
}

/// Resident bytes of this process.
fn resident() -> anyhow::Result<f64> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages: f64 = statm.split(' ').nth(1).context("statm has a second field")?.parse()?;
    Ok(pages * 4096.0)
}

/// Puts ratings on the bus as fast as the loop takes them.
struct Rater {
    publisher: Publisher,
    poster: Poster,
    rated: u64,
}

impl Rater {
    async fn rate(&mut self, agents: std::ops::Range<usize>) -> anyhow::Result<()> {
        for agent in agents {
            self.rated += 1;
            let body = format!(
                r#"{{"agent_id":"agent-{agent:07}","user_id":"user-{}","score":4,"id":"m{}"}}"#,
                self.rated % 20_000,
                self.rated
            );
            let request = RatingRequest::from_json(body.as_bytes())?;
            let at_us = 1_800_000_000_000_000 + self.rated;
            let rating = request.into_rating(self.poster.clone(), at_us)?;
            loop {
                match self.publisher.publish(&rating).await {
                    Ok(()) => break,
                    Err(PublishError::Full { .. }) => tokio::time::sleep(PAUSE).await,
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let kind = arguments.next().unwrap_or_else(|| "additive".to_owned());
    let mut number = |default: usize| {
        arguments.next().map_or(Ok(default), |text| text.parse().context("not a number"))
    };
    let (agents, agents_max, ratings) = (number(1_000_000)?, number(200_000)?, number(1)?);
    let kind = Kind::try_from(kind).map_err(anyhow::Error::msg)?;
    let service_capacity = (kind != Kind::Additive).then_some(50_000.0);
    let config = policy::Config { kind, service_capacity, ..policy::Config::default() };
    let mut plan = Plan::new(config, Limits::per_second(20.0, 40)?);
    plan.tuner.agents_max = agents_max;
    let (publisher, consumer) = in_process::channel(&in_process::Config::default());
    let tuner = Tuner::new(Consumer::InProcess(consumer), Nowhere, plan);
    let running = tokio::spawn(tuner.run(CancellationToken::new()));
    let publisher = Publisher::InProcess(publisher);
    let poster = Poster::new("memory").context("a name")?;
    let mut rater = Rater { publisher, poster, rated: 0 };
    // The loop, its queue and one batch are there before anything is counted.
    let few = 1_000.min(agents);
    for _ in 0..20 {
        rater.rate(0..few).await?;
    }
    let before = resident()?;

    let quarter = agents.div_ceil(4);
    let mut quarters = Vec::new();
    for part in 0..4 {
        let part = part * quarter..((part + 1) * quarter).min(agents);
        // All of a part once, then again: windows fill as they do in service, side by side.
        for _ in 0..ratings {
            rater.rate(part.clone()).await?;
        }
        quarters.push(resident()? / MIB);
    }
    let all = resident()?;
    for _ in 0..ratings {
        rater.rate(agents..2 * agents).await?;
    }
    let twice = resident()?;
    drop(rater);
    running.await??;
    let held = agents.min(agents_max);
    println!(
        "{}",
        serde_json::json!({
            "policy": kind, "agents": agents, "agents_max": agents_max, "ratings_each": ratings,
            "held": held, "before_mib": before / MIB, "quarters_mib": quarters,
            "all_mib": all / MIB, "as_many_others_mib": twice / MIB,
            "bytes_per_agent_held": if held > few {
                Some((all - before) / (held - few) as f64)
            } else {
                None
            },
        })
    );
    Ok(())
}
