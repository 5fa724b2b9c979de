//! The time of a rating: Unix seconds, Unix milliseconds or RFC 3339, as milliseconds inside.
//!
//! A number below 10¹¹ is seconds (until the year 5138), from there on milliseconds (since 1973).
//! Old times are taken; how far ahead a time may be is checked when the rating is accepted.

use super::{RatingError, error::shorten, parse::Value};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// How far a rating's timestamp may be ahead of the clock, in milliseconds: clocks differ.
pub const FUTURE_MAX_MS: u64 = 5 * 60 * 1000;

/// Numbers from here on are milliseconds.
const MILLISECONDS_FROM: u64 = 100_000_000_000;
/// The last millisecond of the year 9999, as far as RFC 3339 goes.
const LATEST_MS: f64 = 253_402_300_799_999.0;

/// Returns the Unix milliseconds that the value of a `timestamp` field means.
pub(super) fn parse(field: &'static str, value: &Value<'_>) -> Result<u64, RatingError> {
    let refuse = |problem: &str| {
        Err(RatingError::Invalid { field, value: value.shown(), problem: problem.to_owned() })
    };
    match value {
        Value::Unsigned(number) if *number < MILLISECONDS_FROM => Ok(number * 1000),
        Value::Unsigned(number) => in_range(*number as f64).map_or_else(
            || refuse("is beyond the year 9999; send Unix seconds or milliseconds"),
            |_| Ok(*number),
        ),
        Value::Float(number) if *number >= 0.0 => {
            let seconds = *number < MILLISECONDS_FROM as f64;
            in_range(if seconds { number * 1000.0 } else { *number }).map_or_else(
                || refuse("is beyond the year 9999; send Unix seconds or milliseconds"),
                Ok,
            )
        }
        Value::Negative(_) | Value::Float(_) => {
            refuse("is before 1970; send Unix seconds, milliseconds or RFC 3339")
        }
        Value::Text(text) => from_rfc3339(field, text),
        _ => refuse("is no time; send Unix seconds, milliseconds or RFC 3339 text"),
    }
}

/// Returns the Unix milliseconds that `text` of a recorded rating means: a number as in JSON, else
/// RFC 3339.
///
/// # Errors
///
/// When it is neither, before 1970 or beyond the year 9999; the error names `time`.
pub fn timestamp_from_text(text: &str) -> Result<u64, RatingError> {
    let value = if let Ok(number) = text.parse() {
        Value::Unsigned(number)
    } else if let Ok(number) = text.parse() {
        Value::Float(number)
    } else {
        Value::Text(text.into())
    };
    parse("time", &value)
}

/// Returns Unix milliseconds that came as such.
pub(super) fn from_milliseconds(field: &'static str, ms: i64) -> Result<u64, RatingError> {
    let refuse = |problem: &str| RatingError::Invalid {
        field,
        value: ms.to_string(),
        problem: problem.to_owned(),
    };
    let ms = u64::try_from(ms).map_err(|_| refuse("is before 1970; send Unix milliseconds"))?;
    let within = in_range(ms as f64).map(|_| ms);
    within.ok_or_else(|| refuse("is beyond the year 9999; send Unix milliseconds"))
}

/// Returns the value of a `timestamp` field that [`parse`] reads as exactly `timestamp_ms`.
pub(super) fn to_json(timestamp_ms: u64) -> serde_json::Number {
    if timestamp_ms >= MILLISECONDS_FROM {
        return timestamp_ms.into();
    }
    // Below 10¹¹ a number means seconds. f64 holds these to far less than a millisecond.
    serde_json::Number::from_f64(timestamp_ms as f64 / 1000.0)
        .expect("a quotient of finite numbers")
}

fn in_range(milliseconds: f64) -> Option<u64> {
    let rounded = milliseconds.round();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "range is checked")]
    (0.0..=LATEST_MS).contains(&rounded).then_some(rounded as u64)
}

/// Returns the Unix milliseconds that RFC 3339 text means.
pub(super) fn from_rfc3339(field: &'static str, text: &str) -> Result<u64, RatingError> {
    let refuse = |problem: &str| RatingError::Invalid {
        field,
        value: format!("\"{}\"", shorten(text)),
        problem: problem.to_owned(),
    };
    let remedy = "is no RFC 3339 time; send one like 2026-01-31T12:00:00Z, or a number";
    let moment = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| refuse(remedy))?;
    let milliseconds = moment.unix_timestamp_nanos().div_euclid(1_000_000);
    u64::try_from(milliseconds).map_err(|_| refuse("is before 1970; send a later time"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(value: Value<'_>) -> u64 {
        parse("timestamp", &value).unwrap()
    }

    #[test]
    fn a_recorded_time_is_read_as_the_field_of_a_body_is() {
        for text in ["1700000000", "1700000000000", "1700000000.0", "2023-11-14T22:13:20Z"] {
            assert_eq!(timestamp_from_text(text).unwrap(), 1_700_000_000_000, "{text}");
        }
        for text in ["", "-1", "NaN", "inf", "1e300", "yesterday"] {
            let error = timestamp_from_text(text).unwrap_err();
            assert_eq!(error.field(), Some("time"), "{text}");
        }
    }

    #[test]
    fn seconds_milliseconds_and_rfc_3339_name_the_same_moment() {
        let expected = 1_700_000_000_000;
        assert_eq!(ms(Value::Unsigned(1_700_000_000)), expected);
        assert_eq!(ms(Value::Unsigned(1_700_000_000_000)), expected);
        assert_eq!(ms(Value::Float(1_700_000_000.0)), expected);
        for text in ["2023-11-14T22:13:20Z", "2023-11-14t23:13:20.000+01:00"] {
            assert_eq!(ms(Value::Text(text.into())), expected);
        }
    }

    #[test]
    fn milliseconds_begin_at_ten_to_the_eleventh() {
        assert_eq!(ms(Value::Unsigned(99_999_999_999)), 99_999_999_999_000);
        assert_eq!(ms(Value::Unsigned(100_000_000_000)), 100_000_000_000);
        assert_eq!(ms(Value::Unsigned(0)), 0);
    }

    #[test]
    fn fractions_of_a_second_are_kept_to_the_millisecond() {
        assert_eq!(ms(Value::Float(1_700_000_000.125)), 1_700_000_000_125);
        assert_eq!(ms(Value::Text("2023-11-14T22:13:20.125Z".into())), 1_700_000_000_125);
    }

    #[test]
    fn what_is_no_time_after_1970_is_refused() {
        for value in [
            Value::Negative(-1),
            Value::Float(-0.5),
            Value::Float(1e300),
            Value::Unsigned(u64::MAX),
            Value::Bool(true),
            Value::Text("yesterday".into()),
            Value::Text("1700000000".into()),
            Value::Text("1969-12-31T23:59:59Z".into()),
            Value::Text("2023-11-14T22:13:20".into()),
        ] {
            let error = parse("timestamp", &value).unwrap_err();
            assert_eq!(error.field(), Some("timestamp"));
        }
    }

    proptest::proptest! {
        #[test]
        fn a_written_time_reads_back_as_itself(ms in 0u64..200_000_000_000_000) {
            let json = to_json(ms);
            let value = match json.as_u64() {
                Some(number) => Value::Unsigned(number),
                None => Value::Float(json.as_f64().unwrap()),
            };
            proptest::prop_assert_eq!(parse("timestamp", &value).unwrap(), ms);
        }
    }
}
