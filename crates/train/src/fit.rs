//! The training loop: resume, step, watch, checkpoint, report.

use std::time::Instant;

use llamero_data::{DataError, Loader, Place, Sequence};
use serde::{Deserialize, Serialize};

use crate::checkpoint::Saver;
use crate::guard::AfterStep;
use crate::{Checkpoints, Finding, TrainError, Trainer};

/// Where sequences come from: a pure function of their number.
pub trait SequenceSource {
    /// Sequence number `index`; defined for every number (sources start over).
    fn sequence(&self, index: u64) -> Result<Sequence, DataError>;

    /// The sequence at a place. Sources of sequences that cannot be divided know those of a run of one length only.
    fn read(&self, place: &Place) -> Result<Sequence, DataError> {
        if place.domain.is_none() && place.chunk == place.number {
            return self.sequence(place.number);
        }
        Err(DataError::OutOfRange {
            key: "ramp.sequence or mix",
            found: "given".into(),
            allowed: "absent: these sequences have one length and no domain".into(),
        })
    }
}

impl SequenceSource for Loader {
    fn sequence(&self, index: u64) -> Result<Sequence, DataError> {
        Loader::sequence(self, index)
    }

    fn read(&self, place: &Place) -> Result<Sequence, DataError> {
        Loader::read(self, place)
    }
}

/// One step, as kept in the history of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Number of the step, from 0.
    pub step: u64,
    /// Tokens read up to and including this step.
    pub tokens: u64,
    /// Mean loss in nats per target before the update.
    #[serde(with = "maybe_finite")]
    pub loss: f64,
    /// What the z-loss adds to it, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub z_loss: Option<f64>,
    /// Global gradient norm before clipping.
    #[serde(with = "maybe_finite")]
    pub grad_norm: f64,
    /// Learning rate.
    pub lr: f64,
    /// Why there was no update, when there was none.
    pub skipped: Option<String>,
}

/// How far a run has come.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// Steps done.
    pub(crate) step: u64,
    /// Sequences read.
    pub(crate) cursor: u64,
    /// Tokens read.
    pub(crate) tokens: u64,
    /// Steps skipped in a row up to now.
    pub(crate) skipped: u32,
    /// Every step so far, and the seconds each took.
    pub(crate) history: Vec<(StepRecord, f64)>,
}

/// A finished run.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainReport {
    /// Every step; does not depend on time or machine.
    pub history: Vec<StepRecord>,
    /// Seconds that each step took.
    pub seconds: Vec<f64>,
    /// Step that this process started from, when it resumed.
    pub resumed_at: Option<u64>,
    /// Checkpoints that were passed over as damaged, and steps that were skipped, in words.
    pub remarks: Vec<String>,
}

impl TrainReport {
    /// Tokens read in all.
    pub fn tokens(&self) -> u64 {
        self.history.last().map_or(0, |r| r.tokens)
    }

    /// Tokens per second over the whole run.
    pub fn tokens_per_second(&self) -> f64 {
        self.tokens() as f64 / self.seconds.iter().sum::<f64>().max(1e-9)
    }
}

/// Who is told how a run goes on. Every rank may have one; usually the first has.
pub trait Observer {
    /// The state of `step` is there and the steps begin.
    fn ready(&mut self, step: u64) {
        let _ = step;
    }

    /// A step was made; `rate` is tokens per second since this process started.
    fn step(&mut self, record: &StepRecord, rate: f64);

    /// The step took so many seconds, and each rank did not wait for others for so many of them.
    fn busy(&mut self, step: u64, seconds: f64, busy: &[f64]) {
        let _ = (step, seconds, busy);
    }

    /// Something was found to be wrong in `step`; the state of the newest checkpoint comes back, and `ready` is called again.
    fn corrupted(&mut self, step: u64, found: &[Finding]) {
        let _ = (step, found);
    }

    /// The state after `step` steps was copied: it is written while the next steps are made.
    fn copied(&mut self, step: u64) {
        let _ = step;
    }

    /// A checkpoint with the state after `step` steps is there. Told between two steps, so maybe a while after it was.
    fn saved(&mut self, step: u64) {
        let _ = step;
    }

    /// The last step was made; the last checkpoint and copies of it follow.
    fn trained(&mut self, step: u64) {
        let _ = step;
    }

    /// Training stops because it was asked to; `step` steps are in a checkpoint.
    fn stopped(&mut self, step: u64) {
        let _ = step;
    }

    /// Something did not go as planned and the run goes on: a checkpoint that could not be written, say.
    fn remark(&mut self, text: &str) {
        let _ = text;
    }
}

impl<F: FnMut(&StepRecord, f64)> Observer for F {
    fn step(&mut self, record: &StepRecord, rate: f64) {
        self(record, rate);
    }
}

/// Trains to the end, from the newest checkpoint if there is one. On a mesh the last state is also a checkpoint: one rank can
/// put the whole model together by calling this with it.
pub fn train(
    trainer: &mut Trainer<'_>,
    source: &dyn SequenceSource,
    checkpoints: &Checkpoints,
    observer: &mut dyn Observer,
) -> Result<TrainReport, TrainError> {
    let config = trainer.config().clone();
    config.validate()?;
    let (resumed, mut remarks) = checkpoints.load(trainer)?;
    let resumed_at = resumed.as_ref().map(|p| p.step);
    let fresh = resumed.is_none();
    let mut progress = resumed.unwrap_or_default();
    trainer.seal();
    let mut saver = Saver::new(checkpoints, trainer, resumed_at);
    let mut rollbacks = Rollbacks::default();
    let (mut started, mut tokens_before) = (Instant::now(), progress.tokens);
    remarks.extend(trainer.check_devices()?);
    observer.ready(progress.step);
    remarks.iter().for_each(|remark| observer.remark(remark));
    if fresh && trainer.guard().is_on() {
        // Something to go back to.
        saver.save_now(trainer, &progress, observer)?;
    }
    while progress.step < config.num_steps() {
        let begun = Instant::now();
        let step = progress.step;
        let settings = config.at(step);
        let first = settings.first_sequence;
        let read = |places: std::ops::Range<usize>| {
            places.map(|i| source.read(&settings.place(i))).collect::<Result<Vec<_>, _>>()
        };
        if let Some(places) = trainer.repeated_sequences(step) {
            trainer.repeat(read(places)?);
        }
        let sequences = read(trainer.own_sequences(step))?;
        let outcome = trainer.step(progress.step, sequences)?;
        let took = begun.elapsed();
        let AfterStep { found, busy } = trainer.after_step(step, took)?;
        if !found.is_empty() {
            observer.corrupted(step, &found);
            rollbacks.after(step, &found)?;
            saver.before_rollback(trainer, observer)?;
            let (resumed, passed_over) = checkpoints.load(trainer)?;
            remarks.extend(found.iter().map(|finding| format!("rolled back: {finding}")));
            passed_over.iter().for_each(|remark| observer.remark(remark));
            remarks.extend(passed_over);
            let Some(resumed) = resumed else { return Err(TrainError::corrupted(step, &found)) };
            progress = resumed;
            (started, tokens_before) = (Instant::now(), progress.tokens);
            saver.loaded(progress.step);
            trainer.seal();
            observer.ready(progress.step);
            continue;
        }
        progress.tokens += outcome.tokens;
        let record = StepRecord {
            step: progress.step,
            tokens: progress.tokens,
            loss: outcome.loss,
            z_loss: outcome.z_loss,
            grad_norm: outcome.grad_norm,
            lr: outcome.lr,
            skipped: outcome.skipped,
        };
        let rate = (progress.tokens - tokens_before) as f64 / started.elapsed().as_secs_f64().max(1e-9);
        observer.step(&record, rate);
        observer.busy(step, took.as_secs_f64(), &busy);
        if let Some(reason) = &record.skipped {
            progress.skipped += 1;
            if progress.skipped >= config.max_skipped_steps {
                let (step, skipped, reason) = (progress.step, progress.skipped, reason.clone());
                return Err(TrainError::Diverged { step, skipped, reason, sequence: first });
            }
        } else {
            progress.skipped = 0;
        }
        progress.history.push((record, begun.elapsed().as_secs_f64()));
        progress.step += 1;
        progress.cursor = first + settings.batch as u64;
        let done = progress.step == config.num_steps();
        saver.after_step(trainer, (&progress, done), observer)?;
    }
    observer.trained(progress.step);
    saver.finish(trainer, &progress, observer)?;
    trainer.finish_average()?;
    saver.end_uploads(observer);
    remarks.append(&mut saver.remarks);
    Ok(report(progress, resumed_at, remarks))
}

/// The report of a run whose last state is in a checkpoint, which is put into `trainer`: nothing is trained.
pub fn finished(trainer: &mut Trainer<'_>, checkpoints: &Checkpoints) -> Result<TrainReport, TrainError> {
    let steps = trainer.config().num_steps();
    let (progress, remarks) = checkpoints.load(trainer)?;
    match progress {
        Some(progress) if progress.step == steps => {
            trainer.finish_average()?;
            Ok(report(progress, Some(steps), remarks))
        }
        other => {
            let newest = other
                .map_or("there is none".into(), |p| format!("the newest whole one is of step {}", p.step));
            let reason = remarks.into_iter().chain([newest]).collect::<Vec<_>>().join("; ");
            Err(TrainError::Unfinished { steps, reason })
        }
    }
}

fn report(progress: Progress, resumed_at: Option<u64>, mut remarks: Vec<String>) -> TrainReport {
    let (history, seconds): (Vec<_>, Vec<_>) = progress.history.into_iter().unzip();
    remarks.extend(skips(&history));
    TrainReport { history, seconds, resumed_at, remarks }
}

/// The same ranks found wrong again before a step that is new: going back for them is not worth it.
#[derive(Default)]
struct Rollbacks {
    furthest: Option<u64>,
    ranks: Vec<usize>,
    in_vain: u32,
}

impl Rollbacks {
    const MOST_IN_VAIN: u32 = 3;

    fn after(&mut self, step: u64, found: &[Finding]) -> Result<(), TrainError> {
        let ranks: Vec<usize> = found.iter().flat_map(|finding| finding.ranks.iter().copied()).collect();
        let again = Some(step) <= self.furthest && ranks.iter().any(|rank| self.ranks.contains(rank));
        (self.in_vain, self.ranks) = (if again { self.in_vain + 1 } else { 1 }, ranks);
        self.furthest = self.furthest.max(Some(step));
        if self.in_vain < Self::MOST_IN_VAIN { Ok(()) } else { Err(TrainError::corrupted(step, found)) }
    }
}

fn skips(history: &[StepRecord]) -> impl Iterator<Item = String> + '_ {
    history.iter().filter_map(|r| Some(format!("step {} was skipped: {}", r.step, r.skipped.as_ref()?)))
}

/// JSON has no NaN: a loss that is not finite is written as `null` and read back as NaN.
mod maybe_finite {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(x: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        x.is_finite().then_some(*x).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
    }
}
