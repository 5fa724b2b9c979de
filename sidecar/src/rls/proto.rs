//! The messages of `envoy.service.ratelimit.v3.RateLimitService`, as far as this server reads or writes them:
//! what it does not know of a message it skips, as Protobuf wants it.
//!
//! Numbers and meanings: `envoy/service/ratelimit/v3/rls.proto`,
//! `envoy/extensions/common/ratelimit/v3/ratelimit.proto`, `envoy/config/core/v3/base.proto`.

/// `RateLimitRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RateLimitRequest {
    /// Whose limits are meant.
    #[prost(string, tag = "1")]
    pub domain: String,
    /// What the request is, each a limit of its own.
    #[prost(message, repeated, tag = "2")]
    pub descriptors: Vec<RateLimitDescriptor>,
    /// For how many requests it counts; 0 means 1.
    #[prost(uint32, tag = "3")]
    pub hits_addend: u32,
}

/// `RateLimitDescriptor`. Its `limit` is left out: what an agent may do is what it has earned.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RateLimitDescriptor {
    /// Keys and values, as the proxy's `actions` make them.
    #[prost(message, repeated, tag = "1")]
    pub entries: Vec<Entry>,
    /// For how many requests it counts here; 0 only looks.
    #[prost(message, optional, tag = "3")]
    pub hits_addend: Option<UInt64Value>,
    /// Whether that number is given back; here it is not, and nothing is taken either (Envoy 1.38).
    #[prost(bool, tag = "4")]
    pub is_negative_hits: bool,
}

/// `RateLimitDescriptor.Entry`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Entry {
    /// The `descriptor_key`.
    #[prost(string, tag = "1")]
    pub key: String,
    /// Its value: a `string` that Envoy fills with whatever bytes a caller sent. One that is no UTF-8 must be
    /// answered, because an error is what proxies let pass; on the wire both are the same.
    #[prost(bytes = "bytes", tag = "2")]
    pub value: bytes::Bytes,
}

/// `google.protobuf.UInt64Value`.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct UInt64Value {
    /// The number.
    #[prost(uint64, tag = "1")]
    pub value: u64,
}

/// `RateLimitResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RateLimitResponse {
    /// [`Code::OverLimit`] as soon as one descriptor is.
    #[prost(enumeration = "Code", tag = "1")]
    pub overall_code: i32,
    /// One for each descriptor, in their order.
    #[prost(message, repeated, tag = "2")]
    pub statuses: Vec<DescriptorStatus>,
    /// What the caller is to read beside the answer.
    #[prost(message, repeated, tag = "3")]
    pub response_headers_to_add: Vec<HeaderValue>,
    /// What the caller is to read in place of an answer.
    #[prost(bytes = "bytes", tag = "5")]
    pub raw_body: bytes::Bytes,
}

/// `RateLimitResponse.Code`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum Code {
    /// Never sent.
    Unknown = 0,
    /// It may pass.
    Ok = 1,
    /// It may not.
    OverLimit = 2,
}

/// `RateLimitResponse.DescriptorStatus`. Its `current_limit` is left out: a number and a unit of time do not
/// say what a bucket is; the fields say that.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DescriptorStatus {
    /// What became of the descriptor.
    #[prost(enumeration = "Code", tag = "1")]
    pub code: i32,
    /// Whole tokens left, of the bucket that is nearest to its end.
    #[prost(uint32, tag = "3")]
    pub limit_remaining: u32,
    /// When that is full again, or, when it was short, when to come back.
    #[prost(message, optional, tag = "4")]
    pub duration_until_reset: Option<Duration>,
}

/// `google.protobuf.Duration`.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Duration {
    /// Seconds.
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    /// Nanoseconds beyond them.
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

/// `envoy.config.core.v3.HeaderValue`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct HeaderValue {
    /// The field's name.
    #[prost(string, tag = "1")]
    pub key: String,
    /// Its value.
    #[prost(string, tag = "2")]
    pub value: String,
}
