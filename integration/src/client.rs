//! A small HTTP client: one request, the whole answer.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;

/// How long an answer may take before the test calls it lost.
const DEADLINE: Duration = Duration::from_secs(30);

/// A client with a pool of connections; clones share it.
#[derive(Clone, Debug)]
pub struct Client {
    inner: legacy::Client<HttpConnector, Full<Bytes>>,
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The header fields.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Default for Client {
    fn default() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Self { inner: legacy::Client::builder(TokioExecutor::new()).build(connector) }
    }
}

impl Client {
    /// Returns a client without connections.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sends a request and returns the answer's head, its body still to come.
    ///
    /// # Errors
    ///
    /// When the connection fails or no head arrives in time.
    pub async fn send(&self, request: Request<Full<Bytes>>) -> anyhow::Result<Response<Incoming>> {
        Ok(tokio::time::timeout(DEADLINE, self.inner.request(request)).await??)
    }

    /// Sends a request and returns the whole answer.
    ///
    /// # Errors
    ///
    /// When the connection fails or the answer does not end in time.
    pub async fn call(&self, request: Request<Full<Bytes>>) -> anyhow::Result<Answer> {
        let (head, body) = self.send(request).await?.into_parts();
        let body = tokio::time::timeout(DEADLINE, body.collect()).await??.to_bytes();
        Ok(Answer { status: head.status, headers: head.headers, body })
    }

    /// Gets a page, with a bearer token if there is one.
    ///
    /// # Errors
    ///
    /// As [`Client::call`].
    pub async fn get(&self, url: &str, token: Option<&str>) -> anyhow::Result<Answer> {
        self.call(request(Method::GET, url, token, &[], Bytes::new())).await
    }

    /// Posts JSON with a bearer token.
    ///
    /// # Errors
    ///
    /// As [`Client::call`].
    pub async fn post(&self, url: &str, token: &str, json: &Value) -> anyhow::Result<Answer> {
        let fields = [("content-type", "application/json")];
        self.call(request(Method::POST, url, Some(token), &fields, json.to_string())).await
    }
}

/// Builds a request.
///
/// # Panics
///
/// When a part of it is not well formed.
#[must_use]
pub fn request(
    method: Method,
    url: &str,
    token: Option<&str>,
    fields: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Request<Full<Bytes>> {
    let mut request = Request::builder().method(method).uri(url);
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(Full::new(body.into())).expect("the test writes well-formed requests")
}

impl Answer {
    /// Returns a header field as text, or `""`.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// Returns the body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Returns the body as JSON.
    ///
    /// # Panics
    ///
    /// When it is not JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {} {}", self.status, self.text()))
    }

    /// Returns the body of an error answer.
    ///
    /// # Panics
    ///
    /// When it is not RFC 9457 problem details that repeat the status and have a title.
    pub fn problem(&self) -> Value {
        let kind = self.header("content-type");
        assert!(kind.starts_with("application/problem+json"), "{kind:?}: {}", self.text());
        let problem = self.json();
        assert_eq!(problem["status"], self.status.as_u16(), "{problem}");
        assert!(problem["title"].as_str().is_some_and(|title| !title.is_empty()), "{problem}");
        problem
    }

    /// Returns `Retry-After` in seconds.
    ///
    /// # Panics
    ///
    /// When it is missing, not whole seconds, or less than one.
    pub fn retry_after(&self) -> Duration {
        let text = self.header("retry-after");
        let seconds: u64 = text.parse().unwrap_or_else(|_| {
            panic!("{} with Retry-After {text:?}: {}", self.status, self.text())
        });
        assert!(seconds >= 1, "Retry-After {text:?}");
        Duration::from_secs(seconds)
    }
}
