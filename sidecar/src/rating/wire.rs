//! A rating on the bus, in JSON: the fields of version 1, who posted it, when it was accepted, and,
//! if its receipt was verified, which request that proves. Who writes to the bus is believed in all.
//!
//! A plain version 1 rating by a foreign producer is taken too: then the bus is the poster and the
//! record's timestamp the time of acceptance, so that reading it twice gives the same rating.

use super::{
    ItemId, Poster, Rating, RatingError, RatingRequest, Receipt, ReceiptId,
    parse::{self, Draft, Origin},
    timestamp,
};
use tower_merit::AgentId;

/// The poster of a rating that a foreign producer put on the bus.
pub const FOREIGN_POSTER: &str = "bus";

#[derive(serde::Serialize)]
struct Record<'a> {
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent_id: Option<&'a str>,
    user_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    item_id: Option<&'a str>,
    score: f64,
    timestamp: serde_json::Number,
    #[serde(skip_serializing_if = "super::Context::is_empty")]
    context: &'a super::Context,
    #[serde(skip_serializing_if = "Option::is_none")]
    receipt: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    receipt_id: Option<&'a str>,
    poster: &'a str,
    accepted_at_us: u64,
}

/// Returns the rating as one JSON object; [`from_bus_json`] gives it back exactly.
#[must_use]
pub fn to_bus_json(rating: &Rating) -> Vec<u8> {
    let record = Record {
        id: rating.id().as_str(),
        agent_id: rating.agent().map(AgentId::as_str),
        user_id: rating.user().as_str(),
        item_id: rating.item().map(ItemId::as_str),
        score: rating.score().value(),
        timestamp: timestamp::to_json(rating.timestamp_ms()),
        context: rating.context(),
        receipt: rating.receipt().map(Receipt::as_str),
        receipt_id: rating.receipt_id().map(ReceiptId::as_str),
        poster: rating.poster().as_str(),
        accepted_at_us: rating.accepted_at_us(),
    };
    serde_json::to_vec(&record).expect("texts and finite numbers are JSON")
}

/// Returns the rating in a record that the bus took at `record_timestamp_ms` (Unix milliseconds).
///
/// # Errors
///
/// As [`RatingRequest::from_json`] and [`RatingRequest::into_rating`]: such a record is poison.
pub fn from_bus_json(bytes: &[u8], record_timestamp_ms: u64) -> Result<Rating, RatingError> {
    accepted(parse::read(bytes, Origin::Bus)?, record_timestamp_ms)
}

/// Returns the rating that a record says, whatever its encoding.
pub(super) fn accepted(mut draft: Draft, record_timestamp_ms: u64) -> Result<Rating, RatingError> {
    let poster = draft
        .poster
        .take()
        .unwrap_or_else(|| Poster::new(FOREIGN_POSTER).expect("the foreign poster is well formed"));
    let of_record = record_timestamp_ms.saturating_mul(1000);
    let accepted_at_us = draft.accepted_at_us.take().unwrap_or(of_record);
    // Named by content, not at random: the same record must give the same rating when read again.
    draft
        .timestamp
        .get_or_insert_with(|| (accepted_at_us / 1000, "of the record".to_owned().into()));
    RatingRequest::from_draft(draft)?.into_rating(poster, accepted_at_us)
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::*;
    use proptest::prelude::*;

    const NOW_MS: u64 = 1_700_000_000_000;

    #[test]
    fn a_foreign_producers_plain_rating_is_taken_and_reads_the_same_twice() {
        let record = br#"{"userId":"u","agentId":"a","score":4,"producer_version":3}"#;
        let rating = from_bus_json(record, NOW_MS).unwrap();
        assert_eq!(rating.poster().as_str(), "bus");
        assert_eq!(rating.accepted_at_us(), NOW_MS * 1000);
        assert_eq!(rating.timestamp_ms(), NOW_MS);
        assert_eq!(from_bus_json(record, NOW_MS).unwrap(), rating);
    }

    #[test]
    fn a_body_from_outside_cannot_say_who_posted_it_when_it_was_accepted_or_that_it_is_proved() {
        let body = br#"{"user_id":"u","agent_id":"a","score":4,"poster":"root","receipt_id":"r","accepted_at_us":1}"#;
        let request = RatingRequest::from_json(body).unwrap();
        let rating = request.into_rating(Poster::new("p").unwrap(), NOW_MS * 1000).unwrap();
        assert_eq!((rating.poster().as_str(), rating.accepted_at_us()), ("p", NOW_MS * 1000));
        assert_eq!(rating.receipt_id(), None);
    }

    #[test]
    fn what_is_no_rating_is_refused_on_the_bus_too() {
        for record in ["", "{", "[]", "hello", r#"{"user_id":"u","agent_id":"a","score":9}"#] {
            assert!(from_bus_json(record.as_bytes(), NOW_MS).is_err(), "{record}");
        }
    }

    fn scalar() -> impl Strategy<Value = serde_json::Value> {
        prop_oneof![
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            any::<u64>().prop_map(Into::into),
            any::<f64>().prop_filter_map("finite", |number| {
                serde_json::Number::from_f64(number).map(Into::into)
            }),
            "\\PC{0,60}".prop_map(Into::into),
        ]
    }

    /// Returns bodies that are ratings, whatever their fields hold.
    pub(in super::super) fn body() -> impl Strategy<Value = serde_json::Value> {
        let names = (
            "\\PC{1,60}",
            proptest::option::of("[A-Za-z0-9][A-Za-z0-9._:@-]{0,40}[A-Za-z0-9]"),
            proptest::option::of("\\PC{1,60}"),
            proptest::option::of("[!-~]{1,128}"),
            proptest::option::of("[!-~]{1,200}"),
        );
        let rest = (
            SCORE_MIN..=SCORE_MAX,
            proptest::option::of(0..NOW_MS),
            proptest::collection::btree_map("\\PC{1,16}", scalar(), 0..CONTEXT_MAX),
        );
        (names, rest).prop_map(|((user, agent, item, id, receipt), (score, timestamp, context))| {
            let item = if agent.is_none() { item.or(Some("i".to_owned())) } else { item };
            serde_json::json!({
                "user_id": user, "agent_id": agent, "item_id": item, "id": id, "receipt": receipt,
                "score": score, "timestamp": timestamp, "context": context,
            })
        })
    }

    proptest! {
        #[test]
        fn a_rating_comes_off_the_bus_as_it_went_on(
            body in body(),
            poster in "\\PC{1,60}",
            receipt_id in proptest::option::of("[0-9a-f]{32}"),
        ) {
            let request = RatingRequest::from_json(body.to_string().as_bytes()).unwrap();
            let poster = Poster::new(&poster).unwrap();
            // A number below 10¹¹ means seconds, which may be far ahead: accept in the year 8307.
            let accepted_at_us = 200_000_000_000_000_000;
            let mut rating = request.into_rating(poster, accepted_at_us).unwrap();
            if let Some(id) = receipt_id {
                rating = rating.receipted(ReceiptId::new(&id).unwrap());
            }
            let back = from_bus_json(&to_bus_json(&rating), 1).unwrap();
            prop_assert_eq!(&back, &rating);
            prop_assert_eq!(back.once_key(), rating.once_key());
            prop_assert_eq!(back.receipt_key(), rating.receipt_key());
            prop_assert_eq!(back.checksum(), rating.checksum());
        }

        #[test]
        fn no_bytes_whatever_panic_the_parser(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = RatingRequest::from_json(&bytes);
            let _ = from_bus_json(&bytes, NOW_MS);
        }
    }
}
