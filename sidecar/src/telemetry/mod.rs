//! Logs and metrics of the process: set up once, before anything takes a handle.
//!
//! Every metric of the system is described here, with its unit; every histogram has its buckets
//! here. Names are exported as they stand, without suffixes of the exporter's own.

mod bounded;

use std::{
    io::{self, IsTerminal},
    sync::OnceLock,
    time::Duration,
};

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::{
    EnvFilter, Layer as _,
    filter::{FilterExt as _, ParseError},
    fmt,
    layer::SubscriberExt as _,
    util::{SubscriberInitExt as _, TryInitError},
};

use self::bounded::Bounded;

/// What is logged unless the configuration or the environment says otherwise.
pub const DEFAULT_FILTER: &str = "info";

/// How many lines one place in the code writes in ten seconds, unless the configuration says otherwise.
pub const LINES_PER_PLACE: u32 = 50;

static BOUNDED: OnceLock<Bounded> = OnceLock::new();

/// How often samples are folded into their histograms: they would fill memory between scrapes.
const UPKEEP: Duration = Duration::from_secs(5);

/// Shares of a capacity, linear.
const SHARES: [f64; 11] = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];

/// Seconds of pure computation: 1 µs to 1 s.
const COMPUTATION: [f64; 16] =
    [1e-6, 2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 1e-1, 0.5, 1.0];

/// Seconds of one decision: an in-process store takes 1 µs, Redis 100 µs to the deadline of 20 ms.
const DECISION: [f64; 17] = [
    1e-6, 2e-6, 5e-6, 1e-5, 5e-5, 1e-4, 2e-4, 3e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 2.5e-2,
    5e-2, 0.1,
];

/// Seconds from a rating to its effect: 1 ms to 10 s, fine between 2 and 100 ms, where the promise
/// of 100 ms and the aim of 50 ms lie.
const EFFECT: [f64; 24] = [
    0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.008, 0.010, 0.012, 0.015, 0.020, 0.025, 0.030,
    0.040, 0.050, 0.060, 0.080, 0.100, 0.150, 0.250, 0.5, 1.0, 2.5, 10.0,
];

/// Seconds of one request or call over a network: 100 µs to 10 s.
const REQUEST: [f64; 15] =
    [1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// Refill rates, in tokens per second.
const RATES: [f64; 14] =
    [0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 100.0, 250.0, 1000.0, 10_000.0];

/// Rewards: what a rating is worth, -2 to 2.
const REWARDS: [f64; 9] = [-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0];

/// The buckets of every histogram of the system.
const HISTOGRAMS: [(&str, &[f64]); 9] = [
    ("bucket_utilization", &SHARES),
    ("rl_update_latency", &COMPUTATION),
    ("merit_decision_seconds", &DECISION),
    ("merit_rls_seconds", &DECISION),
    ("merit_rating_to_limit_seconds", &EFFECT),
    ("merit_ingest_seconds", &REQUEST),
    ("merit_bus_publish_seconds", &REQUEST),
    ("merit_refill_rate", &RATES),
    ("merit_reward", &REWARDS),
];

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One readable line for each event; colours when standard error is a terminal.
    #[default]
    Pretty,
    /// One JSON object for each event.
    Json,
}

/// Why logs or metrics could not be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TelemetryError {
    /// The filter cannot be read.
    #[error("log filter {filter:?} is malformed; write one like `info,merit_sidecar=debug`")]
    Filter {
        /// The filter.
        filter: String,
        /// What is wrong with it.
        #[source]
        source: ParseError,
    },
    /// Something in this process logs already.
    #[error("logs are set up already")]
    Logs(#[source] TryInitError),
    /// Something in this process exports metrics already, or buckets are malformed.
    #[error("metrics cannot be set up")]
    Metrics(#[source] BuildError),
}

/// Logs to standard error what `filter` lets through (directives as in `RUST_LOG`:
/// `info,merit_sidecar=debug`; empty means [`DEFAULT_FILTER`]); of `info` and graver, one place in the code
/// writes at most `per_place` lines in ten seconds (0 bounds nothing). What is left out is counted, and
/// told every few seconds once [`install_metrics`] was called.
///
/// # Errors
///
/// When the filter is malformed, or logs are set up already.
pub fn init_logs(format: LogFormat, filter: &str, per_place: u32) -> Result<(), TelemetryError> {
    let bounded = BOUNDED.get_or_init(|| Bounded::new(per_place));
    let filter = parse_filter(filter)?.and(bounded);
    let ansi = io::stderr().is_terminal();
    let lines = fmt::layer().with_writer(io::stderr).with_ansi(ansi);
    let lines = match format {
        LogFormat::Pretty => lines.boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    let subscriber = tracing_subscriber::registry().with(lines.with_filter(filter));
    subscriber.try_init().map_err(TelemetryError::Logs)
}

fn parse_filter(filter: &str) -> Result<EnvFilter, TelemetryError> {
    let filter = if filter.trim().is_empty() { DEFAULT_FILTER } else { filter };
    EnvFilter::builder()
        .parse(filter)
        .map_err(|source| TelemetryError::Filter { filter: filter.to_owned(), source })
}

/// Installs the process's metrics recorder, describes all metrics, and keeps it tidy from a task of
/// the present tokio runtime. Call it before anything that counts is built: handles are taken then.
///
/// # Errors
///
/// When a recorder is installed already.
pub fn install_metrics() -> Result<PrometheusHandle, TelemetryError> {
    let handle = builder()?.install_recorder().map_err(TelemetryError::Metrics)?;
    describe();
    tokio::spawn(keep_tidy(handle.clone()));
    Ok(handle)
}

async fn keep_tidy(handle: PrometheusHandle) {
    let mut ticks = tokio::time::interval(UPKEEP);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        handle.run_upkeep();
        if let Some(bounded) = BOUNDED.get() {
            bounded.tell();
        }
    }
}

fn builder() -> Result<PrometheusBuilder, TelemetryError> {
    HISTOGRAMS.iter().try_fold(PrometheusBuilder::new(), |builder, (name, buckets)| {
        builder
            .set_buckets_for_metric(Matcher::Full((*name).to_owned()), buckets)
            .map_err(TelemetryError::Metrics)
    })
}

/// Says of every metric what it is and in which unit.
fn describe() {
    describe_gauge!(
        "rating_rate",
        Unit::CountPerSecond,
        "Ratings accepted per second, mean of the last 10 s"
    );
    describe_histogram!(
        "bucket_utilization",
        "Share of the capacity in use at each decision, 0 to 1"
    );
    describe_histogram!(
        "rl_update_latency",
        Unit::Seconds,
        "Time a policy takes to turn a batch of ratings into decisions"
    );

    describe_gauge!("merit_connections", Unit::Count, "Open connections, by listener");
    describe_counter!(
        "merit_connections_ended_total",
        Unit::Count,
        "Connections that were ended here though they would have gone on, by listener and reason"
    );
    describe_counter!(
        "merit_ratings_accepted_total",
        Unit::Count,
        "Ratings that the bus acknowledged"
    );
    describe_counter!(
        "merit_ratings_refused_total",
        Unit::Count,
        "Ratings refused at ingest, by reason"
    );
    describe_counter!(
        "merit_receipts_checked_total",
        Unit::Count,
        "Ratings whose receipt was looked at, by outcome"
    );
    describe_histogram!(
        "merit_ingest_seconds",
        Unit::Seconds,
        "Time of one request at ingest, from its head to the answer"
    );
    describe_counter!(
        "merit_rls_descriptors_total",
        Unit::Count,
        "Descriptors that proxies asked about, by what they were told"
    );
    describe_histogram!(
        "merit_rls_seconds",
        Unit::Seconds,
        "Time of one call of a proxy, from its head to the answer"
    );
    describe_counter!(
        "merit_tee_total",
        Unit::Count,
        "Ratings that the upstream accepted, by what became of them here"
    );

    describe_feed();
    describe_histogram!(
        "merit_bus_publish_seconds",
        Unit::Seconds,
        "Time until the bus acknowledged a rating"
    );
    describe_counter!(
        "merit_schema_registry_requests_total",
        Unit::Count,
        "Questions to the schema registry, by outcome"
    );
    describe_gauge!(
        "merit_bus_waiting_partitions",
        Unit::Count,
        "Partitions that wait for the schema registry to describe a schema"
    );
    describe_counter!(
        "merit_bus_unframed_total",
        Unit::Count,
        "Records that name no schema, read where a schema registry is configured"
    );
    describe_counter!(
        "merit_bus_commit_errors_total",
        Unit::Count,
        "Commits of positions that the broker refused"
    );
    describe_counter!(
        "merit_ratings_dead_total",
        Unit::Count,
        "Records that no rating could be read from, put aside"
    );

    describe_histogram!(
        "merit_rating_to_limit_seconds",
        Unit::Seconds,
        "Time from a rating's acceptance until its limits are in force"
    );
    describe_counter!(
        "merit_ratings_folded_total",
        Unit::Count,
        "Ratings that reached the tuner, by outcome"
    );
    describe_counter!(
        "merit_ratings_set_aside_total",
        Unit::Count,
        "Ratings given up because their agent's data in the store cannot be read"
    );
    describe_counter!("merit_limit_writes_total", Unit::Count, "Writes of agents' limits");
    describe_counter!(
        "merit_limit_writes_stale_total",
        Unit::Count,
        "Writes that somebody else's forestalled"
    );
    describe_counter!(
        "merit_tuner_store_failures_total",
        Unit::Count,
        "Calls of the tuner that the store did not answer"
    );
    describe_counter!(
        "merit_tuner_gaps_total",
        Unit::Count,
        "Partitions whose log began after what was applied of it when they were taken over: ratings are lost"
    );
    describe_counter!(
        "merit_tuner_rewinds_total",
        Unit::Count,
        "Times the tuner went back on the bus because the store lost writes"
    );
    describe_gauge!(
        "merit_bus_lag_ratings",
        Unit::Count,
        "Ratings on the bus that the tuner has not read yet"
    );
    describe_counter!(
        "merit_bus_partition_faults_total",
        Unit::Count,
        "Times a partition of the bus could not be used while others could"
    );
    describe_gauge!(
        "merit_tuner_agents",
        Unit::Count,
        "Agents whose state the tuner holds in memory"
    );
    describe_counter!(
        "merit_clock_jumps_total",
        Unit::Count,
        "Times the system clock was set by two seconds or more, by direction"
    );
    describe_gauge!(
        "merit_tuner_stopped_partitions",
        Unit::Count,
        "Partitions that stopped until an operator acts"
    );

    describe_counter!(
        "merit_decision_log_rows_total",
        Unit::Count,
        "Policy decisions for the decision log: written, or dropped and why"
    );
    describe_histogram!("merit_refill_rate", "Refill rates written, in tokens per second");
    describe_histogram!("merit_reward", "What ratings were worth to the policy");

    describe_counter!(
        "merit_decisions_total",
        Unit::Count,
        "Requests decided by admission, by outcome; shadow_* passed all the same"
    );
    describe_counter!(
        "merit_would_deny_total",
        Unit::Count,
        "Requests that passed and that a bucket would have refused, were it not only watched"
    );
    describe_counter!(
        "merit_receipts_issued_total",
        Unit::Count,
        "Answers for a user other than the agent, by whether they carry a receipt"
    );
    describe_histogram!(
        "merit_decision_seconds",
        Unit::Seconds,
        "Time of one decision by a store outside the process, identity included"
    );
    describe_counter!(
        "merit_store_failures_total",
        Unit::Count,
        "Decisions that the bucket store failed to give in time"
    );
    describe_counter!(
        "merit_store_failovers_total",
        Unit::Count,
        "Masters of the bucket store that were replaced or restarted, as seen by decisions or limits"
    );
    describe_counter!(
        "merit_store_skipped_total",
        Unit::Count,
        "Decisions made without the store while its breaker was open"
    );
    describe_counter!(
        "merit_jwks_fetches_total",
        Unit::Count,
        "Fetches of the key set, by outcome: ok, failed, or refused for what it holds"
    );
    describe_gauge!("merit_jwks_keys", Unit::Count, "Keys of the key set that are in force");
    describe_gauge!(
        "merit_jwks_age_seconds",
        Unit::Seconds,
        "Time since the key set was last fetched"
    );
    describe_counter!(
        "merit_log_lines_left_out_total",
        Unit::Count,
        "Log lines that were left out because one place in the code wrote too many"
    );
    describe_counter!(
        "merit_traces_left_out_total",
        Unit::Count,
        "Requests that were to be traced and were one too many in their second"
    );
    describe_counter!(
        "merit_gateway_failures_total",
        Unit::Count,
        "Requests without an answer of the upstream, by reason"
    );
}

/// The feed bridge's.
fn describe_feed() {
    for (name, what) in [
        ("merit_feed_connects_total", "First connections to the feed"),
        ("merit_feed_reconnects_total", "Connections to the feed after one was lost"),
        ("merit_feed_received_total", "Ratings taken from the feed"),
        ("merit_feed_forwarded_total", "Ratings of the feed that were delivered, by where"),
        (
            "merit_feed_refused_total",
            "Frames and ratings of the feed that were put aside, by who refused them",
        ),
        ("merit_feed_errors_total", "What failed at the feed bridge and is tried again, by kind"),
        ("merit_feed_gaps_total", "Connections that did not go on from the last id of the feed"),
        ("merit_feed_pauses_total", "Answers that told the feed bridge to wait"),
    ] {
        describe_counter!(name, Unit::Count, what);
    }
    describe_gauge!(
        "merit_checkpoint_timestamp_seconds",
        Unit::Seconds,
        "When the checkpoint of `ppo` on the volume was written, Unix time; 0 while there is none"
    );
    describe_gauge!(
        "merit_personalize_checkpoint_timestamp_seconds",
        Unit::Seconds,
        "When the checkpoint of personalised ratings was written by this process, Unix time"
    );
    describe_gauge!("merit_feed_connected", "1 while the feed is connected, else 0");
    describe_gauge!("merit_feed_queue_depth", Unit::Count, "Ratings of the feed that wait");
    describe_gauge!(
        "merit_feed_lag_seconds",
        Unit::Seconds,
        "Age of the oldest rating of the feed that waits"
    );
    describe_gauge!("merit_feed_spool_bytes", Unit::Bytes, "Size of the feed bridge's spool");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(record: impl FnOnce()) -> String {
        let recorder = builder().unwrap().build_recorder();
        metrics::with_local_recorder(&recorder, || {
            describe();
            record();
        });
        recorder.handle().render()
    }

    #[test]
    fn every_histogram_is_exported_with_its_own_buckets_and_exact_name() {
        let text = rendered(|| {
            for (name, _) in HISTOGRAMS {
                metrics::histogram!(name).record(0.05);
            }
        });
        for (name, buckets) in HISTOGRAMS {
            assert!(text.contains(&format!("# TYPE {name} histogram")), "{name}");
            for bound in buckets {
                assert!(
                    text.contains(&format!("{name}_bucket{{le=\"{bound}\"}}")),
                    "{name} {bound}"
                );
            }
        }
        assert!(!text.contains("quantile"), "a histogram became a summary:\n{text}");
    }

    #[test]
    fn the_three_names_that_dashboards_expect_carry_no_suffix() {
        let text = rendered(|| {
            metrics::gauge!("rating_rate").set(2.5);
            metrics::histogram!("bucket_utilization").record(0.5);
            metrics::histogram!("rl_update_latency").record(0.001);
        });
        for line in ["rating_rate 2.5", "bucket_utilization_count 1", "rl_update_latency_count 1"] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn bounds_grow_and_are_finite() {
        for (name, buckets) in HISTOGRAMS {
            assert!(buckets.is_sorted_by(|a, b| a < b), "{name}");
            assert!(buckets.iter().all(|bound| bound.is_finite()), "{name}");
        }
    }

    #[test]
    fn the_promised_latency_can_be_read_from_the_buckets() {
        for bound in [0.002, 0.05, 0.1] {
            assert!(EFFECT.contains(&bound), "{bound}");
        }
        let fine = EFFECT.iter().filter(|bound| (0.002..=0.1).contains(*bound)).count();
        assert!(fine >= 15, "{fine}");
    }

    #[test]
    fn a_filter_is_read_as_rust_log_is() {
        for filter in ["", "info", "info,merit_sidecar=debug", "merit_sidecar::ingest=trace,off"] {
            assert!(parse_filter(filter).is_ok(), "{filter}");
        }
        let error = parse_filter("merit=loud=very").unwrap_err().to_string();
        assert!(error.contains("merit=loud=very"), "{error}");
    }
}
