//! Traces: one request's way from the gateway or ingest over the bus to the write of a limit.
//!
//! 1. Off unless `[trace] endpoint` says where spans go (feature `otlp`). Whoever is not traced pays for one
//!    look at a lock that is never contended.
//! 2. A listener decides whether a request is traced: when its caller records it (`traceparent` with the
//!    sampled flag, W3C Trace Context), or by chance. At most so many a second are: no caller makes merit
//!    export without bound.
//! 3. The request goes on under the listener's span: the upstream and the tee find it in `traceparent`, a
//!    rating takes it along over the bus, beside what it says and no part of it.
//! 4. What the tuner makes of a traced rating hangs below the span it was published in, however much later.
//!
//! Spans have the names and attributes of OpenTelemetry's semantic conventions 1.37 (HTTP, messaging, database)
//! where these have some. A listener's span ends with the head of the answer.

mod config;
mod context;
#[cfg(feature = "otlp")]
mod export;
#[cfg(not(feature = "otlp"))]
mod silent;

pub use config::Config;
pub use context::TraceContext;
#[cfg(feature = "otlp")]
pub use export::{Exporting, TraceError, install};
#[cfg(not(feature = "otlp"))]
pub use silent::{Exporting, TraceError, install};

#[cfg(feature = "otlp")]
pub(crate) use export::{Span, begin, is_on, may_trace_a_rating};
#[cfg(not(feature = "otlp"))]
pub(crate) use silent::{Span, begin, is_on, may_trace_a_rating};

use std::time::SystemTime;

use axum::{body::Body, response::Response};
use http::{HeaderMap, HeaderName, HeaderValue, Request};

/// What a trace travels under, in heads of requests and of records (W3C Trace Context, section 3.2.1).
pub(crate) const TRACEPARENT: &str = "traceparent";
const FIELD: HeaderName = HeaderName::from_static(TRACEPARENT);

tokio::task_local! {
    static CURRENT: TraceContext;
}

/// What a span below another one is, for whoever draws it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// We asked somebody.
    Client,
    /// We put something on the bus.
    Producer,
    /// We took something off the bus.
    Consumer,
}

/// Returns the span that this task works for, if its request is traced.
fn current() -> Option<TraceContext> {
    CURRENT.try_with(|context| *context).ok()
}

/// Returns `work`, for the span that this task works for: for whoever hands it to a task of its own.
pub(crate) fn carried<F: Future>(work: F) -> impl Future<Output = F::Output> {
    let context = current();
    async move {
        match context {
            Some(context) => CURRENT.scope(context, work).await,
            None => work.await,
        }
    }
}

/// Returns the span that a rating of this task's request hangs below, if both are traced: a batch is one request
/// with many ratings, of which a bounded number a second is.
pub(crate) fn of_a_rating() -> Option<TraceContext> {
    current().filter(|_| may_trace_a_rating())
}

/// Returns what `headers` say of a trace; two fields say nothing.
fn of_headers(headers: &HeaderMap) -> Option<TraceContext> {
    let mut fields = headers.get_all(FIELD).iter();
    let field = fields.next()?;
    if fields.next().is_some() {
        return None;
    }
    TraceContext::parse(field.to_str().ok()?)
}

/// Puts `context` in place of what `headers` said of a trace.
pub(crate) fn put(headers: &mut HeaderMap, context: TraceContext) {
    let text = HeaderValue::from_str(&context.to_string()).expect("digits and dashes");
    headers.insert(FIELD, text);
}

/// Serves `request` on the listener `listener` with `serve`, under a span when it is traced.
pub(crate) async fn serve<F>(
    listener: &'static str,
    mut request: Request<Body>,
    serve: impl FnOnce(Request<Body>) -> F,
) -> Response
where
    F: Future<Output = Response>,
{
    if !is_on() {
        return serve(request).await;
    }
    let came = of_headers(request.headers());
    let Some(mut span) = begin(came, listener, request.method(), request.uri().path()) else {
        return serve(request).await;
    };
    if came.is_none_or(|came| came.trace != span.context().trace) {
        // It says something of another trace (section 2.2.3, "Restarting").
        request.headers_mut().remove("tracestate");
    }
    put(request.headers_mut(), span.context());
    let response = CURRENT.scope(span.context(), serve(request)).await;
    span.set("http.response.status_code", i64::from(response.status().as_u16()));
    if response.status().is_server_error() {
        span.fail(response.status().as_str());
    }
    response
}

/// Returns a span below the one that this task works for, if its request is traced.
pub(crate) fn below_current(kind: Kind, name: &'static str) -> Option<Span> {
    Span::below(current()?, kind, name, SystemTime::now())
}
