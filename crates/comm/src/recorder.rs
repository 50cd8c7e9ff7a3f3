//! The flight recorder: what a rank's last collectives were, for when something hangs.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::Op;

/// One collective or message of a rank.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Number among all that this rank recorded.
    pub number: u64,
    /// Name of the group.
    pub group: String,
    /// Number of the collective in its group.
    pub seq: u64,
    /// What it was.
    pub op: Op,
    /// The one peer of a message; `None` for a collective.
    pub peer: Option<usize>,
    /// Bytes sent by this rank.
    pub bytes: usize,
    /// When it began, since the recorder was made.
    pub started: Duration,
    /// How long it took, when it is over.
    pub took: Option<Duration>,
}

/// A ring buffer of the last collectives of a rank, over all its groups.
#[derive(Debug)]
pub struct FlightRecorder {
    began: Instant,
    capacity: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    records: VecDeque<Record>,
}

impl FlightRecorder {
    /// Keeps the last `capacity` records.
    pub fn new(capacity: usize) -> Self {
        Self { began: Instant::now(), capacity: capacity.max(1), state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that something begins; the number is for [`FlightRecorder::end`].
    pub(crate) fn begin(&self, group: &str, (op, seq): (Op, u64), peer: Option<usize>, bytes: usize) -> u64 {
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        if state.records.len() == self.capacity {
            state.records.pop_front();
        }
        let started = self.began.elapsed();
        state.records.push_back(Record {
            number,
            group: group.into(),
            seq,
            op,
            peer,
            bytes,
            started,
            took: None,
        });
        number
    }

    /// Notes that something is over.
    pub(crate) fn end(&self, number: u64) {
        let mut state = self.state();
        let now = self.began.elapsed();
        if let Some(record) = state.records.iter_mut().rev().find(|r| r.number == number) {
            record.took = Some(now.saturating_sub(record.started));
        }
    }

    /// The records, oldest first.
    pub fn records(&self) -> Vec<Record> {
        self.state().records.iter().cloned().collect()
    }
}

impl fmt::Display for FlightRecorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for r in self.records() {
            let Record { number, group, seq, op, bytes, started, .. } = &r;
            write!(
                f,
                "{number:>8} {started:>12.3?} {group:>6} {seq:>8} {:<14} {bytes:>12} bytes",
                op.name()
            )?;
            if let Some(peer) = r.peer {
                write!(f, " rank {peer}")?;
            }
            match r.took {
                Some(took) => writeln!(f, " done in {took:.3?}")?,
                None => writeln!(f, " not done")?,
            }
        }
        Ok(())
    }
}
