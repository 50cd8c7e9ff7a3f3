//! When a checkpoint is made, and what becomes of it.
//!
//! One is under way at most. After every step the ranks tell each other how far theirs is, as long as one is; so all learn in
//! the same place that it is published or has failed. One that failed is told and tried again when the next is due; it is an
//! error when that happens [`PATIENCE`] times in a row, or when there is no older one to fall back on.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use llamero_comm::Comm;

use super::format::{self, State};
use super::remote::Uploader;
use super::writer::{Publication, Shared, Stage, Task};
use super::{Checkpoints, agree};
use super::{failpoint, interval};
use crate::fit::Progress;
use crate::{Observer, TrainError, Trainer};

/// Checkpoints that may fail in a row, less one.
const PATIENCE: u32 = 3;

/// Ranks that wait for each other's writing say so this often, so that nobody takes them for dead.
const TELL: Duration = Duration::from_secs(1);

/// One rank's side of the checkpoints of a run.
pub(crate) struct Saver<'a> {
    settings: &'a Checkpoints,
    in_flight: Option<InFlight>,
    uploader: Option<Uploader>,
    /// Step of the newest that is published or was loaded.
    safe: Option<u64>,
    /// Failed in a row.
    failed: u32,
    began: Instant,
    last: Instant,
    /// Of the last one: the longest that steps stood still on a rank, and the time until it was published.
    pub(super) cost: Option<(Duration, Duration)>,
    /// What did not go as planned.
    pub(crate) remarks: Vec<String>,
}

/// A checkpoint under way.
struct InFlight {
    step: u64,
    temporary: PathBuf,
    begun: Instant,
    stall: Duration,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for InFlight {
    /// Whatever ends the steps, what was copied is not lost.
    fn drop(&mut self) {
        self.shared.orphan();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// What comes after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Nothing,
    Save,
    SaveAndStop,
}

const DUES: [Due; 3] = [Due::Nothing, Due::Save, Due::SaveAndStop];

/// What one rank tells the others while a checkpoint is under way.
struct Told {
    due: Due,
    stall: f64,
    stage: Stage,
}

impl Told {
    fn encode(&self) -> Vec<u8> {
        let (code, text) = match &self.stage {
            Stage::Writing => (0, ""),
            Stage::Whole => (1, ""),
            Stage::Published => (2, ""),
            Stage::Failed(reason) => (3, reason.as_str()),
        };
        let mut bytes = vec![self.due as u8, code];
        bytes.extend(self.stall.to_le_bytes());
        bytes.extend(text.as_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let ([due, code], rest) = bytes.split_first_chunk()?;
        let (stall, text) = rest.split_first_chunk()?;
        let stage = match code {
            0 => Stage::Writing,
            1 => Stage::Whole,
            2 => Stage::Published,
            _ => Stage::Failed(String::from_utf8_lossy(text).into_owned()),
        };
        Some(Self { due: *DUES.get(usize::from(*due))?, stall: f64::from_le_bytes(*stall), stage })
    }
}

/// What became of a checkpoint.
enum Fate {
    UnderWay,
    Published { stall: Duration },
    Failed { rank: usize, reason: String },
}

/// What follows from what all ranks told; the same on each of them.
fn fate(told: &[Told]) -> Fate {
    if told.iter().any(|told| told.stage == Stage::Writing) {
        return Fate::UnderWay;
    }
    let failed = told.iter().enumerate().find_map(|(rank, told)| match &told.stage {
        Stage::Failed(reason) => Some((rank, reason.clone())),
        _ => None,
    });
    match failed {
        Some((rank, reason)) => Fate::Failed { rank, reason },
        None if told[0].stage == Stage::Published => {
            let stall = told.iter().map(|told| told.stall).fold(0.0, f64::max);
            Fate::Published { stall: Duration::try_from_secs_f64(stall).unwrap_or_default() }
        }
        None => Fate::UnderWay,
    }
}

impl<'a> Saver<'a> {
    /// For steps that begin now, at a state that is in a checkpoint or in none.
    pub(crate) fn new(settings: &'a Checkpoints, trainer: &Trainer<'_>, loaded: Option<u64>) -> Self {
        let remote = settings.remote.as_ref().filter(|_| trainer.ranks().all.rank() == 0);
        Self {
            settings,
            in_flight: None,
            uploader: remote.map(|remote| Uploader::new(Arc::clone(remote), &settings.dir, settings.keep)),
            safe: loaded,
            failed: 0,
            began: Instant::now(),
            last: Instant::now(),
            cost: None,
            remarks: Vec::new(),
        }
    }

    /// How long to train before the next.
    pub(super) fn pause(&self) -> Duration {
        let between = || self.settings.failures.mean_time(self.began.elapsed(), self.settings.usual);
        match (self.settings.every, self.cost) {
            (Some(every), _) => every,
            (None, None) => interval::first(between()),
            (None, Some((stall, saving))) => interval::choose(stall, saving, between()),
        }
    }

    /// What this rank wants: the first by its clock, all by their signals.
    fn due(&self, done: bool, rank: usize) -> Due {
        if done {
            return Due::Nothing;
        }
        if self.settings.asked_to_stop() {
            return Due::SaveAndStop;
        }
        if rank > 0 {
            return Due::Nothing;
        }
        let pause = self.pause();
        let free = self.in_flight.is_none() || pause.is_zero();
        if free && self.last.elapsed() >= pause { Due::Save } else { Due::Nothing }
    }

    /// To be called after every step; `done` after the last. Every rank calls it.
    pub(crate) fn after_step(
        &mut self,
        trainer: &Trainer<'_>,
        (progress, done): (&Progress, bool),
        observer: &mut dyn Observer,
    ) -> Result<(), TrainError> {
        let all = &*trainer.ranks().all;
        if let Some(in_flight) = &self.in_flight {
            // Whatever had gone wrong before the copy would have been found in the step after it.
            in_flight.shared.approve();
        }
        let due = self.due(done, all.rank());
        let due = match &self.in_flight {
            Some(in_flight) => {
                let told = tell(all, in_flight, due)?;
                self.learn(all, fate(&told), observer)?;
                told.iter().map(|told| told.due).max().unwrap_or(Due::Nothing)
            }
            None => everybody_does(all, due)?,
        };
        self.hear_of_uploads(observer);
        if due == Due::Nothing {
            return Ok(());
        }
        self.save(trainer, progress, observer)?;
        if due == Due::SaveAndStop {
            self.end(trainer, progress, observer)?;
            self.end_uploads(observer);
            observer.stopped(progress.step);
            return Err(TrainError::Stopped { step: progress.step });
        }
        Ok(())
    }

    /// To be called after the last step: on a mesh its state is also a checkpoint, from which one rank can take all.
    pub(crate) fn finish(
        &mut self,
        trainer: &Trainer<'_>,
        progress: &Progress,
        observer: &mut dyn Observer,
    ) -> Result<(), TrainError> {
        trainer.check_now(progress.step)?;
        self.settle(trainer, observer)?;
        if trainer.ranks().all.size() > 1 && self.safe != Some(progress.step) {
            self.save(trainer, progress, observer)?;
            return self.end(trainer, progress, observer);
        }
        Ok(())
    }

    /// Saves the state that there is now and waits for it.
    pub(crate) fn save_now(
        &mut self,
        trainer: &Trainer<'_>,
        progress: &Progress,
        observer: &mut dyn Observer,
    ) -> Result<(), TrainError> {
        self.save(trainer, progress, observer)?;
        self.end(trainer, progress, observer)
    }

    /// Something was found to be wrong in the step after the last call: what was copied then may be wrong too. Every rank calls it.
    pub(crate) fn before_rollback(
        &mut self,
        trainer: &Trainer<'_>,
        observer: &mut dyn Observer,
    ) -> Result<(), TrainError> {
        let all = &*trainer.ranks().all;
        if self.in_flight.as_ref().is_some_and(|in_flight| in_flight.shared.is_approved()) {
            return self.settle(trainer, observer);
        }
        let temporary = self.in_flight.take().map(|in_flight| {
            in_flight.shared.abandon();
            in_flight.temporary.clone()
        });
        // Now no rank writes any more.
        all.barrier()?;
        if let Some(temporary) = temporary.filter(|_| all.rank() == 0) {
            std::fs::remove_dir_all(temporary).ok();
        }
        all.barrier()?;
        Ok(())
    }

    /// The newest state is now that after `step` steps, from a checkpoint.
    pub(crate) fn loaded(&mut self, step: u64) {
        self.safe = Some(step);
    }

    /// Where no step follows at once that would look at the state that was copied.
    fn approve_after_look(&self, trainer: &Trainer<'_>, step: u64) -> Result<(), TrainError> {
        trainer.check_now(step)?;
        if let Some(in_flight) = &self.in_flight {
            in_flight.shared.approve();
        }
        Ok(())
    }

    /// Waits for the checkpoint of the newest state, which must not fail.
    fn end(
        &mut self,
        trainer: &Trainer<'_>,
        progress: &Progress,
        observer: &mut dyn Observer,
    ) -> Result<(), TrainError> {
        self.approve_after_look(trainer, progress.step)?;
        self.settle(trainer, observer)?;
        if self.safe != Some(progress.step) {
            let reason = self.remarks.pop().unwrap_or_default();
            return Err(TrainError::NotSaved { times: self.failed, reason });
        }
        Ok(())
    }

    /// Begins to save the state after `progress.step` steps, and does not return before it is saved where it is not done in
    /// the background.
    fn save(
        &mut self,
        trainer: &Trainer<'_>,
        progress: &Progress,
        observer: &mut dyn Observer,
    ) -> Result<(), TrainError> {
        self.settle(trainer, observer)?;
        let all = &*trainer.ranks().all;
        let (rank, settings) = (all.rank(), self.settings);
        // Nobody else writes into this folder, not even a rank of an earlier job that was thought dead.
        let own = if rank == 0 { unique() } else { String::new() };
        let name = String::from_utf8_lossy(&agree(all, Ok(own.into_bytes()))?[0]).into_owned();
        let begun = Instant::now();
        let publication = || Publication {
            dir: settings.dir.clone(),
            state: State {
                updates: trainer.optimizer.updates,
                mean_loss: trainer.mean_loss,
                progress: progress.clone(),
                model: trainer.model().config.clone(),
                files: Vec::new(),
            },
            ranks: all.size(),
            keep: settings.keep,
            pinned: self.uploader.as_ref().map(Uploader::pinned).unwrap_or_default(),
        };
        let temporary = settings.dir.join(format!("{}{name}", format::WRITING));
        let (temporary_of_task, orders) = (temporary.clone(), trainer.watch.orders.clone());
        let publication = (rank == 0).then(publication);
        let task = Task { temporary: temporary_of_task, rank, publication, orders };
        let shared = Arc::new(Shared::default());
        if !trainer.guard().is_on() {
            shared.approve();
        }
        let background = settings.background;
        let thread =
            if background { task.in_background(trainer, &shared) } else { task.at_once(trainer, &shared) };
        // No rank of several that hold the same may be the one that is wrong and writes it.
        trainer.look_at_replicas(progress.step)?;
        let (step, thread) = (progress.step, Some(thread?));
        self.in_flight = Some(InFlight { step, temporary, begun, stall: begun.elapsed(), shared, thread });
        if background {
            observer.copied(step);
        } else {
            self.approve_after_look(trainer, step)?;
            self.settle(trainer, observer)?;
        }
        self.last = Instant::now();
        Ok(())
    }

    /// Waits until nothing is under way.
    fn settle(&mut self, trainer: &Trainer<'_>, observer: &mut dyn Observer) -> Result<(), TrainError> {
        let all = &*trainer.ranks().all;
        while let Some(in_flight) = &self.in_flight {
            let seen = in_flight.shared.stage();
            // The first rank publishes what is whole; for the others that is the end.
            if seen == Stage::Writing || (seen == Stage::Whole && all.rank() == 0) {
                in_flight.shared.wait(&seen, TELL);
            }
            let told = tell(all, in_flight, Due::Nothing)?;
            self.learn(all, fate(&told), observer)?;
        }
        Ok(())
    }

    /// Takes note of what became of the one under way.
    fn learn(&mut self, all: &dyn Comm, fate: Fate, observer: &mut dyn Observer) -> Result<(), TrainError> {
        if matches!(fate, Fate::UnderWay) {
            return Ok(());
        }
        let Some(in_flight) = self.in_flight.take() else { return Ok(()) };
        match fate {
            Fate::UnderWay => {}
            Fate::Published { stall } => {
                let saving = in_flight.shared.since().saturating_duration_since(in_flight.begun);
                self.cost = Some((stall, saving));
                let before = self.safe.map(|step| self.settings.dir.join(format::folder(step)));
                let kept = self.settings.keep > 1 && self.safe != Some(in_flight.step);
                if all.rank() == 0
                    && kept
                    && let Some(lost) = before.filter(|folder| !folder.exists())
                {
                    let text = format!("checkpoint `{}` is gone: its storage was lost", lost.display());
                    observer.remark(&text);
                    self.remarks.push(text);
                }
                (self.safe, self.failed) = (Some(in_flight.step), 0);
                observer.saved(in_flight.step);
                if let Some(uploader) = &mut self.uploader {
                    uploader.offer(in_flight.step);
                }
            }
            Fate::Failed { rank, reason } => {
                in_flight.shared.abandon();
                self.failed += 1;
                let (step, temporary) = (in_flight.step, in_flight.temporary.clone());
                // Nobody writes any more. On a full disk room is what is missing.
                drop(in_flight);
                if all.rank() == 0 && failpoint::step().is_ok() {
                    std::fs::remove_dir_all(temporary).ok();
                }
                // Of a mesh the rank is worth a word.
                let whose = if all.size() > 1 { format!("rank {rank}: ") } else { String::new() };
                let reason = format!("the state after step {step} was not saved: {whose}{reason}");
                if self.safe.is_none() || self.failed >= PATIENCE {
                    return Err(TrainError::NotSaved { times: self.failed, reason });
                }
                observer.remark(&reason);
                self.remarks.push(reason);
            }
        }
        Ok(())
    }

    fn hear_of_uploads(&mut self, observer: &mut dyn Observer) {
        for remark in self.uploader.iter_mut().flat_map(Uploader::remarks) {
            observer.remark(&remark);
            self.remarks.push(remark);
        }
    }

    /// Waits for copies that are on their way to the remote tier.
    pub(crate) fn end_uploads(&mut self, observer: &mut dyn Observer) {
        if let Some(uploader) = &mut self.uploader {
            uploader.finish();
        }
        self.hear_of_uploads(observer);
    }
}

impl Drop for Saver<'_> {
    /// What is published although the steps were cut short goes to the remote tier too.
    fn drop(&mut self) {
        let Some(in_flight) = self.in_flight.take() else { return };
        let (step, shared) = (in_flight.step, Arc::clone(&in_flight.shared));
        drop(in_flight);
        if let (Stage::Published, Some(uploader)) = (shared.stage(), &mut self.uploader) {
            uploader.offer(step);
        }
    }
}

/// All ranks tell how far they are.
fn tell(all: &dyn Comm, in_flight: &InFlight, due: Due) -> Result<Vec<Told>, TrainError> {
    let own = Told { due, stall: in_flight.stall.as_secs_f64(), stage: in_flight.shared.stage() };
    let bodies = all.all_gather(own.encode().into())?;
    let decoded = |(rank, body): (usize, &llamero_comm::Body)| {
        let reason = || "sent something else than how far its checkpoint is".to_owned();
        Told::decode(body).ok_or_else(|| TrainError::OtherRank { rank, reason: reason() })
    };
    bodies.iter().enumerate().map(decoded).collect()
}

/// The most that any rank wants: a signal may have come to one rank alone.
fn everybody_does(all: &dyn Comm, due: Due) -> Result<Due, TrainError> {
    let wanted = all.all_gather(vec![due as u8].into())?;
    let most = wanted.iter().filter_map(|code| DUES.get(usize::from(*code.first()?)).copied()).max();
    Ok(most.unwrap_or(Due::Nothing))
}

/// A name that no other call gives.
fn unique() -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("{}-{}", now.as_nanos(), std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_ranks_see_the_same_fate() {
        let failed = || Stage::Failed("`a`: full".into());
        let fate_of = |stages: &[Stage]| {
            let told = |(rank, stage): (usize, &Stage)| {
                let told = Told { due: Due::Save, stall: rank as f64, stage: stage.clone() };
                let found = Told::decode(&told.encode()).unwrap();
                assert_eq!((found.due, found.stall, &found.stage), (told.due, told.stall, stage));
                found
            };
            fate(&stages.iter().enumerate().map(told).collect::<Vec<_>>())
        };
        // Nobody may write into a folder that is removed.
        assert!(matches!(fate_of(&[failed(), Stage::Writing]), Fate::UnderWay));
        // The first rank has not published yet.
        assert!(matches!(fate_of(&[Stage::Whole, Stage::Whole]), Fate::UnderWay));
        let Fate::Published { stall } = fate_of(&[Stage::Published, Stage::Whole, Stage::Whole]) else {
            panic!("all is done");
        };
        assert_eq!(stall, Duration::from_secs(2), "the slowest copy counts");
        let Fate::Failed { rank, reason } = fate_of(&[Stage::Whole, failed(), failed()]) else {
            panic!("a rank failed");
        };
        assert_eq!((rank, reason.as_str()), (1, "`a`: full"));
        assert!(Told::decode(&[0; 9]).is_none() && Told::decode(&[9; 10]).is_none());
    }
}
