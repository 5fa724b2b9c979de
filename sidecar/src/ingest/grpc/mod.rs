//! Ratings over gRPC: `merit.rating.v1.RatingService`, with health and reflection beside it.
//!
//! 1. Who may rate, what a rating is and what refuses it is decided by the same code as over HTTP, in
//!    the same order, and counted in the same metrics: a message is not read before its poster is known.
//! 2. A unary call is read as a stream of one message: tonic would decode it before anybody had asked
//!    who sends it, and answer a bad one without counting it.
//! 3. A call ends by its own `grpc-timeout` or by `[ingest] timeout`, whichever is sooner.
//! 4. Health follows the bus; when the process stops it says so, and streams end where they are.

mod codec;
mod status;
mod stream;

use std::{collections::HashMap, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
    routing::post,
};
use http::{HeaderMap, Request, StatusCode, header};
use prost::{DecodeError, Message};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming, server::Grpc};
use tower::service_fn;

use self::codec::Messages;
use super::{
    Accepted, Ingest, Refusal,
    accept::idempotency_key,
    http::{permit, refuse},
    quota::Places,
    raters::Rater,
};
use crate::{
    grpc_health,
    rating::{
        RatingError, RatingId, RatingRequest,
        proto::v1::{self, RateRequest, RateResponse},
    },
};

/// Whether this build takes ratings over gRPC.
pub const SUPPORTED: bool = true;

/// The name of the service, as the `.proto` has it.
const SERVICE: &str = "merit.rating.v1.RatingService";

/// The `.proto`, as reflection tells it.
const DESCRIPTORS: &[u8] = include_bytes!("../../../schema/generated/merit.rating.v1.bin");

/// The most digits of `grpc-timeout` (gRPC over HTTP/2, "Requests").
const TIMEOUT_DIGITS_MAX: usize = 8;

/// What the calls of this listener share.
#[derive(Clone)]
struct Calls {
    ingest: Ingest,
    streams: Arc<Places>,
    stop: CancellationToken,
}

/// Returns the routes of the gRPC listener. Once `stop` is cancelled health says that nobody is served
/// and streams end; it must be called within a tokio runtime.
pub fn router(ingest: Ingest, stop: CancellationToken) -> Router {
    let streams = Arc::new(Places::new(ingest.inner.config.max_streams_in_flight));
    let publisher = ingest.inner.publisher.clone();
    let serves = move || {
        let publisher = publisher.clone();
        async move { publisher.check().await.is_ok() }
    };
    let health = grpc_health::follow(SERVICE, serves, stop.clone());
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    // Clients have come to version 1, and some still ask for the alpha only.
    let (v1, alpha) = (reflection().build_v1(), reflection().build_v1alpha());
    Router::new()
        .route("/merit.rating.v1.RatingService/Rate", post(rate))
        .route("/merit.rating.v1.RatingService/RateStream", post(stream::rate))
        .route_service("/grpc.health.v1.Health/{method}", health)
        .route_service(
            "/grpc.reflection.v1.ServerReflection/{method}",
            v1.expect("the descriptors are the generated ones"),
        )
        .route_service(
            "/grpc.reflection.v1alpha.ServerReflection/{method}",
            alpha.expect("the descriptors are the generated ones"),
        )
        .fallback(async |request: Request<Body>| match speaks_grpc(request.headers()) {
            true => Status::unimplemented("no such method here").into_http(),
            false => refuse(StatusCode::NOT_FOUND, "this port speaks gRPC only"),
        })
        .with_state(Calls { ingest, streams, stop })
}

/// A call whose caller is known, before its first message is read.
struct Call {
    ingest: Ingest,
    rater: Rater,
    deadline: Instant,
    /// Whether the deadline is the caller's own.
    theirs: bool,
}

/// A message as it came.
type Read<Q> = Result<Q, DecodeError>;

impl Call {
    /// Learns who calls, as the head of the request says. The future borrows nothing of the request,
    /// whose body cannot be shared between threads.
    fn begin(
        ingest: &Ingest,
        request: &Request<Body>,
    ) -> impl Future<Output = Result<Self, Refusal>> + Send + 'static {
        let ours = ingest.inner.config.timeout;
        let theirs = grpc_timeout(request.headers());
        let deadline = Instant::now() + theirs.map_or(ours, |theirs| theirs.min(ours));
        let encoding = request.headers().get("grpc-encoding");
        let encoded = encoding.is_some_and(|encoding| encoding != "identity");
        let (ingest, rater) = (ingest.clone(), ingest.identify(request));
        async move {
            let rater = rater.await?;
            let theirs = theirs.is_some_and(|theirs| theirs < ours);
            match encoded {
                true => Err(Refusal::Encoding),
                false => Ok(Self { ingest, rater, deadline, theirs }),
            }
        }
    }

    /// Returns the code of a refusal of this call.
    fn code(&self, refusal: &Refusal) -> Code {
        match refusal {
            Refusal::Late { .. } if self.theirs => Code::DeadlineExceeded,
            refusal => status::code(refusal),
        }
    }

    /// Waits for the next message of the call until `deadline`.
    async fn next<Q>(
        &self,
        messages: &mut Streaming<Read<Q>>,
        deadline: Instant,
    ) -> Result<Option<Read<Q>>, Refusal> {
        match timeout_at(deadline, messages.message()).await {
            Ok(Ok(message)) => Ok(message),
            // The only fault that tonic finds by this code is that of a length.
            Ok(Err(status)) if status.code() == Code::OutOfRange => {
                Err(Refusal::TooLarge { max: self.ingest.inner.config.max_body_bytes })
            }
            Ok(Err(status)) if status.code() == Code::Unimplemented => Err(Refusal::Encoding),
            Ok(Err(_)) => Err(Refusal::BrokenOff),
            Err(_) => Err(Refusal::Slow(self.ingest.inner.config.timeout)),
        }
    }

    /// Takes the one rating of a unary call.
    async fn take(
        &self,
        name: Option<RatingId>,
        mut messages: Streaming<Read<RateRequest>>,
    ) -> Result<Accepted, Refusal> {
        let first = self.next(&mut messages, self.deadline).await?.ok_or(Refusal::NotOne)?;
        if self.next(&mut messages, self.deadline).await?.is_some() {
            return Err(Refusal::NotOne);
        }
        let request = asked(first.map(|request| request.rating))?;
        let rating = self.ingest.allow(&self.rater, name, request)?;
        self.ingest.publish(rating, self.deadline).await
    }
}

/// Returns what a message asks for.
fn asked(message: Read<Option<v1::Rating>>) -> Result<RatingRequest, Refusal> {
    let malformed = |error: DecodeError| RatingError::Malformed {
        format: "Protobuf",
        problem: error.to_string(),
    };
    let missing = RatingError::Missing { field: "rating", remedy: "put the rating there" };
    let rating = message.map_err(malformed)?.ok_or(missing)?;
    Ok(RatingRequest::from_message(&rating)?)
}

async fn rate(State(calls): State<Calls>, request: Request<Body>) -> Response {
    if !speaks_grpc(request.headers()) {
        return no_grpc();
    }
    let began = Instant::now();
    let inner = Arc::clone(&calls.ingest.inner);
    let (begin, name) = (Call::begin(&calls.ingest, &request), idempotency_key(request.headers()));
    let head = async {
        let permit = permit(&inner.in_flight)?;
        let call = begin.await?;
        Ok((permit, call, name?))
    };
    let response = match head.await {
        Err(refusal) => refused(&calls.ingest, &refusal),
        Ok((_permit, call, name)) => {
            let (call, meter) = (&call, &inner.meter);
            serve(&inner.config, request, move |messages| async move {
                call.take(name, messages).await.map(answer).map_err(|refusal| {
                    meter.refused(&refusal);
                    status::of(&refusal, call.code(&refusal), HashMap::new())
                })
            })
            .await
        }
    };
    inner.meter.seconds.record(began.elapsed());
    response
}

/// Reads the messages of `request` and answers with what `take` makes of them.
async fn serve<Q, A, F>(
    config: &super::Config,
    request: Request<Body>,
    take: impl FnOnce(Streaming<Read<Q>>) -> F,
) -> Response
where
    Q: Message + Default + Send + 'static,
    A: Message + Send + 'static,
    F: Future<Output = Result<A, Status>>,
{
    let mut grpc =
        Grpc::new(Messages::<Q, A>::new()).max_decoding_message_size(config.max_body_bytes);
    let mut take = Some(take);
    let service = service_fn(|request: tonic::Request<Streaming<Read<Q>>>| {
        let take = take.take().expect("a request is served once");
        async move { take(request.into_inner()).await.map(tonic::Response::new) }
    });
    grpc.client_streaming(service, request).await.map(Body::new)
}

/// Counts a refusal that no message was read for, and answers it.
fn refused(ingest: &Ingest, refusal: &Refusal) -> Response {
    ingest.inner.meter.refused(refusal);
    status::of(refusal, status::code(refusal), HashMap::new()).into_http()
}

fn answer(accepted: Accepted) -> RateResponse {
    RateResponse {
        id: accepted.id.to_string(),
        moves_a_limit: accepted.moves_a_limit,
        receipted: accepted.receipted,
    }
}

/// Returns whether a request with the fields `head` is gRPC (gRPC over HTTP/2, "Requests").
fn speaks_grpc(head: &HeaderMap) -> bool {
    let kind = head.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let rest = kind.and_then(|kind| kind.strip_prefix("application/grpc"));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['+', ';']))
}

/// Answers who sent something else, as "gRPC over HTTP/2" wants it.
fn no_grpc() -> Response {
    refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content-type must be application/grpc")
        .into_response()
}

/// Returns how long the caller waits, when it says so well formed.
fn grpc_timeout(head: &HeaderMap) -> Option<Duration> {
    let text = head.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let digits = (1..=TIMEOUT_DIGITS_MAX).contains(&digits.len()).then_some(digits)?;
    let number: u64 =
        digits.bytes().all(|digit| digit.is_ascii_digit()).then_some(digits)?.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
