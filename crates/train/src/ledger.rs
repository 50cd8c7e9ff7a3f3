//! The goodput ledger: where the time of a run went.
//!
//! A file of JSON lines that is only ever appended to, by the job and by whoever supervises it. The stretch of time before an
//! entry belongs to what the entry says, so every second between the first and the last is in exactly one class. Effective
//! training time is what was useful of all ("The Llama 3 Herd of Models" §3.3.4).

use std::collections::HashMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::Strike;

/// What happened, at the end of the stretch of time that it took.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A job began to set up its ranks.
    Launched {
        /// Id of what it makes.
        makes: String,
        /// Ranks.
        ranks: usize,
    },
    /// All ranks hold the state of this step and go on from there.
    Ready {
        /// The step that comes next.
        step: u64,
    },
    /// A step was made.
    Step {
        /// Its number.
        step: u64,
    },
    /// What goes into a checkpoint was copied; it is written while the next steps are made.
    Copied {
        /// Steps that are in it.
        step: u64,
    },
    /// A checkpoint is there. Noted between two steps: the time before it is what they waited for it, if they did.
    Saved {
        /// Steps that are in it.
        step: u64,
    },
    /// Somebody broke something on purpose. Takes no time: what follows from it does.
    Injected {
        /// What.
        fault: Strike,
        /// Where, where it is one rank.
        rank: Option<usize>,
    },
    /// A step took much longer than usual.
    Slow {
        /// Its number.
        step: u64,
        /// The rank that the others waited for, where there was one.
        rank: Option<usize>,
        /// Seconds more than usual.
        over: f64,
    },
    /// Something was silently wrong. The state before it comes back.
    Corrupted {
        /// The step in which it was seen.
        step: u64,
        /// Rank, tensor and what showed it.
        found: Vec<String>,
    },
    /// Something did not go as planned and the run goes on: a checkpoint that could not be written, say.
    Remark {
        /// What.
        text: String,
    },
    /// A job was found dead or hanging.
    Failed {
        /// How.
        reason: String,
        /// Whether it had stood still.
        hung: bool,
    },
    /// The last step was made and the weights are whole.
    Done {
        /// Steps in all.
        step: u64,
    },
}

/// A line of the ledger.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Seconds since 1970.
    pub at: f64,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// The file.
#[derive(Clone, Debug)]
pub struct Ledger {
    path: PathBuf,
}

impl Ledger {
    /// The ledger in this file, which is created with the first entry.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends an entry in one write, so that those of two processes do not mix.
    pub fn note(&self, event: Event) -> std::io::Result<()> {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
        let mut line = serde_json::to_vec(&Entry { at, event })?;
        line.push(b'\n');
        let mut file: File = OpenOptions::new().create(true).append(true).open(&self.path)?;
        file.write_all(&line)
    }

    /// The entries about what was made last. A line that a kill cut short is left out; there is none where there is no file.
    pub fn read(&self) -> std::io::Result<Vec<Entry>> {
        let mut entries = self.read_from(&mut 0)?;
        let makes = |entry: &Entry| match &entry.event {
            Event::Launched { makes, .. } => Some(makes.clone()),
            _ => None,
        };
        let last = entries.iter().rev().find_map(makes);
        let other = entries.iter().rposition(|entry| makes(entry).is_some_and(|makes| Some(makes) != last));
        let launched = |from: usize| entries[from..].iter().position(|entry| makes(entry) == last);
        let first = other.map_or(0, |other| other + launched(other).unwrap_or(0));
        Ok(entries.split_off(first))
    }

    /// All entries after the first `offset` bytes of the file, which is moved on to the end of the last whole line.
    pub fn read_from(&self, offset: &mut u64) -> std::io::Result<Vec<Entry>> {
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        file.seek(SeekFrom::Start(*offset))?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        text.truncate(text.iter().rposition(|&b| b == b'\n').map_or(0, |end| end + 1));
        *offset += text.len() as u64;
        Ok(text.split(|&b| b == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect())
    }
}

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
        let mut sum = Self::default();
        let mut made: HashMap<u64, f64> = HashMap::new();
        let (mut last, mut first_job, mut failed) = (entries.first().map_or(0.0, |e| e.at), true, false);
        for entry in entries {
            if let Event::Injected { .. } = entry.event {
                sum.injected += 1;
                continue;
            }
            // Clocks may be set back; time does not run backwards for it.
            let seconds = (entry.at - last).max(0.0);
            last = last.max(entry.at);
            match &entry.event {
                Event::Launched { .. } if first_job && !failed => sum.start_up += seconds,
                Event::Launched { .. } => sum.restart += seconds,
                Event::Ready { .. } if first_job && !failed => {
                    sum.start_up += seconds;
                    first_job = false;
                }
                Event::Ready { .. } => sum.restart += seconds,
                Event::Step { step } => {
                    // The earlier result was thrown away.
                    sum.lost += made.insert(*step, seconds).unwrap_or(0.0);
                }
                Event::Copied { .. } | Event::Saved { .. } => sum.checkpoint += seconds,
                Event::Slow { step, over, .. } => {
                    // The step was noted just before, with all that it took.
                    let all = made.entry(*step).or_default();
                    let over = over.clamp(0.0, *all);
                    *all -= over;
                    sum.stalled += over;
                    sum.useful += seconds;
                }
                Event::Corrupted { .. } => {
                    sum.rollbacks += 1;
                    sum.lost += seconds;
                }
                Event::Remark { .. } => sum.checkpoint += seconds,
                Event::Injected { .. } => {}
                Event::Failed { hung, .. } => {
                    (sum.failures, failed) = (sum.failures + 1, true);
                    *(if *hung { &mut sum.stalled } else { &mut sum.lost }) += seconds;
                }
                Event::Done { .. } => sum.useful += seconds,
            }
        }
        let mut kept: Vec<_> = made.into_iter().collect();
        kept.sort_by_key(|(step, _)| *step);
        sum.useful += kept.iter().map(|(_, seconds)| seconds).sum::<f64>();
        sum
    }

    /// Seconds in all.
    pub fn elapsed(&self) -> f64 {
        self.useful + self.checkpoint + self.start_up + self.restart + self.lost + self.stalled
    }

    /// Effective training time: the useful share.
    pub fn effective(&self) -> f64 {
        self.useful / self.elapsed().max(1e-9)
    }
}

impl fmt::Display for Goodput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.elapsed();
        write!(f, "effective training time {:.1} % of {all:.1} s (", 100.0 * self.effective())?;
        let parts = [
            ("checkpoints", self.checkpoint),
            ("start-up", self.start_up),
            ("restarts", self.restart),
            ("lost work", self.lost),
            ("stalled", self.stalled),
        ];
        for (i, (name, seconds)) in parts.into_iter().enumerate() {
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

    fn entries(events: &[(f64, Event)]) -> Vec<Entry> {
        events.iter().map(|(at, event)| Entry { at: 1000.0 + at, event: event.clone() }).collect()
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
        assert_eq!(found, expected);
        assert!((found.elapsed() - 22.0).abs() < 1e-9);
        assert!(found.to_string().contains("18.2 % of 22.0 s"), "{found}");
    }

    #[test]
    fn a_line_that_was_cut_short_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::new(dir.path().join("ledger.jsonl"));
        assert!(ledger.read().unwrap().is_empty());
        ledger.note(Event::Step { step: 7 }).unwrap();
        ledger.note(Event::Step { step: 8 }).unwrap();
        let text = std::fs::read(ledger.path()).unwrap();
        std::fs::write(ledger.path(), &text[..text.len() - 3]).unwrap();
        let entries = ledger.read().unwrap();
        assert_eq!(entries.len(), 1);
        assert_eq!(entries[0].event, Event::Step { step: 7 });
        let mut offset = 0;
        assert_eq!(ledger.read_from(&mut offset).unwrap().len(), 1);
        assert!(ledger.read_from(&mut offset).unwrap().is_empty());
        // What comes after it is read again.
        ledger.note(Event::Done { step: 9 }).unwrap();
        ledger.note(Event::Done { step: 9 }).unwrap();
        assert_eq!(ledger.read().unwrap().len(), 2);
    }
    #[test]
    fn what_was_made_before_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::new(dir.path().join("ledger.jsonl"));
        let launched = |makes: &str| Event::Launched { makes: makes.into(), ranks: 1 };
        let step = || Event::Step { step: 0 };
        for event in [launched("a"), step(), step(), launched("b"), step(), launched("b"), step()] {
            ledger.note(event).unwrap();
        }
        let events: Vec<Event> = ledger.read().unwrap().into_iter().map(|entry| entry.event).collect();
        assert_eq!(events, [launched("b"), step(), launched("b"), step()]);
    }
}
