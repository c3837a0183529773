//! Times and durations as people write them.

use jiff::{SignedDuration, Span, SpanRelativeTo, Timestamp};
use serde::{Deserialize, Deserializer, de::Error};

/// A duration such as `30d`, `12h`, `1h30m`; a day has 24 hours.
pub fn duration(text: &str) -> Result<SignedDuration, String> {
    let span: Span = text
        .trim()
        .parse()
        .map_err(|_| format!("`{text}` is not a duration: write for example 90s, 12h or 30d"))?;
    let duration = span
        .to_duration(SpanRelativeTo::days_are_24_hours())
        .map_err(|_| format!("`{text}` is not a duration of days, hours, minutes and seconds"))?;
    if duration.is_negative() {
        return Err(format!("`{text}` is negative"));
    }
    Ok(duration)
}

/// A time in RFC 3339, or a duration before `now`.
pub fn moment(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    if let Ok(time) = text.trim().parse::<Timestamp>() {
        return Ok(time);
    }
    let before = duration(text).map_err(|_| {
        format!(
            "`{text}` is not a time: write RFC 3339 (2026-01-02T03:04:05Z) or a duration before now (2h, 7d)"
        )
    })?;
    now.checked_sub(before)
        .map_err(|_| format!("`{text}` is too long ago"))
}

/// For `#[serde(deserialize_with)]` on a duration.
pub fn deserialize_duration<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<SignedDuration, D::Error> {
    duration(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

/// For `#[serde(deserialize_with)]` on an optional duration.
pub fn deserialize_maybe_duration<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<SignedDuration>, D::Error> {
    Option::<String>::deserialize(deserializer)?
        .map(|text| duration(&text).map_err(D::Error::custom))
        .transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms() {
        let now: Timestamp = "2026-01-08T00:00:00Z".parse().expect("a time");
        assert_eq!(
            moment("7d", now).map(|t| t.to_string()),
            Ok("2026-01-01T00:00:00Z".into())
        );
        assert_eq!(
            moment("2h", now).map(|t| t.to_string()),
            Ok("2026-01-07T22:00:00Z".into())
        );
        assert!(moment("2026-01-02T03:04:05Z", now).is_ok());
        for wrong in ["", "yesterday", "-2h", "99999999d"] {
            assert!(moment(wrong, now).is_err(), "{wrong}");
        }
    }
}
