//! What became of every injected fault, read from the ledger: how it was noticed, how soon, and what it cost.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Entry, Event, Fault, Goodput};

/// A fault that chaos mode injects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strike {
    /// A rank is killed, and with it the job: most interruptions of the run in the paper were such.
    Kill,
    /// The job is stopped, and never continued.
    Hang,
    /// The job is stopped for a while.
    Pause,
    /// The job is killed, and a file of the newest checkpoint is damaged, as by storage that lost what it had acknowledged.
    Torn,
    /// All checkpoints vanish under the running job.
    LostStorage,
    /// The next checkpoint meets a full disk.
    FullDisk,
    /// One rank has a fault.
    Rank(Fault),
}

impl Strike {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Strike::Kill => "kill",
            Strike::Hang => "hang of the job",
            Strike::Pause => "pause of the job",
            Strike::Torn => "torn checkpoint and kill",
            Strike::LostStorage => "lost storage",
            Strike::FullDisk => "full disk",
            Strike::Rank(fault) => fault.name(),
        }
    }

    /// Whether it shows only when something is saved next, so maybe after other faults.
    fn shows_late(self) -> bool {
        matches!(self, Strike::LostStorage | Strike::FullDisk)
    }

    /// Whether `event` is what shows such a fault.
    fn shows_in(self, event: &Event) -> bool {
        match self {
            Strike::Kill | Strike::Hang | Strike::Torn | Strike::Rank(Fault::Hang) => {
                matches!(event, Event::Failed { .. })
            }
            Strike::Pause | Strike::Rank(Fault::Slow) => matches!(event, Event::Slow { .. }),
            Strike::LostStorage => {
                says(event, &["is gone", "was not saved", "No such file", "had none so new"])
            }
            Strike::FullDisk => says(event, &["no space left"]),
            Strike::Rank(Fault::Message) => matches!(event, Event::Damaged { .. }),
            Strike::Rank(_) => matches!(event, Event::Corrupted { .. }),
        }
    }
}

/// Whether a remark has one of these phrases.
fn says(event: &Event, phrases: &[&str]) -> bool {
    matches!(event, Event::Remark { text } if phrases.iter().any(|phrase| text.contains(phrase)))
}

/// One injected fault.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Incident {
    /// What was injected.
    pub fault: Strike,
    /// Where, where it was one rank.
    pub rank: Option<usize>,
    /// Seconds from the fault to its detection; `None` when it was not noticed.
    pub detected_after: Option<f64>,
    /// What showed it.
    pub shown_by: Option<String>,
    /// Seconds that were lost, stalled or spent on restarting because of it.
    pub cost: f64,
}

/// Every injected fault of a ledger, in order.
pub fn incidents(entries: &[Entry]) -> Vec<Incident> {
    let at: Vec<usize> = (0..entries.len()).filter(|&i| injected(&entries[i]).is_some()).collect();
    let wasted = |end: usize| {
        let sum = Goodput::of(&entries[..end]);
        sum.lost + sum.stalled + sum.restart
    };
    let mut incidents = Vec::with_capacity(at.len());
    for (n, &from) in at.iter().enumerate() {
        let Some((fault, rank)) = injected(&entries[from]) else { continue };
        let until = at.get(n + 1).copied().unwrap_or(entries.len());
        let last = if fault.shows_late() { entries.len() } else { until };
        let shown = entries[from..last].iter().find(|entry| fault.shows_in(&entry.event));
        incidents.push(Incident {
            fault,
            rank,
            detected_after: shown.map(|entry| (entry.at - entries[from].at).max(0.0)),
            shown_by: shown.map(|entry| in_words(&entry.event)),
            cost: (wasted(until) - wasted(from)).max(0.0),
        });
    }
    incidents
}

fn injected(entry: &Entry) -> Option<(Strike, Option<usize>)> {
    if let Event::Injected { fault, rank } = entry.event { Some((fault, rank)) } else { None }
}

fn in_words(event: &Event) -> String {
    match event {
        Event::Failed { reason, .. } => reason.clone(),
        Event::Slow { rank: Some(rank), over, .. } => format!("rank {rank} held a step up for {over:.2} s"),
        Event::Slow { over, .. } => format!("a step took {over:.2} s more"),
        Event::Corrupted { found, .. } => found.join("; "),
        Event::Damaged { reason } => reason.clone(),
        Event::Remark { text } => text.clone(),
        other => format!("{other:?}"),
    }
}

/// Incidents by kind, as a table.
pub struct IncidentTable<'a>(pub &'a [Incident]);

impl fmt::Display for IncidentTable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut kinds: BTreeMap<Strike, Vec<&Incident>> = BTreeMap::new();
        for incident in self.0 {
            kinds.entry(incident.fault).or_default().push(incident);
        }
        writeln!(f, "| fault | injected | noticed | seconds to notice, mean | most | seconds lost, mean |")?;
        write!(f, "|---|---|---|---|---|---|")?;
        for (fault, of_kind) in kinds {
            let seen: Vec<f64> = of_kind.iter().filter_map(|i| i.detected_after).collect();
            // An empty sum is −0.
            let mean = |values: &[f64]| values.iter().fold(0.0, |a, b| a + b) / values.len().max(1) as f64;
            let costs: Vec<f64> = of_kind.iter().map(|i| i.cost).collect();
            let most = seen.iter().copied().fold(0.0, f64::max);
            let (all, noticed) = (of_kind.len(), seen.len());
            let (seen, cost) = (mean(&seen), mean(&costs));
            write!(f, "\n| {} | {all} | {noticed} | {seen:.2} | {most:.2} | {cost:.2} |", fault.name())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_has_its_sign_and_its_cost() {
        let entries: Vec<Entry> = [
            (0.0, Event::Launched { makes: "a".into(), ranks: 4 }),
            (1.0, Event::Ready { step: 0 }),
            (2.0, Event::Step { step: 0 }),
            (2.5, Event::Injected { fault: Strike::Rank(Fault::Weight), rank: Some(1) }),
            (3.0, Event::Corrupted { step: 1, found: vec!["`w`".into()] }),
            (3.5, Event::Ready { step: 0 }),
            (4.5, Event::Step { step: 0 }),
            (5.5, Event::Step { step: 1 }),
            (6.0, Event::Injected { fault: Strike::Kill, rank: None }),
            (6.5, Event::Failed { reason: "signal 9".into(), hung: false }),
            (7.0, Event::Launched { makes: "a".into(), ranks: 4 }),
            (8.0, Event::Ready { step: 2 }),
            (9.0, Event::Step { step: 2 }),
            (9.1, Event::Injected { fault: Strike::FullDisk, rank: Some(0) }),
            (10.0, Event::Step { step: 3 }),
        ]
        .map(|(at, event)| Entry { at, event })
        .into();
        let found = incidents(&entries);
        let close = |i: usize, detected: Option<f64>, cost: f64| {
            let incident = &found[i];
            assert!((incident.cost - cost).abs() < 1e-9, "{incident:?}");
            assert_eq!(incident.detected_after.is_some(), detected.is_some(), "{incident:?}");
            assert!((incident.detected_after.unwrap_or(0.0) - detected.unwrap_or(0.0)).abs() < 1e-9);
        };
        assert_eq!(found.len(), 3);
        // One second in vain, half a second to go back, and a step made again.
        close(0, Some(0.5), 2.5);
        close(1, Some(0.5), 2.5);
        close(2, None, 0.0);
        let table = IncidentTable(&found).to_string();
        assert!(
            table.contains("| kill | 1 | 1 | 0.50 |") && table.contains("| full disk | 1 | 0 |"),
            "{table}"
        );
    }
}
