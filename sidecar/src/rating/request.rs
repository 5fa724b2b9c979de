//! What one body asks for, before it is known who posted it and when.

use super::{
    FUTURE_MAX_MS, ItemId, Poster, Rating, RatingError, RatingId, Receipt, Score, Told, UserId,
    parse::{self, Draft, Origin},
    timestamp,
};
use std::sync::Arc;
use tower_merit::AgentId;

/// A body that says all that a rating needs, not yet accepted.
#[derive(Debug)]
pub struct RatingRequest {
    draft: Draft,
    user: UserId,
    score: Score,
}

impl RatingRequest {
    /// Returns what the JSON object in `body` asks for.
    ///
    /// Both forms of version 1 are taken: `{"agent_id","user_id","score"}` and
    /// `{"user_id","item_id","rating"}`, each with the optional fields of the other. Unknown
    /// fields are ignored; an optional field that is null counts as absent.
    ///
    /// # Errors
    ///
    /// When the body is no JSON object, a field is missing, malformed or repeated (also under its
    /// other name). The error names the field.
    pub fn from_json(body: &[u8]) -> Result<Self, RatingError> {
        Self::from_draft(parse::read(body, Origin::Edge)?)
    }

    pub(super) fn from_draft(mut draft: Draft) -> Result<Self, RatingError> {
        let missing = |field, remedy| RatingError::Missing { field, remedy };
        let user = draft.user.take();
        let user = user.ok_or_else(|| missing("user_id", "send who rates as a string"))?;
        let score = draft.score.take();
        let score = score
            .ok_or_else(|| missing("score", "send score (or rating), a number from 1 to 5"))?;
        if draft.agent.is_none() && draft.item.is_none() {
            return Err(missing("agent_id", "send the rated agent_id, or an item_id"));
        }
        Ok(Self { draft, user, score })
    }

    /// Returns the name that the body gives the event.
    #[must_use]
    pub fn id(&self) -> Option<&RatingId> {
        self.draft.id.as_ref()
    }

    /// Returns the agent that the body names.
    #[must_use]
    pub fn agent(&self) -> Option<&AgentId> {
        self.draft.agent.as_ref()
    }

    /// Returns who rates, as the body says.
    #[must_use]
    pub fn user(&self) -> &UserId {
        &self.user
    }

    /// Returns the rated item.
    #[must_use]
    pub fn item(&self) -> Option<&ItemId> {
        self.draft.item.as_ref()
    }

    /// Returns the score.
    #[must_use]
    pub fn score(&self) -> Score {
        self.score
    }

    /// Returns the proof of interaction, unverified.
    #[must_use]
    pub fn receipt(&self) -> Option<&Receipt> {
        self.draft.receipt.as_ref()
    }

    /// Names the event `id`, as an `Idempotency-Key` header does.
    ///
    /// # Errors
    ///
    /// When the body gives it another name.
    pub fn named(mut self, id: RatingId) -> Result<Self, RatingError> {
        match &self.draft.id {
            Some(given) if *given != id => Err(RatingError::Invalid {
                field: "id",
                value: format!("\"{given}\""),
                problem: "differs from the Idempotency-Key header; send one of them".to_owned(),
            }),
            _ => {
                self.draft.id = Some(id);
                Ok(self)
            }
        }
    }

    /// Takes over what an event tells that carries this rating: its name `id` and its time (RFC 3339),
    /// where the body has none of its own.
    ///
    /// # Errors
    ///
    /// When `time` is needed and is no RFC 3339 time from 1970 on; the error names `time`.
    pub fn of_event(mut self, id: RatingId, time: Option<&str>) -> Result<Self, RatingError> {
        self.draft.id.get_or_insert(id);
        if let (None, Some(time)) = (&self.draft.timestamp, time) {
            let ms = timestamp::from_rfc3339("time", time)?;
            self.draft.timestamp = Some((ms, format!("\"{time}\"").into()));
        }
        Ok(self)
    }

    /// Returns the rating that `poster` posted at `accepted_at_us` (Unix microseconds).
    ///
    /// It is named by the id given; without one by its content (`c-…`) when it brings its own
    /// timestamp, so that a repeat has the same name; else at random (`r-…`).
    ///
    /// # Errors
    ///
    /// When the timestamp is more than [`FUTURE_MAX_MS`] ahead of `accepted_at_us`.
    pub fn into_rating(self, poster: Poster, accepted_at_us: u64) -> Result<Rating, RatingError> {
        let now_ms = accepted_at_us / 1000;
        let Self { draft, user, score } = self;
        if let Some((timestamp_ms, shown)) = &draft.timestamp
            && *timestamp_ms > now_ms.saturating_add(FUTURE_MAX_MS)
        {
            return Err(RatingError::Invalid {
                field: "timestamp",
                value: shown.to_string(),
                problem: format!(
                    "is {} s ahead of our clock; send a time at most {} s ahead",
                    (timestamp_ms - now_ms) / 1000,
                    FUTURE_MAX_MS / 1000
                ),
            });
        }
        let (is_named, own_timestamp) = (draft.id.is_some(), draft.timestamp.is_some());
        let unnamed = || RatingId::new("unnamed").expect("visible ASCII");
        let told = Told {
            id: draft.id.unwrap_or_else(unnamed),
            poster,
            agent: draft.agent,
            user,
            item: draft.item,
            score,
            timestamp_ms: draft.timestamp.map_or(now_ms, |(ms, _)| ms),
            context: draft.context,
            receipt: draft.receipt,
            receipt_id: draft.receipt_id,
            accepted_at_us,
            trace: None,
        };
        let mut rating = Rating::of(told);
        if !is_named {
            let id = match own_timestamp {
                true => id_of(b'c', rating.content_key()),
                false => random_id(),
            };
            Arc::make_mut(&mut rating.0).id = id;
        }
        Ok(rating)
    }
}

fn random_id() -> RatingId {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).expect("the operating system gives random bytes");
    id_of(b'r', bytes)
}

fn id_of(prefix: u8, bytes: [u8; 16]) -> RatingId {
    let text = format!("{}-{:032x}", char::from(prefix), u128::from_be_bytes(bytes));
    RatingId::new(&text).expect("a letter, a dash and hex digits are visible ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_US: u64 = 1_700_000_000_000_000;

    fn rating(body: &str) -> Result<Rating, RatingError> {
        let request = RatingRequest::from_json(body.as_bytes())?;
        request.into_rating(Poster::new("tests").unwrap(), NOW_US)
    }

    /// Returns the refusal of a body in which `field` stands beside an otherwise valid rating.
    fn refusal(body: &str) -> RatingError {
        match rating(body) {
            Err(error) => error,
            Ok(rating) => panic!("{body} was taken as {rating:?}"),
        }
    }

    #[test]
    fn both_forms_of_version_1_are_taken() {
        let agent =
            rating(r#"{"agent_id":"a1","user_id":"u1","score":4.5,"timestamp":1699999999}"#);
        let agent = agent.unwrap();
        assert_eq!(agent.agent().unwrap().as_str(), "a1");
        assert_eq!(agent.score().value(), 4.5);
        assert_eq!(agent.timestamp_ms(), 1_699_999_999_000);
        let item = rating(r#"{"user_id":"u1","item_id":"i1","timestamp":1699999999,"rating":2}"#);
        let item = item.unwrap();
        assert_eq!((item.agent(), item.item().unwrap().as_str()), (None, "i1"));
        let camel = rating(r#"{"agentId":"a1","userId":"u1","score":1,"unknown":{"deep":[1]}}"#);
        assert_eq!(camel.unwrap().user().as_str(), "u1");
    }

    #[test]
    fn a_bad_score_is_refused_with_its_value_and_the_remedy() {
        for (score, shown) in [
            ("0", "0 is out of range"),
            ("6", "6 is out of range"),
            ("0.9999999", "0.9999999 is out of range"),
            ("5.000001", "5.000001 is out of range"),
            ("-3", "-3 is out of range"),
            ("1e300", "1e300 is out of range"),
            ("\"5\"", "\"5\" is a string"),
            ("null", "null is no number"),
            ("true", "true is no number"),
            ("[5]", "[…] is no number"),
            ("{\"value\":5}", "{…} is no number"),
        ] {
            for field in ["score", "rating"] {
                let body = format!(r#"{{"agent_id":"a","user_id":"u","{field}":{score}}}"#);
                let error = refusal(&body);
                assert_eq!(error.field(), Some(field), "{body}");
                let text = error.to_string();
                assert!(text.starts_with(&format!("{field} {shown}")), "{text}");
                assert!(text.contains("send a number from 1 to 5"), "{text}");
            }
        }
    }

    #[test]
    fn a_number_that_is_no_json_is_refused_in_the_name_of_its_field() {
        for score in ["NaN", "Infinity", "1e999", "05", "+1", "", "."] {
            let body = format!(r#"{{"agent_id":"a","user_id":"u","score":{score}}}"#);
            let error = refusal(&body);
            assert!(matches!(error, RatingError::Json { .. }), "{body}: {error:?}");
            assert_eq!(error.field(), Some("score"), "{body}");
        }
    }

    #[test]
    fn a_body_that_is_no_json_object_is_refused() {
        for (body, said) in [
            ("[1]", "body is an array"),
            (" \"x\"", "body is a string"),
            ("null", "body is null"),
            ("7", "body is a number"),
            ("true", "body is a boolean"),
            ("", "body is not valid JSON"),
            ("{\"user_id\":\"u\"", "body is not valid JSON"),
            ("{} {}", "body is not valid JSON"),
        ] {
            let error = refusal(body);
            assert!(error.to_string().starts_with(said), "{body}: {error}");
            assert_eq!(error.field(), None);
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        for (body, field) in [
            (r#"{"agent_id":"a","user_id":"u"}"#, "score"),
            (r#"{"agent_id":"a","score":5}"#, "user_id"),
            (r#"{"agent_id":"a","user_id":null,"score":5}"#, "user_id"),
            (r#"{"user_id":"u","score":5}"#, "agent_id"),
            (r#"{"user_id":"u","agent_id":null,"item_id":null,"score":5}"#, "agent_id"),
        ] {
            let error = refusal(body);
            assert!(matches!(error, RatingError::Missing { .. }), "{body}: {error:?}");
            assert_eq!(error.field(), Some(field), "{body}");
        }
    }

    #[test]
    fn a_repeated_field_is_refused_also_under_its_other_name() {
        for (extra, field) in [
            (r#""score":5"#, "score"),
            (r#""rating":5"#, "rating"),
            (r#""agent_id":"a""#, "agent_id"),
            (r#""agentId":"b""#, "agentId"),
            (r#""userId":"u""#, "userId"),
            (r#""id":"x","id":null"#, "id"),
            (r#""context":{},"context":{}"#, "context"),
            (r#""timestamp":1,"timestamp":1"#, "timestamp"),
        ] {
            let body = format!(r#"{{"agent_id":"a","user_id":"u","score":5,{extra}}}"#);
            let error = refusal(&body);
            assert!(matches!(error, RatingError::Repeated { .. }), "{body}: {error:?}");
            assert_eq!(error.field(), Some(field), "{body}");
        }
        let unknown = r#"{"agent_id":"a","user_id":"u","score":5,"x":1,"x":2}"#;
        assert!(rating(unknown).is_ok(), "what is ignored may repeat");
    }

    #[test]
    fn a_malformed_text_is_refused_in_the_name_of_its_field() {
        let long = "x".repeat(129);
        for (field, value) in [
            ("agent_id", "a b"),
            ("agent_id", ":a:"),
            ("agentId", &long),
            ("agent_id", "a\\n"),
            ("user_id", "a\\u0000b"),
            ("userId", ""),
            ("item_id", ""),
            ("id", "with space"),
            ("id", &long),
            ("receipt", "é"),
        ] {
            let mut body = format!(r#"{{"{field}":"{value}","score":5"#);
            for (other, alias) in [("agent_id", "agentId"), ("user_id", "userId")] {
                if ![other, alias].contains(&field) {
                    body.push_str(&format!(r#","{other}":"ok""#));
                }
            }
            body.push('}');
            assert_eq!(refusal(&body).field(), Some(field), "{body}");
        }
        let number = refusal(r#"{"agent_id":7,"user_id":"u","score":5}"#).to_string();
        assert_eq!(number, "agent_id 7 is no string; send a string in quotes");
    }

    #[test]
    fn a_refused_value_is_shown_shortened_and_escaped() {
        let body =
            format!(r#"{{"agent_id":"{}\u001b","user_id":"u","score":5}}"#, "y".repeat(9000));
        let text = refusal(&body).to_string();
        assert!(text.len() < 200 && text.contains("yyy…"), "{text}");
        let control = refusal(r#"{"agent_id":"\u001b[2J","user_id":"u","score":5}"#).to_string();
        assert!(!control.contains('\u{1b}'), "{control}");
    }

    #[test]
    fn a_context_is_flat_and_bounded() {
        let with = |context: &str| {
            format!(r#"{{"agent_id":"a","user_id":"u","score":5,"context":{context}}}"#)
        };
        let many = |count: usize| {
            let entries: Vec<_> = (0..count).map(|n| format!("\"k{n}\":{n}")).collect();
            format!("{{{}}}", entries.join(","))
        };
        let taken = rating(&with(r#"{"s":"x","n":1.5,"b":true,"i":-3,"null":null}"#)).unwrap();
        assert_eq!(taken.context().iter().count(), 4);
        assert!(rating(&with(&many(16))).is_ok());
        assert!(rating(&with("null")).unwrap().context().is_empty());
        let long = format!(r#"{{"k":"{}"}}"#, "x".repeat(257));
        for context in [
            "7",
            "[]",
            "\"x\"",
            r#"{"a":{}}"#,
            r#"{"a":[1]}"#,
            r#"{"a":1,"a":1}"#,
            r#"{"":1}"#,
            &long,
            &many(17),
        ] {
            assert_eq!(refusal(&with(context)).field(), Some("context"), "{context}");
        }
    }

    #[test]
    fn a_timestamp_may_be_five_minutes_ahead_and_no_more() {
        let with = |timestamp: u64| {
            format!(r#"{{"agent_id":"a","user_id":"u","score":5,"timestamp":{timestamp}}}"#)
        };
        let now_ms = NOW_US / 1000;
        assert!(rating(&with(now_ms + FUTURE_MAX_MS)).is_ok());
        assert!(rating(&with(1)).is_ok(), "old ones are taken");
        let error = refusal(&with(now_ms + FUTURE_MAX_MS + 1));
        assert_eq!(error.field(), Some("timestamp"));
        assert!(error.to_string().contains("300 s ahead"), "{error}");
        let absent = rating(r#"{"agent_id":"a","user_id":"u","score":5}"#).unwrap();
        assert_eq!(absent.timestamp_ms(), now_ms);
    }

    #[test]
    fn a_rating_with_its_own_timestamp_is_named_by_its_content() {
        let body = r#"{"agent_id":"a","user_id":"u","score":5,"timestamp":1699999999}"#;
        let id = rating(body).unwrap().id().clone();
        assert!(id.as_str().starts_with("c-") && id.as_str().len() == 34, "{id}");
        assert_eq!(&id, rating(body).unwrap().id());
        assert_ne!(&id, rating(&body.replace(":5,", ":4,")).unwrap().id());
        assert_ne!(&id, rating(&body.replace("99}", "98}")).unwrap().id());
    }

    #[test]
    fn a_rating_without_timestamp_and_id_is_a_new_event_each_time() {
        let body = r#"{"agent_id":"a","user_id":"u","score":5}"#;
        let (first, second) = (rating(body).unwrap(), rating(body).unwrap());
        assert!(first.id().as_str().starts_with("r-"));
        assert_ne!(first.id(), second.id());
    }

    #[test]
    fn the_header_names_a_rating_unless_the_body_says_otherwise() {
        let named = |body: &str| {
            let request = RatingRequest::from_json(body.as_bytes()).unwrap();
            request.named(RatingId::new("key-1").unwrap())
        };
        let request = named(r#"{"agent_id":"a","user_id":"u","score":5}"#).unwrap();
        assert_eq!(request.id().unwrap().as_str(), "key-1");
        assert!(named(r#"{"agent_id":"a","user_id":"u","score":5,"id":"key-1"}"#).is_ok());
        let error = named(r#"{"agent_id":"a","user_id":"u","score":5,"id":"key-2"}"#).unwrap_err();
        assert_eq!(error.field(), Some("id"));
    }
}
