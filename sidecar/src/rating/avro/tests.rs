use super::*;
use crate::rating::{Codec, from_bus_json};
use serde_json::json;

fn rating() -> Rating {
    from_bus_json(br#"{"user_id":"u","agent_id":"a","score":4}"#, 7).unwrap()
}

/// Returns the schema of version 1 after `change` of its fields.
fn schema(change: impl FnOnce(&mut Vec<Json>)) -> String {
    let mut schema: Json = serde_json::from_str(CURRENT).unwrap();
    change(schema["fields"].as_array_mut().unwrap());
    schema.to_string()
}

/// Returns what a reader of version 1 that knows `text` reads of a record written by it.
fn read(text: &str, fields: &[(&str, Value)]) -> Result<v1::Rating, RatingError> {
    let writer = Schemas::new([text].into_iter()).unwrap();
    let (fingerprint, schema) = writer.current();
    let record = fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    let writing = GenericDatumWriter::builder(schema).build().unwrap();
    let datum = writing.write_value_to_vec(Value::Record(record)).unwrap();
    let bytes = [&AVRO_MARK[..], fingerprint, &datum].concat();
    Schemas::new([CURRENT, text].into_iter()).unwrap().read(&bytes)
}

#[test]
fn an_older_writer_that_lacks_fields_is_read_with_their_defaults() {
    let older = schema(|fields| {
        let kept = ["agent_id", "user_id", "score"];
        fields.retain(|field| kept.contains(&field["name"].as_str().unwrap()));
    });
    let fields = [
        ("agent_id", optional(Some(Value::String("a".into())))),
        ("user_id", Value::String("u".into())),
        ("score", Value::Double(4.0)),
    ];
    let expected = v1::Rating {
        agent_id: Some("a".into()),
        user_id: "u".into(),
        score: 4.0,
        ..v1::Rating::default()
    };
    assert_eq!(read(&older, &fields).unwrap(), expected);
}

#[test]
fn a_newer_writers_further_fields_and_narrower_types_are_read() {
    let newer = schema(|fields| {
        fields.retain(|field| {
            ["user_id", "item_id", "score"].contains(&field["name"].as_str().unwrap())
        });
        fields[2]["type"] = json!("float");
        fields[1] = json!({"name": "item_id", "type": "string"});
        fields.insert(1, json!({"name": "mood", "type": {"type": "array", "items": "int"}}));
    });
    let fields = [
        ("user_id", Value::String("u".into())),
        ("mood", Value::Array(vec![Value::Int(7), Value::Int(8)])),
        ("item_id", Value::String("i".into())),
        ("score", Value::Float(4.5)),
    ];
    let read = read(&newer, &fields).unwrap();
    assert_eq!((read.user_id.as_str(), read.score), ("u", 4.5));
    assert_eq!(read.item_id.as_deref(), Some("i"));
}

#[test]
fn a_writer_that_is_not_known_is_poison_that_says_what_to_do() {
    let mut record = to_bytes(&rating());
    record[5] ^= 1;
    let error = Codec::Avro.decode(&record, 1).unwrap_err().to_string();
    assert!(error.contains("not known") && error.contains("first"), "{error}");
}

#[test]
fn a_record_that_breaks_off_goes_on_or_announces_too_much_is_poison() {
    let record = to_bytes(&rating());
    for length in 0..record.len() {
        from_bytes(&record[..length], 1).unwrap_err();
    }
    let longer = [&record[..], b"\0"].concat();
    let error = from_bytes(&longer, 1).unwrap_err().to_string();
    assert!(error.contains("1 bytes follow"), "{error}");
    // An id of 2^40 bytes.
    let header = AVRO_MARK.len() + FINGERPRINT;
    let announced = [&record[..header], b"\x02\x80\x80\x80\x80\x80\x80\x01"].concat();
    from_bytes(&announced, 1).unwrap_err();
}

#[test]
fn the_schema_has_the_fields_that_the_message_has() {
    let Schema::Record(schema) = &SCHEMAS.current().1 else { panic!("the schema is a record") };
    let of_schema: Vec<_> = schema.fields.iter().map(|field| field.name.clone()).collect();
    let Value::Record(fields) = value(v1::Rating::default()) else { panic!("it is a record") };
    let of_value: Vec<_> = fields.into_iter().map(|(name, _)| name).collect();
    assert_eq!(of_schema, of_value);
    assert!(schema.fields.iter().all(|field| {
        field.default.is_some() || ["user_id", "score"].contains(&field.name.as_str())
    }));
}
