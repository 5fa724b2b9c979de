//! `GET /v1/schema/{json,proto,avro}`: what a rating is, for machines.

use axum::{
    extract::Path,
    response::{IntoResponse, Response},
};
use http::{StatusCode, header};

use super::http::refuse;

const JSON: &str = include_str!("../../schema/merit/rating/v1/rating.v1.schema.json");
const PROTO: &str = include_str!("../../schema/merit/rating/v1/rating.proto");
const AVRO: &str = include_str!("../../schema/merit/rating/v1/rating.v1.avsc");

/// Answers with the schema of version 1 in `format`. Schemas are no secret: nobody is asked who they are.
pub(super) async fn of(Path(format): Path<String>) -> Response {
    let (kind, text) = match format.as_str() {
        // JSON Schema 2020-12 section 14.1.
        "json" => ("application/schema+json", JSON),
        // No type is registered for either.
        "proto" => ("text/plain; charset=utf-8", PROTO),
        "avro" => ("application/json", AVRO),
        _ => return refuse(StatusCode::NOT_FOUND, "schemas are json, proto and avro"),
    };
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}
