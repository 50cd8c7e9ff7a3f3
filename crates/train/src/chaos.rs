//! Chaos mode: breaks a job at random moments, from outside and on its ranks, in ways that happen to jobs on real machines.

use std::io;
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::family::{kill, kill_rank, signal};
use crate::{Checkpoints, Fault, Order, Orders, Strike};

/// What happens, and how often of forty. In "The Llama 3 Herd of Models" (table 5) most interruptions ended the job: faulty GPUs,
/// memory, hosts, networks and software. Those are kills here; the rest is more often than there, so that a run meets all.
const FAULTS: [(Strike, u64); 14] = [
    (Strike::Kill, 12),
    (Strike::Hang, 2),
    (Strike::Pause, 3),
    (Strike::Torn, 4),
    (Strike::LostStorage, 1),
    (Strike::FullDisk, 2),
    (Strike::Rank(Fault::Weight), 3),
    (Strike::Rank(Fault::LowHalves), 2),
    (Strike::Rank(Fault::FirstMoment), 2),
    (Strike::Rank(Fault::SecondMoment), 2),
    (Strike::Rank(Fault::Gradient), 2),
    (Strike::Rank(Fault::Message), 2),
    (Strike::Rank(Fault::Hang), 1),
    (Strike::Rank(Fault::Slow), 2),
];

/// Steps that must have been made since the last fault before the next, so that what follows belongs to one.
const BETWEEN: u64 = 2;

/// A source of faults. The same seed gives the same faults after the same times.
#[derive(Clone, Debug)]
pub struct Chaos {
    random: u64,
    mtbf: Duration,
    checkpoints: PathBuf,
    ranks: usize,
    orders: Orders,
    next: Option<Instant>,
    resume: Option<Instant>,
    /// The furthest step when the last fault struck.
    struck_at: Option<u64>,
}

impl Chaos {
    /// Faults with this mean time between them, on a job of so many ranks that has checkpoints in this folder and obeys these
    /// orders.
    pub fn new(seed: u64, mtbf: Duration, checkpoints: PathBuf, (ranks, orders): (usize, Orders)) -> Self {
        let random = seed ^ 0x6a09_e667_f3bc_c908;
        Self { random, mtbf, checkpoints, ranks, orders, next: None, resume: None, struck_at: None }
    }

    /// SplitMix64 (Steele, Lea and Flood 2014).
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// A new job; nothing of the last one is still to be done.
    pub(crate) fn begin(&mut self) {
        (self.next, self.resume) = (None, None);
        self.orders.forget(self.ranks);
    }

    /// Lets a job that was stopped for a while go on when that is over.
    pub(crate) fn relent(&mut self, child: &Child) {
        if self.resume.is_some_and(|at| Instant::now() >= at) {
            self.resume = None;
            signal(child, Signal::CONT);
        }
    }

    /// What is due now, if anything, and on which rank, where it is one. `best` is the furthest step of the job. Time counts from
    /// the first call for a job.
    pub(crate) fn due(&mut self, best: u64) -> Option<(Strike, Option<usize>)> {
        let now = Instant::now();
        let Some(next) = self.next else {
            // Times between faults are exponential: one does not know of the other.
            let uniform = ((self.draw() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
            self.next = Some(now + self.mtbf.mul_f64(-libm::log(uniform)));
            return None;
        };
        let settled = self.struck_at.is_none_or(|at| best > at + BETWEEN);
        if now < next || self.resume.is_some() || !settled {
            return None;
        }
        (self.next, self.struck_at) = (None, Some(best));
        let mut dice = self.draw() % FAULTS.iter().map(|(_, share)| share).sum::<u64>();
        let fault = FAULTS.iter().find(|(_, share)| {
            let hit = dice < *share;
            dice = dice.saturating_sub(*share);
            hit
        });
        let fault = fault.map_or(Strike::Kill, |(fault, _)| *fault);
        let rank = matches!(fault, Strike::FullDisk | Strike::Rank(_));
        Some((fault, rank.then(|| (self.draw() % self.ranks as u64) as usize)))
    }

    /// Does it; returns how.
    pub(crate) fn strike(
        &mut self,
        fault: Strike,
        rank: Option<usize>,
        child: &mut Child,
    ) -> io::Result<String> {
        let rank = rank.unwrap_or(0);
        Ok(match fault {
            Strike::Kill => {
                kill_rank(child, self.draw());
                "SIGKILL of a rank".into()
            }
            Strike::Hang => {
                signal(child, Signal::STOP);
                "SIGSTOP".into()
            }
            Strike::Pause => {
                signal(child, Signal::STOP);
                let pause = Duration::from_millis(200 + self.draw() % 300);
                self.resume = Some(Instant::now() + pause);
                format!("SIGSTOP for {:.2} s", pause.as_secs_f64())
            }
            Strike::Torn => {
                kill(child)?;
                self.tear()?.unwrap_or_else(|| "SIGKILL; there was no checkpoint".into())
            }
            Strike::LostStorage => {
                let removed = Checkpoints::new(&self.checkpoints).remove_all()?;
                format!("{removed} checkpoints removed")
            }
            Strike::FullDisk => {
                self.orders.fill_disk(rank)?;
                format!("for the next file of rank {rank}")
            }
            Strike::Rank(fault) => {
                let random = self.draw();
                self.orders.give(rank, Order { fault, random })?;
                format!("rank {rank}")
            }
        })
    }

    /// Cuts a file of the newest checkpoint short or turns a bit of it over.
    fn tear(&mut self) -> io::Result<Option<String>> {
        let Some(newest) = Checkpoints::new(&self.checkpoints).newest() else { return Ok(None) };
        let mut files: Vec<PathBuf> =
            newest.read_dir()?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
        files.sort();
        let Some(count) = u64::try_from(files.len()).ok().filter(|&n| n > 0) else { return Ok(None) };
        let path = &files[(self.draw() % count) as usize];
        let mut bytes = std::fs::read(path)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let step = newest.file_name().unwrap_or_default().to_string_lossy();
        let at = self.draw() as usize % bytes.len().max(1);
        if self.draw().is_multiple_of(2) {
            bytes.truncate(at);
            std::fs::write(path, bytes)?;
            return Ok(Some(format!("`{name}` of {step} cut to {at} bytes")));
        }
        let bit = self.draw() % 8;
        if let Some(byte) = bytes.get_mut(at) {
            *byte ^= 1 << bit;
        }
        std::fs::write(path, bytes)?;
        Ok(Some(format!("bit {bit} of byte {at} of `{name}` of {step} turned over")))
    }
}
