//! What an operator and an orchestrator ask of this process: is it alive, is it ready, what counts it?
//!
//! 1. `/healthz` is 200 while the process serves at all.
//! 2. `/readyz` is 200 when every configured part answers, and 503 with the faults otherwise, or
//!    while the process drains.
//! 3. `/metrics` is Prometheus text.
//! 4. The admin listener also tells of agents, and does to them what an operator decides (`console`).
//! 5. The metrics listener has the first three; the admin listener also checks `Host`, so that no web
//!    page reaches it by rebinding a name, and requires a token where others can reach it.

mod audit;

mod buckets;

mod config;

mod console;

mod guard;

mod health;

mod measured;

mod page;

mod roster;

pub use buckets::{Book, Check, Read};
pub use config::{Config, MetricsConfig};
pub use console::Console;
pub use guard::{ADMIN_TOKEN_MIN, AdminError, AdminToken};
pub use health::{CHECK_DEADLINE, Health, Part, REPORT_FRESH, Report};
pub use roster::{AgentRow, PAGE_SIZE_MAX, Page, ROSTER_MAX, SAMPLES, Sample};

use std::{path::Path, sync::Arc};

use self::audit::Audit;
use axum::{
    Json, Router,
    body::Body,
    extract::State,
    middleware,
    response::{IntoResponse, Response},
    routing::get,
};
use http::{StatusCode, header};
use metrics_exporter_prometheus::PrometheusHandle;
use tower_merit::{
    Problem,
    store::{Spend, Tune},
};

use crate::{
    openapi::{self, Listener},
    tuner::Busiest,
};

/// The Prometheus text format.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The routes of the admin listener, one a line.
const INDEX: &str = "\
merit

/healthz   the process serves
/readyz    every configured part answers
/metrics   Prometheus text
/overview  what goes on, as JSON
/agents    agents, their limits, and why they have them
/policy    the policy in force
/audit     what operators did
/buckets   buckets and routes in force, and others in their place
/openapi.json   the routes, for machines
";

/// What a scraper is told.
#[derive(Clone, Debug)]
pub struct Exposition {
    /// What the process counted.
    pub recorded: PrometheusHandle,
    /// The agents that its tuner finds rated most, by name; none where no tuner runs.
    pub busiest: Option<Busiest>,
}

impl Exposition {
    /// Returns it as Prometheus text.
    fn render(&self) -> String {
        let mut text = self.recorded.render();
        if let Some(busiest) = &self.busiest {
            busiest.render(&mut text);
        }
        text
    }
}

/// Returns the routes of the metrics listener.
pub fn probes(health: Health, metrics: Exposition) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(async |State(health): State<Health>| ready(&health).await))
        .with_state(health)
        .route(
            "/metrics",
            get(async move || ([(header::CONTENT_TYPE, METRICS_TYPE)], metrics.render())),
        )
        .fallback(async || refuse(StatusCode::NOT_FOUND, "no such route"))
        .method_not_allowed_fallback(async || {
            refuse(StatusCode::METHOD_NOT_ALLOWED, "this route does not have this method")
        })
}

/// Returns the routes of the admin listener, `book`'s among them, and a future that keeps what they show as
/// long as it is polled; `token` is what [`Config::token`] returns.
///
/// # Errors
///
/// When the listener can be reached from other machines and there is no token, or the audit log cannot be
/// opened.
pub fn router<T: Tune + Spend + Clone, B: Tune + Clone>(
    config: &Config,
    token: Option<AdminToken>,
    health: Health,
    metrics: Exposition,
    console: Console<T>,
    book: Option<Book<B>>,
) -> Result<(Router, impl Future<Output = ()> + Send + 'static), AdminError> {
    let guard = guard::Guard::new(config, token)?;
    let audit_log = config.audit_log.as_deref();
    let audit = Audit::open(audit_log).map_err(|source| {
        let path = audit_log.unwrap_or_else(|| Path::new("")).to_owned();
        AdminError::AuditLog { path, source: Arc::new(source) }
    })?;
    let audit = Arc::new(audit);
    let (agents, keeping) =
        console.routes(Arc::clone(&audit), health.clone(), metrics.recorded.clone());
    let mut routes = probes(health, metrics)
        .merge(page::routes(INDEX))
        .merge(agents)
        .merge(openapi::router(Listener::Admin, false));
    if let Some(book) = book {
        routes = routes.merge(buckets::buckets(book, audit));
    }
    Ok((routes.layer(middleware::from_fn_with_state(guard, guard::check)), keeping))
}

async fn ready(health: &Health) -> Response {
    let report = health.report().await;
    let status = match report.ready {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, [(header::CACHE_CONTROL, "no-store")], Json(&*report)).into_response()
}

fn refuse(status: StatusCode, detail: &str) -> Response {
    Problem::new(status, detail).into_response().map(Body::from)
}

#[cfg(test)]
mod tests;
