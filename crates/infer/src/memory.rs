//! How much memory there really is.

/// Left to everything that is not keys and values, at least.
const RESERVE: u64 = 256 << 20;

/// Bytes that keys and values may take: what is available now, less a sixteenth of it and [`RESERVE`]. `None` where the system does
/// not tell.
pub(crate) fn usable() -> Option<u64> {
    let available = available()?;
    Some(available.saturating_sub(available / 16).saturating_sub(RESERVE))
}

/// Bytes that this process could still use: of the machine's memory and of its control group's (Linux).
fn available() -> Option<u64> {
    let machine = meminfo(&std::fs::read_to_string("/proc/meminfo").ok()?)?;
    let group = GROUPS.iter().filter_map(|[limit, used, inactive]| group(limit, used, inactive)).min();
    Some(group.map_or(machine, |group| group.min(machine)))
}

/// The files of the two versions of control groups: limit, use, and the statistics that tell what of the use can be dropped.
const GROUPS: [[&str; 3]; 2] = [
    ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"],
    [
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ],
];

fn group(limit: &str, used: &str, stat: &str) -> Option<u64> {
    let number = |path| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    // A group without a limit says `max` or a number beyond all memory.
    let (limit, used) = (number(limit)?, number(used)?);
    let droppable =
        std::fs::read_to_string(stat).ok().and_then(|text| statistic(&text, "inactive_file")).unwrap_or(0);
    Some(limit.saturating_sub(used.saturating_sub(droppable)))
}

fn meminfo(text: &str) -> Option<u64> {
    statistic(text, "MemAvailable:").map(|kib| kib * 1024)
}

fn statistic(text: &str, key: &str) -> Option<u64> {
    let line =
        text.lines().find_map(|line| line.strip_prefix(key).filter(|rest| rest.starts_with([' ', '\t'])))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_says_is_read() {
        let text = "MemTotal:       24000 kB\nMemFree:  10 kB\nMemAvailable:   23000 kB\n";
        assert_eq!(meminfo(text), Some(23000 * 1024));
        assert_eq!(meminfo("MemTotal: 24000 kB\n"), None);
        let stat = "inactive_file_more 3\ninactive_file 77\n";
        assert_eq!(statistic(stat, "inactive_file"), Some(77));
    }
}
