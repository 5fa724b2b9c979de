//! What a frame holds: ratings, each with the bytes that the feed sent.
//!
//! 1. A frame is one JSON object, one object a line (NDJSON), or a JSON array of objects. One object
//!    is taken with every byte of its frame; of the other two, each item with its own bytes, without
//!    the white space around it.
//! 2. A frame that is empty or only white space is a sign of life and holds nothing.
//! 3. What names a rating: its `id`, else a hash of its bytes. So the same rating, sent again by
//!    us or by the feed, has the same name.
//! 4. What orders ratings: their agent, else their item.

use aws_lc_rs::digest::{SHA256, digest};
use axum::body::Bytes;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use crate::rating::{RatingError, RatingId, RatingRequest};

/// Why a frame holds no ratings that could be told apart.
#[derive(Debug, thiserror::Error)]
pub(super) enum FrameError {
    #[error("frame is not valid JSON at line {line}, column {column}")]
    Json { line: usize, column: usize },
}

impl FrameError {
    fn json(error: &serde_json::Error) -> Self {
        Self::Json { line: error.line(), column: error.column() }
    }
}

/// Returns the bytes of each rating in `frame`, in order: pieces of it, which hold all of its memory. How
/// many there are is bounded by the bytes of the frame alone.
pub(super) fn split(frame: &Bytes) -> Result<Vec<Bytes>, FrameError> {
    let text = frame.trim_ascii();
    if text.is_empty() {
        return Ok(Vec::new());
    }
    if text.starts_with(b"[") {
        let items: Vec<&RawValue> =
            serde_json::from_slice(text).map_err(|error| FrameError::json(&error))?;
        return Ok(items.into_iter().map(|item| frame.slice_ref(item.get().as_bytes())).collect());
    }
    match serde_json::from_slice::<IgnoredAny>(text) {
        Ok(_) => Ok(vec![frame.clone()]),
        Err(error) => lines(frame).ok_or_else(|| FrameError::json(&error)),
    }
}

/// Returns the lines of `frame`, when there are several and at least one is an object by itself.
fn lines(frame: &Bytes) -> Option<Vec<Bytes>> {
    let lines = frame.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let lines: Vec<&[u8]> = lines.filter(|line| !line.is_empty()).collect();
    let object =
        |line: &&[u8]| line.starts_with(b"{") && serde_json::from_slice::<IgnoredAny>(line).is_ok();
    let several = lines.len() > 1 && lines.iter().any(object);
    several.then(|| lines.into_iter().map(|line| frame.slice_ref(line)).collect())
}

/// A rating that the bridge passes on: its bytes as they came, and what the bridge must know of it.
#[derive(Clone, Debug)]
pub(super) struct Item {
    /// What the feed sent.
    pub(super) body: Bytes,
    /// The name of the event.
    pub(super) name: RatingId,
    /// Whether the feed gave it that name.
    is_own: bool,
    /// Ratings of one key keep their order.
    pub(super) key: Box<str>,
}

impl Item {
    /// Reads `body`, which must be a rating of version 1.
    pub(super) fn read(body: Bytes) -> Result<Self, RatingError> {
        let request = RatingRequest::from_json(&body)?;
        // An agent id has no slash: no item passes for an agent.
        let key = match (request.agent(), request.item()) {
            (Some(agent), _) => agent.as_str().into(),
            (None, Some(item)) => format!("item/{item}").into(),
            (None, None) => unreachable!("a rating names an agent or an item"),
        };
        let own = request.id().cloned();
        let is_own = own.is_some();
        let name = own.unwrap_or_else(|| by_content(&body));
        Ok(Self { body, name, is_own, key })
    }

    /// Returns the id that the feed knows the rating by.
    pub(super) fn own_id(&self) -> Option<&RatingId> {
        self.is_own.then_some(&self.name)
    }
}

fn by_content(body: &[u8]) -> RatingId {
    let digest = digest(&SHA256, body);
    let (first, _) = digest.as_ref().split_first_chunk::<16>().expect("SHA-256 has 32 bytes");
    let name = format!("f-{:032x}", u128::from_be_bytes(*first));
    RatingId::new(&name).expect("a letter, a dash and hex digits are visible ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(frame: &str) -> Vec<String> {
        let items = split(&Bytes::copy_from_slice(frame.as_bytes())).unwrap();
        items.iter().map(|item| String::from_utf8(item.to_vec()).unwrap()).collect()
    }

    #[test]
    fn one_object_is_taken_with_every_byte_of_its_frame() {
        for frame in
            ["{\"a\":1}", " {\r\n  \"a\" : 1.50,\n  \"a\":\"\\u00e9é\"\n}\n", "\"text\"", "7"]
        {
            assert_eq!(texts(frame), [frame]);
        }
    }

    #[test]
    fn items_of_arrays_and_lines_keep_their_bytes() {
        assert_eq!(texts(" [ {\"a\": 1e0} ,{}, 3 ] "), ["{\"a\": 1e0}", "{}", "3"]);
        assert_eq!(texts("{\"a\": 1}\n\n  {\"b\":\"é\"}\r\n"), ["{\"a\": 1}", "{\"b\":\"é\"}"]);
        // One bad line does not spoil the others.
        assert_eq!(texts("{\"a\":1}\n{oops\n{\"b\":2}"), ["{\"a\":1}", "{oops", "{\"b\":2}"]);
        assert_eq!(texts("[]"), [""; 0]);
    }

    #[test]
    fn an_empty_frame_holds_nothing_and_a_broken_one_is_refused_with_the_place() {
        assert_eq!(texts(""), [""; 0]);
        assert_eq!(texts(" \n"), [""; 0]);
        for (frame, place) in [
            ("{\"a\":", "line 1, column 5"),
            ("hello", "line 1, column 1"),
            ("[{},", "line 1, column 4"),
            ("{\n oops\n}", "line 2, column 2"),
        ] {
            let error = split(&Bytes::copy_from_slice(frame.as_bytes())).unwrap_err();
            assert!(error.to_string().contains(place), "{frame}: {error}");
        }
    }

    /// A frame of more than 10,000 ratings was once no frame.
    #[test]
    fn a_frame_holds_as_many_ratings_as_its_bytes_do() {
        let many = format!("[{}{{}}]", "{},".repeat(30_000));
        assert_eq!(split(&Bytes::from(many)).unwrap().len(), 30_001);
    }

    #[test]
    fn a_rating_is_named_by_its_id_else_by_its_bytes() {
        let item = |body: &'static str| Item::read(Bytes::from_static(body.as_bytes())).unwrap();
        let named = item(r#"{"id":"e-1","agent_id":"a","user_id":"u","score":1}"#);
        assert_eq!(named.name.as_str(), "e-1");
        assert_eq!(named.own_id(), Some(&named.name));
        let one = item(r#"{"agent_id":"a","user_id":"u","score":1}"#);
        let same = item(r#"{"agent_id":"a","user_id":"u","score":1}"#);
        let other = item(r#"{"agent_id":"a","user_id":"u","score":1.0}"#);
        assert_eq!((&one.name, one.own_id()), (&same.name, None));
        assert_ne!(one.name, other.name);
        assert!(one.name.as_str().starts_with("f-"));
    }

    #[test]
    fn ratings_are_ordered_by_agent_else_by_item() {
        let key = |body: &'static str| Item::read(Bytes::from_static(body.as_bytes())).unwrap().key;
        let agent = key(r#"{"agent_id":"a","item_id":"i","user_id":"u","score":1}"#);
        assert_eq!(&*agent, "a");
        let item = key(r#"{"item_id":"a","user_id":"u","rating":1}"#);
        assert_eq!(&*item, "item/a");
        assert!(Item::read(Bytes::from_static(br#"{"type":"hello"}"#)).is_err());
    }
}
