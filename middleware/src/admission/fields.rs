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
        shown.policy = text.value();
        shown
    }

    /// Puts the fields of `choice`. `RateLimit` fields that the service behind has sent stay beside
    /// ours; `X-RateLimit` fields are no lists: the stricter ones stay.
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
        if let Some(Verdict { first, rest, .. }) = outcome.verdict {
            let mut write = |item: &Option<Item>, held: &Held| {
                if let Some(item) = item {
                    configured &= held.limits == item.limits;
                    item.write_state(&mut state, held, outcome.retry_after);
                }
            };
            // One bucket is what nearly every request touches.
            write(&self.items[0], first);
            self.items[1..].iter().zip(rest).for_each(|(item, held)| write(item, held));
        }
        if let Some(left) = outcome.places_left {
            state.begin_item(CONCURRENCY_STATE);
            state.number(u64::from(left));
        }
        let policy = if configured { self.policy.clone() } else { self.policy_of(outcome) };
        append(headers, RATE_LIMIT_POLICY, policy);
        append(headers, RATE_LIMIT, state.value());
    }

    /// Returns the policy at the limits in force.
    fn policy_of(&self, outcome: Outcome<'_>) -> Option<HeaderValue> {
        let mut text = Text::new();
        for (item, held) in self.held(outcome) {
            item.write_policy(&mut text, &held.limits);
        }
        self.write_concurrency(&mut text);
        text.value()
    }

    fn put_x_rate_limit(&self, headers: &mut HeaderMap, outcome: Outcome<'_>) {
        let left = |held: &Held| if held.short { 0 } else { held.tokens.whole() };
        let nearest = self.held(outcome).map(|(_, held)| held).min_by_key(|held| left(held));
        let Some(held) = nearest else { return };
        let reset = match outcome.retry_after {
            Some(seconds) => Some(seconds.get()),
            None => held.full_in_ms().map(whole_seconds),
        };
        if x_remaining(headers).is_some_and(|theirs| theirs < left(held)) {
            return;
        }
        replace(headers, X_LIMIT, Some(held.limits.capacity().get().into()));
        replace(headers, X_REMAINING, Some(left(held).into()));
        replace(headers, X_RESET, reset.map(HeaderValue::from));
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
    fn write_state(&self, text: &mut Text, held: &Held, retry_after: Option<NonZeroU64>) {
        text.begin_item(&self.state);
        text.number(if held.short { 0 } else { held.tokens.whole() });
        let until = match (held.short, retry_after) {
            (true, retry_after) => retry_after.map(NonZeroU64::get),
            (false, Some(_)) => None,
            (false, None) => held.full_in_ms().map(whole_seconds),
        };
        text.parameter(b";t=", until);
    }

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

    #[inline]
    fn bytes(&mut self, bytes: &[u8]) {
        let end = self.length + bytes.len();
        match self.stack.get_mut(self.length..end) {
            Some(room) if self.heap.is_empty() => {
                room.copy_from_slice(bytes);
                self.length = end;
            }
            _ => self.spill(bytes),
        }
    }

    #[cold]
    fn spill(&mut self, bytes: &[u8]) {
        if self.heap.is_empty() {
            self.heap.extend_from_slice(&self.stack[..self.length]);
        }
        self.heap.extend_from_slice(bytes);
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
    fn value(&self) -> Option<HeaderValue> {
        let text = if self.heap.is_empty() { &self.stack[..self.length] } else { &self.heap };
        let value = (!text.is_empty()).then(|| HeaderValue::from_bytes(text));
        value.map(|value| value.expect("bucket names and numbers are visible ASCII"))
    }
}

/// Returns what another limiter says is left; nothing when it says that not at all or not once.
fn x_remaining(headers: &HeaderMap) -> Option<u64> {
    let mut values = headers.get_all(X_REMAINING).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => super::cost::decimal(value.as_bytes()),
        _ => None,
    }
}

fn replace(headers: &mut HeaderMap, name: HeaderName, value: Option<HeaderValue>) {
    headers.remove(&name);
    append(headers, name, value);
}

/// Lets scripts of other origins read `Retry-After`.
pub(super) fn expose_retry_after(headers: &mut HeaderMap) {
    let names = HeaderValue::from_static("Retry-After");
    append(headers, header::ACCESS_CONTROL_EXPOSE_HEADERS, Some(names));
}

/// A header map that is full loses the field, not the answer.
fn append(headers: &mut HeaderMap, name: HeaderName, value: Option<HeaderValue>) {
    if let Some(value) = value {
        let _ = headers.try_append(name, value);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sfv::{BareItem, List, ListEntry, Parser};

    use super::*;
    use crate::{
        bucket::{
            BucketName, CAPACITY_MAX, MicroTokensPerSecond, NanoTokens, REFILL_RATE_MAX, Tokens,
        },
        store::Decision,
    };

    /// One member of a list: its name, and its parameters by key.
    type Member = (String, Vec<(String, BareItem)>);

    fn parsed(value: &HeaderValue) -> Vec<Member> {
        let list: List = Parser::new(value.as_bytes()).parse().expect("RFC 9651 section 4.2");
        let member = |entry| {
            let ListEntry::Item(item) = entry else { panic!("an inner list") };
            let BareItem::String(name) = item.bare_item else { panic!("not a String") };
            let parameters = item.params.into_iter();
            (
                name.as_str().to_owned(),
                parameters.map(|(k, v)| (k.as_str().to_owned(), v)).collect(),
            )
        };
        list.into_iter().map(member).collect()
    }

    fn integer(member: &Member, key: &str) -> Option<i64> {
        let value = member.1.iter().find(|(name, _)| name == key).map(|(_, value)| value)?;
        let BareItem::Integer(value) = value else { panic!("{key} is no Integer") };
        Some(i64::from(*value))
    }

    fn any_limits() -> impl Strategy<Value = Limits> {
        let capacity = prop_oneof![0..100u64, 0..=CAPACITY_MAX, Just(CAPACITY_MAX)];
        let most = REFILL_RATE_MAX * 1_000_000;
        let micro = prop_oneof![Just(0), Just(1), 0..100_000_000u64, 0..=most, Just(most)];
        (capacity, micro).prop_map(|(capacity, micro)| {
            let refill = MicroTokensPerSecond::new(micro).unwrap();
            Limits::new(Tokens::new(capacity).unwrap(), refill)
        })
    }

    #[derive(Clone, Debug)]
    struct Sample {
        name: String,
        configured: Limits,
        in_force: Limits,
        /// Of the capacity in force, in thousandths; negative is debt.
        level: i64,
        short: bool,
        shadow: bool,
    }

    fn samples() -> impl Strategy<Value = Vec<Sample>> {
        let own = any_limits();
        let sample =
            ("[A-Za-z0-9_-]{1,64}", any_limits(), prop::option::of(own), -9_000..=1_000i64)
                .prop_flat_map(|(name, configured, own, level)| {
                    let in_force = own.unwrap_or(configured);
                    (any::<bool>(), any::<bool>()).prop_map(move |(short, shadow)| Sample {
                        name: name.clone(),
                        configured,
                        in_force,
                        level,
                        short,
                        shadow,
                    })
                });
        prop::collection::vec(sample, 1..=crate::store::TAKES_MAX).prop_map(|mut samples| {
            for (index, sample) in samples.iter_mut().enumerate() {
                sample.name.replace_range(
                    ..,
                    &format!("{index}{}", &sample.name[..sample.name.len().min(60)]),
                );
            }
            samples
        })
    }

    proptest! {
        #[test]
        fn every_field_is_a_list_of_strings_with_integers_of_at_most_fifteen_digits(
            samples in samples(),
            denied in prop::option::of(1..=u64::MAX),
            concurrency in prop::option::of(1..=u32::MAX),
        ) {
            let rule = |sample: &Sample| BucketRule {
                name: BucketName::new(&sample.name).unwrap(),
                is_default: false,
                limits: sample.configured,
                shadow: sample.shadow,
            };
            let held = |sample: &Sample| {
                let full = sample.in_force.capacity().nano().0;
                let debt = CAPACITY_MAX as i64 * 1_000_000_000;
                Held {
                    limits: sample.in_force,
                    tokens: NanoTokens((full / 1_000 * sample.level).max(-debt)),
                    short: sample.short && denied.is_some(),
                }
            };
            let rules: Vec<_> = samples.iter().map(rule).collect();
            let mut all = samples.iter().map(held);
            let verdict = Verdict {
                decision: Decision::Admitted,
                first: all.next().unwrap(),
                rest: all.collect(),
            };
            let mut headers = HeaderMap::new();
            let choice = Choice { rate_limit: true, x_rate_limit: true, expose: true };
            let outcome = Outcome {
                verdict: Some(&verdict),
                retry_after: denied.and_then(NonZeroU64::new),
                places_left: concurrency.map(|limit| limit - 1),
            };
            Shown::new(&rules, concurrency).put(&mut headers, choice, outcome);

            let visible: Vec<_> = samples.iter().filter(|sample| !sample.shadow).collect();
            let expected = visible.len() + usize::from(concurrency.is_some());
            prop_assert_eq!(headers.contains_key(RATE_LIMIT), expected > 0);
            prop_assert_eq!(headers.contains_key(RATE_LIMIT_POLICY), expected > 0);
            prop_assert_eq!(headers.contains_key(X_LIMIT), !visible.is_empty());
            if expected == 0 {
                return Ok(());
            }
            let policy = parsed(&headers[RATE_LIMIT_POLICY]);
            let state = parsed(&headers[RATE_LIMIT]);
            prop_assert_eq!((policy.len(), state.len()), (expected, expected));
            for ((sample, policy), state) in visible.iter().zip(&policy).zip(&state) {
                prop_assert_eq!((&policy.0, &state.0), (&sample.name, &sample.name));
                let q = i64::try_from(sample.in_force.capacity().get()).unwrap();
                prop_assert_eq!(integer(policy, "q"), Some(q));
                prop_assert!(integer(policy, "w").is_none_or(|w| w > 0));
                let r = integer(state, "r").unwrap();
                prop_assert!((0..=q).contains(&r), "{} of {}", r, q);
                prop_assert!(integer(state, "t").is_none_or(|t| t > 0));
                if let (true, Some(wait)) = (sample.short, denied) {
                    let wait = i64::try_from(wait.min(INTEGER_MAX)).unwrap();
                    prop_assert_eq!((r, integer(state, "t")), (0, Some(wait)));
                }
            }
            if let Some(limit) = concurrency {
                let (policy, state) = (policy.last().unwrap(), state.last().unwrap());
                prop_assert_eq!((&*policy.0, &*state.0), (CONCURRENCY_POLICY, CONCURRENCY_POLICY));
                prop_assert_eq!(integer(policy, "q"), Some(i64::from(limit)));
                prop_assert_eq!(integer(state, "r"), Some(i64::from(limit) - 1));
                let unit = &policy.1.iter().find(|(key, _)| key == "qu").unwrap().1;
                prop_assert_eq!(unit.as_string().unwrap().as_str(), "concurrent-requests");
            }
        }

        #[test]
        fn what_is_written_is_the_same_on_the_stack_and_beyond(
            pieces in prop::collection::vec("[a-z0-9]{0,50}", 0..12),
        ) {
            let mut text = Text::new();
            pieces.iter().for_each(|piece| text.bytes(piece.as_bytes()));
            let written = text.value().map(|value| value.to_str().unwrap().to_owned());
            prop_assert_eq!(written.unwrap_or_default(), pieces.concat());
        }
    }
}
