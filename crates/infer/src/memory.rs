//! How much memory there really is.

use std::path::{Component, Path};

/// Left to everything that is not keys and values, at least.
const RESERVE: u64 = 256 << 20;

/// Bytes that keys and values may take: what is available now, less a sixteenth of it and [`RESERVE`]. `None` where the system does
/// not tell.
pub(crate) fn usable() -> Option<u64> {
    let available = available()?;
    Some(available.saturating_sub(available / 16).saturating_sub(RESERVE))
}

/// Bytes that this process could still use: of the machine's memory and of its control groups' (Linux).
fn available() -> Option<u64> {
    let machine = meminfo(&std::fs::read_to_string("/proc/meminfo").ok()?)?;
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    Some(of_groups(Path::new("/sys/fs/cgroup"), &groups).map_or(machine, |bytes| bytes.min(machine)))
}

/// The least that is left in the control groups that a process is in by `groups`, of either version: each group also counts for
/// those inside of it. A group may be named as the host sees it, with only its outer ones in sight.
fn of_groups(root: &Path, groups: &str) -> Option<u64> {
    let of_line = |line: &str| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, group) = (fields.next()?, fields.next()?);
        let (root, files) = match controllers {
            "" => (root.to_owned(), &GROUP_FILES[0]),
            names if names.split(',').any(|name| name == "memory") => (root.join("memory"), &GROUP_FILES[1]),
            _ => return None,
        };
        let mut folders = vec![root.clone()];
        for part in Path::new(group).components().filter(|part| matches!(part, Component::Normal(_))) {
            folders.push(folders[folders.len() - 1].join(part));
        }
        folders.iter().filter_map(|folder| of_group(folder, files)).min()
    };
    groups.lines().filter_map(of_line).min()
}

/// The files of the two versions of control groups: limit, use, the statistics, and which of these tells what of the use can
/// be dropped, that of the groups inside included.
const GROUP_FILES: [[&str; 4]; 2] = [
    ["memory.max", "memory.current", "memory.stat", "inactive_file"],
    ["memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat", "total_inactive_file"],
];

fn of_group(folder: &Path, [limit, used, stat, inactive]: &[&str; 4]) -> Option<u64> {
    let text = |name| std::fs::read_to_string(folder.join(name)).ok();
    let number = |name| text(name)?.trim().parse::<u64>().ok();
    // A group without a limit says `max` or a number beyond all memory.
    let (limit, used) = (number(limit)?, number(used)?);
    let droppable = text(stat).and_then(|text| statistic(&text, inactive)).unwrap_or(0);
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
    #[test]
    fn the_narrowest_of_all_control_groups_counts() {
        let dir = tempfile::tempdir().unwrap();
        let group = |path: &str, files: [&str; 2], [limit, used]: [&str; 2]| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(&path).unwrap();
            for (name, text) in files.iter().zip([limit, used]) {
                std::fs::write(path.join(name), format!("{text}\n")).unwrap();
            }
        };
        let v2 = ["memory.max", "memory.current"];
        group("", v2, ["9000", "500"]);
        group("user", v2, ["3000", "1000"]);
        group("user/job", v2, ["max", "1000"]);
        group("user/small", v2, ["700", "600"]);
        std::fs::write(dir.path().join("user/small/memory.stat"), "anon 1\ninactive_file 50\n").unwrap();
        let v1 = ["memory.limit_in_bytes", "memory.usage_in_bytes"];
        group("memory/box", v1, ["400", "100"]);
        let left = |groups| of_groups(dir.path(), groups);
        assert_eq!(left("0::/\n"), Some(8500));
        assert_eq!(left("0::/user/job\n"), Some(2000));
        assert_eq!(left("0::/user/small\n"), Some(150));
        assert_eq!(left("0::/../../elsewhere/job\n"), Some(8500), "only the outermost is in sight");
        assert_eq!(left("5:cpu,memory:/box\n0::/user\n"), Some(300));
        assert_eq!(left("4:cpu:/box\n"), None);
        assert_eq!(left(""), None);
    }
}
