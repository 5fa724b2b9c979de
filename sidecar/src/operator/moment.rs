//! Moments and spans of time in words, and moments as operators write them.

use std::time::Duration;

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Returns the moment that `text` means, RFC 3339, in Unix milliseconds.
pub(super) fn parse_ms(text: &str) -> Result<u64, String> {
    let moment = OffsetDateTime::parse(text, &Rfc3339)
        .map_err(|_| "write a moment like 2027-01-01T00:00:00Z".to_owned())?;
    u64::try_from(moment.unix_timestamp_nanos() / 1_000_000)
        .map_err(|_| "must be after 1970".to_owned())
}

/// Returns Unix milliseconds as RFC 3339 to the second, UTC.
pub(super) fn utc(ms: u64) -> String {
    let moment = i64::try_from(ms / 1000).ok().map(OffsetDateTime::from_unix_timestamp);
    match moment {
        Some(Ok(moment)) => moment.format(&Rfc3339).unwrap_or_else(|_| ms.to_string()),
        _ => format!("{ms} ms after 1970"),
    }
}

/// Returns the time of day of Unix milliseconds, UTC: `14:03:22`.
pub(super) fn clock(ms: u64) -> String {
    let second = ms / 1000 % 86_400;
    format!("{:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60)
}

/// Returns `span` in its two largest units: `2 d 3 h`, `40 s`, `12 ms`.
pub(super) fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes, seconds) {
        (0, 0, 0, 0) => format!("{} ms", span.as_millis()),
        (0, 0, 0, seconds) => format!("{seconds} s"),
        (0, 0, minutes, seconds) => format!("{minutes} min {} s", seconds % 60),
        (0, hours, minutes, _) => format!("{hours} h {minutes} min"),
        (days, hours, _, _) => format!("{days} d {hours} h"),
    }
}

/// Returns `seconds`, of any sign, as a span; none when it is no number.
pub(super) fn seconds(seconds: f64) -> Option<String> {
    Duration::try_from_secs_f64(seconds).ok().map(span)
}

/// Returns how long ago `then_ms` was at `now_ms`; clocks of two machines may differ.
pub(super) fn ago(then_ms: u64, now_ms: u64) -> String {
    match now_ms.checked_sub(then_ms) {
        Some(ms) if ms < 1000 => "now".to_owned(),
        Some(ms) => format!("{} ago", span(Duration::from_millis(ms))),
        None => format!("in {}", span(Duration::from_millis(then_ms - now_ms))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_reads_back_as_it_is_shown() {
        let ms = parse_ms("2027-01-01T01:00:00+01:00").unwrap();
        assert_eq!((ms, utc(ms).as_str()), (1_798_761_600_000, "2027-01-01T00:00:00Z"));
        assert_eq!(clock(ms + 3_723_999), "01:02:03");
        assert_eq!(utc(u64::MAX), format!("{} ms after 1970", u64::MAX));
        for text in ["", "tomorrow", "2027-01-01", "1969-12-31T23:59:59Z"] {
            assert!(parse_ms(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_span_is_told_in_its_two_largest_units() {
        for (ms, text) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (1000, "1 s"),
            (61_000, "1 min 1 s"),
            (7_260_000, "2 h 1 min"),
            (90_000_000, "1 d 1 h"),
        ] {
            assert_eq!(span(Duration::from_millis(ms)), text);
        }
        assert_eq!(seconds(-1.0), None);
        assert_eq!(seconds(f64::NAN), None);
        assert_eq!(
            (ago(0, 5000), ago(5000, 0), ago(1, 2)),
            ("5 s ago".into(), "in 5 s".into(), "now".into())
        );
    }
}
