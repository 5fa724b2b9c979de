//! `RateLimit` fields: what a caller may spend, on every answer.
//!
//! They follow draft-ietf-httpapi-ratelimit-headers-11. `q` is the capacity and `w` the time in
//! which an empty bucket fills. Admitted: `r` is the whole tokens left and `t` the seconds until the
//! bucket is full. Denied: the buckets that held too little have `r=0` and `t` equal to
//! `Retry-After`, so that `Retry-After` never ends before `t` (section 6). Buckets that are only
//! watched are not shown. A limit on requests in flight is an item of its own,
//! `"concurrency";q=8;qu="concurrent-requests"`.
//!
//! `X-RateLimit-*` cannot name a bucket: they tell of the one that is nearest to its end, and their
//! `Reset` is seconds from now, never a time of day.

use std::num::NonZeroU64;

use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::{concurrency::CONCURRENCY_POLICY, refusal::whole_seconds};
use crate::{
    bucket::Limits,
    store::{BucketRule, Held, Verdict},
};

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const X_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const X_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const X_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// RFC 9651 section 3.3.1: integers have at most fifteen digits.
const INTEGER_MAX: u64 = 999_999_999_999_999;

/// How the state of [`CONCURRENCY_POLICY`] begins.
const CONCURRENCY_STATE: &[u8] = b"\"concurrency\";r=";

/// Which fields answers carry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice {
    pub(super) rate_limit: bool,
    pub(super) x_rate_limit: bool,
    pub(super) expose: bool,
}

/// What the fields of one plan have in common, written once.
pub(super) struct Shown {
    /// One for each bucket of the plan; nothing for those that are only watched.
    items: Box<[Option<Item>]>,
    concurrency: Option<u32>,
    /// The policy at the configured limits; nothing when there is nothing to show.
    policy: Option<HeaderValue>,
}

struct Item {
    /// `"name";q=`
    policy: Box<[u8]>,
    /// `"name";r=`
    state: Box<[u8]>,
    limits: Limits,
}

/// What has come of a request, as fields tell it.
#[derive(Clone, Copy)]
pub(super) struct Outcome<'a> {
    /// The buckets; nothing when none was asked.
    pub(super) verdict: Option<&'a Verdict>,
    /// `Retry-After` of a denial, in seconds.
    pub(super) retry_after: Option<NonZeroU64>,
    /// How many more requests might be in flight.
    pub(super) places_left: Option<u32>,
}

impl Shown {
    pub(super) fn new(rules: &[BucketRule], concurrency: Option<u32>) -> Self {
        let item = |rule: &BucketRule| {
            let named = |parameter| format!("\"{}\";{parameter}=", rule.name).into_bytes().into();
            (!rule.shadow).then(|| Item {
                policy: named("q"),
                state: named("r"),
                limits: rule.limits,
            })
        };
        let mut shown = Self { items: rules.iter().map(item).collect(), concurrency, policy: None };
        let mut text = Text::new();
        for item in shown.items.iter().flatten() {
            item.write_policy(&mut text, &item.limits);
        }
        shown.write_concurrency(&mut text);
        shown.policy = text.into_value();
        shown
    }

    /// Appends the fields of `choice`; what the service behind has sent stays.
    pub(super) fn put(&self, headers: &mut HeaderMap, choice: Choice, outcome: Outcome<'_>) {
        if choice.rate_limit {
            self.put_rate_limit(headers, outcome);
        }
        if choice.x_rate_limit {
            self.put_x_rate_limit(headers, outcome);
        }
        if choice.expose {
            let names = match choice.x_rate_limit {
                false => "RateLimit, RateLimit-Policy, Retry-After",
                true => {
                    "RateLimit, RateLimit-Policy, Retry-After, X-RateLimit-Limit, \
                     X-RateLimit-Remaining, X-RateLimit-Reset"
                }
            };
            let names = HeaderValue::from_static(names);
            append(headers, header::ACCESS_CONTROL_EXPOSE_HEADERS, Some(names));
        }
    }

    fn put_rate_limit(&self, headers: &mut HeaderMap, outcome: Outcome<'_>) {
        let (mut state, mut configured) = (Text::new(), true);
        for (item, held) in self.held(outcome) {
            configured &= held.limits == item.limits;
            let until = match (held.short, outcome.retry_after) {
                (true, retry_after) => retry_after.map(NonZeroU64::get),
                (false, Some(_)) => None,
                (false, None) => held.full_in_ms().map(whole_seconds),
            };
            state.begin_item(&item.state);
            state.number(if held.short { 0 } else { held.tokens.whole() });
            state.parameter(b";t=", until);
        }
        if let Some(left) = outcome.places_left {
            state.begin_item(CONCURRENCY_STATE);
            state.number(u64::from(left));
        }
        let policy = match outcome.verdict {
            Some(_) if !configured => {
                let mut text = Text::new();
                for (item, held) in self.held(outcome) {
                    item.write_policy(&mut text, &held.limits);
                }
                self.write_concurrency(&mut text);
                text.into_value()
            }
            _ => self.policy.clone(),
        };
        append(headers, RATE_LIMIT_POLICY, policy);
        append(headers, RATE_LIMIT, state.into_value());
    }

    fn put_x_rate_limit(&self, headers: &mut HeaderMap, outcome: Outcome<'_>) {
        let left = |held: &Held| if held.short { 0 } else { held.tokens.whole() };
        let nearest = self.held(outcome).map(|(_, held)| held).min_by_key(|held| left(held));
        let Some(held) = nearest else { return };
        let reset = match outcome.retry_after {
            Some(seconds) => Some(seconds.get()),
            None => held.full_in_ms().map(whole_seconds),
        };
        append(headers, X_LIMIT, Some(held.limits.capacity().get().into()));
        append(headers, X_REMAINING, Some(left(held).into()));
        append(headers, X_RESET, reset.map(HeaderValue::from));
    }

    /// Returns the buckets that are shown.
    fn held<'a>(&'a self, outcome: Outcome<'a>) -> impl Iterator<Item = (&'a Item, &'a Held)> {
        let held = outcome.verdict.into_iter().flat_map(Verdict::held);
        self.items.iter().zip(held).filter_map(|(item, held)| Some((item.as_ref()?, held)))
    }

    fn write_concurrency(&self, text: &mut Text) {
        if let Some(limit) = self.concurrency {
            text.begin_item(format!("\"{CONCURRENCY_POLICY}\";q=").as_bytes());
            text.number(u64::from(limit));
            text.bytes(b";qu=\"concurrent-requests\"");
        }
    }
}

impl Item {
    fn write_policy(&self, text: &mut Text, limits: &Limits) {
        text.begin_item(&self.policy);
        text.number(limits.capacity().get());
        text.parameter(b";w=", limits.window_seconds());
    }
}

/// A list of items (RFC 9651 section 3.1) as it is written: on the stack while it is short.
struct Text {
    stack: [u8; Text::STACK],
    length: usize,
    /// Everything, once it no longer fits.
    heap: Vec<u8>,
}

impl Text {
    /// Room for two buckets with names of ordinary length.
    const STACK: usize = 96;

    fn new() -> Self {
        Self { stack: [0; Self::STACK], length: 0, heap: Vec::new() }
    }

    fn bytes(&mut self, bytes: &[u8]) {
        let end = self.length + bytes.len();
        match self.stack.get_mut(self.length..end) {
            Some(room) if self.heap.is_empty() => {
                room.copy_from_slice(bytes);
                self.length = end;
            }
            _ => {
                if self.heap.is_empty() {
                    self.heap.extend_from_slice(&self.stack[..self.length]);
                }
                self.heap.extend_from_slice(bytes);
            }
        }
    }

    fn begin_item(&mut self, named: &[u8]) {
        if self.length > 0 || !self.heap.is_empty() {
            self.bytes(b", ");
        }
        self.bytes(named);
    }

    fn number(&mut self, number: u64) {
        self.bytes(itoa::Buffer::new().format(number.min(INTEGER_MAX)).as_bytes());
    }

    fn parameter(&mut self, named: &[u8], number: Option<u64>) {
        if let Some(number) = number {
            self.bytes(named);
            self.number(number);
        }
    }

    /// Returns the field; nothing when there is no item.
    fn into_value(self) -> Option<HeaderValue> {
        let text = if self.heap.is_empty() { &self.stack[..self.length] } else { &self.heap };
        let value = (!text.is_empty()).then(|| HeaderValue::from_bytes(text));
        value.map(|value| value.expect("bucket names and numbers are visible ASCII"))
    }
}

/// A header map that is full loses the field, not the answer.
fn append(headers: &mut HeaderMap, name: HeaderName, value: Option<HeaderValue>) {
    if let Some(value) = value {
        let _ = headers.try_append(name, value);
    }
}
