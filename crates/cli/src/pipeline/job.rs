//! Training on the ranks of a mesh, as one stage of a run does it.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::{Context, Result};
use llamero_artifact::Draft;
use llamero_comm::{Comm, CommError, Solo, WorldOptions};
use llamero_cpu::Cpu;
use llamero_model::{Config, Llama, ParamSpec, Placement};
use llamero_tensor::{Backend, CheckedProducts, DType};
use llamero_train::{
    Checkpoints, Event, Finding, GoodputMeter, Guard, Ledger, LongStep, Mesh, Observer, Orders, Ranks,
    SequenceSource, StepRecord, Stragglers, TrainConfig, TrainError, TrainReport, Trainer, build_stages,
    finished, train,
};

use super::follow::{Lesson, Order};
use crate::processes::Processes;
use crate::progress::Progress;
use crate::ranks;
use crate::recipe::RunSection;

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
    /// Threads of all ranks that are threads, or of each that is a process.
    pub(super) threads: Option<usize>,
    /// What is watched for silent corruption.
    pub(super) guard: Guard,
    /// How ranks talk to each other.
    pub(super) world: WorldOptions,
    /// Faults that ranks do to themselves when a supervisor in chaos mode says so.
    pub(super) orders: Option<Orders>,
}

impl How {
    /// As a recipe says.
    pub(super) fn new(section: &RunSection, orders: Option<&PathBuf>) -> Result<Self> {
        Ok(Self {
            mesh: section.mesh()?,
            threads: section.threads,
            guard: section.guard()?,
            world: section.world()?,
            orders: orders.map(Orders::new),
        })
    }

    fn watched<'b>(&self, trainer: Trainer<'b>) -> Trainer<'b> {
        let trainer = trainer.guarded(self.guard);
        match &self.orders {
            Some(orders) => trainer.obeying(orders.clone()),
            None => trainer,
        }
    }
}

/// What an error that ends a job on rank `by` tells of ranks. Losing a note must not hide the error.
pub(super) fn note_of_ranks(ledger: &Ledger, by: usize, error: &anyhow::Error) {
    let Some(TrainError::Comm(error)) = error.downcast_ref() else { return };
    let reason = error.to_string();
    let event = match error {
        CommError::Damaged { .. } => Event::Damaged { reason },
        CommError::Timeout { world, .. } => Event::Blamed { rank: *world, by, reason },
        _ => return,
    };
    ledger.note(event).ok();
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
    /// Trains to the end; where ranks are `processes`, the others learn what they need to know for it.
    pub(super) fn run<'b>(
        &self,
        (how, processes): (&How, Option<(&Processes, Lesson)>),
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
            let mut watch = notes.watch(&self.config, mesh.size());
            let report = train(&mut trainer, self.source, checkpoints, &mut watch)?;
            return Ok(Trained { trainer, report, peak_bytes: backend.memory().peak_bytes });
        }
        let watch = notes.watch(&self.config, mesh.size());
        let (of_first, peak_bytes) = match processes {
            Some((processes, lesson)) => {
                let mut watch = watch;
                processes.give(&Order::Train(lesson))?;
                processes.work((mesh, how.threads), (how.world, &notes.flight), |cpu, ranks| {
                    let done = self.one_rank(how, (cpu, ranks), checkpoints, &mut watch);
                    done.inspect_err(|error| note_of_ranks(notes.ledger, 0, error))
                })?
            }
            None => self.on_threads(how, checkpoints, notes, watch)?,
        };
        // The last checkpoint of a mesh is that of its last step: one rank takes it whole.
        let alone = TrainConfig { pipeline: Default::default(), ..self.config.clone() };
        let mut trainer = self.whole(backend, alone)?;
        let whole = finished(&mut trainer, checkpoints)?;
        let report = TrainReport { resumed_at: of_first.resumed_at, remarks: of_first.remarks, ..whole };
        Ok(Trained { trainer, report, peak_bytes })
    }

    /// Ranks that are threads; what the first came to.
    fn on_threads(
        &self,
        how: &How,
        checkpoints: &Checkpoints,
        notes: &Notes<'_>,
        watch: Watch<'_>,
    ) -> Result<(TrainReport, usize)> {
        let cpus = ranks::devices(how.mesh, how.threads)?;
        let watch = Mutex::new(Some(watch));
        let done = ranks::on_threads(how.mesh, (how.world, Some(&notes.flight)), &cpus, |cpu, ranks| {
            let rank = ranks.all.rank();
            let watch = (rank == 0).then(|| watch.lock().ok()?.take()).flatten();
            let mut observer: Box<dyn Observer> = match watch {
                Some(watch) => Box::new(watch),
                None => Box::new(Nobody),
            };
            let done = self.one_rank(how, (cpu, ranks), checkpoints, &mut *observer);
            done.inspect_err(|error| note_of_ranks(notes.ledger, rank, error))
        })?;
        let Some(of_first) = done.into_iter().next() else { unreachable!("a mesh has ranks") };
        Ok(of_first)
    }

    /// What each rank of a mesh does: its report, and the bytes of tensors on all ranks at their peaks.
    pub(super) fn one_rank(
        &self,
        how: &How,
        (cpu, ranks): (&Cpu, Ranks),
        checkpoints: &Checkpoints,
        observer: &mut dyn Observer,
    ) -> Result<(TrainReport, usize)> {
        let all = Arc::clone(&ranks.all);
        let checked = CheckedProducts::new(cpu, how.guard.products);
        let device: &dyn Backend = if how.guard.products > 0 { &checked } else { cpu };
        let stages = build_stages(self.sizes, &self.config, &ranks, (device, self.dtype), self.values)?;
        let mut trainer = how.watched(Trainer::on_mesh(stages, ranks, device, self.config.clone()));
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
    fn watch(&self, config: &TrainConfig, ranks: usize) -> Watch<'a> {
        let steps = config.num_steps();
        let bar = Progress::new(self.name, steps, "steps");
        let entries = self.ledger.read().unwrap_or_default();
        let (stragglers, mut meter) = (Stragglers::since(&entries), GoodputMeter::default());
        entries.iter().for_each(|entry| meter.note(entry));
        Watch {
            bar,
            steps,
            name: self.name,
            draft: self.draft,
            ledger: self.ledger,
            stragglers,
            tokens: 0,
            step_tokens: 0,
            step_seconds: 0.0,
            since: Instant::now(),
            measured: ranks <= crate::machine::threads(),
            meter,
        }
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
    /// Tokens up to the newest step, and of it.
    tokens: u64,
    step_tokens: u64,
    step_seconds: f64,
    /// Time of the newest note.
    since: Instant,
    /// Whether ranks have a core each, so that it means something how busy they are.
    measured: bool,
    /// Of all jobs up to now.
    meter: GoodputMeter,
}

impl Watch<'_> {
    /// Losing a note is no reason to stop.
    fn note(&mut self, event: Event) {
        if let Ok(entry) = self.ledger.note(event) {
            self.meter.note(&entry);
            self.since = Instant::now();
        }
    }
}

impl Observer for Watch<'_> {
    fn ready(&mut self, step: u64) {
        self.note(Event::Ready { step });
        if step > 0 || self.draft.resumed() {
            say!("{:>10} goes on at step {step} of {}", self.name, self.steps);
        }
        self.bar.finish();
        self.bar = Progress::new(self.name, self.steps, "steps").from(step);
    }

    fn step(&mut self, record: &StepRecord, rate: f64) {
        // All that the ledger has it take, not its own time alone: somebody may stand still between two steps.
        self.step_seconds = self.since.elapsed().as_secs_f64();
        self.note(Event::Step { step: record.step });
        self.step_tokens = record.tokens.saturating_sub(std::mem::replace(&mut self.tokens, record.tokens));
        if record.step % 100 == 99 {
            // For whoever opens the unfinished folder.
            drop(self.draft.progress(&format!("step {} of {}", record.step + 1, self.steps)));
        }
        let effective = 100.0 * self.meter.goodput().effective();
        let message = format!("loss {:.3} {rate:.0} tokens/s, {effective:.1} % effective", record.loss);
        self.bar.at(record.step + 1, &message);
        if let Some(reason) = &record.skipped {
            say!("{:>10} step {} skipped: {reason}", self.name, record.step);
        }
    }

    fn busy(&mut self, step: u64, _: f64, busy: &[f64]) {
        let seconds = self.step_seconds;
        if let Some(LongStep { rank, over }) = self.stragglers.note(self.step_tokens, seconds, busy) {
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
            self.note(Event::Blamed { rank, by: rank, reason });
        }
    }

    fn copied(&mut self, step: u64) {
        self.note(Event::Copied { step });
    }

    fn saved(&mut self, step: u64) {
        self.note(Event::Saved { step });
    }

    fn trained(&mut self, step: u64) {
        self.note(Event::Trained { step });
    }

    fn stopped(&mut self, step: u64) {
        self.note(Event::Stopped { step });
    }

    fn remark(&mut self, text: &str) {
        say!("{:>10} {text}", self.name);
        self.note(Event::Remark { text: text.into() });
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.bar.finish();
        let slow = if self.measured { self.stragglers.ranking() } else { Vec::new() };
        if !slow.is_empty() {
            let slow: Vec<String> =
                slow.iter().take(3).map(|(rank, times)| format!("rank {rank} ({times:.2} times)")).collect();
            say!("{:>10} busier than the usual rank: {}", self.name, slow.join(", "));
        }
    }
}

/// Of a rank that is not the first.
pub(super) struct Nobody;

impl Observer for Nobody {
    fn step(&mut self, _: &StepRecord, _: f64) {}
}
