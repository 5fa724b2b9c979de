//! Durations as configuration writes them: a whole number and a unit, like `20ms`, `5s` or `7d`.
//!
//! For `#[serde(with = "…::duration")]` on a field of type [`Duration`].

use serde::{Deserialize, Deserializer, Serializer, de::Error};
use std::time::Duration;

/// Units from the largest, each in milliseconds.
const UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// Returns the duration that `text` means, or nothing when it means none.
pub(crate) fn parse(text: &str) -> Option<Duration> {
    let split = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(split);
    let (_, unit_ms) = UNITS.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*unit_ms).map(Duration::from_millis)
}

/// Returns `duration` in the largest unit that writes it exactly, to the millisecond.
pub(crate) fn format(duration: Duration) -> String {
    let whole_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let exact = |(_, unit_ms): &&(&str, u64)| whole_ms > 0 && whole_ms.is_multiple_of(*unit_ms);
    let (unit, unit_ms) = UNITS.iter().find(exact).unwrap_or(&("ms", 1));
    format!("{}{unit}", whole_ms / unit_ms)
}

pub(crate) fn serialize<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&format(*duration))
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(from)?;
    parse(&text).ok_or_else(|| D::Error::custom("must be a duration like 20ms, 5s, 1m or 7d"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_reads_back_as_written() {
        for (text, ms) in
            [("0ms", 0), ("2ms", 2), ("5s", 5000), ("1m", 60_000), ("7d", 604_800_000)]
        {
            assert_eq!(parse(text), Some(Duration::from_millis(ms)));
            assert_eq!(format(Duration::from_millis(ms)), text);
        }
        assert_eq!(format(Duration::from_millis(1500)), "1500ms");
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in
            ["", "5", "s", "1.5s", "-1s", "5 s", "99999999999999999999s", "9999999999999999d"]
        {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
