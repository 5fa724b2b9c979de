//! Figures that take long: each subcommand prints one table in Markdown. Release builds only.
//!
//! ```text
//! integration/load decisions [SECONDS] [ROUNDS]          # and throughput, peers, faults, leases, memory
//! ```
//!
//! Every server is started here, on loopback, and ends with this process. Rounds of the things that are
//! compared are interleaved; a figure is their median, with the lowest and the highest beside it.

mod contention;
mod crowd;
mod decisions;
mod faults;
mod figures;
mod load;
mod memory;
mod peers;
mod redis_cost;
mod rls;
mod throughput;
mod tools;
mod wear;

use std::str::FromStr;

use anyhow::{Context as _, bail};

/// The rest of the command line.
pub(crate) struct Arguments(std::iter::Skip<std::env::Args>);

impl Arguments {
    /// Returns the next argument, or `default` when there is none.
    pub(crate) fn or<T: FromStr>(&mut self, default: T) -> anyhow::Result<T>
    where
        T::Err: std::error::Error + Send + Sync + 'static,
    {
        let Some(text) = self.0.next() else { return Ok(default) };
        text.parse().with_context(|| format!("argument {text:?}"))
    }

    /// Returns the next argument, which must be there.
    pub(crate) fn required<T: FromStr>(&mut self, what: &str) -> anyhow::Result<T>
    where
        T::Err: std::error::Error + Send + Sync + 'static,
    {
        let text = self.0.next().with_context(|| format!("{what} is missing"))?;
        text.parse().with_context(|| format!("{what} {text:?}"))
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = Arguments(std::env::args().skip(1));
    let what: String = arguments.required("a subcommand")?;
    match what.as_str() {
        "decisions" => decisions::run(&mut arguments).await,
        "throughput" => throughput::run(&mut arguments).await,
        "peers" => peers::run(&mut arguments).await,
        "faults" => faults::run(&mut arguments).await,
        "leases" => contention::run(&mut arguments).await,
        "memory" => memory::run(&mut arguments).await,
        // What the above start as processes of their own.
        throughput::SERVE => throughput::serve(&mut arguments).await,
        peers::SERVE => peers::serve(&mut arguments).await,
        contention::NODE => contention::node(&mut arguments).await,
        memory::FILL => memory::fill(&mut arguments).await,
        other => {
            bail!(
                "unknown subcommand {other:?}: decisions, throughput, peers, faults, leases, memory"
            )
        }
    }
}
