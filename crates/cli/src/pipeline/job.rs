//! Training on the ranks of a mesh, as one stage of a run does it.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use llamero_artifact::Draft;
use llamero_comm::{Comm, CommError, Solo, WorldOptions};
use llamero_model::{Config, Llama, ParamSpec, Placement};
use llamero_tensor::{Backend, CheckedProducts, DType};
use llamero_train::{
    Checkpoints, Event, Finding, Guard, Ledger, LongStep, Mesh, Observer, Orders, SequenceSource, StepRecord,
    Stragglers, TrainConfig, TrainError, TrainReport, Trainer, build_stages, train,
};

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

/// How it is trained; nothing here changes what comes out.
pub(super) struct How {
    pub(super) mesh: Mesh,
    /// Threads of all ranks together; all cores when absent.
    pub(super) threads: Option<usize>,
    /// What is watched for silent corruption.
    pub(super) guard: Guard,
    /// How ranks talk to each other.
    pub(super) world: WorldOptions,
    /// Faults that ranks do to themselves when a supervisor in chaos mode says so.
    pub(super) orders: Option<Orders>,
}

impl How {
    fn watched<'b>(&self, trainer: Trainer<'b>) -> Trainer<'b> {
        let trainer = trainer.guarded(self.guard);
        match &self.orders {
            Some(orders) => trainer.obeying(orders.clone()),
            None => trainer,
        }
    }
}

/// Where a job notes how it goes on.
pub(super) struct Notes<'a> {
    pub(super) name: &'static str,
    pub(super) draft: &'a Draft,
    pub(super) ledger: &'a Ledger,
    /// Folder for what ranks did last before something went wrong between them.
    pub(super) flight: PathBuf,
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
        how: &How,
        backend: &'b dyn Backend,
        checkpoints: &Checkpoints,
        notes: &Notes<'_>,
    ) -> Result<Trained<'b>> {
        let mesh = how.mesh;
        mesh.check(self.sizes, &self.config)?;
        let launched = Event::Launched { makes: notes.draft.id(), ranks: mesh.size() };
        notes.ledger.note(launched).with_context(|| format!("`{}`", notes.ledger.path().display()))?;
        if mesh.size() == 1 {
            let mut trainer = how.watched(self.whole(backend, self.config.clone())?);
            let mut watch = notes.watch(&self.config, checkpoints);
            let report = train(&mut trainer, self.source, checkpoints, &mut watch)?;
            return Ok(Trained { trainer, report, peak_bytes: backend.memory().peak_bytes });
        }
        let cpus = ranks::devices(mesh, how.threads)?;
        let reports = ranks::on_threads(mesh, (how.world, Some(&notes.flight)), &cpus, |cpu, ranks| {
            let first = ranks.all.rank() == 0;
            let checked = CheckedProducts::new(cpu, how.guard.products);
            let device: &dyn Backend = if how.guard.products > 0 { &checked } else { cpu };
            let stages = build_stages(self.sizes, &self.config, &ranks, (device, self.dtype), self.values)?;
            let mut trainer = how.watched(Trainer::on_mesh(stages, ranks, device, self.config.clone()));
            let mut watch: Box<dyn Observer> =
                if first { Box::new(notes.watch(&self.config, checkpoints)) } else { Box::new(Nobody) };
            let report = train(&mut trainer, self.source, checkpoints, &mut *watch);
            if let Err(TrainError::Comm(damaged @ CommError::Damaged { .. })) = &report {
                // No step can be made with it, so this job ends here.
                let (step, found) = (checkpoints.newest_step(), vec![damaged.to_string()]);
                notes.ledger.note(Event::Corrupted { step, found }).ok();
            }
            Ok((report?, cpu.memory().peak_bytes))
        })?;
        drop(cpus);
        let peak_bytes = reports.iter().map(|(_, peak)| peak).sum();
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
        let Some((of_first, _)) = reports.into_iter().next() else { unreachable!("a mesh has ranks") };
        let report = TrainReport { resumed_at: of_first.resumed_at, remarks: of_first.remarks, ..whole };
        Ok(Trained { trainer, report, peak_bytes })
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
        let stragglers = Stragglers::default();
        Watch { bar, steps, name: self.name, draft: self.draft, ledger: self.ledger, stragglers }
    }
}

/// Shows progress, and keeps the ledger.
struct Watch<'a> {
    bar: Progress,
    steps: u64,
    name: &'static str,
    draft: &'a Draft,
    ledger: &'a Ledger,
    stragglers: Stragglers,
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

    fn busy(&mut self, step: u64, seconds: f64, busy: &[f64]) {
        if let Some(LongStep { rank, over }) = self.stragglers.note(seconds, busy) {
            self.note(Event::Slow { step, rank, over });
        }
    }

    fn corrupted(&mut self, step: u64, found: &[Finding]) {
        let blamed =
            found.iter().filter_map(|f| Some((*f.ranks.first()?, f))).filter(|(_, f)| f.ranks.len() == 1);
        let blamed: Vec<(usize, String)> = blamed.map(|(rank, f)| (rank, f.to_string())).collect();
        let found: Vec<String> = found.iter().map(ToString::to_string).collect();
        say!("{:>10} going back: {}", self.name, found.join("; "));
        self.note(Event::Corrupted { step, found });
        for (rank, reason) in blamed {
            self.note(Event::Blamed { rank, reason });
        }
    }

    fn copied(&mut self, step: u64) {
        self.note(Event::Copied { step });
    }

    fn saved(&mut self, step: u64) {
        self.note(Event::Saved { step });
    }

    fn remark(&mut self, text: &str) {
        say!("{:>10} {text}", self.name);
        self.note(Event::Remark { text: text.into() });
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.bar.finish();
        for (rank, times) in self.stragglers.ranking() {
            say!("{:>10} rank {rank} is busy {times:.2} times as long as the others", self.name);
        }
    }
}

/// Of a rank that is not the first.
struct Nobody;

impl Observer for Nobody {
    fn step(&mut self, _: &StepRecord, _: f64) {}
}
