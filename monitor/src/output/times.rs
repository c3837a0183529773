//! Times and durations as people read them.

use jiff::{SignedDuration, Timestamp, tz::TimeZone};

/// A local time with its offset, in seconds.
pub fn local_time(time: Timestamp) -> String {
    time.to_zoned(TimeZone::system())
        .strftime("%Y-%m-%d %H:%M:%S%:z")
        .to_string()
}

/// The same time in UTC.
pub fn utc_time(time: Timestamp) -> String {
    time.strftime("%H:%M:%SZ").to_string()
}

/// How long ago, in the largest suitable unit.
pub fn relative_time(time: Timestamp) -> String {
    let passed = Timestamp::now().duration_since(time);
    format!("{} ago", duration_text(passed))
}

/// A duration in the largest suitable unit.
pub fn duration_text(duration: SignedDuration) -> String {
    let seconds = duration.as_secs().max(0);
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}
