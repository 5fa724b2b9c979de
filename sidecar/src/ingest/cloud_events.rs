//! CloudEvents 1.0 that carry a rating as their data: over HTTP in binary mode (`ce-` fields), structured
//! mode and batches (CloudEvents HTTP protocol binding 1.0.2 section 3).
//!
//! 1. `source` and `id` name the event (CloudEvents 1.0.2 section 3.1.1: together they are unique), unless its data has an
//!    `id` of its own; `time` is the rating's time, unless its data has one. `type`, `subject` and extensions are
//!    the producer's own business.
//! 2. Data is JSON. What it says is a rating like any other, with the same refusals.

use aws_lc_rs::digest::{Context as Digest, SHA256};
use http::HeaderMap;
use percent_encoding::percent_decode_str;
use serde_json::value::RawValue;

use super::Refusal;
use crate::rating::{RatingId, RatingRequest};

/// The media type of one event in structured mode.
pub(super) const ONE: &str = "application/cloudevents+json";
/// The media type of many.
pub(super) const MANY: &str = "application/cloudevents-batch+json";

/// The version of the specification that is read.
const VERSION: &str = "1.0";

/// What an event says of itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Event {
    name: RatingId,
    /// RFC 3339, unread.
    time: Option<String>,
}

impl Event {
    /// Returns the event that the fields of a request in binary mode tell of; nothing when they tell of none.
    pub(super) fn in_head(head: &HeaderMap) -> Result<Option<Self>, Refusal> {
        if !head.contains_key("ce-specversion") {
            return Ok(None);
        }
        let attribute = |field: &'static str| match head.get_all(field).iter().collect::<Vec<_>>()[..]
        {
            [] => Ok(None),
            [value] => match value.to_str().ok().and_then(decoded) {
                Some(text) => Ok(Some(text)),
                None => Err(refuse(field, "is no percent-encoded UTF-8")),
            },
            _ => Err(refuse(field, "is given twice; send it once")),
        };
        let attributes = Attributes {
            specversion: attribute("ce-specversion")?,
            id: attribute("ce-id")?,
            source: attribute("ce-source")?,
            kind: attribute("ce-type")?,
            time: attribute("ce-time")?,
        };
        attributes.event(["ce-specversion", "ce-id", "ce-source", "ce-type"]).map(Some)
    }

    /// Returns the rating that the event in `body`, in the JSON format, asks for.
    pub(super) fn read(body: &[u8]) -> Result<RatingRequest, Refusal> {
        let envelope: Envelope<'_> = serde_json::from_slice(body).map_err(|error| {
            let place = format!("line {}, column {}", error.line(), error.column());
            refuse("cloudevent", &format!("is no CloudEvent in JSON at {place}; its attributes are strings, each given once"))
        })?;
        let attributes = Attributes {
            specversion: envelope.specversion,
            id: envelope.id,
            source: envelope.source,
            kind: envelope.kind,
            time: envelope.time,
        };
        let event = attributes.event(["specversion", "id", "source", "type"])?;
        if envelope.datacontenttype.is_some_and(|kind| !super::http::is_json(&essence(&kind))) {
            return Err(refuse(
                "datacontenttype",
                "is not JSON; send application/json, or leave it out",
            ));
        }
        if envelope.data_base64.is_some() {
            return Err(refuse("data_base64", "is not read; send the rating as JSON in data"));
        }
        let data =
            envelope.data.ok_or_else(|| refuse("data", "is missing; send the rating there"))?;
        event.asks(data.get().as_bytes())
    }

    /// Returns the rating that the event asks for with `data`.
    pub(super) fn asks(self, data: &[u8]) -> Result<RatingRequest, Refusal> {
        Ok(RatingRequest::from_json(data)?.of_event(self.name, self.time.as_deref())?)
    }
}

/// The attributes that are looked at.
struct Attributes {
    specversion: Option<String>,
    id: Option<String>,
    source: Option<String>,
    kind: Option<String>,
    time: Option<String>,
}

impl Attributes {
    /// Returns the event, when all that is required (section 3.1) is there under its `names`.
    fn event(self, names: [&'static str; 4]) -> Result<Event, Refusal> {
        let [specversion, id, source, kind] = names;
        let there = |value: Option<String>, name| {
            let value = value.filter(|text| !text.is_empty());
            value.ok_or_else(|| refuse(name, "is missing or empty; a CloudEvent has it"))
        };
        if there(self.specversion, specversion)? != VERSION {
            return Err(refuse(specversion, "must be `1.0`"));
        }
        let (id, source) = (there(self.id, id)?, there(self.source, source)?);
        there(self.kind, kind)?;
        Ok(Event { name: name(&source, &id), time: self.time })
    }
}

/// The JSON format (CloudEvents JSON event format 1.0.2); extensions are ignored.
#[derive(serde::Deserialize)]
struct Envelope<'a> {
    specversion: Option<String>,
    id: Option<String>,
    source: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    time: Option<String>,
    datacontenttype: Option<String>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    data_base64: Option<serde::de::IgnoredAny>,
}

fn refuse(attribute: &'static str, problem: &str) -> Refusal {
    Refusal::CloudEvent { attribute, problem: problem.to_owned() }
}

/// Returns the name of the event `id` of `source`: both may be longer than a rating's name. It may never change.
fn name(source: &str, id: &str) -> RatingId {
    let mut digest = Digest::new(&SHA256);
    for text in ["merit cloudevent v1", source, id] {
        digest.update(&(text.len() as u64).to_le_bytes());
        digest.update(text.as_bytes());
    }
    let digest = digest.finish();
    let first: [u8; 16] = digest.as_ref()[..16].try_into().expect("a SHA-256 digest has 32 bytes");
    let text = format!("e-{:032x}", u128::from_be_bytes(first));
    RatingId::new(&text).expect("a letter, a dash and hex digits are visible ASCII")
}

/// Returns a field's value as HTTP carries it: maybe in quotes, percent-encoded (section 3.1.3.2).
fn decoded(value: &str) -> Option<String> {
    let value = value.trim();
    let plain = match value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        None => value.to_owned(),
        Some(quoted) => {
            let mut text = String::with_capacity(quoted.len());
            let mut characters = quoted.chars();
            while let Some(character) = characters.next() {
                text.push(if character == '\\' { characters.next()? } else { character });
            }
            text
        }
    };
    String::from_utf8(percent_decode_str(&plain).collect()).ok()
}

fn essence(kind: &str) -> String {
    kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rating::Poster;

    fn head(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut head = HeaderMap::new();
        for (name, value) in fields {
            head.append(*name, value.parse().unwrap());
        }
        head
    }

    const ALL: [(&str, &str); 4] = [
        ("ce-specversion", "1.0"),
        ("ce-id", "A234-1234-1234"),
        ("ce-source", "/moltbook/feed"),
        ("ce-type", "com.moltbook.rating"),
    ];

    #[test]
    fn an_event_has_one_name_in_every_mode() {
        let binary = Event::in_head(&head(&ALL)).unwrap().unwrap();
        let structured = br#"{"specversion":"1.0","id":"A234-1234-1234","source":"/moltbook/feed",
            "type":"com.moltbook.rating","comexampleextension1":"x","datacontenttype":"application/json; charset=utf-8",
            "data":{"agent_id":"a","user_id":"u","score":5}}"#;
        let request = Event::read(structured).unwrap();
        // Computed apart from this code, with Python's hashlib.
        assert_eq!(binary.name.as_str(), "e-697f38aff171df248d32beae4cfba05d");
        assert_eq!(request.id(), Some(&binary.name));
        let other = [("ce-source", "/moltbook/fee"), ("ce-id", "dA234-1234-1234")];
        let mut fields = head(&ALL);
        for (field, value) in other {
            fields.insert(field, value.parse().unwrap());
        }
        assert_ne!(Event::in_head(&fields).unwrap().unwrap().name, binary.name);
        assert_eq!(Event::in_head(&HeaderMap::new()).unwrap(), None);
    }

    #[test]
    fn fields_are_percent_encoded_and_maybe_in_quotes() {
        for (value, expected) in [
            ("plain", Some("plain")),
            ("Euro%20%E2%82%AC%20%F0%9F%98%80", Some("Euro € 😀")),
            ("\"in %22quotes%22 \\\\ here\"", Some("in \"quotes\" \\ here")),
            ("%ff", None),
        ] {
            assert_eq!(decoded(value).as_deref(), expected, "{value}");
        }
    }

    #[test]
    fn data_that_names_and_dates_itself_keeps_its_own() {
        let rating = |data: &str| {
            let mut fields = head(&ALL);
            fields.insert("ce-time", "2023-11-14T22:13:20Z".parse().unwrap());
            let request = Event::in_head(&fields).unwrap().unwrap().asks(data.as_bytes()).unwrap();
            request.into_rating(Poster::new("p").unwrap(), 1_800_000_000_000_000).unwrap()
        };
        let plain = rating(r#"{"agent_id":"a","user_id":"u","score":5}"#);
        assert_eq!((plain.timestamp_ms(), plain.id().as_str().len()), (1_700_000_000_000, 34));
        let own = rating(r#"{"agent_id":"a","user_id":"u","score":5,"id":"r1","timestamp":7}"#);
        assert_eq!((own.timestamp_ms(), own.id().as_str()), (7000, "r1"));
    }

    #[test]
    fn what_is_no_event_is_refused_in_the_name_of_the_attribute() {
        for (name, _) in &ALL[1..] {
            let mut fields = head(&ALL);
            fields.remove(*name);
            assert_eq!(Event::in_head(&fields).unwrap_err().field(), Some(*name));
        }
        let mut fields = head(&ALL);
        fields.append("ce-id", "again".parse().unwrap());
        assert_eq!(Event::in_head(&fields).unwrap_err().field(), Some("ce-id"));
        let event = |change: &str| {
            format!(
                r#"{{"specversion":"1.0","id":"1","source":"/s","type":"t","data":{{"agent_id":"a","user_id":"u","score":5}}{change}}}"#
            )
        };
        Event::read(event("").as_bytes()).unwrap();
        for (body, field) in [
            (event("").replace("1.0", "0.3"), "specversion"),
            (event("").replace(r#""source":"/s","#, ""), "source"),
            (event(r#","id":"2""#), "cloudevent"),
            (event(r#","time":"yesterday""#), "time"),
            (event(r#","datacontenttype":"text/xml""#), "datacontenttype"),
            (event(r#","data_base64":"e30=""#), "data_base64"),
            (event("").replace(r#""score":5"#, r#""score":6"#), "score"),
            (r#"{"specversion":"1.0","id":"1","source":"/s","type":"t"}"#.to_owned(), "data"),
            ("[]".to_owned(), "cloudevent"),
            ("{".to_owned(), "cloudevent"),
        ] {
            assert_eq!(Event::read(body.as_bytes()).unwrap_err().field(), Some(field), "{body}");
        }
    }
}
