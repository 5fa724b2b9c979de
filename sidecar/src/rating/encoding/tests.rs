use super::super::{Poster, RatingRequest, ReceiptId, from_bus_json, wire::tests::body};
use super::*;
use proptest::prelude::*;
use serde_json::Value;

const RECORDED_MS: u64 = 1_700_000_000_000;

fn codecs() -> Vec<Codec> {
    let encodings = [Encoding::Json, Encoding::Protobuf, Encoding::Avro];
    encodings.into_iter().filter_map(|encoding| encoding.codec().ok()).collect()
}

fn rating() -> Rating {
    from_bus_json(br#"{"user_id":"u","agent_id":"a","score":4,"context":{"n":1}}"#, 7).unwrap()
}

fn bytes(hex: &Value) -> Vec<u8> {
    let hex = hex.as_str().unwrap().as_bytes();
    let pairs = hex.chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
    pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
}

#[test]
fn other_stacks_write_the_same_bytes_and_mean_the_same() {
    let vectors: Vec<Value> = serde_json::from_str(include_str!("golden.json")).unwrap();
    assert_eq!(vectors.len(), 3);
    for vector in &vectors {
        let json = vector["json"].to_string();
        let rating = from_bus_json(json.as_bytes(), 1).unwrap();
        let written: Value = serde_json::from_slice(&Codec::Json.encode(&rating)).unwrap();
        for (field, value) in vector["json"].as_object().unwrap() {
            // An empty context is left out.
            let empty = value.as_object().is_some_and(serde_json::Map::is_empty);
            assert!(empty || written[field] == *value, "{field}: {written}");
        }
        for codec in codecs() {
            let Some(hex) = vector.get(codec.encoding().name()).filter(|hex| hex.is_string())
            else {
                continue;
            };
            let golden = bytes(hex);
            assert_eq!(codec.decode(&golden, 1).unwrap(), rating, "{}", vector["name"]);
            // Avro's maps have no order.
            let ordered = codec == Codec::Protobuf || rating.context().iter().count() < 2;
            assert!(!ordered || codec.encode(&rating) == golden, "{codec:?} {}", vector["name"]);
        }
    }
}

#[test]
fn json_is_read_whatever_is_configured_and_a_mark_says_what_a_record_is() {
    for codec in codecs() {
        for written in codecs() {
            let record = written.encode(&rating());
            let read = codec.decode(&record, 1);
            // Protobuf has no mark.
            let told = written.encoding() != Encoding::Protobuf || codec == written;
            assert_eq!(read.ok(), told.then(rating), "{codec:?} reads {written:?}");
            assert_eq!(codec.found(&record) == written.encoding(), told);
        }
    }
}

#[test]
fn what_is_not_in_the_configured_encoding_says_what_it_was_read_as() {
    let records: [&[u8]; 5] = [b"", b"hello", b"\x00\x00\x00\x00\x01{}", b"\xc3\x01short", b"\xff"];
    for codec in codecs() {
        for record in records {
            let error = codec.decode(record, 1).unwrap_err().to_string();
            let name = match codec.found(record) {
                Encoding::Json => "JSON",
                Encoding::Protobuf => "Protobuf",
                Encoding::Avro => "Avro",
            };
            // No bytes at all are a Protobuf message of which all is missing.
            let empty = record.is_empty() && codec == Codec::Protobuf;
            assert!(empty || error.contains(name), "{codec:?} {record:?}: {error}");
        }
    }
}

#[test]
fn a_foreign_producers_message_is_taken_and_reads_the_same_twice() {
    use super::super::proto::v1;
    use prost::Message as _;
    let message = v1::Rating {
        agent_id: Some("a".to_owned()),
        user_id: "u".to_owned(),
        score: 4.0,
        ..v1::Rating::default()
    };
    let record = message.encode_to_vec();
    let rating = Codec::Protobuf.decode(&record, RECORDED_MS).unwrap();
    assert_eq!(rating.poster().as_str(), "bus");
    assert_eq!(rating.timestamp_ms(), RECORDED_MS);
    assert_eq!(Codec::Protobuf.decode(&record, RECORDED_MS).unwrap(), rating);
    let json = br#"{"agent_id":"a","user_id":"u","score":4}"#;
    assert_eq!(Codec::Json.decode(json, RECORDED_MS).unwrap(), rating, "named by its content");
}

#[test]
fn an_older_and_a_newer_writer_of_protobuf_are_read() {
    // The first version had no context and no receipts: such fields are absent. A later one has
    // field 9, and a kind of context value that is not known here.
    let newer = [
        &b"\x12\x01a\x1a\x01u\x29\x00\x00\x00\x00\x00\x00\x10\x40"[..],
        b"\x4a\x05later",
        b"\x3a\x08\x0a\x01k\x12\x03\x2a\x01x",
    ]
    .concat();
    let rating = Codec::Protobuf.decode(&newer, RECORDED_MS).unwrap();
    assert_eq!((rating.score().value(), rating.context().is_empty()), (4.0, true));
}

#[test]
fn encodings_are_known_in_every_build_and_say_what_a_build_lacks() {
    let lacking = "encoding `avro` needs a build with `--features avro`";
    let expected = if cfg!(feature = "avro") { "" } else { lacking };
    let found = Encoding::Avro.codec().map_err(|error| error.to_string());
    assert_eq!(found.err().unwrap_or_default(), expected);
    assert!(serde_json::from_str::<Encoding>("\"xml\"").is_err());
    for codec in codecs() {
        let name = format!("\"{}\"", codec.encoding().name());
        assert_eq!(serde_json::from_str::<Encoding>(&name).unwrap(), codec.encoding());
    }
}

proptest! {
    #[test]
    fn a_rating_comes_off_the_bus_as_it_went_on_in_every_encoding(
        body in body(),
        poster in "\\PC{1,60}",
        receipt_id in proptest::option::of("[0-9a-f]{32}"),
    ) {
        let request = RatingRequest::from_json(body.to_string().as_bytes()).unwrap();
        let poster = Poster::new(&poster).unwrap();
        // A number below 10¹¹ means seconds, which may be far ahead: accept in the year 8307.
        let mut rating = request.into_rating(poster, 200_000_000_000_000_000).unwrap();
        if let Some(id) = receipt_id {
            rating = rating.receipted(ReceiptId::new(&id).unwrap());
        }
        for codec in codecs() {
            let record = codec.encode(&rating);
            prop_assert_eq!(codec.found(&record), codec.encoding());
            let back = codec.decode(&record, 1).unwrap();
            prop_assert_eq!(&back, &rating);
            prop_assert_eq!(back.once_key(), rating.once_key());
            prop_assert_eq!(back.receipt_key(), rating.receipt_key());
            prop_assert_eq!(back.checksum(), rating.checksum());
        }
    }

    #[test]
    fn no_bytes_whatever_panic_a_codec(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        at in 0..60_usize,
    ) {
        for codec in codecs() {
            let _ = codec.decode(&bytes, RECORDED_MS);
            // And a rating with something in its middle overwritten.
            let mut record = codec.encode(&rating());
            let at = at.min(record.len());
            let end = (at + bytes.len() % 8).min(record.len());
            record.splice(at..end, bytes.iter().copied());
            let _ = codec.decode(&record, RECORDED_MS);
        }
    }
}
