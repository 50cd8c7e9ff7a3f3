//! The processes of a job: the one that was started, and all below it. A launcher such as `mpirun` gives every rank a process
//! group of its own and does not end them when it is killed, so they are found through their parents (Linux; elsewhere it is the
//! first process alone).

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Longest wait for processes that were killed.
const PATIENCE: Duration = Duration::from_secs(10);

/// State and parent of a process that is there.
fn stat(pid: i32) -> Option<(char, i32)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, which may hold anything, is in parentheses.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

fn pids() -> Vec<i32> {
    let entries = std::fs::read_dir(Path::new("/proc")).into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// The job, parents before children, each with whether it has none.
fn members(child: &Child) -> Vec<(Pid, bool)> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for pid in pids() {
        if let Some((_, parent)) = stat(pid) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let first = Pid::from_child(child);
    let mut all = vec![first.as_raw_nonzero().get()];
    let mut leaves = Vec::new();
    while let Some(pid) = all.get(leaves.len()) {
        let below = children.remove(pid).unwrap_or_default();
        leaves.push(below.is_empty());
        all.extend(below);
    }
    all.into_iter().zip(leaves).filter_map(|(pid, leaf)| Some((Pid::from_raw(pid)?, leaf))).collect()
}

/// The job, parents before children.
fn family(child: &Child) -> Vec<Pid> {
    members(child).into_iter().map(|(pid, _)| pid).collect()
}

/// Ends one rank: a process without any below it, chosen by `random`. Where ranks are threads that is the job.
pub(crate) fn kill_rank(child: &Child, random: u64) {
    let ranks: Vec<Pid> = members(child).into_iter().filter(|(_, leaf)| *leaf).map(|(pid, _)| pid).collect();
    if let Some(pid) = ranks.get(random as usize % ranks.len().max(1)) {
        kill_process(*pid, Signal::KILL).ok();
    }
}

/// Sends a signal to the process that was started; one that ended meanwhile does not need it.
pub(crate) fn signal_first(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).ok();
}

/// Sends a signal to all of a job.
pub(crate) fn signal(child: &Child, signal: Signal) {
    for pid in family(child) {
        kill_process(pid, signal).ok();
    }
}

/// Ends all of a job, and waits until nothing of it holds a file any more.
pub(crate) fn kill(child: &mut Child) -> io::Result<()> {
    let all = family(child);
    for pid in &all {
        kill_process(*pid, Signal::KILL).ok();
    }
    child.wait()?;
    let begun = Instant::now();
    let alive = |pid: &Pid| stat(pid.as_raw_nonzero().get()).is_some_and(|(state, _)| !"ZX".contains(state));
    while all.iter().any(alive) && begun.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn processes_in_other_groups_are_ended_too() {
        // `set -m` gives what is in the background a process group of its own.
        let script = "set -m; sh -c 'sleep 1000; true' & echo $!; wait";
        let mut child = Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let out = child.stdout.take().unwrap();
        io::BufRead::read_line(&mut io::BufReader::new(out), &mut line).unwrap();
        while family(&child).len() < 3 {
            std::thread::sleep(Duration::from_millis(5));
        }
        let all = family(&child);
        assert_eq!(all[1].as_raw_nonzero().get(), line.trim().parse::<i32>().unwrap());
        kill(&mut child).unwrap();
        for pid in all {
            let state = stat(pid.as_raw_nonzero().get()).map(|(state, _)| state);
            assert!(matches!(state, None | Some('Z' | 'X')), "{pid:?} is {state:?}");
        }
    }
}
