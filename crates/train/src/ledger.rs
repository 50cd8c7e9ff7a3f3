//! The goodput ledger: where the time of a run went.
//!
//! A file of JSON lines that is only ever appended to, by the job and by whoever supervises it. `goodput` adds it up.

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
    /// Something was the fault of one rank: what it holds is wrong, or another waited for it in vain.
    Blamed {
        /// The rank.
        rank: usize,
        /// Who says so. A rank that waits itself is waited for without being at fault.
        by: usize,
        /// What.
        reason: String,
    },
    /// A message arrived damaged. The step cannot be made, and the job ends.
    Damaged {
        /// Ranks, group and operation.
        reason: String,
    },
    /// The last step was made; what follows (the last checkpoint, copies, the model) shows no sign of life.
    Trained {
        /// Steps in all.
        step: u64,
    },
    /// The job was asked to stop, and has.
    Stopped {
        /// Steps done, all in a checkpoint.
        step: u64,
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

    /// Appends an entry in one write, so that those of two processes do not mix. Returns it.
    pub fn note(&self, event: Event) -> std::io::Result<Entry> {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
        let entry = Entry { at, event };
        let mut line = serde_json::to_vec(&entry)?;
        line.push(b'\n');
        let mut file: File = OpenOptions::new().create(true).read(true).append(true).open(&self.path)?;
        // After a line that was cut short this one would be lost too.
        let mut last = [b'\n'];
        if file.seek(SeekFrom::End(-1)).is_ok() {
            file.read_exact(&mut last)?;
        }
        if last != [b'\n'] {
            line.insert(0, b'\n');
        }
        file.write_all(&line)?;
        Ok(entry)
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

#[cfg(test)]
mod tests {
    use super::*;

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
        // What comes after it is not lost with it.
        ledger.note(Event::Done { step: 9 }).unwrap();
        let events: Vec<Event> = ledger.read().unwrap().into_iter().map(|entry| entry.event).collect();
        assert_eq!(events, [Event::Step { step: 7 }, Event::Done { step: 9 }]);
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
