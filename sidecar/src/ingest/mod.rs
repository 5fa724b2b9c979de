//! The outside world's ratings: authenticated, parsed once, and put on the bus.
//!
//! 1. Who posts is learned first ([`raters`]); a rating names nobody but its poster, unless the
//!    poster may name others, and no agent rates itself.
//! 2. A body is bounded in size and time, and becomes a [`Rating`](crate::rating::Rating) or a
//!    [`Refusal`] that names the field.
//! 3. "Accepted" is said only after the bus has acknowledged the rating.
//! 4. A rating's receipt is verified here ([`receipts`]), where the keys are; on the bus stands what
//!    it proved.
//! 5. Each rater has a bucket of ratings; when it is empty the answer is 429 ([`Config::rater_rate`]).
//! 6. When the bus is full or away the answer is 503 with `Retry-After`; nothing is buffered here.

mod config;

pub mod raters;

mod refusal;

pub mod receipts;

mod accept;

mod batch;

mod cloud_events;

mod quota;

mod meter;

pub mod http;

mod schema;

#[cfg(feature = "grpc")]
pub mod grpc;
#[cfg(not(feature = "grpc"))]
#[path = "grpc_missing.rs"]
pub mod grpc;

pub mod feed;

pub use accept::{Accepted, Ingest};
pub use config::Config;
pub use raters::{ApiKeys, ApiKeysError};
pub use receipts::{ReceiptFault, ReceiptMode, Receipts};
pub use refusal::Refusal;
