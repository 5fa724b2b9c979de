//! Ratings as Avro records of the bus, in Avro's single-object encoding: a mark, the fingerprint of
//! the schema that wrote the record, and the record.
//!
//! What a writer's schema has and ours has not is ignored, what it lacks has our default (Avro
//! specification 1.12, "Schema resolution"). A record of a schema that is not among [`WRITERS`] cannot
//! be read: the tuners of a new version are started before its ingest. Where a schema registry says what a
//! writer's schema is (`confluent`), [`Foreign`] is one that came from there.

mod foreign;

use std::{
    io::{self, Read},
    sync::LazyLock,
};

use apache_avro::{
    Schema, rabin::Rabin, reader::datum::GenericDatumReader, types::Value, util,
    writer::datum::GenericDatumWriter,
};
use serde_json::Value as Json;

use super::{
    Rating, RatingError,
    encoding::AVRO_MARK,
    proto::{self, v1},
};

pub(super) use foreign::Foreign;

/// The schema of version 1.
pub(super) const CURRENT: &str = include_str!("../../schema/merit/rating/v1/rating.v1.avsc");

/// Schemas that records may have been written with, the current one first. One that was ever
/// released stays.
const WRITERS: &[&str] = &[CURRENT];

/// The most that one text, or the entries of one map, may ask the decoder to set aside, in bytes or
/// entries: a record that announces more is poison, not an allocation.
const ALLOCATION_MAX: usize = 64 << 10;

const FINGERPRINT: usize = 8;

static SCHEMAS: LazyLock<Schemas> = LazyLock::new(|| {
    Schemas::new(WRITERS.iter().copied()).expect("the schemas of this version are well formed")
});

/// What records are written with, and may have been written with.
struct Schemas {
    writers: Vec<([u8; FINGERPRINT], Schema)>,
}

impl Schemas {
    fn new<'a>(writers: impl Iterator<Item = &'a str>) -> apache_avro::AvroResult<Self> {
        // The library has one bound for the process; nothing else here reads Avro.
        util::max_allocation_bytes(ALLOCATION_MAX);
        let writers = writers.map(|text| {
            let schema = Schema::parse_str(text)?;
            Ok((fingerprint(text)?, schema))
        });
        Ok(Self { writers: writers.collect::<apache_avro::AvroResult<_>>()? })
    }

    fn current(&self) -> &([u8; FINGERPRINT], Schema) {
        self.writers.first().expect("the current schema is one of them")
    }

    fn write(&self, message: v1::Rating) -> Vec<u8> {
        let mut bytes = [&AVRO_MARK[..], &self.current().0].concat();
        self.write_datum(message, &mut bytes);
        bytes
    }

    fn write_datum(&self, message: v1::Rating, bytes: &mut Vec<u8>) {
        let schema = &self.current().1;
        let writer = GenericDatumWriter::builder(schema).build().expect("it names no other schema");
        writer.write_value(bytes, value(message)).expect("the value is of the schema");
    }

    fn read(&self, record: &[u8]) -> Result<v1::Rating, RatingError> {
        let header = AVRO_MARK.len() + FINGERPRINT;
        let Some((header, datum)) = record.split_at_checked(header) else {
            return Err(malformed("breaks off before the fingerprint of its schema ends"));
        };
        let (mark, fingerprint) = header.split_at(AVRO_MARK.len());
        if mark != AVRO_MARK {
            return Err(malformed("does not begin with the mark of a single object, C3 01"));
        }
        let Some((_, writer)) = self.writers.iter().find(|(known, _)| known == fingerprint) else {
            let shown: String = fingerprint.iter().map(|byte| format!("{byte:02x}")).collect();
            return Err(malformed(format!(
                "schema with fingerprint {shown} is not known; write rating.v1.avsc of this \
                 version, or start tuners of the writer's version first"
            )));
        };
        read_datum(writer, &self.current().1, datum)
    }
}

/// Returns the fingerprint by which a record names the schema `text`.
///
/// The library (0.22) leaves `{"type":"long"}` of a type that is a logical one, where the canonical form has `"long"`
/// (Avro specification 1.12, "Parsing Canonical Form", `[PRIMITIVE]`), and so finds another fingerprint than every
/// other stack. It is given the schema without them.
fn fingerprint(text: &str) -> apache_avro::AvroResult<[u8; FINGERPRINT]> {
    let schema = Schema::parse_str(text)?;
    let json = serde_json::to_value(&schema).expect("a schema is JSON");
    let plain = Schema::parse(&without_logical_types(json))?;
    let bytes = plain.fingerprint::<Rabin>().bytes;
    Ok(bytes.try_into().expect("a Rabin fingerprint has 8 bytes"))
}

fn without_logical_types(schema: Json) -> Json {
    match schema {
        Json::Object(members) if members.contains_key("logicalType") => {
            members.get("type").cloned().expect("a type that is logical is also another")
        }
        Json::Object(members) => {
            let plain =
                members.into_iter().map(|(name, value)| (name, without_logical_types(value)));
            Json::Object(plain.collect())
        }
        Json::Array(items) => items.into_iter().map(without_logical_types).collect(),
        other => other,
    }
}

/// Returns the rating in `datum`, which `writer` describes, as `reader` sees it.
fn read_datum(writer: &Schema, reader: &Schema, datum: &[u8]) -> Result<v1::Rating, RatingError> {
    let mut bytes = Whole { rest: datum, read_beyond: false };
    let outcome = GenericDatumReader::builder(writer)
        .reader_schema(reader)
        .build()
        .and_then(|reader| reader.read_value(&mut bytes));
    if bytes.read_beyond {
        return Err(malformed("breaks off"));
    }
    let value = outcome.map_err(|error| malformed(error.to_string()))?;
    if !bytes.rest.is_empty() {
        return Err(malformed(format!("{} bytes follow the record", bytes.rest.len())));
    }
    message(value)
}

/// Bytes that know whether more was wanted than there is. The library (0.22) takes a union that is not
/// there for null, and so a record that breaks off for a shorter one.
struct Whole<'a> {
    rest: &'a [u8],
    read_beyond: bool,
}

impl Read for Whole<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.read_beyond |= buffer.len() > self.rest.len();
        self.rest.read(buffer)
    }
}

fn malformed(problem: impl Into<String>) -> RatingError {
    RatingError::Malformed { format: "Avro", problem: problem.into() }
}

/// Returns `rating` as an Avro record of the bus.
pub(super) fn to_bytes(rating: &Rating) -> Vec<u8> {
    SCHEMAS.write(proto::message(rating))
}

/// Appends `rating` to `bytes`, without a word on which schema it is of: [`CURRENT`].
pub(super) fn write_datum(rating: &Rating, bytes: &mut Vec<u8>) {
    SCHEMAS.write_datum(proto::message(rating), bytes);
}

/// Returns the rating in an Avro record that the bus took at `record_timestamp_ms`.
pub(super) fn from_bytes(record: &[u8], record_timestamp_ms: u64) -> Result<Rating, RatingError> {
    proto::from_message(&SCHEMAS.read(record)?, record_timestamp_ms)
}

/// Returns the fields of `message` as the schema has them.
fn value(message: v1::Rating) -> Value {
    let text = |text: Option<String>| optional(text.map(Value::String));
    let context = message.context.into_iter().filter_map(|(key, value)| {
        let (branch, value) = match value.kind? {
            v1::value::Kind::Boolean(value) => (0, Value::Boolean(value)),
            v1::value::Kind::Integer(value) => (1, Value::Long(value)),
            v1::value::Kind::Number(value) => (2, Value::Double(value)),
            v1::value::Kind::Text(value) => (3, Value::String(value)),
        };
        Some((key, Value::Union(branch, Box::new(value))))
    });
    let fields = [
        ("id", text(message.id)),
        ("agent_id", text(message.agent_id)),
        ("user_id", Value::String(message.user_id)),
        ("item_id", text(message.item_id)),
        ("score", Value::Double(message.score)),
        ("timestamp_ms", optional(message.timestamp_ms.map(Value::TimestampMillis))),
        ("context", Value::Map(context.collect())),
        ("receipt", text(message.receipt)),
        ("poster", text(message.poster)),
        ("accepted_at_us", optional(message.accepted_at_us.map(Value::TimestampMicros))),
        ("receipt_id", text(message.receipt_id)),
    ];
    Value::Record(fields.map(|(name, value)| (name.to_owned(), value)).into())
}

/// Returns a value of a union with null in front.
fn optional(value: Option<Value>) -> Value {
    match value {
        None => Value::Union(0, Box::new(Value::Null)),
        Some(value) => Value::Union(1, Box::new(value)),
    }
}

/// Returns the fields of a record that was resolved to our schema.
fn message(record: Value) -> Result<v1::Rating, RatingError> {
    let Value::Record(fields) = record else { return Err(malformed("is no record")) };
    let mut message = v1::Rating::default();
    for (name, value) in fields {
        match (name.as_str(), inner(value)) {
            (_, Value::Null) => {}
            ("id", Value::String(text)) => message.id = Some(text),
            ("agent_id", Value::String(text)) => message.agent_id = Some(text),
            ("user_id", Value::String(text)) => message.user_id = text,
            ("item_id", Value::String(text)) => message.item_id = Some(text),
            ("score", Value::Double(score)) => message.score = score,
            ("timestamp_ms", Value::TimestampMillis(ms)) => message.timestamp_ms = Some(ms),
            ("context", Value::Map(entries)) => {
                let entries = entries.into_iter().map(|(key, value)| Ok((key, scalar(value)?)));
                message.context = entries.collect::<Result<_, RatingError>>()?;
            }
            ("receipt", Value::String(text)) => message.receipt = Some(text),
            ("poster", Value::String(text)) => message.poster = Some(text),
            ("accepted_at_us", Value::TimestampMicros(us)) => message.accepted_at_us = Some(us),
            ("receipt_id", Value::String(text)) => message.receipt_id = Some(text),
            _ => return Err(malformed(format!("{name} is of another type than the schema's"))),
        }
    }
    Ok(message)
}

fn inner(value: Value) -> Value {
    match value {
        Value::Union(_, value) => *value,
        value => value,
    }
}

fn scalar(value: Value) -> Result<v1::Value, RatingError> {
    let kind = match inner(value) {
        Value::Boolean(value) => v1::value::Kind::Boolean(value),
        Value::Long(value) => v1::value::Kind::Integer(value),
        Value::Double(value) => v1::value::Kind::Number(value),
        Value::String(value) => v1::value::Kind::Text(value),
        _ => return Err(malformed("context holds a value that is no scalar")),
    };
    Ok(v1::Value { kind: Some(kind) })
}

#[cfg(test)]
mod tests;
