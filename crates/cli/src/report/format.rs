//! Numbers for people: counts, bytes, durations and shares.

/// Shown in place of a number that is not there or not finite.
const NONE: &str = "–";

/// A count with at most three or four digits and a suffix: `999`, `1.2k`, `16M`, `8.1B`.
pub(crate) fn count(n: u64) -> String {
    scaled(n, 1000, &["", "k", "M", "B", "T", "Q"])
}

/// A size in binary units: `512 B`, `1.5 KiB`, `340 MiB`.
pub(crate) fn bytes(n: u64) -> String {
    scaled(n, 1024, &[" B", " KiB", " MiB", " GiB", " TiB", " PiB", " EiB"])
}

/// A size in binary units with two decimals, for figures that are compared: `2.04 GiB`.
pub(crate) fn precise_bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let hundredths = |size: u128| (u128::from(n) * 100 + size / 2) / size;
    let (mut unit, mut size) = (0, 1024u128);
    // Compared after rounding, like `scaled`.
    while unit + 1 < UNITS.len() && hundredths(size) >= 100 * 1024 {
        unit += 1;
        size *= 1024;
    }
    let size = hundredths(size);
    format!("{}.{:02} {}", size / 100, size % 100, UNITS[unit])
}

/// `n` in the unit that leaves it below `base`, with one decimal below 100.
fn scaled(n: u64, base: u128, units: &[&str]) -> String {
    let n = u128::from(n);
    let (mut unit, mut size) = (0, 1u128);
    // Compared after rounding, so that 999,999 becomes 1M and not 1000k.
    while unit + 1 < units.len() && (n + size / 2) / size >= base {
        unit += 1;
        size *= base;
    }
    let tenths = (n * 10 + size / 2) / size;
    let digits = if tenths >= 1000 || tenths.is_multiple_of(10) {
        ((n + size / 2) / size).to_string()
    } else {
        format!("{}.{}", tenths / 10, tenths % 10)
    };
    format!("{digits}{}", units[unit])
}

/// Every digit, in groups of three: `8,030,261,248`.
pub(crate) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A span of time: `340 ms`, `4.2 s`, `1 m 23 s`, `2 h 05 m`, `3 d 04 h`.
pub(crate) fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return NONE.to_owned();
    }
    // Each bound is where rounding would reach the next form.
    if seconds < 0.9995 {
        return format!("{:.0} ms", seconds * 1000.0);
    }
    if seconds < 9.95 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.round() as u64;
    let (minutes, hours) = (whole / 60, whole / 3600);
    match whole {
        0..60 => format!("{whole} s"),
        60..3600 => format!("{minutes} m {:02} s", whole % 60),
        3600..86_400 => format!("{hours} h {:02} m", minutes % 60),
        _ => format!("{} d {:02} h", hours / 24, hours % 24),
    }
}

/// A share of 1 as a percentage with one decimal: `42.0 %`.
pub(crate) fn percent(share: f64) -> String {
    if share.is_finite() { format!("{:.1} %", share * 100.0) } else { NONE.to_owned() }
}

/// A number with a fixed number of decimals.
pub(crate) fn number(value: f64, decimals: usize) -> String {
    if value.is_finite() { format!("{value:.decimals$}") } else { NONE.to_owned() }
}

/// The shortest readable form, for axes: `0`, `4.5`, `3e-4`, `1.5k`.
pub(crate) fn tick(value: f64) -> String {
    let size = value.abs();
    if !value.is_finite() {
        NONE.to_owned()
    } else if size < 1e-12 {
        "0".to_owned()
    } else if !(0.01..1e18).contains(&size) {
        let text = format!("{value:.2e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        format!("{}e{exponent}", trim(digits))
    } else if size < 1000.0 {
        trim(&format!("{value:.3}")).to_owned()
    } else {
        format!("{}{}", if value < 0.0 { "-" } else { "" }, count(size as u64))
    }
}

/// `text` without the zeros at the end of its decimals.
fn trim(text: &str) -> &str {
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { text }
}

/// Seconds since 1970 as `2026-11-23 06:30 UTC` (Hinnant's algorithm for civil dates).
pub(crate) fn utc(unix: u64) -> String {
    let (days, seconds) = (unix / 86_400 + 719_468, unix % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02} UTC", seconds / 3600, seconds % 3600 / 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_round_and_carry() {
        for (n, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1k"),
            (1234, "1.2k"),
            (99_940, "99.9k"),
            (99_950, "100k"),
            (999_499, "999k"),
            (999_500, "1M"),
            (8_030_261_248, "8B"),
            (u64::MAX, "18447Q"),
        ] {
            assert_eq!(count(n), text, "{n}");
        }
        assert_eq!(grouped(8_030_261_248), "8,030,261,248");
        assert_eq!((grouped(0).as_str(), grouped(123_456).as_str()), ("0", "123,456"));
    }

    #[test]
    fn bytes_use_binary_units() {
        for (n, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (1 << 20, "1 MiB"),
            ((1 << 20) - 1, "1 MiB"),
            (356_515_840, "340 MiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(bytes(n), text, "{n}");
        }
    }

    #[test]
    fn precise_bytes_have_two_decimals() {
        for (n, text) in [
            (0, "0.00 KiB"),
            (1536, "1.50 KiB"),
            ((1 << 20) - 1, "1.00 MiB"),
            (1 << 31, "2.00 GiB"),
            (2_190_433_321, "2.04 GiB"),
            (356_515_840, "340.00 MiB"),
            (u64::MAX, "16.00 EiB"),
        ] {
            assert_eq!(precise_bytes(n), text, "{n}");
        }
    }

    #[test]
    fn durations_carry_into_the_next_unit() {
        for (seconds, text) in [
            (0.0, "0 ms"),
            (0.34, "340 ms"),
            (0.9996, "1.0 s"),
            (9.96, "10 s"),
            (59.6, "1 m 00 s"),
            (83.0, "1 m 23 s"),
            (3599.9, "1 h 00 m"),
            (7500.0, "2 h 05 m"),
            (273_600.0, "3 d 04 h"),
            (f64::NAN, "–"),
            (-1.0, "–"),
        ] {
            assert_eq!(duration(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn ticks_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (4.5, "4.5"),
            (0.1 + 0.2, "0.3"),
            (3e-4, "3e-4"),
            (1.25e-4, "1.25e-4"),
            (100.0, "100"),
            (1500.0, "1.5k"),
            (-1500.0, "-1.5k"),
            (f64::INFINITY, "–"),
        ] {
            assert_eq!(tick(value), text, "{value}");
        }
        assert_eq!(percent(0.4196), "42.0 %");
        assert_eq!(number(f64::NAN, 2), "–");
    }
}
