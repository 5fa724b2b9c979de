//! Refusals as gRPC callers read them: HTTP 200 without a body, the status in the headers
//! ("Trailers-Only" in the gRPC protocol over HTTP/2), the wait in `google.rpc.RetryInfo`.
//!
//! 1. Only calls are spoken to so: `POST` over HTTP/2 or later with `application/grpc`, its `+proto` and the like
//!    (gRPC over HTTP/2, "Requests"). Anybody else who says this type would get a refusal that
//!    looks like success. gRPC-Web is not: its translation to gRPC belongs in front of admission, and then
//!    this is what it translates.
//! 2. `RetryInfo` stands where waiting helps and nowhere else: a client takes `RESOURCE_EXHAUSTED`
//!    without it for final (OTLP specification, "Failures").

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Response, Version, header};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::{
    refusal::{NEVER_RETRY_SECONDS, Refusal},
    response::Head,
};

const GRPC: &str = "application/grpc";

/// Returns whether a request with this head is answered here.
pub(super) fn speaks(head: &Head<'_>) -> bool {
    if *head.method != Method::POST || head.version < Version::HTTP_2 {
        return false;
    }
    let Some(kind) = head.fields.get(header::CONTENT_TYPE) else { return false };
    kind.to_str().ok().and_then(|kind| kind.split_at_checked(GRPC.len())).is_some_and(
        |(kind, rest)| {
            kind.eq_ignore_ascii_case(GRPC)
                && (rest.is_empty() || rest.starts_with(['+', ';', ' ']))
        },
    )
}

/// Returns the answer to a refused request; `detail` is what its caller reads, `wait_ms` how long it
/// should wait. Fields that every
/// refusal carries are still to be put on it.
pub(super) fn response(refusal: &Refusal, detail: &str, wait_ms: Option<u64>) -> Response<Bytes> {
    let mut details = ErrorDetails::new();
    let code = match refusal {
        Refusal::Unauthenticated(_) => Code::Unauthenticated,
        Refusal::NoAgent(_) | Refusal::Banned { .. } => Code::PermissionDenied,
        Refusal::AmbiguousPath => Code::InvalidArgument,
        Refusal::IdentityUnavailable(_) | Refusal::StoreDown => Code::Unavailable,
        Refusal::TooManyInFlight { .. } => Code::ResourceExhausted,
        Refusal::Denied { violated, .. } => {
            for bucket in violated {
                details.add_quota_failure_violation(format!("bucket:{bucket}"), detail);
            }
            Code::ResourceExhausted
        }
    };
    let waiting_helps = matches!(code, Code::ResourceExhausted | Code::Unavailable);
    let wait_ms = wait_ms.filter(|ms| *ms < NEVER_RETRY_SECONDS * 1000);
    if let Some(wait_ms) = wait_ms.filter(|_| waiting_helps) {
        details.set_retry_info(Some(Duration::from_millis(wait_ms)));
    }
    let plain = !details.has_quota_failure_violations() && details.retry_info().is_none();
    let status = match plain {
        true => Status::new(code, detail),
        false => Status::with_error_details(code, detail, details),
    };
    let mut response: Response<Bytes> = status.into_http();
    // As problems have it: caches may keep a status of 200 otherwise.
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;
    use crate::{
        bucket::{BucketName, Limits},
        identity::IdentityError,
    };

    fn denied(retry_after_ms: u64) -> Refusal {
        Refusal::Denied {
            retry_after: retry_after_ms.div_ceil(1000),
            retry_after_ms,
            violated: vec![BucketName::new("reads").unwrap(), BucketName::new("writes").unwrap()],
            limits: Limits::per_second(1.0, 1).unwrap(),
        }
    }

    fn read(refusal: &Refusal) -> (Code, ErrorDetails, Response<Bytes>) {
        let response = response(refusal, "what happened: ä", refusal.retry_after_ms());
        assert_eq!((response.status().as_u16(), response.body().len()), (200, 0));
        assert_eq!(response.headers()["content-type"], GRPC);
        let status = Status::from_header_map(response.headers()).unwrap();
        assert_eq!(status.message(), "what happened: ä");
        (status.code(), status.get_error_details(), response)
    }

    #[test]
    fn a_denial_tells_the_wait_to_the_millisecond_and_names_the_buckets() {
        let (code, details, _) = read(&denied(1_234));
        assert_eq!(code, Code::ResourceExhausted);
        assert_eq!(details.retry_info().unwrap().retry_delay, Some(Duration::from_millis(1_234)));
        let violations = &details.quota_failure().unwrap().violations;
        let subjects: Vec<&str> = violations.iter().map(|one| &*one.subject).collect();
        assert_eq!(subjects, ["bucket:reads", "bucket:writes"]);
    }

    #[test]
    fn where_waiting_does_not_help_there_is_no_retry_info() {
        let nobody = IdentityError::Unauthenticated { reason: "no token", presented: false };
        for (refusal, code) in [
            (denied(NEVER_RETRY_SECONDS * 1000), Code::ResourceExhausted),
            (Refusal::Banned { for_ms: 5_000 }, Code::PermissionDenied),
            (Refusal::Unauthenticated(nobody), Code::Unauthenticated),
        ] {
            let (found, details, _) = read(&refusal);
            assert_eq!((found, details.retry_info().is_none()), (code, true), "{refusal:?}");
        }
    }

    #[test]
    fn where_waiting_helps_there_is_retry_info() {
        for (refusal, code) in [
            (Refusal::StoreDown, Code::Unavailable),
            (Refusal::TooManyInFlight { limit: 3 }, Code::ResourceExhausted),
        ] {
            let (found, details, _) = read(&refusal);
            assert_eq!(found, code);
            assert!(details.retry_info().unwrap().retry_delay.unwrap() > Duration::ZERO);
        }
    }

    #[test]
    fn grpc_is_told_from_what_only_begins_like_it() {
        let request = |kind: &str| {
            let request = Request::post("/x").version(Version::HTTP_2);
            request.header(header::CONTENT_TYPE, kind).body(()).unwrap()
        };
        let speaks = |kind: &str| speaks(&Head::of(&request(kind)));
        for kind in [
            "application/grpc",
            "application/grpc+proto",
            "Application/GRPC+json",
            "application/grpc;x=y",
        ] {
            assert!(speaks(kind), "{kind}");
        }
        for kind in [
            "application/grpc-web",
            "application/grpc-web+proto",
            "application/grpc-web-text",
            "application/grp",
            "application/json",
            "text/application/grpc",
        ] {
            assert!(!speaks(kind), "{kind}");
        }
        assert!(!super::speaks(&Head::of(&Request::new(()))));
    }

    #[test]
    fn who_cannot_be_a_grpc_caller_is_not_answered_like_one() {
        let mut request = Request::post("/x").header(header::CONTENT_TYPE, GRPC).body(()).unwrap();
        assert!(!speaks(&Head::of(&request)), "HTTP/1.1");
        *request.version_mut() = Version::HTTP_2;
        assert!(speaks(&Head::of(&request)));
        for method in [Method::GET, Method::HEAD, Method::PUT] {
            *request.method_mut() = method;
            assert!(!speaks(&Head::of(&request)), "{request:?}");
        }
    }
}
