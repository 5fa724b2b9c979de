//! What cannot be read, said without a word of what stands there.
//!
//! A value of the wrong type may be a secret in the wrong place: `url = ["redis://:password@…"]`, a
//! password without quotes. So faults name the path, what must stand there, and at most the kind of
//! what does.

use figment::{
    Figment,
    error::{Actual, Kind, OneOf},
    value::Value,
};
use serde::de::DeserializeOwned;

/// Reads one table. Each key that cannot be read becomes a fault and is left out, so that the next
/// faulty one is found as well; what cannot be read at all is replaced by the default.
pub(super) fn table<T: DeserializeOwned + Default>(
    figment: &Figment,
    name: &str,
    faults: &mut Vec<String>,
) -> T {
    let Ok(found) = figment.find_value(name) else { return T::default() };
    // serde would take a list for the keys' values in their order, secrets for names and all.
    if !matches!(found, Value::Dict(..)) {
        faults.push(format!("{name}: must be a table, is {}", kind_of(&found.to_actual())));
        return T::default();
    }
    parse(found, name, faults)
}

/// Reads a list, as [`table`] reads a table.
pub(super) fn list<T: DeserializeOwned>(
    figment: &Figment,
    name: &str,
    faults: &mut Vec<String>,
) -> Vec<T> {
    let Ok(found) = figment.find_value(name) else { return Vec::new() };
    parse(found, name, faults)
}

/// Reads the list of tables `name`, each item for itself: a key that is missing or cannot be read becomes a
/// fault and is taken from `stand_in` for that place, a table without faults, so that no item hides the
/// faults of the next.
pub(super) fn tables<T: DeserializeOwned>(
    found: Value,
    name: &str,
    stand_in: impl Fn(usize) -> serde_json::Value,
    faults: &mut Vec<String>,
) -> Vec<T> {
    let items = match found {
        Value::Array(_, items) => items,
        found => {
            faults.push(format!("{name}: must be a list, is {}", kind_of(&found.to_actual())));
            return Vec::new();
        }
    };
    let item = |(index, item)| {
        let stand_in = Value::serialize(stand_in(index)).expect("JSON is a value");
        one(item, &format!("{name}[{index}]"), &stand_in, faults)
    };
    items.into_iter().enumerate().filter_map(item).collect()
}

fn one<T: DeserializeOwned>(
    mut found: Value,
    path: &str,
    stand_in: &Value,
    faults: &mut Vec<String>,
) -> Option<T> {
    // serde would take a list for the keys' values in their order.
    if !matches!(found, Value::Dict(..)) {
        faults.push(format!("{path}: must be a table, is {}", kind_of(&found.to_actual())));
        found = stand_in.clone();
    }
    loop {
        let error = match found.deserialize::<T>() {
            Ok(item) => return Some(item),
            Err(error) => error,
        };
        faults.push(format!("{path}{}", told(&error)));
        let Value::Dict(_, keys) = &mut found else { return None };
        let key = match (&error.kind, error.path.first()) {
            (_, Some(key)) => key.clone(),
            (Kind::MissingField(key), None) => key.to_string(),
            // Each round must leave one fault less.
            (_, None) => return None,
        };
        let before = keys.remove(&key);
        match stand_in.find_ref(&key) {
            Some(value) => drop(keys.insert(key, value.clone())),
            None if before.is_none() => return None,
            None => {}
        }
    }
}

fn parse<T: DeserializeOwned + Default>(
    mut found: Value,
    name: &str,
    faults: &mut Vec<String>,
) -> T {
    let mut left_out: Vec<String> = Vec::new();
    loop {
        let error = match found.deserialize::<T>() {
            Ok(table) => return table,
            Err(error) => error,
        };
        if matches!(&error.kind, Kind::MissingField(key) if left_out.iter().any(|out| out == key)) {
            // It is there and was told to be wrong.
            return T::default();
        }
        faults.push(format!("{name}{}", told(&error)));
        let removed = match (&mut found, error.path.first()) {
            (Value::Dict(_, keys), Some(key)) => keys.remove_entry(key),
            _ => None,
        };
        let Some((key, _)) = removed else { return T::default() };
        left_out.push(key);
    }
}

/// Reads a file that is one value in JSON.
///
/// # Errors
///
/// With the fault.
pub(super) fn json<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    // Of what is no JSON, its parser says line and column only.
    let found: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    found.deserialize().map_err(|error| told(&error).trim_start_matches(['.', ':', ' ']).to_owned())
}

/// Returns the path below what was read, and what is wrong there.
fn told(error: &figment::Error) -> String {
    let path = error.path.iter().map(|key| match key.parse::<usize>() {
        Ok(index) => format!("[{index}]"),
        Err(_) => format!(".{key}"),
    });
    format!("{}: {}", path.collect::<String>(), problem(&error.kind))
}

/// Returns the fault of a file that is no TOML. Its parser shows the line: that is left out.
pub(super) fn of_file(kind: &Kind) -> String {
    let text = kind.to_string();
    let gutter = |line: &&str| {
        line.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ').starts_with('|')
    };
    let said: Vec<&str> = text.lines().filter(|line| !gutter(line) && !line.is_empty()).collect();
    format!("file: {}", said.join(": "))
}

/// Returns what is wrong with a value, without the value.
fn problem(kind: &Kind) -> String {
    match kind {
        Kind::Message(text) => text.clone(),
        Kind::InvalidType(found, wanted) | Kind::InvalidValue(found, wanted) => {
            format!("must be {}, is {}", kind_wanted(wanted), kind_of(found))
        }
        Kind::InvalidLength(length, wanted) => {
            format!("must have {}, has {length}", kind_wanted(wanted))
        }
        Kind::UnknownVariant(_, known) => format!("must be {}", OneOf(known)),
        Kind::UnknownField(_, known) => format!("unknown key; there are {}", known.join(", ")),
        Kind::MissingField(key) => format!("`{key}` is missing"),
        Kind::DuplicateField(key) => format!("`{key}` stands twice"),
        Kind::ISizeOutOfRange(_) | Kind::USizeOutOfRange(_) => "is out of range".to_owned(),
        Kind::Unsupported(found) | Kind::UnsupportedKey(found, _) => {
            format!("cannot be {}", kind_of(found))
        }
    }
}

/// Returns serde's words for a type in those of TOML.
fn kind_wanted(wanted: &str) -> &str {
    match wanted {
        "a sequence" => "a list",
        "a boolean" => "true or false",
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number from 0",
        "socket address" => "an address with a port, like 127.0.0.1:8080",
        "a nonzero u32" => "a whole number from 1",
        "f64" => "a number",
        "path string" => "a string",
        _ if wanted.starts_with("struct ") => "a table",
        _ if wanted.contains("tagged enum") => "a table",
        _ => wanted,
    }
}

fn kind_of(found: &Actual) -> &'static str {
    match found {
        Actual::Bool(_) => "true or false",
        Actual::Unsigned(0) | Actual::Signed(0) => "0",
        Actual::Signed(..0) => "a negative number",
        Actual::Unsigned(_) | Actual::Signed(_) => "a number",
        Actual::Float(_) => "a number with a point",
        Actual::Char(_) | Actual::Str(_) => "a string",
        Actual::Seq => "a list",
        Actual::Map => "a table",
        _ => "something else",
    }
}
