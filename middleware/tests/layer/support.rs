//! What the tests of the layer share: an identity that believes, and answers taken apart.

use std::{
    convert::Infallible,
    future::{Ready, ready},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};
use serde_json::Value;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_merit::{
    AdmissionLayer, AgentId, Bucket, Caller, Identify, MemoryStore, Spend,
    admission::AdmissionBuilder, identity::IdentityError,
};

/// Believes what stands in `x-agent`.
#[derive(Clone, Copy)]
pub(crate) struct Named;

impl Identify for Named {
    type Future = Ready<Result<Caller, IdentityError>>;

    fn identify<B>(&self, request: &Request<B>) -> Self::Future {
        let nobody =
            IdentityError::Unauthenticated { reason: "no `x-agent` field", presented: false };
        let agent = request.headers().get("x-agent").map(|value| value.to_str().unwrap());
        ready(agent.map(|agent| AgentId::new(agent).unwrap().into()).ok_or(nobody))
    }
}

/// A layer whose default bucket `requests` holds ten and gains one a second.
pub(crate) fn builder<S: Spend>(store: S) -> AdmissionBuilder<S, Named> {
    AdmissionLayer::builder(store)
        .identity(Named)
        .bucket(Bucket::per_second(1.0).capacity(10).named("requests"))
}

/// The same over the in-process store, with a bucket `writes` that holds two.
pub(crate) fn with_writes() -> AdmissionBuilder<MemoryStore, Named> {
    builder(MemoryStore::new()).bucket(Bucket::per_second(1.0).capacity(2).named("writes"))
}

pub(crate) fn agent(name: &str) -> AgentId {
    AgentId::new(name).unwrap()
}

pub(crate) fn get(path: &str) -> Request<Full<Bytes>> {
    of("GET", path)
}

pub(crate) fn of(method: &str, path: &str) -> Request<Full<Bytes>> {
    Request::builder()
        .method(method)
        .uri(path)
        .header("x-agent", "a1")
        .body(Full::default())
        .unwrap()
}

pub(crate) fn with(
    mut request: Request<Full<Bytes>>,
    name: &'static str,
    value: &str,
) -> Request<Full<Bytes>> {
    request.headers_mut().append(name, value.parse().unwrap());
    request
}

/// Answers 200 with the agent it was told of.
pub(crate) async fn hello(
    request: Request<Full<Bytes>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let agent = request.extensions().get::<AgentId>().map(ToString::to_string);
    Ok(Response::new(Full::from(agent.unwrap_or_default())))
}

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn problem(&self) -> Value {
        assert_eq!(self.headers["content-type"], "application/problem+json");
        assert_eq!(self.headers["cache-control"], "no-store");
        serde_json::from_slice(&self.body).unwrap()
    }

    /// Returns the values of a field, joined; empty without it.
    pub(crate) fn field(&self, name: &str) -> String {
        let values = self.headers.get_all(name).iter().map(|value| value.to_str().unwrap());
        values.collect::<Vec<_>>().join(", ")
    }

    /// Returns `r` of a bucket.
    pub(crate) fn left(&self, bucket: &str) -> u64 {
        let field = self.field("ratelimit");
        let item = field.split(", ").find(|item| item.starts_with(&format!("\"{bucket}\";")));
        let item = item.unwrap_or_else(|| panic!("{bucket} is not in {field:?}"));
        item.split(';').find_map(|part| part.strip_prefix("r=")).unwrap().parse().unwrap()
    }
}

pub(crate) async fn ask<S: Spend, I: Identify>(
    layer: &AdmissionLayer<S, I>,
    request: Request<Full<Bytes>>,
) -> Answer {
    ask_of(layer, service_fn(hello), request).await
}

pub(crate) async fn ask_of<S, I, T>(
    layer: &AdmissionLayer<S, I>,
    service: T,
    request: Request<Full<Bytes>>,
) -> Answer
where
    S: Spend,
    I: Identify,
    T: Service<Request<Full<Bytes>>, Response = Response<Full<Bytes>>> + Clone,
    T::Error: std::fmt::Debug,
{
    let response = layer.layer(service).oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Answer { status: parts.status, headers: parts.headers, body }
}

/// Returns what `build` makes, and where it counts.
pub(crate) fn counting<T>(build: impl FnOnce() -> T) -> (T, PrometheusRecorder) {
    let recorder = PrometheusBuilder::new().build_recorder();
    let built = metrics::with_local_recorder(&recorder, build);
    (built, recorder)
}

/// Returns the value of one series; 0 while it was never counted.
pub(crate) fn counted(recorder: &PrometheusRecorder, series: &str) -> u64 {
    let text = recorder.handle().render();
    let line = text.lines().find(|line| line.starts_with(&format!("{series} ")));
    line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

pub(crate) fn outcome(recorder: &PrometheusRecorder, outcome: &str) -> u64 {
    counted(recorder, &format!("merit_decisions_total{{outcome=\"{outcome}\"}}"))
}

/// Polls once.
pub(crate) async fn once<F: Future + ?Sized>(
    pending: &mut std::pin::Pin<Box<F>>,
) -> std::task::Poll<F::Output> {
    std::future::poll_fn(|context| std::task::Poll::Ready(pending.as_mut().poll(context))).await
}
