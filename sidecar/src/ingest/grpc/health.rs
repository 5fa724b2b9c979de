//! `grpc.health.v1.Health`: whether the bus takes ratings, asked once a second.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tonic_health::{
    ServingStatus,
    pb::health_server::{Health, HealthServer},
    server::{HealthReporter, HealthService},
};
use tracing::info;

use super::{Ingest, SERVICE};

/// How often the bus is asked; it answers from what it knows for two seconds.
const EVERY: Duration = Duration::from_secs(1);

/// The names that health is asked for: the process as a whole, and the service.
const NAMES: [&str; 2] = ["", SERVICE];

/// Returns the health service, kept current by a task until `stop` is cancelled; then watchers are
/// told, and let go.
pub(super) fn follow(ingest: Ingest, stop: CancellationToken) -> HealthServer<impl Health> {
    let reporter = HealthReporter::new();
    let service = HealthServer::new(HealthService::from_health_reporter(reporter.clone()));
    tokio::spawn(async move {
        let followed = stop.run_until_cancelled(report(&ingest, &reporter)).await;
        debug_assert!(followed.is_none(), "reporting has no end of its own");
        drop(ingest);
        say(&reporter, ServingStatus::NotServing).await;
        let mut reporter = reporter;
        for name in NAMES {
            reporter.clear_service_status(name).await;
        }
    });
    service
}

async fn report(ingest: &Ingest, reporter: &HealthReporter) {
    let mut ticks = tokio::time::interval(EVERY);
    let mut told = None;
    loop {
        let status = match ingest.inner.publisher.check().await {
            Ok(()) => ServingStatus::Serving,
            Err(_) => ServingStatus::NotServing,
        };
        // Every word of the reporter reaches all watchers, also one that is no news.
        if told.replace(status) != Some(status) {
            say(reporter, status).await;
            info!(?status, "gRPC health changes");
        }
        ticks.tick().await;
    }
}

async fn say(reporter: &HealthReporter, status: ServingStatus) {
    for name in NAMES {
        reporter.set_service_status(name, status).await;
    }
}
