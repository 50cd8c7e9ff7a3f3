//! What this process may use and has used.

use std::num::NonZero;

/// Threads to use when none are asked for.
pub(crate) fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

/// A number of threads on the command line.
pub(crate) fn parse_threads(text: &str) -> Result<usize, String> {
    let threads = text.parse().ok().filter(|n| (1..=1024).contains(n));
    threads.ok_or_else(|| "it is not a whole number from 1 to 1024".to_owned())
}

/// A size in bytes on the command line, with or without a unit, in capitals or not.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 9] = [
        ("kib", 1 << 10),
        ("mib", 1 << 20),
        ("gib", 1 << 30),
        ("tib", 1 << 40),
        ("kb", 1000),
        ("mb", 1_000_000),
        ("gb", 1_000_000_000),
        ("tb", 1_000_000_000_000),
        ("b", 1),
    ];
    let text = text.to_lowercase();
    let unit = UNITS.iter().find_map(|&(name, size)| Some((text.strip_suffix(name)?, size)));
    let (number, size) = unit.unwrap_or((&text, 1));
    match number.trim().parse::<f64>() {
        Ok(number) if number > 0.0 && number.is_finite() && number * (size as f64) < 2f64.powi(63) => {
            Ok((number * size as f64) as u64)
        }
        _ => Err("not a size such as `2GiB`: a number above 0 and perhaps one of B, kB, MB, GB, TB, KiB, MiB, GiB, TiB".to_owned()),
    }
}

/// Largest resident memory of this process so far in bytes, where the system tells (Linux).
pub(crate) fn peak_memory() -> Option<u64> {
    status_kib("VmHWM:")
}

/// Memory that could still be used in bytes, where the system tells (Linux).
pub(crate) fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    kib(&text, "MemAvailable:")
}

/// Seconds that processors have spent on this process, where the system tells (Linux).
pub(crate) fn cpu_seconds() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name in brackets may hold anything; the state and ten numbers stand before the times of user and system.
    let (_, rest) = text.rsplit_once(')')?;
    let ticks = |at| rest.split_whitespace().nth(at)?.parse::<f64>().ok();
    // The kernel tells them in hundredths of a second on every machine.
    Some((ticks(11)? + ticks(12)?) / 100.0)
}

fn status_kib(key: &str) -> Option<u64> {
    kib(&std::fs::read_to_string("/proc/self/status").ok()?, key)
}

fn kib(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(key))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|k| k * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, size) in
            [("2GiB", 2 << 30), ("1.5 KiB", 1536), ("500mb", 500_000_000), ("7", 7), ("7B", 7), ("3KB", 3000)]
        {
            assert_eq!(parse_size(text), Ok(size), "{text}");
        }
        for text in ["", "GiB", "0", "-1GB", "2 gigs", "nan", "1e30TB"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
