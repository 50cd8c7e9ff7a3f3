//! Where the time of a run went, from its ledger.
//!
//! The stretch of time before an entry belongs to what the entry says, so every second between the first and the last is in
//! exactly one class. Effective training time is what was useful of all ("The Llama 3 Herd of Models" §3.3.4).

use std::collections::HashMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Entry, Event};

/// Seconds of a run by what they went to; they add up to the time from the first entry to the last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Goodput {
    /// Steps whose result was kept.
    pub useful: f64,
    /// Standing still for checkpoints.
    pub checkpoint: f64,
    /// Setting up the first job.
    pub start_up: f64,
    /// From finding a job failed to the next one being ready; the time that nobody ran one is in it.
    pub restart: f64,
    /// Steps that had to be made again, and what a job had begun when it died.
    pub lost: f64,
    /// Standing still until it was noticed.
    pub stalled: f64,
    /// Faults injected on purpose.
    pub injected: usize,
    /// Jobs found dead or hanging.
    pub failures: usize,
    /// Times that something silently wrong was found and undone without a new job.
    #[serde(default)]
    pub rollbacks: usize,
}

impl Goodput {
    /// Adds up a ledger.
    pub fn of(entries: &[Entry]) -> Self {
        let mut meter = GoodputMeter::default();
        entries.iter().for_each(|entry| meter.note(entry));
        meter.goodput()
    }

    /// Name and seconds of every class; what was useful comes first.
    pub fn parts(&self) -> [(&'static str, f64); 6] {
        [
            ("useful steps", self.useful),
            ("checkpoints", self.checkpoint),
            ("start-up", self.start_up),
            ("restarts", self.restart),
            ("lost work", self.lost),
            ("stalled", self.stalled),
        ]
    }

    /// Seconds in all.
    pub fn elapsed(&self) -> f64 {
        self.parts().iter().map(|(_, seconds)| seconds).sum()
    }

    /// Effective training time: the useful share.
    pub fn effective(&self) -> f64 {
        self.useful / self.elapsed().max(1e-9)
    }
}

/// Adds up a ledger entry by entry.
#[derive(Clone, Debug, Default)]
pub struct GoodputMeter {
    /// All but the seconds of steps.
    sum: Goodput,
    /// Seconds of the newest making of each step, and all of them together.
    made: HashMap<u64, f64>,
    steps: f64,
    /// Time of the newest entry.
    last: Option<f64>,
    ready_once: bool,
    failed: bool,
}

impl GoodputMeter {
    /// The next entry.
    pub fn note(&mut self, Entry { at, event }: &Entry) {
        if let Event::Injected { .. } = event {
            self.sum.injected += 1;
            return;
        }
        // Clocks may be set back; time does not run backwards for it.
        let last = self.last.unwrap_or(*at);
        let seconds = (at - last).max(0.0);
        self.last = Some(last.max(*at));
        let sum = &mut self.sum;
        let first_job = !self.ready_once && !self.failed;
        match event {
            Event::Launched { .. } if first_job => sum.start_up += seconds,
            Event::Ready { .. } if first_job => {
                sum.start_up += seconds;
                self.ready_once = true;
            }
            Event::Launched { .. } | Event::Ready { .. } => sum.restart += seconds,
            Event::Step { step } => {
                // The earlier result was thrown away.
                let before = self.made.insert(*step, seconds).unwrap_or(0.0);
                sum.lost += before;
                self.steps += seconds - before;
            }
            Event::Copied { .. } | Event::Saved { .. } | Event::Remark { .. } => sum.checkpoint += seconds,
            // Ranks that wait in vain stand still.
            Event::Blamed { .. } => sum.stalled += seconds,
            Event::Damaged { .. } => sum.lost += seconds,
            Event::Slow { step, over, .. } => {
                // The step was noted just before, with all that it took.
                let all = self.made.entry(*step).or_default();
                let over = over.clamp(0.0, *all);
                *all -= over;
                self.steps -= over;
                sum.stalled += over;
                sum.useful += seconds;
            }
            Event::Corrupted { .. } => {
                sum.rollbacks += 1;
                sum.lost += seconds;
            }
            Event::Injected { .. } => {}
            Event::Failed { hung, .. } => {
                (sum.failures, self.failed) = (sum.failures + 1, true);
                *(if *hung { &mut sum.stalled } else { &mut sum.lost }) += seconds;
            }
            Event::Trained { .. } | Event::Stopped { .. } | Event::Done { .. } => sum.useful += seconds,
        }
    }

    /// Everything up to now.
    pub fn goodput(&self) -> Goodput {
        Goodput { useful: self.sum.useful + self.steps, ..self.sum }
    }
}

impl fmt::Display for Goodput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.elapsed();
        write!(f, "effective training time {:.1} % of {all:.1} s (", 100.0 * self.effective())?;
        for (i, (name, seconds)) in self.parts().into_iter().skip(1).enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{name} {:.1} %", 100.0 * seconds / all.max(1e-9))?;
        }
        write!(f, ")")?;
        if self.failures > 0 {
            write!(f, "; {} failures", self.failures)?;
        }
        if self.rollbacks > 0 {
            write!(f, "; {} rollbacks", self.rollbacks)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Strike;

    fn entries(events: &[(f64, Event)]) -> Vec<Entry> {
        events.iter().map(|(at, event)| Entry { at: 1000.0 + at, event: event.clone() }).collect()
    }

    /// Without what adding in another order leaves.
    fn rounded(found: Goodput) -> Goodput {
        Goodput { useful: (found.useful * 1e6).round() / 1e6, ..found }
    }

    #[test]
    fn every_second_is_in_one_class() {
        let failed = |hung| Event::Failed { reason: "killed".into(), hung };
        let launched = || Event::Launched { makes: "a".into(), ranks: 4 };
        let found = Goodput::of(&entries(&[
            (0.0, launched()),
            (2.0, Event::Ready { step: 0 }),
            (3.0, Event::Step { step: 0 }),
            (3.5, Event::Copied { step: 1 }),
            (4.5, Event::Step { step: 1 }),
            (4.5, Event::Saved { step: 1 }),
            (5.0, failed(false)),
            (6.0, launched()),
            (7.0, Event::Ready { step: 1 }),
            (8.0, Event::Step { step: 1 }),
            (9.0, Event::Step { step: 2 }),
            (12.0, Event::Injected { fault: Strike::Hang, rank: None }),
            (19.0, failed(true)),
            (20.0, launched()),
            (21.0, Event::Ready { step: 3 }),
            (22.0, Event::Done { step: 3 }),
        ]));
        let expected = Goodput {
            useful: 4.0,
            checkpoint: 0.5,
            start_up: 2.0,
            restart: 4.0,
            lost: 1.5,
            stalled: 10.0,
            injected: 1,
            failures: 2,
            rollbacks: 0,
        };
        assert_eq!(rounded(found), expected);
        assert!((found.elapsed() - 22.0).abs() < 1e-9);
        assert!(found.to_string().contains("18.2 % of 22.0 s"), "{found}");
    }
}
