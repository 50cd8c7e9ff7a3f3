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
