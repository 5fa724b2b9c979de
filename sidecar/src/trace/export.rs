//! Spans on their way to a collector: OpenTelemetry's batches, a bounded queue, a thread of its own.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use http::Method;
use metrics::counter;
use opentelemetry::{
    Context, KeyValue, Value,
    trace::{
        Span as _, SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt as _, TraceFlags,
        TraceState, Tracer as _, TracerProvider as _,
    },
};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::{
    Resource,
    trace::{Sampler, SdkTracer, SdkTracerProvider, Span as Recorded},
};
use tracing::warn;

use super::{Config, Kind, TraceContext};
use crate::clock::unix_time;

/// How long one export may take, and all that waits when the process ends.
const DEADLINE: Duration = Duration::from_secs(3);

/// How many ratings are traced for each request that may be: more come in batches.
const RATINGS_PER_REQUEST: u32 = 10;

/// The longest path that a span carries, in bytes.
const PATH_MAX: usize = 256;

static TRACING: OnceLock<Tracing> = OnceLock::new();

/// Why traces cannot be exported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TraceError {
    /// The exporter refuses its settings, those of the environment too (`OTEL_EXPORTER_OTLP_*`).
    #[error("trace.endpoint: spans cannot be exported; look at OTEL_EXPORTER_OTLP_* too")]
    Exporter(#[source] opentelemetry_otlp::ExporterBuildError),
    /// Something in this process exports already.
    #[error("traces are set up already")]
    Twice,
}

struct Tracing {
    tracer: SdkTracer,
    sample: f64,
    follow: bool,
    budget: Budget,
    ratings: Budget,
}

/// How many may still be traced in this second.
struct Budget {
    per_second: u32,
    /// The second in the upper half, how many were traced in it in the lower.
    state: AtomicU64,
}

impl Budget {
    fn of(per_second: u32) -> Self {
        Self { per_second, state: AtomicU64::new(0) }
    }

    fn take(&self, second: u64) -> bool {
        let second = (second & 0xffff_ffff) << 32;
        let spend = |state: u64| match state & !0xffff_ffff == second {
            true => (state & 0xffff_ffff < u64::from(self.per_second)).then_some(state + 1),
            false => Some(second | 1),
        };
        self.state.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend).is_ok()
    }
}

/// The export of spans; what waits is lost unless it is finished.
#[derive(Debug)]
pub struct Exporting(SdkTracerProvider);

impl Exporting {
    /// Exports what waits, for at most five seconds.
    pub async fn finish(self) {
        let shut = tokio::task::spawn_blocking(move || self.0.shutdown_with_timeout(DEADLINE));
        if let Ok(Err(error)) = shut.await {
            warn!(%error, "the last spans were not exported");
        }
    }
}

/// Exports spans from now on as `config` says; nothing when it names no collector. Call it once, within a tokio
/// runtime. A collector that is away is no error: its spans are lost, which is logged.
///
/// # Errors
///
/// When the exporter refuses its settings, or spans are exported already.
pub fn install(config: &Config) -> Result<Option<Exporting>, TraceError> {
    let Some(endpoint) = &config.endpoint else { return Ok(None) };
    let exporter =
        SpanExporter::builder().with_tonic().with_endpoint(endpoint).with_timeout(DEADLINE);
    let exporter = exporter.build().map_err(TraceError::Exporter)?;
    let named = std::env::var_os("OTEL_SERVICE_NAME").is_some();
    let resource = Resource::builder();
    let resource = if named { resource } else { resource.with_service_name("merit") };
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    // Whether a request is traced is decided here, once; what is begun is recorded.
    let provider = SdkTracerProvider::builder()
        .with_sampler(Sampler::AlwaysOn)
        .with_resource(resource.with_attribute(version).build())
        .with_batch_exporter(exporter)
        .build();
    let tracing = Tracing {
        tracer: provider.tracer("merit"),
        sample: config.sample,
        follow: config.follow,
        budget: Budget::of(config.per_second),
        ratings: Budget::of(config.per_second.saturating_mul(RATINGS_PER_REQUEST)),
    };
    TRACING.set(tracing).map_err(|_| TraceError::Twice)?;
    Ok(Some(Exporting(provider)))
}

/// Returns whether spans are exported.
pub(crate) fn is_on() -> bool {
    TRACING.get().is_some()
}

/// Returns whether one more rating may be traced in this second.
pub(crate) fn may_trace_a_rating() -> bool {
    TRACING.get().is_some_and(|tracing| tracing.ratings.take(unix_time().as_secs()))
}

/// A span that is recorded; it ends when it is dropped.
pub(crate) struct Span {
    context: TraceContext,
    recorded: Recorded,
}

impl Span {
    /// Returns a span that began at `began` below `parent`, if that is recorded.
    pub(crate) fn below(
        parent: TraceContext,
        kind: Kind,
        name: &'static str,
        began: SystemTime,
    ) -> Option<Self> {
        let tracing = TRACING.get().filter(|_| parent.is_sampled())?;
        let kind = match kind {
            Kind::Client => SpanKind::Client,
            Kind::Producer => SpanKind::Producer,
            Kind::Consumer => SpanKind::Consumer,
        };
        let builder = tracing.tracer.span_builder(name).with_start_time(began);
        Some(tracing.start(builder, kind, Some(parent)))
    }

    /// Returns its place in the trace, for whatever hangs below it.
    pub(crate) fn context(&self) -> TraceContext {
        self.context
    }

    pub(crate) fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        self.recorded.set_attribute(KeyValue::new(key, value));
    }

    /// Notes that it failed, and why.
    pub(crate) fn fail(&mut self, why: &str) {
        self.set("error.type", why.to_owned());
        self.recorded.set_status(Status::error(""));
    }

    /// Ends it at a time that has passed.
    pub(crate) fn end_at(mut self, at: SystemTime) {
        self.recorded.end_with_timestamp(at);
    }
}

impl Tracing {
    fn start(&self, builder: SpanBuilder, kind: SpanKind, parent: Option<TraceContext>) -> Span {
        let above = match parent {
            Some(TraceContext { trace, span, .. }) => {
                let state = TraceState::default();
                let (trace, span) = (trace.into(), span.into());
                let place = SpanContext::new(trace, span, TraceFlags::SAMPLED, true, state);
                Context::new().with_remote_span_context(place)
            }
            None => Context::new(),
        };
        let recorded = builder.with_kind(kind).start_with_context(&self.tracer, &above);
        let place = recorded.span_context();
        let context = TraceContext {
            trace: u128::from_be_bytes(place.trace_id().to_bytes()),
            span: u64::from_be_bytes(place.span_id().to_bytes()),
            sampled: true,
        };
        Span { context, recorded }
    }
}

/// Returns the span of a request on the listener `listener`, if the request is traced; `came` is what its caller says of
/// a trace.
pub(crate) fn begin(
    came: Option<TraceContext>,
    listener: &'static str,
    method: &Method,
    path: &str,
) -> Option<Span> {
    let tracing = TRACING.get()?;
    let parent = came.filter(|_| tracing.follow);
    let wanted = parent.is_some_and(|parent| parent.is_sampled())
        || (tracing.sample > 0.0 && fastrand::f64() < tracing.sample);
    if !wanted {
        return None;
    }
    if !tracing.budget.take(unix_time().as_secs()) {
        counter!("merit_traces_left_out_total").increment(1);
        return None;
    }
    // A path may hold anything: the name of a span may not.
    let builder = tracing.tracer.span_builder(name_of(method));
    let mut span = tracing.start(builder, SpanKind::Server, parent);
    span.set("http.request.method", name_of(method));
    let end = path.floor_char_boundary(PATH_MAX);
    span.set("url.path", path[..end].to_owned());
    span.set("merit.listener", listener);
    Some(span)
}

/// Returns a method's name as the conventions want it: one of those of RFC 9110 and 5789, or `_OTHER`.
fn name_of(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::CONNECT => "CONNECT",
        Method::OPTIONS => "OPTIONS",
        Method::TRACE => "TRACE",
        Method::PATCH => "PATCH",
        _ => "_OTHER",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_second_has_more_than_its_share() {
        let budget = Budget::of(3);
        let taken = |second| (0..10).filter(|_| budget.take(second)).count();
        assert_eq!([taken(7), taken(7), taken(8), taken(1 << 33)], [3, 0, 3, 3]);
    }
}
