//! `RateStream`: ratings taken in the order in which they come, answered once.
//!
//! 1. At most [`WINDOW`] ratings of a stream are on their way to the bus; with so many nothing is read,
//!    and HTTP/2's flow control holds the sender back.
//! 2. A rating is put on the bus in its turn, so that those of one agent stay in order.
//! 3. What refuses a rating for what it says is listed, and the stream goes on. What would refuse any
//!    rating, its sender's spent quota too, ends it: nothing more is read, what is on its way is waited
//!    for, and the status tells where to go on.

use std::{collections::HashMap, sync::Arc, time::Duration};

use axum::{body::Body, extract::State, response::Response};
use futures_util::{StreamExt, stream::FuturesOrdered};
use http::Request;
use tokio::time::{Instant, sleep_until};
use tonic::{Status, Streaming};

use super::{Call, Calls, Read, asked, no_grpc, refused, serve, speaks_grpc, status};
use crate::{
    ingest::{Accepted, Refusal, accept::idempotency_key, http::permit},
    rating::proto::v1::{self, RateStreamRequest, RateStreamResponse},
};

/// The most ratings of one stream that are on their way to the bus.
const WINDOW: usize = 64;

/// The most refused ratings that an answer lists.
const LISTED_MAX: usize = 100;

/// How long a stream may last: its credential was looked at when it began.
const LIFE: Duration = Duration::from_secs(600);

pub(super) async fn rate(State(calls): State<Calls>, request: Request<Body>) -> Response {
    if !speaks_grpc(request.headers()) {
        return no_grpc();
    }
    let inner = Arc::clone(&calls.ingest.inner);
    let (begin, name) = (Call::begin(&calls.ingest, &request), idempotency_key(request.headers()));
    let head = async {
        let permit = permit(&inner.in_flight)?;
        let call = begin.await?;
        let place = calls.streams.take(&call.rater)?;
        if name?.is_some() {
            let problem = "names one rating; in a stream give every rating its own `id`".to_owned();
            return Err(Refusal::IdempotencyKey { problem });
        }
        Ok(((permit, place), call))
    };
    match head.await {
        Err(refusal) => refused(&calls.ingest, &refusal),
        Ok((_places, call)) => {
            serve(&inner.config, request, |ratings| take(&calls, &call, ratings)).await
        }
    }
}

/// Takes the ratings of a stream until its end or the first that nobody could have sent.
async fn take(
    calls: &Calls,
    call: &Call,
    mut ratings: Streaming<Read<RateStreamRequest>>,
) -> Result<RateStreamResponse, Status> {
    let (ingest, patience) = (&call.ingest, call.ingest.inner.config.timeout);
    let began = Instant::now();
    // A caller that names no deadline may stream on; it may not fall silent.
    let end = if call.theirs { call.deadline } else { began + LIFE };
    let mut patient_until = began + patience;
    let mut on_its_way = FuturesOrdered::new();
    let mut read = 0;
    let mut told = Told::default();
    let stopped = loop {
        tokio::select! {
            biased;
            Some(outcome) = on_its_way.next(), if !on_its_way.is_empty() => {
                told.note(call, outcome);
                patient_until = Instant::now() + patience;
                if told.stopped.is_some() {
                    break None;
                }
            }
            () = calls.stop.cancelled() => break Some(Refusal::StreamEnds("this process stops")),
            () = sleep_until(end) => {
                break Some(match call.theirs {
                    true => Refusal::Slow(end - began),
                    false => Refusal::StreamEnds("it has lasted long enough"),
                });
            }
            next = call.next(&mut ratings, patient_until), if on_its_way.len() < WINDOW => {
                let message = match next {
                    Ok(Some(message)) => message,
                    Ok(None) => break None,
                    Err(refusal) => break Some(refusal),
                };
                let rating = match asked(message.map(|request| request.rating))
                    .and_then(|request| ingest.allow(&call.rater, None, request))
                {
                    // The next one might be taken, and overtake this one.
                    Err(refusal) if refusal.retry_after().is_some() => break Some(refusal),
                    rating => rating,
                };
                let now = Instant::now();
                patient_until = now + patience;
                let deadline = (now + patience).min(end);
                on_its_way.push_back(async move { ingest.publish(rating?, deadline).await });
                read += 1;
            }
        }
    };
    while let Some(outcome) = on_its_way.next().await {
        told.note(call, outcome);
    }
    if let Some(refusal) = stopped {
        ingest.inner.meter.refused(&refusal);
        told.stopped.get_or_insert((read, refusal));
    }
    told.answer(call)
}

/// What became of the ratings so far.
#[derive(Default)]
struct Told {
    /// Ratings with an outcome.
    count: u64,
    answer: RateStreamResponse,
    /// Where the stream is to be gone on with, and why it stopped there.
    stopped: Option<(u64, Refusal)>,
}

impl Told {
    /// Takes note of the next outcome; they come in the order of the ratings.
    fn note(&mut self, call: &Call, outcome: Result<Accepted, Refusal>) {
        let index = self.count;
        self.count += 1;
        let refusal = match outcome {
            Ok(accepted) => {
                self.answer.accepted += 1;
                self.answer.without_agent += u64::from(!accepted.moves_a_limit);
                return;
            }
            Err(refusal) => refusal,
        };
        call.ingest.inner.meter.refused(&refusal);
        if refusal.retry_after().is_some() {
            self.stopped.get_or_insert((index, refusal));
            return;
        }
        self.answer.refused += 1;
        if self.answer.refusals.len() < LISTED_MAX {
            self.answer.refusals.push(v1::Refusal {
                index,
                code: status::code(&refusal).into(),
                reason: status::reason(&refusal),
                field: status::field(&refusal).unwrap_or_default().to_owned(),
                message: refusal.detail(),
            });
        }
    }

    fn answer(self, call: &Call) -> Result<RateStreamResponse, Status> {
        let Some((next, refusal)) = self.stopped else { return Ok(self.answer) };
        let counts =
            [("accepted", self.answer.accepted), ("refused", self.answer.refused), ("next", next)];
        let counts = counts.map(|(name, count)| (name.to_owned(), count.to_string()));
        Err(status::of(&refusal, call.code(&refusal), HashMap::from(counts)))
    }
}
