//! JSON Web Key Sets (RFC 7517): which keys of a document may serve, and which documents none.
//!
//! 1. A key that cannot be used is left out with its reason; the rest serve (RFC 7517 section 5).
//! 2. A set is refused whole when two keys have one id, when secrets stand beside public keys (a
//!    secret that everybody can read, or an algorithm to be confused), and when no key is usable.
//! 3. Certificates and addresses in a key (`x5c`, `x5u`) are not looked at.

use std::collections::HashSet;

use serde_json::{Map, Value};

use jsonwebtoken::Algorithm;

use super::{
    KID_MAX,
    keys::{Key, Material, UnusableKey, decode, point},
};

/// The longest document, in bytes.
pub const KEY_SET_MAX: usize = 1024 * 1024;

/// The most keys of a document.
pub const KEYS_MAX: usize = 1000;

/// Why a document is no key set that can be in force.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeySetError {
    /// Longer than [`KEY_SET_MAX`].
    #[error("key set is longer than {KEY_SET_MAX} bytes")]
    Long,
    /// No JSON object, or its `keys` is no list.
    #[error("key set must be a JSON object with a list `keys`")]
    Form,
    /// More than [`KEYS_MAX`] keys.
    #[error("key set has {keys} keys, must have at most {KEYS_MAX}")]
    Many {
        /// How many.
        keys: usize,
    },
    /// Two keys with one id: which one signed cannot be told.
    #[error("key set has two keys with the id {id:?}")]
    Duplicate {
        /// The id, shortened.
        id: String,
    },
    /// Secrets beside public keys.
    #[error("key set has symmetric keys beside asymmetric ones")]
    Mixed,
    /// Not one key serves.
    #[error("key set has no usable key{}", why(.unusable))]
    Empty {
        /// Each key's id, if it has one, and why it serves nothing.
        unusable: Vec<(String, UnusableKey)>,
    },
}

fn why(unusable: &[(String, UnusableKey)]) -> String {
    let each = unusable.iter().take(5).map(|(id, reason)| format!("; {id:?}: {reason}"));
    each.collect()
}

/// The usable keys of a document, and what was left out.
pub(super) struct Parsed {
    pub(super) keys: Vec<Key>,
    pub(super) unusable: Vec<(String, UnusableKey)>,
}

/// Reads a document; keys are pinned to those of `algorithms` that they fit.
pub(super) fn parse(document: &[u8], algorithms: &[Algorithm]) -> Result<Parsed, KeySetError> {
    if document.len() > KEY_SET_MAX {
        return Err(KeySetError::Long);
    }
    let set: Map<String, Value> =
        serde_json::from_slice(document).map_err(|_| KeySetError::Form)?;
    let listed = set.get("keys").and_then(Value::as_array).ok_or(KeySetError::Form)?;
    if listed.len() > KEYS_MAX {
        return Err(KeySetError::Many { keys: listed.len() });
    }
    let mut ids = HashSet::new();
    let (mut symmetric, mut asymmetric) = (false, false);
    for key in listed {
        if let Some(id) = text(key, "kid").filter(|id| !ids.insert(*id)) {
            return Err(KeySetError::Duplicate { id: shown(id) });
        }
        match text(key, "kty") {
            Some("oct") => symmetric = true,
            Some(_) => asymmetric = true,
            None => {}
        }
    }
    if symmetric && asymmetric {
        return Err(KeySetError::Mixed);
    }
    let (mut keys, mut unusable) = (Vec::new(), Vec::new());
    for jwk in listed {
        match read(jwk, algorithms) {
            Ok(key) => keys.push(key),
            Err(reason) => unusable.push((shown(text(jwk, "kid").unwrap_or_default()), reason)),
        }
    }
    match keys.is_empty() {
        true => Err(KeySetError::Empty { unusable }),
        false => Ok(Parsed { keys, unusable }),
    }
}

fn text<'a>(jwk: &'a Value, member: &str) -> Option<&'a str> {
    jwk.get(member)?.as_str()
}

/// An id comes from outside: it is shown short.
fn shown(id: &str) -> String {
    id.chars().take(64).collect()
}

fn read(jwk: &Value, algorithms: &[Algorithm]) -> Result<Key, UnusableKey> {
    let id = match jwk.get("kid") {
        None => None,
        Some(Value::String(id)) if (1..=KID_MAX).contains(&id.len()) => Some(id.as_str().into()),
        Some(_) => return Err(UnusableKey::Malformed { member: "kid" }),
    };
    purpose(jwk)?;
    let bytes = |member: &'static str| {
        text(jwk, member).and_then(decode).ok_or(UnusableKey::Malformed { member })
    };
    let kind = text(jwk, "kty").ok_or(UnusableKey::Malformed { member: "kty" })?;
    if kind != "oct" && jwk.get("d").is_some() {
        return Err(UnusableKey::Private);
    }
    let material = match (kind, text(jwk, "crv")) {
        ("RSA", _) => Material::Rsa { n: bytes("n")?, e: bytes("e")? },
        ("EC", Some("P-256")) => Material::Ec(coordinates(&bytes("x")?, &bytes("y")?, 32)?),
        ("EC", Some("P-384")) => Material::Ec(coordinates(&bytes("x")?, &bytes("y")?, 48)?),
        ("OKP", Some("Ed25519")) => Material::Ed25519(bytes("x")?),
        ("oct", _) => Material::Hmac(bytes("k")?),
        _ => return Err(UnusableKey::Kind),
    };
    let named = match jwk.get("alg") {
        None => None,
        Some(Value::String(name)) => {
            Some(name.parse::<Algorithm>().map_err(|_| UnusableKey::Algorithm)?)
        }
        Some(_) => return Err(UnusableKey::Malformed { member: "alg" }),
    };
    Key::new(id, &material, algorithms, named)
}

/// RFC 7517 sections 4.2 and 4.3: what a key says of its purpose is binding; it may say nothing.
fn purpose(jwk: &Value) -> Result<(), UnusableKey> {
    let signs = match jwk.get("use") {
        None => true,
        Some(Value::String(purpose)) => purpose == "sig",
        Some(_) => return Err(UnusableKey::Malformed { member: "use" }),
    };
    let verifies = match jwk.get("key_ops") {
        None => true,
        Some(Value::Array(operations)) => operations.iter().any(|one| one == "verify"),
        Some(_) => return Err(UnusableKey::Malformed { member: "key_ops" }),
    };
    (signs && verifies).then_some(()).ok_or(UnusableKey::Purpose)
}

/// RFC 7518 section 6.2.1.2: a coordinate has the full length of the field.
fn coordinates(x: &[u8], y: &[u8], length: usize) -> Result<Vec<u8>, UnusableKey> {
    match (x.len() == length, y.len() == length) {
        (true, true) => Ok(point(x, y)),
        (false, _) => Err(UnusableKey::Malformed { member: "x" }),
        (_, false) => Err(UnusableKey::Malformed { member: "y" }),
    }
}
