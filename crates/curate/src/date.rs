//! Dates as sources write them, in UTC, so that the newer of two documents is the newer one wherever they were written.
//!
//! | written | read as |
//! |---|---|
//! | `2024-05-06`, `20240506`, `2024-05`, `2024` | the beginning of that day, month or year |
//! | `2024-05-06T07:08:09.5+02:00`, also with a space, without a zone or without seconds | that instant; UTC where no zone is named |
//! | `20240506070809` | the same without marks, as crawls index it |
//! | `Mon, 06 May 2024 07:08:09 GMT` | dates of HTTP and of mail |
//! | other numbers | seconds since 1970; from 100 thousand million on milliseconds, then microseconds, then nanoseconds |

/// Seconds since 1970, and nanoseconds after that.
pub(crate) type Instant = (i64, u32);

const DAY: i64 = 86_400;

/// The first second of the year 0, and the last one of the year 9999: what four digits can say.
const YEARS: std::ops::RangeInclusive<i64> = -62_167_219_200..=253_402_300_799;

/// A date in UTC: `2024-05-06` where no time is given, else `2024-05-06T07:08:09Z`, with a fraction where there is one. None
/// where it cannot be read.
pub(crate) fn normalise(text: &str) -> Option<String> {
    let text = text.trim();
    if let Some(days) = day(text) {
        return Some(written((days * DAY, 0))[..10].to_owned());
    }
    Some(written(instant(text)?))
}

/// The instant of a date, in any of the forms of this module.
pub(crate) fn instant(text: &str) -> Option<Instant> {
    let text = text.trim();
    let found = day(text)
        .map(|days| (days * DAY, 0))
        .or_else(|| compact(text))
        .or_else(|| number(text))
        .or_else(|| stamp(text))
        .or_else(|| named(text))?;
    YEARS.contains(&found.0).then_some(found)
}

/// Bytes that sort as instants do.
pub(crate) fn sortable((seconds, nanos): Instant) -> [u8; 12] {
    let mut bytes = [0; 12];
    // With its sign turned a number sorts as its bytes do.
    bytes[..8].copy_from_slice(&(seconds as u64 ^ 1 << 63).to_be_bytes());
    bytes[8..].copy_from_slice(&nanos.to_be_bytes());
    bytes
}

/// `units` of which a second has `per_second`, counted from 1970, in UTC. None outside the years 0 to 9999.
pub(crate) fn of_units(units: i64, per_second: i64) -> Option<String> {
    let nanos = units.rem_euclid(per_second) * (1_000_000_000 / per_second);
    let seconds = units.div_euclid(per_second);
    YEARS.contains(&seconds).then(|| written((seconds, nanos as u32)))
}

/// The day that is so many after the first of 1970. None outside the years 0 to 9999.
pub(crate) fn of_days(days: i64) -> Option<String> {
    Some(of_units(days.checked_mul(DAY)?, 1)?[..10].to_owned())
}

fn written((seconds, nanos): Instant) -> String {
    let (year, month, day) = civil(seconds.div_euclid(DAY));
    let time = seconds.rem_euclid(DAY);
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    let mut text = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
    if nanos > 0 {
        text += format!(".{nanos:09}").trim_end_matches('0');
    }
    text.push('Z');
    text
}

/// Days before the year in the Gregorian calendar, counted from the year 0.
fn days_before(year: i64) -> i64 {
    let last = year - 1;
    year * 365 + last.div_euclid(4) - last.div_euclid(100) + last.div_euclid(400) + 1
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_of(year: i64, month: i64) -> i64 {
    match month {
        2 => 28 + i64::from(is_leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970 of a day that exists.
fn days(year: i64, month: i64, day: i64) -> Option<i64> {
    if !(0..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=days_of(year, month)).contains(&day)
    {
        return None;
    }
    let months: i64 = (1..month).map(|month| days_of(year, month)).sum();
    Some(days_before(year) - days_before(1970) + months + day - 1)
}

/// Year, month and day of a number of days since 1970.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + days_before(1970);
    // 400 years have 146,097 days; the quotient is off by one year at most.
    let mut year = days * 400 / 146_097;
    while days_before(year) > days {
        year -= 1;
    }
    while days_before(year + 1) <= days {
        year += 1;
    }
    let (mut rest, mut month) = (days - days_before(year), 1);
    while rest >= days_of(year, month) {
        rest -= days_of(year, month);
        month += 1;
    }
    (year, month, rest + 1)
}

/// Digits alone, at most 18, as a number.
fn digits(text: &str) -> Option<i64> {
    let only = (1..=18).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    only.then(|| text.parse().ok()).flatten()
}

fn exactly(text: &str, length: usize) -> Option<i64> {
    digits(text).filter(|_| text.len() == length)
}

/// A date without a time.
fn day(text: &str) -> Option<i64> {
    if let Some(number) = digits(text) {
        return match text.len() {
            4 => days(number, 1, 1),
            8 => days(number / 10_000, number / 100 % 100, number % 100),
            _ => None,
        };
    }
    let mut parts = text.split('-');
    let year = exactly(parts.next()?, 4)?;
    let month = exactly(parts.next()?, 2)?;
    let day = parts.next().map_or(Some(1), |day| exactly(day, 2))?;
    parts.next().is_none().then(|| days(year, month, day)).flatten()
}

/// `20240506070809`.
fn compact(text: &str) -> Option<Instant> {
    exactly(text, 14)?;
    let seconds = days(text[..4].parse().ok()?, text[4..6].parse().ok()?, text[6..8].parse().ok()?)? * DAY;
    Some((seconds + of_day(digits(&text[8..10])?, digits(&text[10..12])?, digits(&text[12..])?)?, 0))
}

/// Seconds of a time of day. A leap second is the first of the next minute.
fn of_day(hour: i64, minute: i64, second: i64) -> Option<i64> {
    (hour < 24 && minute < 60 && second <= 60).then_some(hour * 3600 + minute * 60 + second)
}

/// Digits of a number of seconds since 1970, at the least: with 9 it is of March 1973 or later.
const MIN_DIGITS: usize = 9;

/// A number since 1970.
fn number(text: &str) -> Option<Instant> {
    if !text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'.' | b'-' | b'+' | b'e' | b'E')) {
        return None;
    }
    let per_second = |size: f64| match size {
        _ if size < 1e11 => 1_i64,
        _ if size < 1e14 => 1_000,
        _ if size < 1e17 => 1_000_000,
        _ => 1_000_000_000,
    };
    if let Ok(whole) = text.parse::<i64>() {
        // A day or a month that cannot be is no moment of 1970.
        if whole != 0 && text.bytes().all(|byte| byte.is_ascii_digit()) && text.len() < MIN_DIGITS {
            return None;
        }
        let per_second = per_second((whole as f64).abs());
        let nanos = whole.rem_euclid(per_second) * (1_000_000_000 / per_second);
        return Some((whole.div_euclid(per_second), nanos as u32));
    }
    let found: f64 = text.parse().ok()?;
    let seconds = found / per_second(found.abs()) as f64;
    let whole = seconds.floor();
    // A double holds no more than microseconds of today's dates.
    let micros = ((seconds - whole) * 1e6).round() as i64;
    whole.is_finite().then(|| (whole as i64 + micros / 1_000_000, (micros % 1_000_000 * 1000) as u32))
}

/// `2024-05-06T07:08:09.5+02:00`.
fn stamp(text: &str) -> Option<Instant> {
    let (date, time) = text.split_at_checked(10)?;
    // The long form alone stands before a time.
    let start = day(date).filter(|_| date.contains('-'))? * DAY;
    let time = time.strip_prefix(['T', 't', ' '])?;
    let end = time.find(['Z', 'z', '+', '-', ' ']).unwrap_or(time.len());
    let (seconds, nanos) = clock(&time[..end])?;
    Some((start + seconds - zone(time[end..].trim())?, nanos))
}

/// `07:08`, `07:08:09` or `07:08:09.5`.
fn clock(text: &str) -> Option<Instant> {
    let (text, fraction) = text.split_once(['.', ',']).unwrap_or((text, "0"));
    let mut parts = text.split(':');
    let hour = exactly(parts.next()?, 2)?;
    let minute = exactly(parts.next()?, 2)?;
    let second = parts.next().map_or(Some(0), |second| exactly(second, 2))?;
    if parts.next().is_some() || fraction.is_empty() || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nanos = format!("{fraction:0<9}")[..9].parse().ok()?;
    Some((of_day(hour, minute, second)?, nanos))
}

/// Seconds that a zone is ahead of UTC.
fn zone(text: &str) -> Option<i64> {
    if ["", "Z", "z", "UTC", "GMT", "UT"].contains(&text) {
        return Some(0);
    }
    let sign = if text.starts_with('-') { -1 } else { 1 };
    let rest = text.strip_prefix(['+', '-'])?;
    let (hours, minutes) = match rest.split_once(':') {
        Some((hours, minutes)) => (exactly(hours, 2)?, exactly(minutes, 2)?),
        None if rest.len() == 4 => (digits(rest)? / 100, digits(rest)? % 100),
        None => (exactly(rest, 2)?, 0),
    };
    Some(sign * of_day(hours, minutes, 0)?)
}

const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];

/// `Mon, 06 May 2024 07:08:09 GMT`.
fn named(text: &str) -> Option<Instant> {
    let text = text.split_once(',').map_or(text, |(_, rest)| rest);
    let mut parts = text.split_whitespace();
    let day = digits(parts.next()?)?;
    let month = parts.next()?.to_ascii_lowercase();
    let month = MONTHS.iter().position(|known| *known == month)? as i64 + 1;
    let days = days(exactly(parts.next()?, 4)?, month, day)?;
    let (seconds, nanos) = clock(parts.next()?)?;
    let zone = zone(parts.next().unwrap_or_default())?;
    parts.next().is_none().then_some((days * DAY + seconds - zone, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_read_in_every_form_and_written_in_utc() {
        for (text, expected) in [
            ("2024-05-06", "2024-05-06"),
            (" 20240506 ", "2024-05-06"),
            ("2024-05", "2024-05-01"),
            ("2024", "2024-01-01"),
            ("2000-02-29", "2000-02-29"),
            ("2024-05-06T07:08:09Z", "2024-05-06T07:08:09Z"),
            ("2024-05-06T07:08:09.120Z", "2024-05-06T07:08:09.12Z"),
            ("2024-05-06t01:08:09+02:00", "2024-05-05T23:08:09Z"),
            ("2024-12-31 23:30-0100", "2025-01-01T00:30:00Z"),
            ("2024-05-06 07:08:09", "2024-05-06T07:08:09Z"),
            ("2024-05-06 07:08:09.000001 UTC", "2024-05-06T07:08:09.000001Z"),
            ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00Z"),
            ("20240506070809", "2024-05-06T07:08:09Z"),
            ("Mon, 06 May 2024 07:08:09 GMT", "2024-05-06T07:08:09Z"),
            ("6 May 2024 07:08:09 +0200", "2024-05-06T05:08:09Z"),
            ("0.0", "1970-01-01T00:00:00Z"),
            ("-1", "1969-12-31T23:59:59Z"),
            ("1700000000", "2023-11-14T22:13:20Z"),
            ("1700000000.5", "2023-11-14T22:13:20.5Z"),
            ("1.7e9", "2023-11-14T22:13:20Z"),
            ("1700000000123", "2023-11-14T22:13:20.123Z"),
            ("1700000000123456", "2023-11-14T22:13:20.123456Z"),
            ("1700000000123456789", "2023-11-14T22:13:20.123456789Z"),
            ("0000-01-01", "0000-01-01"),
            ("9999-12-31T23:59:59Z", "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(normalise(text).as_deref(), Some(expected), "{text}");
        }
        for text in [
            "",
            "yesterday",
            "2023-02-29",
            "1900-02-29",
            "2024-13-01",
            "2024-05-06T24:00:00Z",
            "2024-05-06T07:08:09+2",
            "2024-05-06T07:08:09.Z",
            "2024-05-06X07:08:09",
            "06/05/2024",
            "9999-12-31T23:59:59-01:00",
            "99999999999999999999999",
            "1e400",
            "nan",
            "12-30",
            "20230000",
            "20240230",
            "202405",
            "850",
            "2024-05-0６",
        ] {
            assert_eq!(normalise(text), None, "{text}");
        }
    }

    #[test]
    fn bytes_sort_as_instants_do() {
        let ordered = [
            "0001-01-01",
            "1969-12-31T23:59:59.5Z",
            "999999999",
            "1700000000",
            "2024-05-06T10:00:00+09:00",
            "2024-05-06T05:00Z",
            "2024-05-06T05:00:00.25Z",
        ]
        .map(|text| sortable(instant(text).unwrap()));
        assert!(ordered.is_sorted_by(|a, b| a < b));
    }

    #[test]
    fn units_and_days_become_dates() {
        assert_eq!(of_units(-1, 1000).unwrap(), "1969-12-31T23:59:59.999Z");
        assert_eq!(of_days(19_849).unwrap(), "2024-05-06");
        for day in (-719_528..2_932_897).step_by(17) {
            let text = of_days(day).unwrap();
            assert_eq!(instant(&text), Some((day * DAY, 0)), "{text}");
        }
        assert_eq!((of_days(i64::MAX), of_units(i64::MAX, 1)), (None, None));
    }
}
