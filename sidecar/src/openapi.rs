//! `GET /openapi.json`: what a listener answers, as OpenAPI 3.1.
//!
//! One document, written by hand (`schema/openapi/merit.json`), names the listeners of each path; each tells what is
//! its own. The rating's JSON Schema is put into it from its own file. `tests/openapi.rs` holds it to the routes.

use axum::{
    Router,
    body::Bytes,
    response::{IntoResponse as _, Response},
    routing::get,
};
use http::header;
use serde_json::Value;

const DOCUMENT: &str = include_str!("../schema/openapi/merit.json");
const RATING: &str = include_str!("../schema/merit/rating/v1/rating.v1.schema.json");

/// What names the listeners of a path in the document.
const LISTENERS: &str = "x-merit-listeners";
/// What is true of an operation that is there only with `[personalize] enabled`.
const PERSONALISED: &str = "x-merit-personalised";

/// Who listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    /// `[ingest] listen`.
    Ingest,
    /// `[gateway] listen`.
    Gateway,
    /// `[admin] listen`.
    Admin,
}

impl Listener {
    fn name(self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::Gateway => "gateway",
            Self::Admin => "admin",
        }
    }

    /// Returns where its document is. `/openapi.json` of the gateway is the protected service's own.
    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            Self::Ingest | Self::Admin => "/openapi.json",
            Self::Gateway => "/events/openapi.json",
        }
    }
}

/// Returns the document of `listener`, with what is there when ratings are `personalised` or without.
///
/// # Panics
///
/// Never: the document is part of the program, and read by its tests.
#[must_use]
pub fn document(listener: Listener, personalised: bool) -> Value {
    let mut document: Value = serde_json::from_str(DOCUMENT).expect("a constant");
    document["info"]["version"] = env!("CARGO_PKG_VERSION").into();
    let mut rating: Value = serde_json::from_str(RATING).expect("a constant");
    rating
        .as_object_mut()
        .expect("a constant")
        .retain(|name, _| name != "$schema" && name != "$id");
    rebase(&mut rating);
    document["components"]["schemas"]["Rating"] = rating;

    let paths = document["paths"].as_object_mut().expect("a constant");
    for item in paths.values_mut().filter_map(Value::as_object_mut) {
        let ours = item.remove(LISTENERS).is_some_and(|listeners| {
            listeners.as_array().is_some_and(|names| names.contains(&listener.name().into()))
        });
        item.retain(|_, operation| {
            let personal = operation.as_object_mut().and_then(|found| found.remove(PERSONALISED));
            ours && (personalised || personal.is_none())
        });
    }
    // A path without an operation is none of this listener's.
    paths.retain(|_, item| {
        item.as_object().is_some_and(|item| item.keys().any(|key| is_method(key)))
    });
    document
}

fn is_method(key: &str) -> bool {
    ["get", "put", "post", "delete", "options"].contains(&key)
}

/// Lets references within the rating's schema find their targets where it stands now: many tools know no `$id`.
fn rebase(value: &mut Value) {
    match value {
        Value::Object(members) => {
            if let Some(Value::String(target)) = members.get_mut("$ref") {
                *target = target.replacen("#/", "#/components/schemas/Rating/", 1);
            }
            members.values_mut().for_each(rebase);
        }
        Value::Array(items) => items.iter_mut().for_each(rebase),
        _ => {}
    }
}

/// Returns the route that tells the document of `listener`, asking nobody who they are.
pub fn router(listener: Listener, personalised: bool) -> Router {
    let text = Bytes::from(document(listener, personalised).to_string());
    Router::new().route(listener.path(), get(async move || answer(text)))
}

fn answer(text: Bytes) -> Response {
    let fields = [
        (header::CONTENT_TYPE, "application/json"),
        (header::CACHE_CONTROL, "public, max-age=300"),
    ];
    (fields, text).into_response()
}
