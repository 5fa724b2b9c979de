use super::*;
use crate::rating::from_bus_json;
use proptest::prelude::*;

const ID: SchemaId = SchemaId(0x0102_0304);

fn rating() -> Rating {
    let json = br#"{"user_id":"u","agent_id":"a","score":4,"context":{"n":1}}"#;
    from_bus_json(json, 7).unwrap()
}

fn codecs() -> Vec<Codec> {
    let all = [Encoding::Json, Encoding::Protobuf, Encoding::Avro];
    all.into_iter().filter_map(|encoding| encoding.codec().ok()).collect()
}

/// Returns what a registry says of the schema that `codec` writes with.
fn schema(codec: Codec) -> Schema {
    let Registration { kind, schema, .. } = registration(codec);
    Schema::read(ID, kind, schema, false).unwrap()
}

fn decode(schema: &Schema, record: &[u8]) -> Result<Rating, RatingError> {
    schema.decode(&frame(record)?.expect("it is framed"), 7)
}

#[test]
fn a_frame_gives_back_the_rating_and_begins_as_confluent_says() {
    for codec in codecs() {
        let record = encode(codec, ID, &rating());
        let protobuf = codec == Codec::Protobuf;
        assert_eq!(record[..5], [0, 1, 2, 3, 4]);
        assert!(!protobuf || record[5] == 0, "the short form of the first message");
        assert_eq!(decode(&schema(codec), &record).unwrap(), rating());
        assert_eq!(schema(codec).encoding(), codec.encoding());
    }
}

#[test]
fn no_record_without_a_frame_is_taken_for_one() {
    for codec in codecs() {
        assert_eq!(frame(&codec.encode(&rating())).unwrap(), None);
    }
    assert_eq!(frame(b"").unwrap(), None);
    for record in [&b"\0"[..], b"\0\0\0\0"] {
        let error = frame(record).unwrap_err().to_string();
        assert!(error.contains("breaks off before the id"), "{error}");
    }
}

#[test]
fn a_protobuf_record_of_another_message_is_refused_by_its_name() {
    let schema = schema(Codec::Protobuf);
    let message = proto::message(&rating()).encode_to_vec();
    let with = |path: &[u8]| decode(&schema, &[&[0, 1, 2, 3, 4], path, &message].concat());
    // [0], short and long.
    assert_eq!(with(b"\0").unwrap(), rating());
    assert_eq!(with(b"\x02\x00").unwrap(), rating());
    for (path, said) in [
        (
            &b"\x02\x02"[..],
            "has `merit.rating.v1.Value` as message 1, not `merit.rating.v1.Rating`",
        ),
        (b"\x04\x00\x02", "has a message inside `merit.rating.v1.Rating` there"),
        (b"\x02\x28", "has 7 messages, and none with index 20"),
        (b"\x01", "negative"),
        (b"\x02\x03", "negative"),
        (b"\x40", "deeper than 16"),
        (b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80", "within the index"),
    ] {
        let error = with(path).unwrap_err().to_string();
        assert!(error.contains(said), "{said} is not in {error}");
    }
    let error = decode(&schema, b"\0\x01\x02\x03\x04").unwrap_err().to_string();
    assert!(error.contains("breaks off"), "{error}");
}

#[test]
fn a_schema_that_is_no_ratings_says_why() {
    let read = |kind, text, refers| Schema::read(ID, kind, text, refers).unwrap_err();
    assert_eq!(read("THRIFT", "", false), "is in \"THRIFT\", not in AVRO, PROTOBUF or JSON");
    let referring = read("AVRO", "\"shop.Rating\"", true);
    assert!(referring.contains("register it whole"), "{referring}");
    assert!(read("PROTOBUF", "?", false).contains("neither a .proto"));
}

#[cfg(feature = "avro")]
#[test]
fn an_avro_record_is_read_with_the_schema_that_wrote_it() {
    let older = r#"{"type":"record","name":"Rating","fields":[{"name":"score","type":"float"},
        {"name":"user_id","type":"string"},{"name":"agent_id","type":"string"}]}"#;
    let schema = Schema::read(ID, "AVRO", older, false).unwrap();
    let record = b"\0\x01\x02\x03\x04\x00\x00\x90\x40\x02u\x02a";
    let rating = decode(&schema, record).unwrap();
    assert_eq!((rating.score().value(), rating.user().as_str()), (4.5, "u"));
    let longer = [&record[..], b"\0"].concat();
    assert!(decode(&schema, &longer).unwrap_err().to_string().contains("1 bytes follow"));
    let unfit =
        r#"{"type":"record","name":"Rating","fields":[{"name":"agent_id","type":"string"}]}"#;
    let unfit = Schema::read(ID, "AVRO", unfit, false).unwrap();
    decode(&unfit, b"\0\x01\x02\x03\x04\x02a").unwrap_err();
}

proptest! {
    #[test]
    fn no_bytes_whatever_panic_a_reader_of_frames(
        bytes in proptest::collection::vec(any::<u8>(), 0..100),
    ) {
        for codec in codecs() {
            let record = [&[0, 1, 2, 3, 4], &bytes[..]].concat();
            let _ = decode(&schema(codec), &record);
        }
        let text = String::from_utf8_lossy(&bytes);
        for kind in ["JSON", "PROTOBUF", "AVRO"] {
            let _ = Schema::read(ID, kind, &text, false);
        }
    }
}
