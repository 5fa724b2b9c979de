//! Why a body is not a rating: the field, the value and the remedy, for the one who sent it.

use super::confluent::SchemaId;

/// The longest piece of a refused value that an error repeats, in characters.
const SHOWN_MAX: usize = 40;

/// Why a body is not a rating.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RatingError {
    /// The body is not JSON, or breaks off.
    #[error("{}is not valid JSON at line {line}, column {column}", place(.field))]
    Json {
        /// The field whose value the parser was reading.
        field: Option<&'static str>,
        /// Line in the body, from 1.
        line: usize,
        /// Column in the line, from 1.
        column: usize,
        /// What the parser said.
        #[source]
        source: serde_json::Error,
    },
    /// The bytes are not in the encoding that they should be in.
    #[error("not valid {format}: {problem}")]
    Malformed {
        /// Protobuf or Avro.
        format: &'static str,
        /// What is wrong with them.
        problem: String,
    },
    /// The record names a schema of a registry that no rating can be read with.
    #[error("schema {id} of the registry {problem}")]
    Schema {
        /// The schema's id.
        id: SchemaId,
        /// Why not.
        problem: String,
    },
    /// The body is JSON, but no object.
    #[error("body is {found}; send one JSON object")]
    NotAnObject {
        /// What it is instead.
        found: String,
    },
    /// A field that must be there is not, or is null.
    #[error("{field} is missing; {remedy}")]
    Missing {
        /// The field.
        field: &'static str,
        /// What to send.
        remedy: &'static str,
    },
    /// A field is there twice, maybe once under its other name.
    #[error("{field} {}; send it once", repeats(field, first))]
    Repeated {
        /// The second of the two.
        field: &'static str,
        /// The first.
        first: &'static str,
    },
    /// A field's value is not allowed.
    #[error("{field} {value} {problem}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// The value, shortened.
        value: String,
        /// What is wrong with it and what to send.
        problem: String,
    },
}

fn place(field: &Option<&'static str>) -> String {
    match field {
        Some(field) => format!("{field}: the body "),
        None => "body ".to_owned(),
    }
}

fn repeats(field: &str, first: &str) -> String {
    match field == first {
        true => "is given twice".to_owned(),
        false => format!("says again what {first} says"),
    }
}

impl RatingError {
    /// Returns the field at fault as the body spelled it; nothing when it is the body as a whole.
    #[must_use]
    pub fn field(&self) -> Option<&'static str> {
        match self {
            Self::Json { field, .. } => *field,
            Self::Malformed { .. } | Self::Schema { .. } | Self::NotAnObject { .. } => None,
            Self::Missing { field, .. }
            | Self::Repeated { field, .. }
            | Self::Invalid { field, .. } => Some(field),
        }
    }
}

/// Returns `text` as an error may show it: escaped, at most [`SHOWN_MAX`] characters.
pub(super) fn shorten(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN_MAX).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN_MAX).is_some() {
        shown.push('…');
    }
    shown
}
