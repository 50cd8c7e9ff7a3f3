//! Chaos mode: breaks a job from outside, at random moments, in ways that happen to jobs on real machines.

use std::io;
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::Checkpoints;
use crate::family::{kill, signal};

/// What happens, and how often of twenty. Most interruptions of the run in "The Llama 3 Herd of Models" (table 5) killed the job;
/// the rest is more often here, so that a short run meets all.
const FAULTS: [(Fault, u64); 4] = [(Fault::Kill, 11), (Fault::Hang, 2), (Fault::Slow, 3), (Fault::Torn, 4)];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// SIGKILL.
    Kill,
    /// Stopped, and never continued.
    Hang,
    /// Stopped for a while.
    Slow,
    /// Killed, and a file of the newest checkpoint is damaged, as by a storage that lost what it had acknowledged.
    Torn,
}

/// A source of faults. The same seed gives the same faults after the same times.
#[derive(Clone, Debug)]
pub struct Chaos {
    random: u64,
    mtbf: Duration,
    checkpoints: PathBuf,
    next: Option<Instant>,
    resume: Option<Instant>,
}

impl Chaos {
    /// Faults with this mean time between them, on a job with checkpoints in this folder.
    pub fn new(seed: u64, mtbf: Duration, checkpoints: PathBuf) -> Self {
        Self { random: seed ^ 0x6a09_e667_f3bc_c908, mtbf, checkpoints, next: None, resume: None }
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
    }

    /// What is due now, if anything, done to the job. Time counts from the first call for a job.
    pub(crate) fn strike(&mut self, child: &mut Child) -> io::Result<Option<String>> {
        let now = Instant::now();
        if self.resume.is_some_and(|at| now >= at) {
            self.resume = None;
            signal(child, Signal::CONT);
        }
        let Some(next) = self.next else {
            // Times between faults are exponential: one does not know of the other.
            let uniform = ((self.draw() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
            self.next = Some(now + self.mtbf.mul_f64(-libm::log(uniform)));
            return Ok(None);
        };
        if now < next || self.resume.is_some() {
            return Ok(None);
        }
        self.next = None;
        let mut dice = self.draw() % FAULTS.iter().map(|(_, share)| share).sum::<u64>();
        let fault = FAULTS.iter().find(|(_, share)| {
            let hit = dice < *share;
            dice = dice.saturating_sub(*share);
            hit
        });
        Ok(Some(match fault.map_or(Fault::Kill, |(fault, _)| *fault) {
            Fault::Kill => {
                kill(child)?;
                "killed".into()
            }
            Fault::Hang => {
                signal(child, Signal::STOP);
                "hung".into()
            }
            Fault::Slow => {
                signal(child, Signal::STOP);
                self.resume = Some(now + Duration::from_millis(100 + self.draw() % 400));
                "slowed".into()
            }
            Fault::Torn => {
                kill(child)?;
                match self.tear()? {
                    Some(what) => format!("killed, and {what}"),
                    None => "killed".into(),
                }
            }
        }))
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
