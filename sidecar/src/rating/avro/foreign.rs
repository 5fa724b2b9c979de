//! A writer's schema that a registry gave: somebody else's, so it is weighed before anything is read with it.
//!
//! The library follows a schema wherever it leads. One that contains itself would take a record as deep as
//! it is long, one whose arrays hold what takes no bytes a record of a few bytes and any number of items,
//! and records in records in records as many values as a number has digits. None of them is a rating.

use std::collections::HashMap;

use apache_avro::Schema;

use super::{RatingError, SCHEMAS, read_datum};
use crate::rating::{Rating, proto};

/// The most values that a datum of a writer's schema may make with one item in each array and map, and so how
/// deep it may be; a rating makes some twenty.
const VALUES_MAX: u64 = 256;

/// A writer's schema that ratings can be read with.
#[derive(Debug)]
pub(in crate::rating) struct Foreign(Schema);

impl Foreign {
    /// Reads the schema `text`.
    ///
    /// # Errors
    ///
    /// Says what is wrong with it, as the end of a sentence that begins with its name.
    pub(in crate::rating) fn read(text: &str) -> Result<Self, String> {
        // It sets the library's bound, and is the reader's schema.
        let (_, reader) = SCHEMAS.current();
        let schema =
            Schema::parse_str(text).map_err(|error| format!("is no Avro schema: {error}"))?;
        let (Schema::Record(ours), Schema::Record(theirs)) = (reader, &schema) else {
            return Err("is no record".to_owned());
        };
        // Avro specification 1.12, "Schema resolution": both are records with the same unqualified name.
        if theirs.name.name() != ours.name.name() {
            return Err(format!(
                "is of the record `{}`, not of a `{}`",
                theirs.name.fullname(None),
                ours.name.name()
            ));
        }
        let weight = Scales::default().weigh(&schema)?;
        if weight.values > VALUES_MAX {
            return Err(format!("makes more than {VALUES_MAX} values of a record"));
        }
        Ok(Self(schema))
    }

    /// Returns the rating in `datum` that the bus took at `record_timestamp_ms`.
    ///
    /// # Errors
    ///
    /// When the datum is not of this schema, or cannot be resolved to a rating: it is poison.
    pub(in crate::rating) fn decode(
        &self,
        datum: &[u8],
        record_timestamp_ms: u64,
    ) -> Result<Rating, RatingError> {
        let message = read_datum(&self.0, &SCHEMAS.current().1, datum)?;
        proto::from_message(&message, record_timestamp_ms)
    }
}

/// What a datum of a schema comes to: values that are made, at most, with one item in each array and map; bytes
/// that are read, at least.
#[derive(Clone, Copy)]
struct Weight {
    values: u64,
    bytes: u64,
}

#[derive(Default)]
struct Scales {
    /// Records that the schema being weighed is part of.
    around: Vec<String>,
    named: HashMap<String, Weight>,
}

impl Scales {
    fn weigh(&mut self, schema: &Schema) -> Result<Weight, String> {
        Ok(match schema {
            Schema::Null => Weight { values: 1, bytes: 0 },
            Schema::Record(record) => {
                let name = record.name.fullname(None);
                self.around.push(name.clone());
                let mut weight = Weight { values: 1, bytes: 0 };
                for field in &record.fields {
                    let of_field = self.weigh(&field.schema)?;
                    weight.values = weight.values.saturating_add(of_field.values);
                    weight.bytes = weight.bytes.saturating_add(of_field.bytes);
                }
                self.around.pop();
                self.named.insert(name, weight);
                weight
            }
            Schema::Union(union) => {
                let mut values = 0;
                for variant in union.variants() {
                    values = self.weigh(variant)?.values.max(values);
                }
                Weight { values: values.saturating_add(1), bytes: 1 }
            }
            Schema::Array(array) => {
                let items = self.weigh(&array.items)?;
                if items.bytes == 0 {
                    return Err("has an array of what takes no bytes".to_owned());
                }
                Weight { values: items.values.saturating_add(1), bytes: 1 }
            }
            Schema::Map(map) => {
                let entries = self.weigh(&map.types)?;
                Weight { values: entries.values.saturating_add(1), bytes: 1 }
            }
            Schema::Fixed(fixed) => {
                let weight = Weight { values: 1, bytes: fixed.size as u64 };
                self.named.insert(fixed.name.fullname(None), weight);
                weight
            }
            Schema::Ref { name } => {
                let name = name.fullname(None);
                if self.around.contains(&name) {
                    return Err(format!("is recursive: `{name}` contains itself"));
                }
                // What is not among them is an enumeration, or a logical type.
                self.named.get(&name).copied().unwrap_or(Weight { values: 1, bytes: 1 })
            }
            _ => Weight { values: 1, bytes: 1 },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        Foreign::read(text).unwrap_err()
    }

    fn rating(field: &str) -> String {
        format!(r#"{{"type":"record","name":"Rating","namespace":"n","fields":[{field}]}}"#)
    }

    #[test]
    fn our_own_schema_and_one_of_another_namespace_are_read() {
        Foreign::read(super::super::CURRENT).unwrap();
        let fields = r#"{"name":"user_id","type":"string"},{"name":"agent_id","type":"string"},
            {"name":"score","type":"int"},{"name":"mood","type":{"type":"array","items":"string"}}"#;
        let writer = Foreign::read(&rating(fields)).unwrap();
        let rating = writer.decode(b"\x02u\x02a\x08\x02\x06yes\x00", 7).unwrap();
        assert_eq!((rating.user().as_str(), rating.score().value()), ("u", 4.0));
    }

    #[test]
    fn what_is_no_rating_says_what_it_is() {
        assert!(refused("{").starts_with("is no Avro schema"));
        assert_eq!(refused("\"string\""), "is no record");
        let other = r#"{"type":"record","name":"Order","namespace":"shop","fields":[]}"#;
        assert_eq!(refused(other), "is of the record `shop.Order`, not of a `Rating`");
    }

    #[test]
    fn a_schema_that_makes_much_of_few_bytes_is_refused() {
        let itself = rating(r#"{"name":"next","type":["null","Rating"]}"#);
        assert_eq!(refused(&itself), "is recursive: `n.Rating` contains itself");
        let inner = r#"{"name":"a","type":{"type":"record","name":"A","namespace":"m","fields":[
            {"name":"back","type":{"type":"map","values":"n.Rating"}}]}}"#;
        assert_eq!(refused(&rating(inner)), "is recursive: `n.Rating` contains itself");
        let nothing = r#"{"name":"a","type":{"type":"array","items":"null"}}"#;
        assert_eq!(refused(&rating(nothing)), "has an array of what takes no bytes");
        let empty = r#"{"name":"a","type":{"type":"array","items":
            {"type":"record","name":"E","fields":[]}}}"#;
        assert_eq!(refused(&rating(empty)), "has an array of what takes no bytes");
        // Each of thirty records holds the one before twice: 2³⁰ values of no bytes.
        let mut fields =
            r#"{"name":"r0","type":{"type":"record","name":"R0","fields":[]}}"#.to_owned();
        for n in 1..30 {
            let before = n - 1;
            fields.push_str(&format!(
                r#",{{"name":"r{n}","type":{{"type":"record","name":"R{n}","fields":[
                    {{"name":"a","type":"R{before}"}},{{"name":"b","type":"R{before}"}}]}}}}"#
            ));
        }
        assert_eq!(refused(&rating(&fields)), "makes more than 256 values of a record");
        // And a chain of arrays is as deep as it is long.
        let mut fields = r#"{"name":"r0","type":{"type":"record","name":"R0","fields":[
            {"name":"n","type":"int"}]}}"#
            .to_owned();
        for n in 1..300 {
            let before = n - 1;
            fields.push_str(&format!(
                r#",{{"name":"r{n}","type":{{"type":"record","name":"R{n}","fields":[
                    {{"name":"a","type":{{"type":"array","items":"R{before}"}}}}]}}}}"#
            ));
        }
        assert_eq!(refused(&rating(&fields)), "makes more than 256 values of a record");
    }

    #[test]
    fn no_bytes_whatever_panic_a_reader_of_a_foreign_schema() {
        let fields = r#"{"name":"user_id","type":"string"},{"name":"score","type":"float"},
            {"name":"d","type":{"type":"bytes","logicalType":"decimal","precision":9,"scale":2}},
            {"name":"e","type":{"type":"enum","name":"E","symbols":["A","B"]}},
            {"name":"f","type":{"type":"fixed","name":"F","size":12,"logicalType":"duration"}},
            {"name":"u","type":{"type":"string","logicalType":"uuid"}},
            {"name":"context","type":{"type":"map","values":["boolean","long","double","string"]}}"#;
        let writer = Foreign::read(&rating(fields)).unwrap();
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..5_000 {
            let bytes: Vec<u8> = (0..random.usize(0..60)).map(|_| random.u8(0..8)).collect();
            let _ = writer.decode(&bytes, 7);
        }
    }
}
