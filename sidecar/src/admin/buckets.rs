//! `/buckets`: which buckets and routes there are, and others in their place while everything runs.
//!
//! 1. What is configured has revision 0. A document in the store has one that no other ever had, and is replaced
//!    by who names it: 409 for who read an older one.
//! 2. A document is checked before it is stored, by the same lines as the file (422 with every fault and its
//!    path). What is stored is taken over by every process of its own accord; the one that was asked, at once.
//! 3. A write is noted before it is done and after; what cannot be noted is not done. That it takes the admin
//!    token is the listener's business.

use std::{io, net::SocketAddr, sync::Arc};

use axum::{
    Json, Router,
    body::{Body, to_bytes},
    extract::{ConnectInfo, Path, Query, Request, State, rejection::QueryRejection},
    response::{IntoResponse, Response},
    routing::get,
};
use http::{StatusCode, header};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::Notify;
use tower_merit::{
    Problem, Tune,
    store::{DOCUMENT_MAX, Document, Kept, StoreError},
};
use tracing::info;

use super::audit::{Audit, Entry};
use crate::causes::with_causes;

/// The longest body, in bytes: what is stored is written tighter than people write.
const BODY_MAX: usize = 4 * DOCUMENT_MAX;

/// How often a removal is tried anew because others wrote meanwhile.
const CONFLICTS_MAX: usize = 10;

/// The most buckets that the audit names of one write.
const NOTED_MAX: usize = 32;

/// Checks buckets and routes, and returns the text to store.
pub type Check = Arc<dyn Fn(&Value) -> Result<String, Vec<String>> + Send + Sync>;

/// Reads a text that was stored, and returns its buckets and routes.
pub type Read = Arc<dyn Fn(&str) -> Result<Value, String> + Send + Sync>;

/// What the routes go by.
#[derive(Clone)]
pub struct Book<T> {
    /// Where the document is.
    pub store: T,
    /// Buckets and routes of the file.
    pub file: Value,
    /// Checks what comes in.
    pub check: Check,
    /// Reads what is stored.
    pub read: Read,
    /// Told when this process has stored something.
    pub told: Arc<Notify>,
}

impl<T> std::fmt::Debug for Book<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Book").field("file", &self.file).finish_non_exhaustive()
    }
}

struct Shared<T> {
    book: Book<T>,
    audit: Arc<Audit>,
}

type Desk<T> = State<Arc<Shared<T>>>;

/// Returns the routes `/buckets` and `/buckets/{name}`; writes are noted in `audit`.
pub(super) fn buckets<T: Tune + Clone>(book: Book<T>, audit: Arc<Audit>) -> Router {
    let show = async |State(desk): Desk<T>| answer(desk.show().await);
    let put = async |State(desk): Desk<T>, request: Request| answer(desk.put(request).await);
    let remove = async |State(desk): Desk<T>,
                        asked: Result<Query<Removal>, QueryRejection>,
                        request: Request| {
        let from = from(&request);
        answer(desk.remove(asked, from).await)
    };
    let one = async |State(desk): Desk<T>, Path(name): Path<String>| answer(desk.one(&name).await);
    Router::new()
        .route("/buckets", get(show).put(put).delete(remove))
        .route("/buckets/{name}", get(one))
        .with_state(Arc::new(Shared { book, audit }))
}

/// Returns where a request comes from.
fn from(request: &Request) -> Option<String> {
    request.extensions().get::<ConnectInfo<SocketAddr>>().map(|from| from.0.to_string())
}

/// What a removal names.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Removal {
    /// The revision that was read; any unless named.
    rev: Option<u64>,
}

/// Returns the answer to a request that the store answered, or why it did not.
fn answer(done: Result<Value, Refusal>) -> Response {
    match done {
        Ok(value) => ([(header::CACHE_CONTROL, "no-store")], Json(value)).into_response(),
        Err(refusal) => refusal.into_response(),
    }
}

/// Why there is no answer.
enum Refusal {
    /// The store did not answer, or not so that this version understands it.
    Store(StoreError),
    /// Another version wrote what is stored.
    Unreadable { rev: u64, error: String },
    /// There is no bucket of this name.
    Unknown(String),
    /// The body is no JSON, or too long.
    Body(StatusCode, String),
    /// Everything that is wrong with what was sent.
    Faults(Vec<String>),
    /// Somebody wrote since.
    Stale { rev: u64 },
    /// What was to be done cannot be noted.
    Audit(io::Error),
}

impl Refusal {
    fn into_response(self) -> Response {
        let problem = match self {
            Self::Store(error) => {
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, with_causes(&error))
            }
            Self::Unreadable { rev, error } => {
                let detail =
                    format!("buckets of the store cannot be read by this version: {error}");
                Problem::new(StatusCode::INTERNAL_SERVER_ERROR, detail).with("rev", rev)
            }
            Self::Unknown(name) => {
                let name: String = name.chars().take(64).collect();
                Problem::new(StatusCode::NOT_FOUND, format!("there is no bucket {name:?}"))
            }
            Self::Body(status, detail) => Problem::new(status, detail),
            Self::Faults(faults) => {
                let detail = format!("nothing was stored: {}", faults.join("; "));
                Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail).with("faults", faults)
            }
            Self::Stale { rev } => {
                let detail = format!(
                    "buckets were written meanwhile and are at rev {rev}: read them, make the change there, \
                     and send that rev"
                );
                Problem::new(StatusCode::CONFLICT, detail).with("rev", rev)
            }
            Self::Audit(error) => Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("nothing was done, because admin.audit_log cannot be written: {error}"),
            ),
        };
        problem.into_response().map(Body::from)
    }
}

/// The revision that callers know: 0 while the file is in force.
fn shown_rev(document: &Document) -> u64 {
    document.text.as_ref().map_or(0, |_| document.rev)
}

impl<T: Tune + Clone> Shared<T> {
    async fn show(&self) -> Result<Value, Refusal> {
        let document = self.document().await?;
        let shown = match &document.text {
            None => self.book.file.clone(),
            Some(text) => (self.book.read)(text)
                .map_err(|error| Refusal::Unreadable { rev: document.rev, error })?,
        };
        Ok(shown_as(shown_rev(&document), shown))
    }

    async fn one(&self, name: &str) -> Result<Value, Refusal> {
        let all = self.show().await?;
        let buckets = all["buckets"].as_array().into_iter().flatten();
        let mut found = buckets.filter(|bucket| bucket["bucket_name"] == name);
        found.next().cloned().ok_or_else(|| Refusal::Unknown(name.to_owned()))
    }

    async fn put(&self, request: Request) -> Result<Value, Refusal> {
        let from = from(&request);
        let (rev, wanted) = self.parse(request).await?;
        let text = (self.book.check)(&wanted).map_err(Refusal::Faults)?;
        if text.len() > DOCUMENT_MAX {
            let found = text.len();
            return Err(Refusal::Faults(vec![format!(
                "buckets: must be at most {DOCUMENT_MAX} bytes of JSON together with routes, are {found}"
            )]));
        }
        let document = self.document().await?;
        if rev != shown_rev(&document) {
            return Err(Refusal::Stale { rev: shown_rev(&document) });
        }
        match self.keep(&document, Some((&text, &wanted)), from).await? {
            Kept::Done { rev } => {
                info!(rev, "buckets were put");
                self.book.told.notify_one();
                let error = |error| Refusal::Unreadable { rev, error };
                Ok(shown_as(rev, (self.book.read)(&text).map_err(error)?))
            }
            Kept::Stale { .. } => Err(self.stale().await?),
        }
    }

    /// Removes the document, if it still has revision `rev` where one is named.
    async fn remove(
        &self,
        asked: Result<Query<Removal>, QueryRejection>,
        from: Option<String>,
    ) -> Result<Value, Refusal> {
        let Query(Removal { rev }) =
            asked.map_err(|error| Refusal::Body(StatusCode::BAD_REQUEST, error.body_text()))?;
        for _ in 0..CONFLICTS_MAX {
            let document = self.document().await?;
            let found = shown_rev(&document);
            if rev.is_some_and(|rev| rev != found) {
                return Err(Refusal::Stale { rev: found });
            }
            if found == 0 {
                return Ok(shown_as(0, self.book.file.clone()));
            }
            if let Kept::Done { .. } = self.keep(&document, None, from.clone()).await? {
                info!(removed = document.rev, "buckets are those of the file again");
                self.book.told.notify_one();
                return Ok(shown_as(0, self.book.file.clone()));
            }
        }
        Err(self.stale().await?)
    }

    /// Replaces `document` by a text, of which a person wrote the value, noted before and after.
    async fn keep(
        &self,
        document: &Document,
        text: Option<(&str, &Value)>,
        from: Option<String>,
    ) -> Result<Kept, Refusal> {
        let entry = Entry {
            at_ms: 0,
            action: if text.is_some() { "put_buckets" } else { "remove_buckets" },
            agent_id: None,
            detail: summed_up(shown_rev(document), text.map(|(_, wanted)| wanted)),
            outcome: String::new(),
            from,
        };
        let entry = self.audit.begin(entry).await.map_err(Refusal::Audit)?;
        let kept = self.book.store.keep_document(document.rev, text.map(|(text, _)| text)).await;
        let outcome = match &kept {
            Ok(Kept::Done { .. }) => "done".to_owned(),
            Ok(Kept::Stale { rev }) => format!("written by somebody else meanwhile: rev {rev}"),
            Err(error) => with_causes(error),
        };
        self.audit.end(entry, outcome).await;
        kept.map_err(Refusal::Store)
    }

    async fn stale(&self) -> Result<Refusal, Refusal> {
        Ok(Refusal::Stale { rev: shown_rev(&self.document().await?) })
    }

    async fn document(&self) -> Result<Document, Refusal> {
        self.book.store.document().await.map_err(Refusal::Store)
    }

    /// Returns the revision that the body names, and its buckets and routes.
    async fn parse(&self, request: Request) -> Result<(u64, Value), Refusal> {
        let body = to_bytes(request.into_body(), BODY_MAX).await.map_err(|_| {
            let detail = format!("the body broke off, or is longer than {BODY_MAX} bytes");
            Refusal::Body(StatusCode::PAYLOAD_TOO_LARGE, detail)
        })?;
        let sent: Map<String, Value> = serde_json::from_slice(&body).map_err(|error| {
            let detail =
                format!("the body must be a JSON object like that of GET /buckets: {error}");
            Refusal::Body(StatusCode::BAD_REQUEST, detail)
        })?;
        let mut sent = sent;
        // What GET said with it is no part of it.
        sent.remove("source");
        let rev = sent.remove("rev");
        let Some(rev) = rev.as_ref().and_then(Value::as_u64) else {
            let wrong = if rev.is_some() { "must be a whole number from 0" } else { "is missing" };
            let mut faults = vec![format!("rev: {wrong}: send the one that GET /buckets told")];
            faults.extend((self.book.check)(&sent.into()).err().unwrap_or_default());
            return Err(Refusal::Faults(faults));
        };
        Ok((rev, sent.into()))
    }
}

/// Returns what the audit says of a write: the revision that it replaces, and the limits of its first buckets.
fn summed_up(rev: u64, wanted: Option<&Value>) -> Value {
    let Some(wanted) = wanted else { return json!({"rev": rev}) };
    let items = |key: &str| wanted[key].as_array().map(Vec::as_slice).unwrap_or_default();
    let limits = |bucket: &Value| {
        let limits = ["bucket_name", "refill_rate", "capacity"];
        limits.map(|key| (key.to_owned(), bucket[key].clone())).into_iter().collect::<Map<_, _>>()
    };
    let (buckets, routes) = (items("buckets"), items("routes"));
    let first: Vec<_> = buckets.iter().take(NOTED_MAX).map(limits).collect();
    json!({"rev": rev, "buckets": first, "more": buckets.len() - first.len(), "routes": routes.len()})
}

fn shown_as(rev: u64, mut shown: Value) -> Value {
    let source = if rev == 0 { "file" } else { "store" };
    if let Some(members) = shown.as_object_mut() {
        members.insert("rev".to_owned(), json!(rev));
        members.insert("source".to_owned(), json!(source));
    }
    shown
}

#[cfg(test)]
mod tests;
