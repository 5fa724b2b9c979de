//! How long to wait: what an answer tells, and what of it the budget allows.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

/// The first wait after a 429 that does not say how long; each further one is twice as long.
pub const FIRST_GUESS: Duration = Duration::from_secs(1);

/// What a request may still do.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    pub(super) max_wait: Duration,
    pub(super) max_attempts: u32,
    /// 0 to 1.
    pub(super) jitter: f64,
}

/// What an answer says about asking again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// Wait so long.
    For(Duration),
    /// Too many requests, and no word on when.
    NoTime,
}

/// Returns what the answer says; nothing when it is final. `now` is asked when the answer names a
/// date and does not carry its own.
pub(super) fn told(status: StatusCode, headers: &HeaderMap, now: SystemTime) -> Option<Told> {
    match (status, retry_after(headers, now)) {
        (StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE, Some(wait)) => {
            Some(Told::For(wait))
        }
        (StatusCode::TOO_MANY_REQUESTS, None) => Some(Told::NoTime),
        _ => None,
    }
}

/// Returns what `Retry-After` says. A field that is repeated or malformed says nothing.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = only(headers, header::RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // Digits that do not fit are a time that nobody waits for.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let date = |value: &HeaderValue| httpdate::parse_http_date(value.to_str().ok()?).ok();
    let until = httpdate::parse_http_date(text).ok()?;
    // Its own clock measures its own date: ours may differ.
    let since = only(headers, header::DATE).and_then(date).unwrap_or(now);
    Some(until.duration_since(since).unwrap_or_default())
}

fn only(headers: &HeaderMap, name: HeaderName) -> Option<&HeaderValue> {
    let mut fields = headers.get_all(name).iter();
    fields.next().filter(|_| fields.next().is_none())
}

impl Budget {
    /// Returns how long to wait before attempt `sent + 1`; nothing when that is beyond the budget.
    /// `random` is in [0, 1).
    pub(super) fn before_next(
        &self,
        told: Told,
        sent: u32,
        waited: Duration,
        random: f64,
    ) -> Option<Duration> {
        let wait = match told {
            Told::For(wait) => wait,
            Told::NoTime => {
                let doubled = 1_u32.checked_shl(sent.saturating_sub(1)).unwrap_or(u32::MAX);
                FIRST_GUESS.saturating_mul(doubled)
            }
        };
        if sent >= self.max_attempts { None } else { self.allows(wait, waited, random) }
    }

    /// Returns `wait` with jitter, within what is left of the budget; nothing when `wait` is not.
    pub(super) fn allows(&self, wait: Duration, waited: Duration, random: f64) -> Option<Duration> {
        let left = self.max_wait.saturating_sub(waited);
        if wait > left {
            return None;
        }
        debug_assert!((0.0..=1.0).contains(&random) && (0.0..=1.0).contains(&self.jitter));
        // A share of at most 1 of a wait within the budget: it cannot overflow unless the budget is
        // centuries.
        let jitter = Duration::try_from_secs_f64(wait.as_secs_f64() * self.jitter * random);
        Some(wait.saturating_add(jitter.unwrap_or_default()).min(left))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const LATER: &str = "Sun, 06 Nov 1994 08:50:07 GMT";

    fn says(status: u16, fields: &[(HeaderName, &str)]) -> Option<Told> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(name, value.parse().unwrap());
        }
        let now = httpdate::parse_http_date(DATE).unwrap() - Duration::from_secs(10);
        told(StatusCode::from_u16(status).unwrap(), &headers, now)
    }

    fn seconds(seconds: u64) -> Option<Told> {
        Some(Told::For(Duration::from_secs(seconds)))
    }

    #[test]
    fn seconds_and_dates_of_every_form_are_read() {
        for (value, wait) in [
            ("0", 0),
            ("7", 7),
            (" 7 ", 7),
            ("99999999999999999999999", u64::MAX),
            (LATER, 40),
            ("Sunday, 06-Nov-94 08:50:07 GMT", 40),
            ("Sun Nov  6 08:50:07 1994", 40),
            ("Sat, 01 Jan 1994 00:00:00 GMT", 0),
        ] {
            assert_eq!(says(429, &[(header::RETRY_AFTER, value)]), seconds(wait), "{value}");
        }
    }

    #[test]
    fn a_date_is_measured_by_the_clock_that_set_it() {
        let fields = [(header::RETRY_AFTER, LATER), (header::DATE, DATE)];
        assert_eq!(says(429, &fields), seconds(30));
    }

    #[test]
    fn what_cannot_be_read_says_nothing() {
        for value in ["", "-1", "+1", "1.5", "1s", "soon", "0x1", "1, 2"] {
            let fields = [(header::RETRY_AFTER, value)];
            assert_eq!(says(429, &fields), Some(Told::NoTime), "{value}");
            assert_eq!(says(503, &fields), None, "{value}");
        }
        let twice = [(header::RETRY_AFTER, "1"), (header::RETRY_AFTER, "2")];
        assert_eq!(says(429, &twice), Some(Told::NoTime));
    }

    #[test]
    fn only_429_and_503_tell_a_caller_to_wait() {
        let fields = [(header::RETRY_AFTER, "3")];
        for status in [200, 301, 403, 413, 500, 502] {
            assert_eq!(says(status, &fields), None, "{status}");
        }
        assert_eq!(says(503, &fields), seconds(3));
        assert_eq!(says(429, &[]), Some(Told::NoTime));
    }

    #[test]
    fn guesses_double() {
        let budget = Budget { max_wait: Duration::MAX, max_attempts: u32::MAX, jitter: 0.0 };
        let guess = |sent| budget.before_next(Told::NoTime, sent, Duration::ZERO, 0.0).unwrap();
        assert_eq!([1, 2, 3, 32].map(|sent| guess(sent).as_secs()), [1, 2, 4, 1 << 31]);
        assert!(guess(33) >= guess(32));
    }

    proptest! {
        #[test]
        fn a_wait_is_never_shorter_than_told_nor_longer_than_the_budget(
            told_ms in 0_u64..=u64::MAX,
            waited_ms in 0_u64..200_000,
            max_wait_ms in 0_u64..200_000,
            (sent, max_attempts) in (1_u32..20, 1_u32..20),
            jitter in 0.0..=1.0_f64,
            random in 0.0..1.0_f64,
        ) {
            let [told, waited, max_wait] =
                [told_ms, waited_ms, max_wait_ms].map(Duration::from_millis);
            let budget = Budget { max_wait, max_attempts, jitter };
            let fits = sent < max_attempts && told <= max_wait.saturating_sub(waited);
            let wait = budget.before_next(Told::For(told), sent, waited, random);
            prop_assert_eq!(wait.is_some(), fits);
            if let Some(wait) = wait {
                prop_assert!(wait >= told);
                prop_assert!(waited + wait <= max_wait);
                // To the microsecond: the share is a float.
                let most = told.mul_f64(1.0 + jitter) + Duration::from_micros(1);
                prop_assert!(wait <= most, "{wait:?} > {most:?}");
            }
        }

        #[test]
        fn waits_of_one_request_stay_within_its_budget_together(
            answers in prop::collection::vec(prop::option::of(0_u64..20_000), 1..40),
            max_wait_ms in 0_u64..60_000,
            max_attempts in 1_u32..20,
            random in 0.0..1.0_f64,
        ) {
            let max_wait = Duration::from_millis(max_wait_ms);
            let budget = Budget { max_wait, max_attempts, jitter: 1.0 };
            let (mut sent, mut waited) = (1, Duration::ZERO);
            for answer in answers {
                let told = answer.map_or(Told::NoTime, |ms| Told::For(Duration::from_millis(ms)));
                let Some(wait) = budget.before_next(told, sent, waited, random) else { break };
                waited += wait;
                sent += 1;
            }
            prop_assert!(waited <= max_wait && sent <= max_attempts);
        }
    }
}
