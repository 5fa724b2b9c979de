//! What decisions cost the server, as the server counts it.

use anyhow::Context as _;
use merit_integration::Redis;

/// Commands that a client sends to decide. Their time includes what they call inside, which the server
/// lists once more under its own name: only these are added up.
const DECIDING: [&str; 4] = ["evalsha", "eval", "fcall", "script|load"];

/// Counters of the server, at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    /// Seconds spent in scripts.
    script: f64,
    /// Processor seconds of the server's main thread: scripts, parsing, sockets.
    processor: f64,
    /// Script calls.
    calls: f64,
}

/// What one decision cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PerDecision {
    /// Microseconds in scripts.
    pub(crate) script_us: f64,
    /// Microseconds of the server's main thread.
    pub(crate) processor_us: f64,
    /// Decisions in one call.
    pub(crate) in_one_call: f64,
}

impl Cost {
    /// Reads the counters.
    pub(crate) async fn now(redis: &Redis) -> anyhow::Result<Self> {
        let stats: String = redis.ask(&["INFO", "commandstats"]).await;
        let (mut script, mut calls) = (0.0, 0.0);
        for name in DECIDING {
            let Some(line) =
                stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{name}:")))
            else {
                continue;
            };
            script += field(line, "usec")? / 1e6;
            calls += if name.starts_with("script") { 0.0 } else { field(line, "calls")? };
        }
        let cpu: String = redis.ask(&["INFO", "cpu"]).await;
        let seconds = |name: &str| -> anyhow::Result<f64> {
            let line = cpu.lines().find_map(|line| line.strip_prefix(name));
            Ok(line.with_context(|| format!("INFO cpu has no {name}"))?.trim().parse()?)
        };
        let processor =
            seconds("used_cpu_user_main_thread:")? + seconds("used_cpu_sys_main_thread:")?;
        Ok(Self { script, processor, calls })
    }

    /// Returns what each of `decisions` cost since `self` was read.
    #[allow(clippy::cast_precision_loss, reason = "a figure to look at")]
    pub(crate) async fn since(
        self,
        redis: &Redis,
        decisions: usize,
    ) -> anyhow::Result<PerDecision> {
        let now = Self::now(redis).await?;
        let each = |seconds: f64| seconds * 1e6 / decisions as f64;
        Ok(PerDecision {
            script_us: each(now.script - self.script),
            processor_us: each(now.processor - self.processor),
            in_one_call: decisions as f64 / (now.calls - self.calls),
        })
    }
}

fn field(line: &str, name: &str) -> anyhow::Result<f64> {
    let found = line.split(',').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    Ok(found.with_context(|| format!("{line:?} has no {name}"))?.trim().parse()?)
}
