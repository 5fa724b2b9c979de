//! Reads a body field by field, so that a refusal names the field, the value and the remedy.
//!
//! serde's derive would say "invalid type: string" and let a repeat through its alias pass. A
//! refusal travels beside serde's own error (in [`Reader::fault`]), because serde's holds only text.

use super::{
    Context, ContextKey, ItemId, Poster, RatingError, RatingId, Receipt, ReceiptId, Scalar, Score,
    TextError, UserId, error::shorten, timestamp,
};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::{
    borrow::Cow,
    cell::{Cell, RefCell},
    fmt,
};
use tower_merit::{AgentId, AgentIdError};

/// What a body says; nothing is missing yet, because nothing is required yet.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub(super) id: Option<RatingId>,
    pub(super) agent: Option<AgentId>,
    pub(super) user: Option<UserId>,
    pub(super) item: Option<ItemId>,
    pub(super) score: Option<Score>,
    /// The timestamp in Unix milliseconds, and how the body spelled it.
    pub(super) timestamp: Option<(u64, Spelled)>,
    pub(super) context: Context,
    pub(super) receipt: Option<Receipt>,
    /// Read from the bus only: from anywhere else it is an unknown field.
    pub(super) poster: Option<Poster>,
    /// Read from the bus only.
    pub(super) receipt_id: Option<ReceiptId>,
    /// Read from the bus only.
    pub(super) accepted_at_us: Option<u64>,
}

/// How a body spelled a value, for an error that may follow: a plain number is kept as it is.
#[derive(Debug)]
pub(super) enum Spelled {
    Number(u64),
    Text(String),
}

impl Spelled {
    fn of(value: &Value<'_>) -> Self {
        match value {
            Value::Unsigned(number) => Self::Number(*number),
            other => Self::Text(other.shown()),
        }
    }
}

impl From<String> for Spelled {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl fmt::Display for Spelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => fmt::Display::fmt(number, f),
            Self::Text(text) => f.write_str(text),
        }
    }
}

/// Where a body comes from, and so which fields it may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// From outside: who posted it and when is not the body's to say.
    Edge,
    /// From our own bus.
    Bus,
}

/// Returns what the JSON object in `body` says.
pub(super) fn read(body: &[u8], origin: Origin) -> Result<Draft, RatingError> {
    let reader = Reader { origin, current: Cell::new(None), fault: RefCell::new(None) };
    // Text that is known to be UTF-8 as a whole is not looked at again string by string.
    let outcome = match std::str::from_utf8(body) {
        Ok(text) => reader.read(serde_json::Deserializer::from_str(text)),
        Err(_) => reader.read(serde_json::Deserializer::from_slice(body)),
    };
    outcome.map_err(|source| match reader.fault.take() {
        Some(fault) => fault,
        None if source.is_data() => RatingError::NotAnObject { found: kind_of(body).to_owned() },
        None => RatingError::Json {
            field: reader.current.get(),
            line: source.line(),
            column: source.column(),
            source,
        },
    })
}

fn kind_of(body: &[u8]) -> &'static str {
    match body.trim_ascii_start().first() {
        Some(b'[') => "an array",
        Some(b'"') => "a string",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        _ => "a number",
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
    Id,
    Agent,
    User,
    Item,
    Score,
    Timestamp,
    Context,
    Receipt,
    Poster,
    ReceiptId,
    AcceptedAt,
}

const FIELDS: usize = Field::AcceptedAt as usize + 1;

impl Field {
    /// Returns the field and its name as spelled, which is an alias of ours in some bodies.
    fn named(name: &str, origin: Origin) -> Option<(Self, &'static str)> {
        Some(match name {
            "id" => (Self::Id, "id"),
            "agent_id" => (Self::Agent, "agent_id"),
            "agentId" => (Self::Agent, "agentId"),
            "user_id" => (Self::User, "user_id"),
            "userId" => (Self::User, "userId"),
            "item_id" => (Self::Item, "item_id"),
            "itemId" => (Self::Item, "itemId"),
            "score" => (Self::Score, "score"),
            "rating" => (Self::Score, "rating"),
            "timestamp" => (Self::Timestamp, "timestamp"),
            "context" => (Self::Context, "context"),
            "receipt" => (Self::Receipt, "receipt"),
            "poster" if origin == Origin::Bus => (Self::Poster, "poster"),
            "receipt_id" if origin == Origin::Bus => (Self::ReceiptId, "receipt_id"),
            "accepted_at_us" if origin == Origin::Bus => (Self::AcceptedAt, "accepted_at_us"),
            _ => return None,
        })
    }
}

struct Reader {
    origin: Origin,
    /// The known field whose value is being read: a syntax error there is its.
    current: Cell<Option<&'static str>>,
    fault: RefCell<Option<RatingError>>,
}

impl Reader {
    fn read<'de, R: serde_json::de::Read<'de>>(
        &self,
        mut json: serde_json::Deserializer<R>,
    ) -> Result<Draft, serde_json::Error> {
        let draft = self.deserialize(&mut json)?;
        self.current.set(None);
        json.end().map(|()| draft)
    }

    /// Keeps the fault for [`read`] and returns an error that ends the parse.
    fn refuse<E: serde::de::Error>(&self, fault: RatingError) -> E {
        *self.fault.borrow_mut() = Some(fault);
        E::custom("refused")
    }
}

impl<'de> DeserializeSeed<'de> for &Reader {
    type Value = Draft;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Draft, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for &Reader {
    type Value = Draft;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Draft, A::Error> {
        let mut draft = Draft::default();
        let mut seen = [None; FIELDS];
        while let Some(key) = map.next_key_seed(Key(self.origin))? {
            let Some((field, name)) = key else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            if let Some(first) = seen[field as usize].replace(name) {
                return Err(self.refuse(RatingError::Repeated { field: name, first }));
            }
            self.current.set(Some(name));
            if field == Field::Context {
                draft.context = map.next_value_seed(ContextReader(self))?;
            } else {
                let value = map.next_value_seed(Scalars)?;
                draft.take(field, name, &value).map_err(|fault| self.refuse(fault))?;
            }
            self.current.set(None);
        }
        Ok(draft)
    }
}

impl Draft {
    /// Takes in the value of `field`, which the sender knows as `name`.
    pub(super) fn take(
        &mut self,
        field: Field,
        name: &'static str,
        value: &Value<'_>,
    ) -> Result<(), RatingError> {
        if matches!(value, Value::Null) && field != Field::Score {
            return Ok(()); // many producers write an absent value as null
        }
        match field {
            Field::Id => self.id = Some(text(name, value, RatingId::new)?),
            Field::Agent => self.agent = Some(agent(name, value)?),
            Field::User => self.user = Some(text(name, value, UserId::new)?),
            Field::Item => self.item = Some(text(name, value, ItemId::new)?),
            Field::Score => self.score = Some(score(name, value)?),
            Field::Timestamp => {
                self.timestamp = Some((timestamp::parse(name, value)?, Spelled::of(value)));
            }
            Field::Receipt => self.receipt = Some(text(name, value, Receipt::new)?),
            Field::Poster => self.poster = Some(text(name, value, Poster::new)?),
            Field::ReceiptId => self.receipt_id = Some(text(name, value, ReceiptId::new)?),
            Field::AcceptedAt => match value {
                Value::Unsigned(number) => self.accepted_at_us = Some(*number),
                _ => return Err(invalid(name, value, "is no time in Unix microseconds")),
            },
            Field::Context => unreachable!("read by its own reader"),
        }
        Ok(())
    }
}

fn invalid(field: &'static str, value: &Value<'_>, problem: impl Into<String>) -> RatingError {
    RatingError::Invalid { field, value: value.shown(), problem: problem.into() }
}

fn text<T>(
    name: &'static str,
    value: &Value<'_>,
    new: fn(&str) -> Result<T, TextError>,
) -> Result<T, RatingError> {
    match value {
        Value::Text(text) => new(text).map_err(|error| invalid(name, value, error.to_string())),
        other => Err(invalid(name, other, "is no string; send a string in quotes")),
    }
}

fn agent(name: &'static str, value: &Value<'_>) -> Result<AgentId, RatingError> {
    let Value::Text(text) = value else {
        return Err(invalid(name, value, "is no string; send a string in quotes"));
    };
    AgentId::new(text).map_err(|error: AgentIdError| invalid(name, value, error.to_string()))
}

fn score(name: &'static str, value: &Value<'_>) -> Result<Score, RatingError> {
    let number = match value {
        Value::Unsigned(number) => *number as f64,
        Value::Negative(number) => *number as f64,
        Value::Float(number) => *number,
        Value::Text(_) => {
            return Err(invalid(
                name,
                value,
                "is a string; send a number from 1 to 5, without quotes",
            ));
        }
        _ => {
            return Err(invalid(name, value, "is no number; send a number from 1 to 5"));
        }
    };
    Score::new(number)
        .ok_or_else(|| invalid(name, value, "is out of range; send a number from 1 to 5"))
}

struct Key(Origin);

impl<'de> DeserializeSeed<'de> for Key {
    type Value = Option<(Field, &'static str)>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key {
    type Value = Option<(Field, &'static str)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field name")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Self::Value, E> {
        Ok(Field::named(name, self.0))
    }
}

/// A JSON value of which only the scalars are kept.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value<'a> {
    Null,
    Bool(bool),
    Unsigned(u64),
    Negative(i64),
    Float(f64),
    Text(Cow<'a, str>),
    Array,
    Object,
}

impl From<i64> for Value<'_> {
    fn from(number: i64) -> Self {
        u64::try_from(number).map_or(Self::Negative(number), Self::Unsigned)
    }
}

impl Value<'_> {
    /// Returns the value as an error may show it: shortened, text in quotes.
    pub(super) fn shown(&self) -> String {
        match self {
            Self::Null => "null".to_owned(),
            Self::Bool(value) => value.to_string(),
            Self::Unsigned(value) => value.to_string(),
            Self::Negative(value) => value.to_string(),
            Self::Float(value) => format!("{value:?}"),
            Self::Text(value) => format!("\"{}\"", shorten(value)),
            Self::Array => "[…]".to_owned(),
            Self::Object => "{…}".to_owned(),
        }
    }
}

struct Scalars;

impl<'de> DeserializeSeed<'de> for Scalars {
    type Value = Value<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value<'de>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Scalars {
    type Value = Value<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value<'de>, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value<'de>, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value<'de>, E> {
        Ok(Value::Unsigned(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value<'de>, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value<'de>, E> {
        Ok(Value::Float(value))
    }

    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Value<'de>, E> {
        Ok(Value::Text(Cow::Borrowed(value)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value<'de>, E> {
        Ok(Value::Text(Cow::Owned(value.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value<'de>, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Value::Array)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value<'de>, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Value::Object)
    }
}

struct ContextReader<'r>(&'r Reader);

impl<'de> DeserializeSeed<'de> for ContextReader<'_> {
    type Value = Context;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Context, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl ContextReader<'_> {
    fn no_object<E: serde::de::Error>(&self, value: &Value<'_>) -> E {
        let problem = "is no object; send a flat object like {\"channel\":\"web\"}";
        self.0.refuse(invalid("context", value, problem))
    }

    fn scalar<E: serde::de::Error>(
        &self,
        key: &ContextKey,
        value: &Value<'_>,
    ) -> Result<Scalar, E> {
        Ok(match value {
            Value::Bool(value) => Scalar::Bool(*value),
            Value::Unsigned(value) => {
                i64::try_from(*value).map_or(Scalar::Number(*value as f64), Scalar::Integer)
            }
            Value::Negative(value) => Scalar::Integer(*value),
            Value::Float(value) => Scalar::Number(*value),
            Value::Text(value) => Scalar::Text(value.as_ref().into()),
            Value::Null | Value::Array | Value::Object => {
                let value = format!("`{}`: {}", shorten(key.as_str()), value.shown());
                let problem = "is no scalar; send a string, number or boolean".to_owned();
                return Err(self.0.refuse(RatingError::Invalid {
                    field: "context",
                    value,
                    problem,
                }));
            }
        })
    }
}

impl<'de> Visitor<'de> for ContextReader<'_> {
    type Value = Context;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of scalars")
    }

    fn visit_unit<E>(self) -> Result<Context, E> {
        Ok(Context::default())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Context, A::Error> {
        let mut context = Context::default();
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            let key = ContextKey::new(&key).map_err(|error| {
                let value = format!("key `{}`", shorten(&key));
                let problem = error.to_string();
                self.0.refuse(RatingError::Invalid { field: "context", value, problem })
            })?;
            let value = map.next_value_seed(Scalars)?;
            if value == Value::Null {
                continue;
            }
            let scalar = self.scalar(&key, &value)?;
            context.insert(key, scalar).map_err(|fault| self.0.refuse::<A::Error>(fault))?;
        }
        Ok(context)
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Context, E> {
        Err(self.no_object(&Value::Bool(value)))
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Context, E> {
        Err(self.no_object(&Value::Unsigned(value)))
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Context, E> {
        Err(self.no_object(&Value::Negative(value)))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Context, E> {
        Err(self.no_object(&Value::Float(value)))
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Context, E> {
        Err(self.no_object(&Value::Text(value.into())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<Context, A::Error> {
        Err(self.no_object::<A::Error>(&Value::Array))
    }
}
