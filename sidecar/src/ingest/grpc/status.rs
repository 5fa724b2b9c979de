//! What a refused caller reads: a status with the details of <https://google.aip.dev/193>.
//!
//! 1. `ErrorInfo` is always there: its reason is the one that metrics count, in capitals.
//! 2. `BadRequest` names the field of an `INVALID_ARGUMENT`.
//! 3. `RetryInfo` stands where the same call may succeed later, and nowhere else: without it
//!    `RESOURCE_EXHAUSTED` is final (OTLP specification, "Failures").

use std::collections::HashMap;

use http::StatusCode;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::{bus::PublishError, ingest::Refusal};

/// Whose reasons these are.
const DOMAIN: &str = "merit";

/// Returns the code of `refusal`.
pub(super) fn code(refusal: &Refusal) -> Code {
    match refusal {
        // gRPC, "Status codes and their use": too many requests or too few, an encoding not known.
        Refusal::NotOne | Refusal::Encoding => Code::Unimplemented,
        Refusal::BrokenOff => Code::Cancelled,
        Refusal::TooLarge { .. }
        | Refusal::TooMany { .. }
        | Refusal::Busy
        | Refusal::Crowded { .. }
        | Refusal::Quota { .. }
        | Refusal::Bus { source: PublishError::Full { .. }, .. } => Code::ResourceExhausted,
        other => match other.status() {
            StatusCode::UNAUTHORIZED => Code::Unauthenticated,
            StatusCode::FORBIDDEN => Code::PermissionDenied,
            StatusCode::REQUEST_TIMEOUT => Code::DeadlineExceeded,
            StatusCode::SERVICE_UNAVAILABLE => Code::Unavailable,
            StatusCode::INTERNAL_SERVER_ERROR => Code::Internal,
            _ => Code::InvalidArgument,
        },
    }
}

/// Returns the reason of `refusal` as `ErrorInfo` writes it.
pub(super) fn reason(refusal: &Refusal) -> String {
    refusal.reason().to_ascii_uppercase()
}

/// Returns the field at fault as the messages name it.
pub(super) fn field(refusal: &Refusal) -> Option<&'static str> {
    match refusal.field() {
        Some("timestamp") => Some("timestamp_ms"),
        field => field,
    }
}

/// Returns the status of a call that was refused with `code`; `counts` is what else its caller may
/// want to compute with.
pub(super) fn of(refusal: &Refusal, code: Code, counts: HashMap<String, String>) -> Status {
    let mut details = ErrorDetails::new();
    let text = refusal.detail();
    if let (Some(field), Code::InvalidArgument) = (field(refusal), code) {
        let path = match field {
            // Metadata, not a field of the message.
            "idempotency-key" => field.to_owned(),
            "rating" => field.to_owned(),
            field => format!("rating.{field}"),
        };
        details.add_bad_request_violation(path, &text);
    }
    if let Some(wait) = refusal.retry_after() {
        details.set_retry_info(Some(wait));
    }
    let mut metadata = counts;
    if let Some(id) = refusal.id() {
        metadata.insert("id".to_owned(), id.to_string());
    }
    details.set_error_info(reason(refusal), DOMAIN, metadata);
    Status::with_error_details(code, text, details)
}
