//! Times as the log and the reports have them.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

/// Bytes of a time in the log.
pub(crate) const STAMP: usize = "2026-11-22T10:00:00.123456Z".len();

/// Microseconds since the epoch; 0 for a clock that is set before it.
pub(crate) fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Appends `at_us` as RFC 3339 in UTC with microseconds.
pub(crate) fn stamp(text: &mut String, at_us: u64) {
    let (seconds, micros) = (at_us / 1_000_000, at_us % 1_000_000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    // Writing to a String does not fail.
    let _ = write!(text, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z");
}

/// Year, month and day of a day since 1970-01-01, counted in eras of 400 years that begin in March, so that
/// the leap day is the last of a year.
fn civil(days: u64) -> (u64, u64, u64) {
    const ERA: u64 = 146_097;
    let days = days + 719_468;
    let (era, day) = (days / ERA, days % ERA);
    let year = (day - day / 1460 + day / 36_524 - day / (ERA - 1)) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_as_in_the_standard() {
        for (at_us, expected) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_400_000_001, "2000-02-29T00:00:00.000001Z"),
            (1_795_341_600_123_456, "2026-11-22T10:00:00.123456Z"),
            (4_107_542_399_999_999, "2100-02-28T23:59:59.999999Z"),
            (4_107_542_400_000_000, "2100-03-01T00:00:00.000000Z"),
        ] {
            let mut text = String::new();
            stamp(&mut text, at_us);
            assert_eq!(text, expected);
            assert_eq!(text.len(), STAMP);
        }
    }
}
