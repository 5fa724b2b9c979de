//! From a request to a rating on the bus: the one way, for the ingest routes and for the gateway's tee.

use std::{sync::Arc, time::SystemTime};

use axum::body::Bytes;
use http::{HeaderMap, HeaderName, Request};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};
use tower_merit::JwtVerifier;
use tracing::{debug, error};

use super::{
    Config, Refusal,
    meter::Meter,
    quota::{self, Places},
    raters::{ApiKeys, Rater, Raters},
    receipts::Receipts,
};
use crate::{
    bus::{PublishError, Publisher},
    clock::unix_time,
    quota::Quota,
    rating::{Poster, Rating, RatingId, RatingRequest, SubjectMode},
    trace::{self, Kind, Span},
};

/// The field that names the event when the body does not
/// (draft-ietf-httpapi-idempotency-key-header-07).
pub(super) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Takes ratings. Clones share everything.
#[derive(Clone)]
pub struct Ingest {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) config: Config,
    pub(super) meter: Arc<Meter>,
    pub(super) in_flight: Semaphore,
    pub(super) batches: Places,
    raters: Raters,
    of_raters: Option<Quota>,
    of_collectors: Option<Quota>,
    pub(super) publisher: Publisher,
    subject: SubjectMode,
    receipts: Receipts,
}

/// A rating that its poster may post, and has paid for.
#[derive(Debug)]
pub(super) struct Allowed {
    rating: Rating,
    by_collector: bool,
}

/// A rating that the bus has acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The name of the event.
    pub id: RatingId,
    /// False when the rating names no agent, and so moves no limit.
    pub moves_a_limit: bool,
    /// Whether its receipt holds; nothing while receipts are not looked at.
    pub receipted: Option<bool>,
}

impl Ingest {
    /// Returns an ingest that puts ratings on `publisher`. Without a verifier no token is taken, and
    /// API keys alone may rate. It must be called within a tokio runtime:
    /// a task keeps the gauge `rating_rate` current until the last clone is gone.
    ///
    /// Install the metrics recorder before: handles are taken here.
    #[must_use]
    pub fn new(
        config: Config,
        publisher: Publisher,
        verifier: Option<JwtVerifier>,
        keys: ApiKeys,
        subject: SubjectMode,
        receipts: Receipts,
    ) -> Self {
        let inner = Inner {
            in_flight: Semaphore::new(config.max_in_flight),
            batches: Places::new(config.max_batches_in_flight),
            meter: Meter::start(),
            raters: Raters::new(verifier, keys),
            of_raters: quota::of_raters(&config),
            of_collectors: quota::of_collectors(&config),
            config,
            publisher,
            subject,
            receipts,
        };
        Self { inner: Arc::new(inner) }
    }

    /// Takes the rating in `request` by the rules of `POST /v1/rating`, whatever its path, method
    /// and media type: for a request that somebody else has answered already.
    ///
    /// # Errors
    ///
    /// As that route; the refusal is counted.
    pub async fn take(&self, request: &Request<Bytes>) -> Result<Accepted, Refusal> {
        let deadline = Instant::now() + self.inner.config.timeout;
        let outcome = async {
            let rater = self.identify(request).await?;
            let name = idempotency_key(request.headers())?;
            self.accept(&rater, name, request.body(), deadline).await
        };
        outcome.await.inspect_err(|refusal| self.inner.meter.refused(refusal))
    }

    /// Takes the rating in `body` under `name` from a collector that this process itself is: by the
    /// rules of `POST /v1/rating`, without the credential. The refusal is counted.
    pub(super) async fn take_for(
        &self,
        poster: &Poster,
        name: &RatingId,
        body: &[u8],
    ) -> Result<Accepted, Refusal> {
        let deadline = Instant::now() + self.inner.config.timeout;
        let rater = Rater::collector(poster);
        let taken = self.accept(&rater, Some(name.clone()), body, deadline).await;
        taken.inspect_err(|refusal| self.inner.meter.refused(refusal))
    }

    /// Returns who sent `request`, when it may post ratings.
    pub(super) fn identify<B>(
        &self,
        request: &Request<B>,
    ) -> impl Future<Output = Result<Rater, Refusal>> + Send + 'static {
        self.inner.raters.identify(request)
    }

    /// Takes the rating in `body`, and returns when the bus has acknowledged it.
    pub(super) async fn accept(
        &self,
        rater: &Rater,
        name: Option<RatingId>,
        body: &[u8],
        deadline: Instant,
    ) -> Result<Accepted, Refusal> {
        let rating = self.rating(rater, name, body)?;
        self.publish(rating, deadline).await
    }

    /// Returns the rating in `body`, when `rater` may post it.
    pub(super) fn rating(
        &self,
        rater: &Rater,
        name: Option<RatingId>,
        body: &[u8],
    ) -> Result<Allowed, Refusal> {
        self.allow(rater, name, RatingRequest::from_json(body)?)
    }

    /// Returns the rating that `request` asks for, when `rater` may post it: one of its quota is taken.
    pub(super) fn allow(
        &self,
        rater: &Rater,
        name: Option<RatingId>,
        mut request: RatingRequest,
    ) -> Result<Allowed, Refusal> {
        if let Some(name) = name {
            request = request.named(name).map_err(Refusal::TwoNames)?;
        }
        rater.may_send(&request)?;
        let rating = request.into_rating(rater.poster().clone(), unix_now_us())?;
        let rating = rating.traced(trace::of_a_rating());
        rater.may_move(&rating, self.inner.subject)?;
        let rating = self.inner.receipts.check(rating, self.inner.subject);
        let rating = rating.map_err(Refusal::Receipt)?;
        let by_collector = rater.is_collector();
        if let Some(quota) = self.quota(by_collector) {
            quota
                .take(rater.poster().as_str())
                .map_err(|retry_after| Refusal::Quota { retry_after })?;
        }
        Ok(Allowed { rating, by_collector })
    }

    fn quota(&self, of_collectors: bool) -> Option<&Quota> {
        match of_collectors {
            true => self.inner.of_collectors.as_ref(),
            false => self.inner.of_raters.as_ref(),
        }
    }

    /// Puts a rating on the bus, and returns when the bus has acknowledged it. When it does not, the
    /// rater gets back what it paid: an outage is not its fault. A caller that hangs up gets nothing
    /// back, or nobody would have to pay.
    pub(super) async fn publish(
        &self,
        allowed: Allowed,
        deadline: Instant,
    ) -> Result<Accepted, Refusal> {
        let Allowed { rating, by_collector } = allowed;
        let mut span = rating.trace().and_then(|trace| {
            Span::below(trace, Kind::Producer, "send ratings", SystemTime::now())
        });
        let rating = match &mut span {
            Some(span) => {
                span.set("messaging.operation.type", "send");
                span.set("messaging.system", self.inner.publisher.system());
                rating.traced(Some(span.context()))
            }
            None => rating,
        };
        let published = self.put_on_the_bus(&rating, deadline).await;
        if let (Some(span), Err(refusal)) = (&mut span, &published) {
            span.fail(refusal.reason());
        }
        if let (Err(_), Some(quota)) = (&published, self.quota(by_collector)) {
            quota.give_back(rating.poster().as_str());
        }
        published
    }

    async fn put_on_the_bus(
        &self,
        rating: &Rating,
        deadline: Instant,
    ) -> Result<Accepted, Refusal> {
        let id = || rating.id().clone();
        match timeout_at(deadline, self.inner.publisher.publish(rating)).await {
            Ok(Ok(())) => {
                self.inner.meter.accepted();
                let moves_a_limit = rating.subject(self.inner.subject).is_some();
                let checked = self.inner.receipts.are_checked();
                let receipted = checked.then(|| rating.receipt_id().is_some());
                Ok(Accepted { id: id(), moves_a_limit, receipted })
            }
            Ok(Err(source)) => {
                match &source {
                    PublishError::Refused { source: cause } => {
                        error!(error = %source, %cause, id = %rating.id(), "bus refuses a rating");
                    }
                    _ => debug!(error = %source, id = %rating.id(), "rating not put on the bus"),
                }
                Err(Refusal::Bus { id: id(), source })
            }
            Err(_) => Err(Refusal::Late { id: id() }),
        }
    }
}

impl std::fmt::Debug for Ingest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ingest").field("config", &self.inner.config).finish_non_exhaustive()
    }
}

fn unix_now_us() -> u64 {
    u64::try_from(unix_time().as_micros()).unwrap_or(u64::MAX)
}

/// Returns the name that the header gives the event: a structured-field string (RFC 9651 section
/// 3.3.3), or the bare text that many clients send.
pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<RatingId>, Refusal> {
    let refuse = |problem: &str| Refusal::IdempotencyKey { problem: problem.to_owned() };
    let mut fields = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(field) = fields.next() else { return Ok(None) };
    if fields.next().is_some() {
        return Err(refuse("is given twice; send it once"));
    }
    let text = field.to_str().map_err(|_| refuse("must be ASCII"))?.trim();
    let name = match text.strip_prefix('"') {
        None => text.to_owned(),
        Some(rest) => unquote(rest).ok_or_else(|| refuse("is no complete string in quotes"))?,
    };
    RatingId::new(&name)
        .map(Some)
        .map_err(|error| Refusal::IdempotencyKey { problem: error.to_string() })
}

/// Returns what stands before the closing quote, which must be the end.
fn unquote(rest: &str) -> Option<String> {
    let mut text = String::with_capacity(rest.len());
    let mut characters = rest.chars();
    loop {
        match characters.next()? {
            '"' => return characters.next().is_none().then_some(text),
            '\\' => match characters.next()? {
                escaped @ ('"' | '\\') => text.push(escaped),
                _ => return None,
            },
            character => text.push(character),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(value: &str) -> Result<Option<String>, Refusal> {
        let mut headers = HeaderMap::new();
        headers.insert(IDEMPOTENCY_KEY, value.parse().unwrap());
        idempotency_key(&headers).map(|id| id.map(|id| id.to_string()))
    }

    #[test]
    fn the_key_is_a_string_in_quotes_or_bare() {
        assert_eq!(key("\"abc\"").unwrap().unwrap(), "abc");
        assert_eq!(key("abc").unwrap().unwrap(), "abc");
        assert_eq!(key(r#""a\"\\b""#).unwrap().unwrap(), r#"a"\b"#);
        assert_eq!(idempotency_key(&HeaderMap::new()).unwrap(), None);
    }

    #[test]
    fn a_key_that_cannot_name_a_rating_is_refused() {
        let long = "x".repeat(129);
        for value in ["", "\"", "\"abc", "\"abc\"d", "\"\"", "a b", r#""a\b""#, &long] {
            let refusal = key(value).unwrap_err();
            assert_eq!(refusal.field(), Some("idempotency-key"), "{value}");
        }
    }
}
