//! Training on the ranks of a mesh, as one stage of a run does it.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail};
use llamero_artifact::Draft;
use llamero_comm::{Comm, Solo};
use llamero_model::{Config, Llama, ParamSpec, Placement};
use llamero_tensor::{Backend, DType};
use llamero_train::{
    Checkpoints, Event, Ledger, Mesh, Observer, Ranks, SequenceSource, StepRecord, TrainConfig, TrainError,
    TrainReport, Trainer, build_stages, train,
};

use super::follow::{Lesson, Order};
use crate::processes::Processes;
use crate::progress::Progress;
use crate::ranks;

/// Runs of rows of whole tensors, to begin with.
pub(super) type Values<'a> = dyn Fn(&ParamSpec, Range<usize>) -> Result<Vec<f32>> + Sync + 'a;

/// What is trained, on what.
pub(super) struct Job<'a> {
    pub(super) sizes: &'a Config,
    pub(super) config: TrainConfig,
    pub(super) dtype: DType,
    pub(super) values: &'a Values<'a>,
    pub(super) source: &'a (dyn SequenceSource + Sync),
}

/// On what a job runs.
pub(super) struct Place<'a, 'b> {
    pub(super) mesh: Mesh,
    /// Of all ranks that are threads, or of each that is a process.
    pub(super) threads: Option<usize>,
    /// Where the whole model is at the end.
    pub(super) backend: &'b dyn Backend,
    /// Ranks that are processes, and what the others must know to do the same.
    pub(super) processes: Option<(&'a Processes, Lesson)>,
}

/// Where a job notes how it goes on.
pub(super) struct Notes<'a> {
    pub(super) name: &'static str,
    pub(super) draft: &'a Draft,
    pub(super) ledger: &'a Ledger,
}

/// A finished job: the whole model on one rank.
pub(super) struct Trained<'b> {
    pub(super) trainer: Trainer<'b>,
    pub(super) report: TrainReport,
    /// Largest number of bytes of tensors on each rank, added up.
    pub(super) peak_bytes: usize,
}

impl Job<'_> {
    /// Trains to the end.
    pub(super) fn run<'b>(
        &self,
        place: &Place<'_, 'b>,
        checkpoints: &Checkpoints,
        notes: &Notes<'_>,
    ) -> Result<Trained<'b>> {
        let (mesh, backend) = (place.mesh, place.backend);
        mesh.check(self.sizes, &self.config)?;
        let launched = Event::Launched { makes: notes.draft.id(), ranks: mesh.size() };
        notes.ledger.note(launched).with_context(|| format!("`{}`", notes.ledger.path().display()))?;
        let mut watch = notes.watch(&self.config, checkpoints);
        if mesh.size() == 1 {
            let mut trainer = self.whole(backend, self.config.clone())?;
            let report = train(&mut trainer, self.source, checkpoints, &mut watch)?;
            return Ok(Trained { trainer, report, peak_bytes: backend.memory().peak_bytes });
        }
        let (of_first, peak_bytes) = match &place.processes {
            Some((processes, lesson)) => {
                processes.give(&Order::Train(lesson.clone()))?;
                processes.work(mesh, place.threads, |cpu, ranks| {
                    self.one_rank((cpu, ranks), checkpoints, &mut watch)
                })?
            }
            None => self.on_threads(place, checkpoints, watch)?,
        };
        // The last checkpoint of a mesh is that of its last step: one rank takes it whole.
        let alone = TrainConfig { pipeline: Default::default(), ..self.config.clone() };
        let mut trainer = self.whole(backend, alone)?;
        let whole = train(&mut trainer, self.source, checkpoints, &mut Nobody)?;
        if whole.resumed_at != Some(self.config.num_steps()) {
            let remarks = whole.remarks.join("; ");
            bail!(
                "the last checkpoint of {mesh} cannot be read back: {remarks}\nhint: run the same command again"
            );
        }
        let report = TrainReport { resumed_at: of_first.resumed_at, remarks: of_first.remarks, ..whole };
        Ok(Trained { trainer, report, peak_bytes })
    }

    /// Ranks that are threads; what the first came to.
    fn on_threads(
        &self,
        place: &Place<'_, '_>,
        checkpoints: &Checkpoints,
        watch: Watch<'_>,
    ) -> Result<(TrainReport, usize)> {
        let cpus = ranks::devices(place.mesh, place.threads)?;
        let watch = Mutex::new(Some(watch));
        let done = ranks::on_threads(place.mesh, &cpus, |cpu, ranks| {
            let first = ranks.all.rank() == 0;
            let watch = first.then(|| watch.lock().ok()?.take()).flatten();
            let mut observer: Box<dyn Observer> = match watch {
                Some(watch) => Box::new(watch),
                None => Box::new(Nobody),
            };
            self.one_rank((cpu, ranks), checkpoints, &mut *observer)
        })?;
        let Some(of_first) = done.into_iter().next() else { unreachable!("a mesh has ranks") };
        Ok(of_first)
    }

    /// What each rank of a mesh does: its report, and the bytes of tensors on all ranks at their peaks.
    pub(super) fn one_rank(
        &self,
        (cpu, ranks): (&dyn Backend, Ranks),
        checkpoints: &Checkpoints,
        observer: &mut dyn Observer,
    ) -> Result<(TrainReport, usize)> {
        let all = Arc::clone(&ranks.all);
        let stages = build_stages(self.sizes, &self.config, &ranks, (cpu, self.dtype), self.values)?;
        let mut trainer = Trainer::on_mesh(stages, ranks, cpu, self.config.clone());
        let report = train(&mut trainer, self.source, checkpoints, observer)?;
        let peak = cpu.memory().peak_bytes.to_le_bytes().to_vec();
        let peaks = all.all_gather(peak.into()).map_err(TrainError::from)?;
        let peaks = peaks.iter().filter_map(|bytes| Some(usize::from_le_bytes(bytes[..].try_into().ok()?)));
        Ok((report, peaks.sum()))
    }

    /// A trainer of the whole model.
    fn whole<'b>(&self, backend: &'b dyn Backend, config: TrainConfig) -> Result<Trainer<'b>> {
        let solo: Arc<dyn Comm> = Arc::new(Solo);
        let place = Placement::whole(self.sizes);
        let model = Llama::build(self.sizes, &place, (backend, self.dtype), &solo, self.values)?;
        Ok(Trainer::new(model, backend, config))
    }
}

impl<'a> Notes<'a> {
    fn watch(&self, config: &TrainConfig, checkpoints: &Checkpoints) -> Watch<'a> {
        let steps = config.num_steps();
        let bar = Progress::new(self.name, steps, "steps").from(checkpoints.newest_step());
        Watch { bar, steps, name: self.name, draft: self.draft, ledger: self.ledger }
    }
}

/// Shows progress, and keeps the ledger.
struct Watch<'a> {
    bar: Progress,
    steps: u64,
    name: &'static str,
    draft: &'a Draft,
    ledger: &'a Ledger,
}

impl Watch<'_> {
    /// Losing a note is no reason to stop.
    fn note(&self, event: Event) {
        self.ledger.note(event).ok();
    }
}

impl Observer for Watch<'_> {
    fn ready(&mut self, step: u64) {
        self.note(Event::Ready { step });
    }

    fn step(&mut self, record: &StepRecord, rate: f64) {
        self.note(Event::Step { step: record.step });
        if record.step % 100 == 99 {
            // For whoever opens the unfinished folder.
            drop(self.draft.progress(&format!("step {} of {}", record.step + 1, self.steps)));
        }
        self.bar.at(record.step + 1, &format!("loss {:.3} {rate:.0} tokens/s", record.loss));
        if let Some(reason) = &record.skipped {
            say!("{:>10} step {} skipped: {reason}", self.name, record.step);
        }
    }

    fn saved(&mut self, step: u64) {
        self.note(Event::Saved { step });
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.bar.finish();
    }
}

/// Of a rank that is not the first.
pub(super) struct Nobody;

impl Observer for Nobody {
    fn step(&mut self, _: &StepRecord, _: f64) {}
}
