//! Confluent's wire format: a record that names its schema by the id that a schema registry gave it.
//!
//! A frame is a zero byte, the id in four bytes (big-endian), and the record in the schema's own encoding. Before a
//! Protobuf record stands which message of the schema it is: a path of indexes as zigzag varints, their number
//! first, where a single 0 means `[0]`, the first message. (Confluent's documentation of Schema Registry, "Wire
//! format".) No record without a frame begins with a zero byte: JSON begins with `{`, single-object Avro
//! with its mark, and Protobuf has no field 0.

use std::{fmt, sync::LazyLock};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use prost::Message as _;

use super::{Codec, Encoding, Rating, RatingError, proto, wire};

#[cfg(feature = "avro")]
use super::avro;

mod declared;

/// The first byte of every frame.
const MAGIC: u8 = 0;
/// The bytes before a schema's own encoding: the magic byte and the id.
const HEADER: usize = 5;
/// The message that a Protobuf record of ours is.
const MESSAGE: &str = "merit.rating.v1.Rating";
/// The deepest path of indexes that is looked at: messages are hardly nested deeper.
const PATH_MAX: usize = 16;

const JSON_SCHEMA: &str = include_str!("../../schema/merit/rating/v1/rating.v1.schema.json");
const PROTO: &str = include_str!("../../schema/merit/rating/v1/rating.proto");

/// The `.proto` as a `FileDescriptorProto` in base64, which is how Confluent's clients but Java's register a schema.
/// Registries take both forms, but some (Apicurio) give back what they were given, and those clients read
/// nothing else.
static DESCRIPTOR: LazyLock<String> = LazyLock::new(|| {
    #[derive(Clone, PartialEq, prost::Message)]
    struct FileDescriptorSet {
        #[prost(bytes = "vec", repeated, tag = "1")]
        file: Vec<Vec<u8>>,
    }
    let set = include_bytes!("../../schema/generated/merit.rating.v1.bin");
    let set = FileDescriptorSet::decode(&set[..]).expect("a test compares it with the .proto");
    STANDARD.encode(set.file.last().expect("the file itself comes after what it imports"))
});

/// The id that a registry gave to a schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SchemaId(pub u32);

impl fmt::Display for SchemaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A record that names its schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The schema.
    pub schema: SchemaId,
    rest: &'a [u8],
}

/// Returns the frame that `record` is; nothing when it is none.
///
/// # Errors
///
/// When it begins as a frame and breaks off: it is poison.
pub fn frame(record: &[u8]) -> Result<Option<Frame<'_>>, RatingError> {
    if record.first() != Some(&MAGIC) {
        return Ok(None);
    }
    match record.split_first_chunk::<HEADER>() {
        Some((&[_, a, b, c, d], rest)) => {
            Ok(Some(Frame { schema: SchemaId(u32::from_be_bytes([a, b, c, d])), rest }))
        }
        None => Err(malformed("breaks off before the id of its schema ends")),
    }
}

/// Returns the record of `rating`, framed with the schema that a registry knows as `schema`.
#[must_use]
pub fn encode(codec: Codec, schema: SchemaId, rating: &Rating) -> Vec<u8> {
    let mut bytes = vec![MAGIC];
    bytes.extend(schema.0.to_be_bytes());
    match codec {
        Codec::Json => bytes.extend(wire::to_bus_json(rating)),
        Codec::Protobuf => {
            bytes.push(0); // the first message
            proto::message(rating).encode(&mut bytes).expect("a vector has room");
        }
        #[cfg(feature = "avro")]
        Codec::Avro => avro::write_datum(rating, &mut bytes),
    }
    bytes
}

/// A schema as a registry is told of it.
#[derive(Clone, Copy, Debug)]
pub struct Registration {
    /// What the registry calls its language: `AVRO`, `PROTOBUF` or `JSON`.
    pub kind: &'static str,
    /// The schema; what is registered.
    pub schema: &'static str,
    /// Another form of the same schema, in which somebody may have registered it.
    pub or: Option<&'static str>,
}

/// Returns the schema of what `codec` writes.
#[must_use]
pub fn registration(codec: Codec) -> Registration {
    match codec {
        Codec::Json => Registration { kind: "JSON", schema: JSON_SCHEMA, or: None },
        Codec::Protobuf => {
            Registration { kind: "PROTOBUF", schema: DESCRIPTOR.as_str(), or: Some(PROTO) }
        }
        #[cfg(feature = "avro")]
        Codec::Avro => Registration { kind: "AVRO", schema: avro::CURRENT, or: None },
    }
}

/// A writer's schema that ratings can be read with.
#[derive(Debug)]
pub struct Schema {
    id: SchemaId,
    form: Form,
}

#[derive(Debug)]
enum Form {
    /// A JSON record says by itself what it is.
    Json,
    /// The full names of the messages, in order.
    Protobuf(Vec<String>),
    #[cfg(feature = "avro")]
    Avro(avro::Foreign),
}

impl Schema {
    /// Reads what a registry says of schema `id`: its language as in [`Registration::kind`], its text, and whether it
    /// refers to other schemas.
    ///
    /// # Errors
    ///
    /// When no rating can be read with it, as the end of a sentence that begins with the schema.
    pub fn read(id: SchemaId, kind: &str, text: &str, refers: bool) -> Result<Self, String> {
        let form = match kind {
            "JSON" => Form::Json,
            // Other files have no bearing on the names of this one's messages.
            "PROTOBUF" => Form::Protobuf(declared::messages(text)?),
            "AVRO" if refers => {
                return Err(
                    "refers to other schemas, which is not followed: register it whole".into()
                );
            }
            #[cfg(feature = "avro")]
            "AVRO" => Form::Avro(avro::Foreign::read(text)?),
            #[cfg(not(feature = "avro"))]
            "AVRO" => {
                return Err(format!(
                    "is Avro: {}",
                    Encoding::Avro.codec().expect_err("this build lacks it")
                ));
            }
            other => return Err(format!("is in {other:?}, not in AVRO, PROTOBUF or JSON")),
        };
        Ok(Self { id, form })
    }

    /// Returns the encoding of what was written with it.
    #[must_use]
    pub fn encoding(&self) -> Encoding {
        match self.form {
            Form::Json => Encoding::Json,
            Form::Protobuf(_) => Encoding::Protobuf,
            #[cfg(feature = "avro")]
            Form::Avro(_) => Encoding::Avro,
        }
    }

    /// Returns the rating in a frame of this schema that the bus took at `record_timestamp_ms` (Unix milliseconds).
    ///
    /// # Errors
    ///
    /// When the frame holds no valid rating: it is poison.
    pub fn decode(
        &self,
        frame: &Frame<'_>,
        record_timestamp_ms: u64,
    ) -> Result<Rating, RatingError> {
        debug_assert_eq!(frame.schema, self.id, "the caller looked the frame's schema up");
        match &self.form {
            Form::Json => wire::from_bus_json(frame.rest, record_timestamp_ms),
            Form::Protobuf(messages) => {
                let (path, message) = path(frame.rest)?;
                self.check(messages, &path)?;
                proto::from_bytes(message, record_timestamp_ms)
            }
            #[cfg(feature = "avro")]
            Form::Avro(writer) => writer.decode(frame.rest, record_timestamp_ms),
        }
    }

    /// Checks that the message at `path` is a rating.
    fn check(&self, messages: &[String], path: &[usize]) -> Result<(), RatingError> {
        let problem = match path {
            [index, inner @ ..] => match messages.get(*index) {
                Some(name) if name == MESSAGE && inner.is_empty() => return Ok(()),
                Some(name) if inner.is_empty() => {
                    format!("has `{name}` as message {index}, not `{MESSAGE}`")
                }
                Some(name) => format!("has a message inside `{name}` there, not `{MESSAGE}`"),
                None => format!("has {} messages, and none with index {index}", messages.len()),
            },
            [] => unreachable!("a path of no indexes means the first message"),
        };
        Err(RatingError::Schema { id: self.id, problem })
    }
}

/// Returns the path of indexes before a Protobuf record, and the record.
fn path(bytes: &[u8]) -> Result<(Vec<usize>, &[u8]), RatingError> {
    let mut rest = bytes;
    let mut next = || {
        let number = prost::encoding::decode_varint(&mut rest)
            .map_err(|_| malformed("breaks off, or goes on, within the index of its message"))?;
        // Zigzag: an odd number is a negative one.
        match usize::try_from(number >> 1) {
            Ok(index) if number & 1 == 0 => Ok(index),
            _ => Err(malformed("has a negative number in the index of its message")),
        }
    };
    let count = next()?;
    if count > PATH_MAX {
        return Err(malformed("has an index of its message that is deeper than 16"));
    }
    let path = match count {
        0 => vec![0],
        _ => (0..count).map(|_| next()).collect::<Result<_, _>>()?,
    };
    Ok((path, rest))
}

fn malformed(problem: &str) -> RatingError {
    RatingError::Malformed { format: "frame of a schema registry", problem: problem.to_owned() }
}

#[cfg(test)]
mod tests;
