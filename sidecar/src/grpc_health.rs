//! `grpc.health.v1.Health` of a listener: whether what it needs is there, asked once a second.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tonic_health::{
    ServingStatus,
    pb::health_server::{Health, HealthServer},
    server::{HealthReporter, HealthService},
};
use tracing::info;

/// How often it is asked.
const EVERY: Duration = Duration::from_secs(1);

/// Returns the health service of `service`, which is also that of the process as a whole: serving while `serves`
/// says so, kept current by a task until `stop` is cancelled; then watchers are told, and let go.
pub(crate) fn follow<C, F>(
    service: &'static str,
    serves: C,
    stop: CancellationToken,
) -> HealthServer<impl Health>
where
    C: Fn() -> F + Send + Sync + 'static,
    F: Future<Output = bool> + Send,
{
    let reporter = HealthReporter::new();
    let health = HealthServer::new(HealthService::from_health_reporter(reporter.clone()));
    // The names that health is asked for.
    let names = ["", service];
    tokio::spawn(async move {
        let followed = stop.run_until_cancelled(report(&serves, &reporter, names)).await;
        debug_assert!(followed.is_none(), "reporting has no end of its own");
        drop(serves);
        say(&reporter, names, ServingStatus::NotServing).await;
        let mut reporter = reporter;
        for name in names {
            reporter.clear_service_status(name).await;
        }
    });
    health
}

async fn report<C, F>(serves: &C, reporter: &HealthReporter, names: [&'static str; 2])
where
    C: Fn() -> F,
    F: Future<Output = bool>,
{
    let mut ticks = tokio::time::interval(EVERY);
    let mut told = None;
    loop {
        let status = match serves().await {
            true => ServingStatus::Serving,
            false => ServingStatus::NotServing,
        };
        // Every word of the reporter reaches all watchers, also one that is no news.
        if told.replace(status) != Some(status) {
            say(reporter, names, status).await;
            info!(service = names[1], ?status, "gRPC health changes");
        }
        ticks.tick().await;
    }
}

async fn say(reporter: &HealthReporter, names: [&'static str; 2], status: ServingStatus) {
    for name in names {
        reporter.set_service_status(name, status).await;
    }
}
