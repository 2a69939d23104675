//! Moments as the wire writes them: `20260102T03:04:05Z`. Milliseconds since 1970 inside.

use time::format_description::FormatItem;
use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime};

const COMPACT: &[FormatItem<'_>] =
    format_description!("[year][month][day]T[hour]:[minute]:[second]");
const DASHED: &[FormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]");

/// Returns the present moment in milliseconds since 1970.
pub fn now_ms() -> i64 {
    let nanos = OffsetDateTime::now_utc().unix_timestamp_nanos();
    i64::try_from(nanos / 1_000_000).unwrap_or(i64::MAX)
}

/// Writes a moment; one outside the years 0 to 9999 is written as 1970.
pub fn format(ms: i64) -> String {
    let moment = OffsetDateTime::from_unix_timestamp(ms.div_euclid(1000))
        .unwrap_or(OffsetDateTime::UNIX_EPOCH);
    moment
        .format(COMPACT)
        .map_or_else(|_| "19700101T00:00:00Z".to_owned(), |text| text + "Z")
}

/// Reads a moment, with or without dashes, fractions of a second and the closing `Z`; UTC always.
pub fn parse(text: &str) -> Option<i64> {
    let text = text.strip_suffix('Z').unwrap_or(text);
    let (text, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let moment = PrimitiveDateTime::parse(text, COMPACT)
        .or_else(|_| PrimitiveDateTime::parse(text, DASHED))
        .ok()?;
    moment.assume_utc().unix_timestamp().checked_mul(1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_survive_the_wire_to_the_second() {
        for (text, ms) in [
            ("19700101T00:00:00Z", 0),
            ("20260102T03:04:05Z", 1_767_323_045_000),
            ("19691231T23:59:59Z", -1000),
        ] {
            assert_eq!(parse(text), Some(ms), "{text}");
            assert_eq!(format(ms), text);
        }
        assert_eq!(parse("2026-01-02T03:04:05.250Z"), Some(1_767_323_045_000));
        assert_eq!(parse("20260102T03:04:05"), Some(1_767_323_045_000));
        assert_eq!(format(i64::MAX), "19700101T00:00:00Z");
        for bad in [
            "",
            "Z",
            "20261302T03:04:05Z",
            "yesterday",
            "20260102T03:04:05.xZ",
        ] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }
}
