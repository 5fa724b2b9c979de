//! A build without the feature `grpc` answers everybody over HTTP.

use bytes::Bytes;
use http::Response;

use super::{refusal::Refusal, response::Head};

pub(super) fn speaks(_: &Head<'_>) -> bool {
    false
}

pub(super) fn response(_: &Refusal, _: &str, _: Option<u64>) -> Response<Bytes> {
    unreachable!("nobody is spoken to so")
}
