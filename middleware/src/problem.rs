//! Problem details (RFC 9457): every refusal says in JSON what was wrong and what to do.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Map, Value};

/// The problem type of a 429, from draft-ietf-httpapi-ratelimit-headers-11 section 5.
pub const QUOTA_EXCEEDED: &str = "https://iana.org/assignments/http-problem-types#quota-exceeded";

/// The problem type of a 503, from the same section.
pub const REDUCED_CAPACITY: &str =
    "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity";

/// A refusal as `application/problem+json`.
///
/// ```
/// use http::StatusCode;
/// use tower_merit::Problem;
///
/// let response = Problem::new(StatusCode::BAD_REQUEST, "score: must be 1 to 5, is 6")
///     .with("field", "score")
///     .into_response();
/// assert_eq!(response.headers()["content-type"], "application/problem+json");
/// ```
#[derive(Clone, Debug)]
pub struct Problem {
    status: StatusCode,
    members: Map<String, Value>,
}

impl Problem {
    /// Returns a problem of the plain type `about:blank`, titled by its status.
    #[must_use]
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self::typed(status, "about:blank", status.canonical_reason().unwrap_or("Refused"), detail)
    }

    /// Returns a problem of a registered type.
    #[must_use]
    pub fn typed(status: StatusCode, kind: &str, title: &str, detail: impl Into<String>) -> Self {
        let mut members = Map::new();
        members.insert("type".to_owned(), kind.into());
        members.insert("title".to_owned(), title.into());
        members.insert("status".to_owned(), status.as_u16().into());
        members.insert("detail".to_owned(), detail.into().into());
        Self { status, members }
    }

    /// Adds an extension member.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.members.insert(name.to_owned(), value.into());
        self
    }

    /// Returns the status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// Returns what happened and what to do, as people read it.
    #[must_use]
    pub fn detail(&self) -> &str {
        self.members.get("detail").and_then(Value::as_str).unwrap_or_default()
    }

    /// Returns the JSON object.
    #[must_use]
    pub fn to_json(&self) -> Value {
        Value::Object(self.members.clone())
    }

    /// Returns the response, which no cache may store (RFC 6585 section 4).
    #[must_use]
    pub fn into_response(self) -> Response<Bytes> {
        let body = Value::Object(self.members).to_string();
        let mut response = Response::new(Bytes::from(body));
        *response.status_mut() = self.status;
        let json = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, json);
        let no_store = HeaderValue::from_static("no-store");
        response.headers_mut().insert(header::CACHE_CONTROL, no_store);
        response
    }
}
