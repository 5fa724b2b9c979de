//! A rating as the messages of `merit.rating.v1` say it: what gRPC takes, and what Protobuf and Avro
//! records on the bus hold.
//!
//! Reading goes through the same checks as reading JSON, so that a rating is valid or not whatever it
//! came in. Protobuf has no way to refuse a field that is there twice: the last one counts.

use super::{
    Context, ContextKey, ItemId, Rating, RatingError, RatingRequest, Receipt, ReceiptId, Scalar,
    error::shorten,
    parse::{Draft, Field, Origin, Value},
    timestamp,
};
use prost::Message as _;
use tower_merit::AgentId;

/// The messages as their `.proto` generates them.
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated")]
pub mod v1 {
    include!("../../schema/generated/merit.rating.v1.rs");
}

/// A number of milliseconds below this is a number of seconds in the wrong field: it would be a time
/// before March 1973.
const LIKE_SECONDS_BELOW: i64 = 100_000_000_000;

impl RatingRequest {
    /// Returns what a message from outside asks for: [`RatingRequest::from_json`] for Protobuf.
    ///
    /// # Errors
    ///
    /// When a field is missing or malformed. The error names the field.
    pub fn from_message(message: &v1::Rating) -> Result<Self, RatingError> {
        Self::from_draft(draft(message, Origin::Edge)?)
    }
}

/// Returns what `message` says.
pub(super) fn draft(message: &v1::Rating, origin: Origin) -> Result<Draft, RatingError> {
    let mut draft = Draft::default();
    let mut take = |field, name, text: Option<&String>| match text {
        Some(text) => draft.take(field, name, &Value::Text(text.into())),
        None => Ok(()),
    };
    take(Field::Id, "id", message.id.as_ref())?;
    take(Field::Agent, "agent_id", message.agent_id.as_ref())?;
    // A text that is always there is empty when it was not set.
    let user = Some(&message.user_id).filter(|user| !user.is_empty());
    take(Field::User, "user_id", user)?;
    take(Field::Item, "item_id", message.item_id.as_ref())?;
    take(Field::Receipt, "receipt", message.receipt.as_ref())?;
    if origin == Origin::Bus {
        take(Field::Poster, "poster", message.poster.as_ref())?;
        take(Field::ReceiptId, "receipt_id", message.receipt_id.as_ref())?;
        let accepted = message.accepted_at_us.map(Value::from);
        if let Some(accepted) = accepted {
            draft.take(Field::AcceptedAt, "accepted_at_us", &accepted)?;
        }
    }
    draft.take(Field::Score, "score", &Value::Float(message.score))?;
    if let Some(ms) = message.timestamp_ms {
        let milliseconds = timestamp::from_milliseconds("timestamp_ms", ms)?;
        if origin == Origin::Edge && ms < LIKE_SECONDS_BELOW {
            return Err(RatingError::Invalid {
                field: "timestamp_ms",
                value: ms.to_string(),
                problem: "is before March 1973; send Unix milliseconds, not seconds".to_owned(),
            });
        }
        draft.timestamp = Some((milliseconds, ms.to_string().into()));
    }
    for (key, value) in &message.context {
        insert(&mut draft.context, key, value)?;
    }
    Ok(draft)
}

fn insert(context: &mut Context, key: &str, value: &v1::Value) -> Result<(), RatingError> {
    use v1::value::Kind;
    let refuse = |value: String, problem: String| {
        Err(RatingError::Invalid { field: "context", value, problem })
    };
    let name = match ContextKey::new(key) {
        Ok(name) => name,
        Err(error) => return refuse(format!("key `{}`", shorten(key)), error.to_string()),
    };
    let scalar = match &value.kind {
        // Not set, or of a kind that a later version has.
        None => return Ok(()),
        Some(Kind::Boolean(value)) => Scalar::Bool(*value),
        Some(Kind::Integer(value)) => Scalar::Integer(*value),
        Some(Kind::Number(value)) if value.is_finite() => Scalar::Number(*value),
        Some(Kind::Number(value)) => {
            let shown = format!("`{}`: {value}", shorten(key));
            return refuse(shown, "is no finite number; leave it out".to_owned());
        }
        Some(Kind::Text(value)) => Scalar::Text(value.as_str().into()),
    };
    context.insert(name, scalar)
}

/// Returns the message that says all of `rating`, as the bus carries it.
#[must_use]
pub fn message(rating: &Rating) -> v1::Rating {
    let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let context = rating.context().iter();
    v1::Rating {
        id: Some(rating.id().to_string()),
        agent_id: rating.agent().map(AgentId::to_string),
        user_id: rating.user().to_string(),
        item_id: rating.item().map(ItemId::to_string),
        score: rating.score().value(),
        timestamp_ms: Some(signed(rating.timestamp_ms())),
        context: context.map(|(key, value)| (key.to_string(), value.into())).collect(),
        receipt: rating.receipt().map(Receipt::to_string),
        poster: Some(rating.poster().to_string()),
        accepted_at_us: Some(signed(rating.accepted_at_us())),
        receipt_id: rating.receipt_id().map(ReceiptId::to_string),
    }
}

impl From<&Scalar> for v1::Value {
    fn from(scalar: &Scalar) -> Self {
        use v1::value::Kind;
        let kind = match scalar {
            Scalar::Bool(value) => Kind::Boolean(*value),
            Scalar::Integer(value) => Kind::Integer(*value),
            Scalar::Number(value) => Kind::Number(*value),
            Scalar::Text(value) => Kind::Text(value.to_string()),
        };
        Self { kind: Some(kind) }
    }
}

/// Returns `rating` as a Protobuf record of the bus.
pub(super) fn to_bytes(rating: &Rating) -> Vec<u8> {
    message(rating).encode_to_vec()
}

/// Returns the rating in a Protobuf record that the bus took at `record_timestamp_ms`.
pub(super) fn from_bytes(bytes: &[u8], record_timestamp_ms: u64) -> Result<Rating, RatingError> {
    let message = v1::Rating::decode(bytes).map_err(|error| RatingError::Malformed {
        format: "Protobuf",
        problem: error.to_string(),
    })?;
    from_message(&message, record_timestamp_ms)
}

/// Returns the rating in a message of the bus.
pub(super) fn from_message(
    message: &v1::Rating,
    record_timestamp_ms: u64,
) -> Result<Rating, RatingError> {
    super::wire::accepted(draft(message, Origin::Bus)?, record_timestamp_ms)
}

#[cfg(test)]
mod tests {
    use super::{super::Poster, *};

    fn message() -> v1::Rating {
        v1::Rating {
            agent_id: Some("a".to_owned()),
            user_id: "u".to_owned(),
            score: 4.5,
            ..v1::Rating::default()
        }
    }

    fn refused(change: impl FnOnce(&mut v1::Rating)) -> RatingError {
        let mut message = message();
        change(&mut message);
        RatingRequest::from_message(&message).unwrap_err()
    }

    fn value(kind: v1::value::Kind) -> v1::Value {
        v1::Value { kind: Some(kind) }
    }

    #[test]
    fn a_message_asks_for_what_the_same_json_asks_for() {
        let mut said = message();
        said.id = Some("r1".to_owned());
        said.timestamp_ms = Some(1_699_999_999_000);
        said.context.insert("n".to_owned(), value(v1::value::Kind::Integer(1)));
        said.context.insert("later".to_owned(), v1::Value { kind: None });
        let json = br#"{"id":"r1","agent_id":"a","user_id":"u","score":4.5,"timestamp":1699999999,
            "context":{"n":1,"later":null}}"#;
        let rating = |request: RatingRequest| {
            request.into_rating(Poster::new("p").unwrap(), 1_700_000_000_000_000).unwrap()
        };
        let of_message = rating(RatingRequest::from_message(&said).unwrap());
        assert_eq!(of_message, rating(RatingRequest::from_json(json).unwrap()));
    }

    #[test]
    fn a_message_is_refused_in_the_name_of_the_field_at_fault() {
        use v1::value::Kind;
        type Change = fn(&mut v1::Rating);
        let cases: [(&str, Change); 12] = [
            ("id", |m| m.id = Some("a b".to_owned())),
            ("agent_id", |m| m.agent_id = Some(String::new())),
            ("agent_id", |m| m.agent_id = None),
            ("user_id", |m| m.user_id.clear()),
            ("item_id", |m| m.item_id = Some("\n".to_owned())),
            ("score", |m| m.score = 0.0),
            ("score", |m| m.score = f64::NAN),
            ("timestamp_ms", |m| m.timestamp_ms = Some(-1)),
            ("timestamp_ms", |m| m.timestamp_ms = Some(i64::MAX)),
            ("timestamp_ms", |m| m.timestamp_ms = Some(1_700_000_000)),
            ("context", |m| {
                m.context.insert("n".to_owned(), value(Kind::Number(f64::INFINITY)));
            }),
            ("context", |m| {
                m.context = (0..17).map(|n| (n.to_string(), value(Kind::Integer(n)))).collect();
            }),
        ];
        for (field, change) in cases {
            assert_eq!(refused(change).field(), Some(field));
        }
        let seconds = refused(|m| m.timestamp_ms = Some(1_700_000_000)).to_string();
        assert!(seconds.contains("send Unix milliseconds, not seconds"), "{seconds}");
    }

    #[test]
    fn a_message_from_outside_cannot_say_what_only_the_bus_knows() {
        let mut said = message();
        said.poster = Some("root".to_owned());
        said.receipt_id = Some("r".to_owned());
        said.accepted_at_us = Some(-1);
        let request = RatingRequest::from_message(&said).unwrap();
        let rating = request.into_rating(Poster::new("p").unwrap(), 7_000).unwrap();
        assert_eq!((rating.poster().as_str(), rating.accepted_at_us()), ("p", 7_000));
        assert_eq!(rating.receipt_id(), None);
    }
}
