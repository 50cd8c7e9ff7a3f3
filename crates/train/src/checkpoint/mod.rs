//! Checkpoints of a run in progress.
//!
//! A checkpoint is a folder `step-N` with `state.json` (whose blake3 is in `state.blake3`) and one file of raw
//! little-endian f32 per rank. `state.json` lists the pieces of tensors in each file by their place in the whole tensor, so
//! a checkpoint can be loaded on any other mesh.
//!
//! Saving stops the steps only for a copy of what a rank writes ([`snapshot`]). A thread of that rank writes it, reads it back
//! and leaves a list beside it; the first rank's thread publishes the folder, by its name, when all lists are there
//! ([`writer`]). [`saver`] decides when, and lets all ranks know how it went. Loading takes the newest that is whole, here or in
//! the remote tier ([`remote`]), and says which ones it passed over; every piece is hashed before anything is used
//! ([`loader`]).

mod failpoint;
mod format;
mod interval;
mod loader;
mod remote;
mod saver;
mod snapshot;
#[cfg(test)]
mod tests;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use llamero_comm::Comm;

pub use self::interval::{Failures, young_daly};
use self::remote::Remote;
pub(crate) use self::saver::Saver;
use crate::TrainError;

/// The folder that holds the checkpoints of one run, and how they are made.
pub struct Checkpoints {
    dir: PathBuf,
    /// Time between two, where it is given.
    every: Option<Duration>,
    keep: usize,
    background: bool,
    start_over: bool,
    failures: Failures,
    /// Time between two failures before any was seen.
    usual: Duration,
    remote: Option<Arc<Remote>>,
    stop: Arc<AtomicBool>,
}

/// Finished checkpoints that are kept unless told otherwise; the older one is for the case that the newer is damaged.
const KEPT: usize = 2;

/// What an error at a path becomes.
fn fail(path: &Path) -> impl Fn(std::io::Error) -> TrainError {
    let path = path.to_owned();
    move |source| TrainError::Checkpoint { path: path.clone(), source }
}

impl Checkpoints {
    /// Checkpoints below `dir`, which is created when the first is saved. The time between them is chosen from what they cost
    /// and how often jobs fail.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            every: None,
            keep: KEPT,
            background: true,
            start_over: false,
            failures: Failures::default(),
            usual: interval::PRIOR,
            remote: None,
            stop: Arc::default(),
        }
    }

    /// Saves once in `interval`, but never two at a time; zero saves after every step.
    pub fn every(self, interval: Duration) -> Self {
        Self { every: Some(interval), ..self }
    }

    /// Keeps so many, at least one.
    pub fn keep(self, number: usize) -> Self {
        Self { keep: number.max(1), ..self }
    }

    /// Whether steps go on while a checkpoint is written, which takes memory for a copy of what is in it. Else they wait.
    pub fn background(self, background: bool) -> Self {
        Self { background, ..self }
    }

    /// Whether a run whose checkpoints are all unusable begins again. It is an error otherwise.
    pub fn start_over(self, start_over: bool) -> Self {
        Self { start_over, ..self }
    }

    /// What is known of earlier jobs of this run.
    pub fn failures(self, failures: Failures) -> Self {
        Self { failures, ..self }
    }

    /// The time between two failures that is expected of the machines; three hours when nothing is said.
    pub fn expect_failures(self, every: Duration) -> Self {
        Self { usual: every, ..self }
    }

    /// A second place for checkpoints, e.g. `s3://bucket/prefix` or `file:///mnt/x`: published ones are copied there while
    /// training goes on, and are taken from there when those in the folder are lost.
    pub fn remote(self, url: &str) -> Result<Self, TrainError> {
        Ok(Self { remote: Some(Arc::new(Remote::open(url)?)), ..self })
    }

    /// Training stops with a checkpoint as soon as somebody sets `stop` (a signal, say) on any rank.
    pub fn until(self, stop: Arc<AtomicBool>) -> Self {
        Self { stop, ..self }
    }

    fn asked_to_stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Steps done at the newest checkpoint of the folder, by its name; 0 without one.
    pub fn newest_step(&self) -> u64 {
        format::published(&self.dir).last().map_or(0, |(step, _)| *step)
    }

    /// Removes all of them, and what is being written, as storage that is lost does. Returns how many there were.
    pub(crate) fn remove_all(&self) -> std::io::Result<usize> {
        let number = format::published(&self.dir).len();
        // Out of the way at once, for somebody may be writing there.
        let away = self.dir.with_extension("lost");
        match std::fs::rename(&self.dir, &away) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(number),
            moved => moved?,
        }
        while std::fs::remove_dir_all(&away).is_err() && away.exists() {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(number)
    }

    /// The folder of the newest.
    pub(crate) fn newest(&self) -> Option<PathBuf> {
        format::published(&self.dir).pop().map(|(_, path)| path)
    }
}

/// Every rank's bytes, or the first rank's error, on all of them.
fn agree(all: &dyn Comm, own: Result<Vec<u8>, TrainError>) -> Result<Vec<Vec<u8>>, TrainError> {
    let (mut message, error) = match own {
        Ok(bytes) => (bytes, None),
        Err(error) => (error.to_string().into_bytes(), Some(error)),
    };
    message.push(u8::from(error.is_some()));
    let messages = all.all_gather(message.into())?;
    if let Some(error) = error {
        return Err(error);
    }
    let mut bytes = Vec::with_capacity(messages.len());
    for (rank, message) in messages.iter().enumerate() {
        match message.split_last() {
            Some((0, rest)) => bytes.push(rest.to_vec()),
            Some((_, text)) => {
                let reason = String::from_utf8_lossy(text).into_owned();
                return Err(TrainError::OtherRank { rank, reason });
            }
            None => bytes.push(Vec::new()),
        }
    }
    Ok(bytes)
}
