//! Many ratings in one body: a JSON array, one object a line (NDJSON), or a batch of CloudEvents.
//!
//! Each item stands for itself: it is refused or taken whatever becomes of the others. All are
//! published at once, in the order of the body: the bus keeps the order of those of one agent.

use std::fmt;

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use futures_util::future::join_all;
use http::{HeaderValue, StatusCode, header};
use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use serde_json::{Value, json, value::RawValue};
use tokio::time::Instant;

use super::{
    Accepted, Ingest, Refusal, cloud_events::Event, raters::Rater, refusal::whole_seconds,
};
use crate::rating::RatingRequest;

/// How the ratings of a batch are put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// A JSON array.
    Array,
    /// One JSON object a line; empty lines are skipped.
    Lines,
    /// A JSON array of CloudEvents.
    Events,
}

/// Returns the items of `body`, at most `max`.
pub(super) fn split(body: &[u8], form: Form, max: usize) -> Result<Vec<&[u8]>, Refusal> {
    let items = match form {
        Form::Array | Form::Events => array(body, max)?,
        Form::Lines => {
            let lines = body.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
            lines.filter(|line| !line.is_empty()).take(max + 1).collect()
        }
    };
    match items.len() {
        0 => Err(Refusal::Empty),
        count if count > max => Err(Refusal::TooMany { max }),
        _ => Ok(items),
    }
}

/// Returns up to `max + 1` items, so that a body of tiny ones cannot grow a large list.
fn array(body: &[u8], max: usize) -> Result<Vec<&[u8]>, Refusal> {
    struct Items(usize);

    impl<'de> Visitor<'de> for Items {
        type Value = Vec<&'de [u8]>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an array")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
            let mut found = Vec::new();
            while let Some(item) = items.next_element::<&'de RawValue>()? {
                found.push(item.get().as_bytes());
                if found.len() > self.0 {
                    return Err(A::Error::custom(TOO_MANY));
                }
            }
            Ok(found)
        }
    }

    const TOO_MANY: &str = "too many items";
    let mut reader = serde_json::Deserializer::from_slice(body);
    let read = reader.deserialize_seq(Items(max)).and_then(|items| reader.end().map(|()| items));
    read.map_err(|error| match error.is_data() && error.to_string().starts_with(TOO_MANY) {
        true => Refusal::TooMany { max },
        false => Refusal::Array { line: error.line(), column: error.column() },
    })
}

/// Takes every item of a batch; returns the outcomes in their order.
pub(super) async fn take(
    ingest: &Ingest,
    rater: &Rater,
    (form, items): (Form, &[&[u8]]),
    deadline: Instant,
) -> Vec<Result<Accepted, Refusal>> {
    // Polled in order for the first time, and a publisher queues a rating when it is first polled.
    let outcomes = items.iter().map(|item| async {
        let request = match form {
            Form::Array | Form::Lines => RatingRequest::from_json(item)?,
            Form::Events => Event::read(item)?,
        };
        let rating = ingest.allow(rater, None, request)?;
        ingest.publish(rating, deadline).await
    });
    join_all(outcomes).await
}

/// Returns the answer: 202 when all were accepted, 429 when none is left to this rater, 503 when the bus
/// took none, 207 otherwise.
pub(super) fn answer(outcomes: &[Result<Accepted, Refusal>]) -> Response {
    let waits = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()?.retry_after());
    let wait = waits.max();
    let unavailable = |outcome: &Result<Accepted, Refusal>| matches!(outcome, Err(refusal) if refusal.retry_after().is_some());
    let spent = |outcome: &Result<Accepted, Refusal>| matches!(outcome, Err(Refusal::Quota { .. }));
    let status = if outcomes.iter().all(Result::is_ok) {
        StatusCode::ACCEPTED
    } else if outcomes.iter().all(spent) {
        StatusCode::TOO_MANY_REQUESTS
    } else if outcomes.iter().all(unavailable) {
        StatusCode::SERVICE_UNAVAILABLE
    } else {
        StatusCode::MULTI_STATUS
    };
    let results: Vec<Value> = outcomes.iter().map(item).collect();
    let body = json!({ "results": results }).to_string();
    let mut response = (status, Body::from(body)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(wait) = wait {
        headers.insert(header::RETRY_AFTER, whole_seconds(wait).into());
    }
    response
}

fn item(outcome: &Result<Accepted, Refusal>) -> Value {
    match outcome {
        Ok(accepted) => {
            let mut item = accepted.to_json();
            item["status"] = StatusCode::ACCEPTED.as_u16().into();
            item
        }
        Err(refusal) => {
            let mut item = refusal.problem().to_json();
            if let Some(members) = item.as_object_mut() {
                // The same for every item of a kind; the status says it.
                members.retain(|name, _| name != "type" && name != "title");
            }
            item
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_array_and_lines_hold_the_same_items() {
        let array = split(b" [ {\"a\":1} , {\"b\":[2]} ] ", Form::Array, 2).unwrap();
        let lines = split(b"{\"a\":1}\r\n\n  {\"b\":[2]}", Form::Lines, 2).unwrap();
        assert_eq!(array, lines);
        assert_eq!(array, [&b"{\"a\":1}"[..], b"{\"b\":[2]}"]);
    }

    #[test]
    fn a_batch_is_bounded_and_never_empty() {
        for (body, form) in [(&b"[1,2,3]"[..], Form::Array), (b"1\n2\n3\n", Form::Lines)] {
            assert!(matches!(split(body, form, 2), Err(Refusal::TooMany { max: 2 })));
            assert_eq!(split(body, form, 3).unwrap().len(), 3);
        }
        assert!(matches!(split(b"[]", Form::Array, 2), Err(Refusal::Empty)));
        assert!(matches!(split(b"\n \n", Form::Lines, 2), Err(Refusal::Empty)));
    }

    #[test]
    fn what_is_no_array_is_refused_with_its_place() {
        for body in [&b"{}"[..], b"", b"[1,", b"[1]x", b"[NaN]", b"\"x\""] {
            let refusal = split(body, Form::Array, 9).unwrap_err();
            assert!(matches!(refusal, Refusal::Array { line: 1 | 0, .. }), "{refusal:?}");
        }
    }
}
