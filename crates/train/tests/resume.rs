//! Interrupted runs end with the bytes of uninterrupted ones; damaged checkpoints are passed over; steps that would
//! spoil the model are skipped and said.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use common::{Made, config, llama, values};
use llamero_comm::{Comm, Solo};
use llamero_cpu::Cpu;
use llamero_data::{DataError, Sequence};
use llamero_model::{Config, Llama, Placement};
use llamero_tensor::{Backend, DType};
use llamero_train::{
    Checkpoints, OptimizerConfig, SequenceSource, TrainConfig, TrainError, TrainReport, Trainer, train,
};

const STEPS: u64 = 7;
const BATCH: u64 = 2;
/// A token that [`Made`] is rid of, and that `poisoned` weights have a NaN for.
const RARE: u32 = 210;

fn small() -> Config {
    Config { layers: 2, ..config() }
}

fn settings() -> TrainConfig {
    TrainConfig {
        steps: Some(STEPS),
        sequence: config().context,
        batch: BATCH as usize,
        micro_batch: 2,
        optimizer: OptimizerConfig { peak_lr: 3e-3, warmup_steps: 2, ..OptimizerConfig::default() },
        ..TrainConfig::default()
    }
}

/// Sequences that end with an error, and that hold [`RARE`] or noise at chosen steps.
#[derive(Default)]
struct Source {
    /// Reading for this step fails.
    fails_at: Option<u64>,
    /// [`RARE`] is met in these steps.
    rare_at: Vec<u64>,
    /// From this step on targets have nothing to do with tokens.
    noise_from: Option<u64>,
}

impl SequenceSource for Source {
    fn sequence(&self, index: u64) -> Result<Sequence, DataError> {
        let step = index / BATCH;
        if self.fails_at == Some(step) {
            return Err(DataError::TooLittle { found: "interrupted".into(), hint: String::new() });
        }
        let mut s = Made.sequence(index)?;
        for id in s.tokens.iter_mut().chain(&mut s.targets).filter(|id| **id == RARE) {
            *id = 0;
        }
        if self.rare_at.contains(&step) {
            s.tokens[50] = RARE;
        }
        if self.noise_from.is_some_and(|from| step >= from) {
            for (i, t) in s.targets.iter_mut().enumerate().filter(|(_, t)| **t != u32::MAX) {
                *t = 100 + (i as u32 * 37) % 100;
            }
        }
        Ok(s)
    }
}

fn model(backend: &dyn Backend, dtype: DType) -> Llama {
    llama(&small(), &Placement::whole(&small()), (backend, dtype), Arc::new(Solo))
}

/// A model whose embedding of [`RARE`] is not a number.
fn poisoned(backend: &dyn Backend) -> Llama {
    let ranks: Arc<dyn Comm> = Arc::new(Solo);
    let config = small();
    let Ok(model) = Llama::build::<Infallible>(
        &config,
        &Placement::whole(&config),
        (backend, DType::F32),
        &ranks,
        |s, rows| {
            let mut values = values(s, rows.clone())?;
            if s.id == 0 {
                assert!(rows.start == 0, "a small table comes in one piece");
                values[RARE as usize * s.shape.cols] = f32::NAN;
            }
            Ok(values)
        },
    );
    model
}

fn bytes(model: &Llama, backend: &dyn Backend) -> Vec<u8> {
    model.params().flat_map(|p| backend.download(&p.value)).flat_map(f32::to_le_bytes).collect()
}

fn every_step(dir: &Path) -> Checkpoints {
    Checkpoints::new(dir).every(Duration::ZERO)
}

/// What a run gives: its report, and the bytes of its weights.
type Outcome = (Result<TrainReport, TrainError>, Vec<u8>);

fn run_with(model: Llama, backend: &Cpu, settings: TrainConfig, source: &Source, dir: &Path) -> Outcome {
    run_to(model, backend, settings, source, &every_step(dir))
}

fn run_to(
    model: Llama,
    backend: &Cpu,
    settings: TrainConfig,
    source: &Source,
    checkpoints: &Checkpoints,
) -> Outcome {
    let mut trainer = Trainer::new(model, backend, settings);
    let result = train(&mut trainer, source, checkpoints, &mut |_: &llamero_train::StepRecord, _: f64| ());
    let bytes = bytes(trainer.model(), backend);
    (result, bytes)
}

fn run(dtype: DType, source: &Source, dir: &Path) -> Outcome {
    let backend = Cpu::new(1).unwrap();
    run_with(model(&backend, dtype), &backend, settings(), source, dir)
}

fn uninterrupted(dtype: DType) -> (TrainReport, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let (report, bytes) = run(dtype, &Source::default(), dir.path());
    let report = report.unwrap();
    assert_eq!((report.history.len() as u64, report.resumed_at), (STEPS, None));
    assert!(report.remarks.is_empty(), "{:?}", report.remarks);
    (report, bytes)
}

/// Leaves the checkpoints of a run that stopped before step `at`.
fn interrupt(dtype: DType, at: u64, dir: &Path) {
    let source = Source { fails_at: Some(at), ..Source::default() };
    let error = run(dtype, &source, dir).0.unwrap_err();
    assert!(matches!(error, TrainError::Data(_)), "{error}");
}

#[test]
fn a_resumed_run_ends_with_the_bytes_of_an_uninterrupted_one() {
    for dtype in [DType::F32, DType::Bf16] {
        let (expected, weights) = uninterrupted(dtype);
        for at in 1..STEPS {
            let dir = tempfile::tempdir().unwrap();
            interrupt(dtype, at, dir.path());
            let (report, found) = run(dtype, &Source::default(), dir.path());
            let report = report.unwrap();
            assert_eq!(report.resumed_at, Some(at));
            assert_eq!(report.history, expected.history, "{dtype}, interrupted before step {at}");
            assert!(report.remarks.is_empty(), "{:?}", report.remarks);
            assert!(found == weights, "{dtype}, interrupted before step {at}: other weights");
        }
    }
}

#[test]
fn a_run_that_is_stopped_at_every_step_ends_with_the_same_bytes() {
    let (expected, weights) = uninterrupted(DType::Bf16);
    let dir = tempfile::tempdir().unwrap();
    for step in 0..STEPS {
        let backend = Cpu::new(1).unwrap();
        let mut trainer = Trainer::new(model(&backend, DType::Bf16), &backend, settings());
        let stopped = catch_unwind(AssertUnwindSafe(|| {
            train(
                &mut trainer,
                &Source::default(),
                &every_step(dir.path()),
                &mut |record: &llamero_train::StepRecord, _: f64| {
                    // The step is done but not saved: it is done again after the next start.
                    std::panic::resume_unwind(Box::new(record.step));
                },
            )
        }));
        assert_eq!(*stopped.unwrap_err().downcast::<u64>().unwrap(), step);
        interrupt_or_finish(step, dir.path());
    }
    let (report, found) = run(DType::Bf16, &Source::default(), dir.path());
    assert_eq!(report.unwrap().history, expected.history);
    assert!(found == weights);
}

/// Gets one step further than `step`, unless that is the end.
fn interrupt_or_finish(step: u64, dir: &Path) {
    if step + 1 < STEPS {
        interrupt(DType::Bf16, step + 1, dir);
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Damages files below a folder of checkpoints.
type Damage = (String, Box<dyn Fn(&Path)>);

fn damages(newest: &Path) -> Vec<(Damage, &'static str)> {
    let mut all: Vec<(Damage, &'static str)> = Vec::new();
    for file in ["state.json", "state.blake3", "rank-0000.f32"] {
        let length = std::fs::metadata(newest.join(file)).unwrap().len() as usize;
        for i in 0..15 {
            let at = (length - 1) * i / 14;
            let flip = move |dir: &Path| {
                let mut bytes = std::fs::read(dir.join(file)).unwrap();
                bytes[at] ^= 1;
                std::fs::write(dir.join(file), bytes).unwrap();
            };
            all.push(((format!("byte {at} of `{file}` flipped"), Box::new(flip)), file));
        }
        let cut = move |dir: &Path| {
            let bytes = std::fs::read(dir.join(file)).unwrap();
            std::fs::write(dir.join(file), &bytes[..bytes.len() / 2]).unwrap();
        };
        all.push(((format!("`{file}` cut in half"), Box::new(cut)), file));
        let remove = move |dir: &Path| std::fs::remove_file(dir.join(file)).unwrap();
        all.push(((format!("`{file}` missing"), Box::new(remove)), file));
    }
    all
}

#[test]
fn a_damaged_checkpoint_is_passed_over_by_name_and_the_older_one_is_used() {
    let (expected, weights) = uninterrupted(DType::F32);
    let original = tempfile::tempdir().unwrap();
    interrupt(DType::F32, 5, original.path());
    let newest = "step-0000000005";
    for ((what, damage), file) in damages(&original.path().join(newest)) {
        let dir = tempfile::tempdir().unwrap();
        copy(original.path(), dir.path());
        damage(&dir.path().join(newest));
        let (report, found) = run(DType::F32, &Source::default(), dir.path());
        let report = report.unwrap();
        assert_eq!(report.resumed_at, Some(4), "{what}");
        let [remark] = &report.remarks[..] else { panic!("{what}: {:?}", report.remarks) };
        // A flip in the hash of `state.json` cannot be told from one in `state.json`; the remark names both.
        assert!(remark.contains(newest) && remark.contains(&format!("`{file}`")), "{what}: {remark}");
        assert_eq!(report.history, expected.history, "{what}");
        assert!(found == weights, "{what}");
    }
}

#[test]
fn a_run_without_a_whole_checkpoint_starts_again_only_when_asked() {
    let (expected, weights) = uninterrupted(DType::F32);
    let dir = tempfile::tempdir().unwrap();
    interrupt(DType::F32, 5, dir.path());
    let mut steps: Vec<PathBuf> =
        std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    steps.sort();
    assert_eq!(steps.len(), 2, "the newest and one older: {steps:?}");
    for step in &steps {
        std::fs::write(step.join("rank-0000.f32"), b"").unwrap();
    }
    // What a process that was killed while writing leaves behind.
    std::fs::create_dir(dir.path().join("writing-1")).unwrap();
    std::fs::write(dir.path().join("writing-1/rank-0000.f32"), b"half").unwrap();
    let error = run(DType::F32, &Source::default(), dir.path()).0.unwrap_err().to_string();
    for word in ["step-0000000005", "step-0000000004", "`rank-0000.f32` has 0 bytes", "start_over"] {
        assert!(error.contains(word), "{error}");
    }
    assert!(!dir.path().join("writing-1").exists());
    let backend = Cpu::new(1).unwrap();
    let over = every_step(dir.path()).start_over(true);
    let model = model(&backend, DType::F32);
    let (report, found) = run_to(model, &backend, settings(), &Source::default(), &over);
    let report = report.unwrap();
    assert_eq!((report.resumed_at, report.remarks.len()), (None, 3), "{:?}", report.remarks);
    assert!(report.remarks[2].contains("began again"), "{:?}", report.remarks);
    assert_eq!(over.newest_step(), STEPS - 1, "what is damaged makes room");
    assert_eq!(report.history, expected.history);
    assert!(found == weights);
}

#[test]
fn a_checkpoint_of_another_model_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    interrupt(DType::F32, 3, dir.path());
    let wider = Config { ffn: 92, ..small() };
    // The shapes of all its tensors are those of the saved model.
    let other_heads = Config { heads: 2, kv_heads: 1, head_dim: 20, ..small() };
    for other in [wider, other_heads] {
        let copied = tempfile::tempdir().unwrap();
        copy(dir.path(), copied.path());
        let backend = Cpu::new(1).unwrap();
        let model = llama(&other, &Placement::whole(&other), (&backend, DType::F32), Arc::new(Solo));
        let (report, _) = run_with(model, &backend, settings(), &Source::default(), copied.path());
        let error = report.unwrap_err();
        let TrainError::NoCheckpoint { ref reason, .. } = error else { panic!("{error}") };
        assert_eq!(reason.lines().count(), 2);
        for remark in reason.lines() {
            assert!(remark.contains("step-000000000") && remark.contains("another model"), "{remark}");
        }
    }
}

#[test]
fn a_step_whose_loss_is_no_number_is_skipped_and_said() {
    let backend = Cpu::new(1).unwrap();
    let source = Source { rare_at: vec![3], ..Source::default() };
    let dir = tempfile::tempdir().unwrap();
    let (report, _) = run_with(poisoned(&backend), &backend, settings(), &source, dir.path());
    let report = report.unwrap();
    assert_eq!(report.remarks, ["step 3 was skipped: the loss is NaN"]);
    for record in &report.history {
        assert_eq!(record.skipped.is_some(), record.step == 3);
        assert_eq!(record.loss.is_finite(), record.step != 3, "step {}: {}", record.step, record.loss);
    }
}

#[test]
fn a_skipped_step_changes_nothing() {
    let backend = Cpu::new(1).unwrap();
    let mut trainer = Trainer::new(poisoned(&backend), &backend, settings());
    let source = Source { rare_at: vec![1], ..Source::default() };
    let sequences = |step: u64| -> Vec<Sequence> {
        (BATCH * step..BATCH * (step + 1)).map(|i| source.sequence(i).unwrap()).collect()
    };
    assert_eq!(trainer.step(0, sequences(0)).unwrap().skipped, None);
    let before = bytes(trainer.model(), &backend);
    assert_eq!(trainer.step(1, sequences(1)).unwrap().skipped.as_deref(), Some("the loss is NaN"));
    assert!(bytes(trainer.model(), &backend) == before);
    assert_eq!(trainer.step(2, sequences(2)).unwrap().skipped, None);
    assert!(bytes(trainer.model(), &backend) != before);
}

#[test]
fn a_history_with_a_step_that_was_no_number_is_loaded_again() {
    let backend = Cpu::new(1).unwrap();
    let rare = || Source { rare_at: vec![2], ..Source::default() };
    let (whole, interrupted) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (expected, weights) = run_with(poisoned(&backend), &backend, settings(), &rare(), whole.path());
    let stop = Source { fails_at: Some(4), ..rare() };
    run_with(poisoned(&backend), &backend, settings(), &stop, interrupted.path()).0.unwrap_err();
    let (report, found) = run_with(poisoned(&backend), &backend, settings(), &rare(), interrupted.path());
    let (report, expected) = (report.unwrap(), expected.unwrap());
    assert_eq!(report.resumed_at, Some(4));
    assert_eq!(report.remarks, expected.remarks);
    assert!(report.history[2].loss.is_nan());
    // NaN is not equal to itself, but is written like itself.
    assert_eq!(format!("{:?}", report.history), format!("{:?}", expected.history));
    assert!(found == weights);
}

#[test]
fn a_run_that_only_skips_stops_and_says_where() {
    let backend = Cpu::new(1).unwrap();
    let source = Source { rare_at: vec![1, 3, 4, 5], ..Source::default() };
    let settings = TrainConfig { max_skipped_steps: 3, ..settings() };
    let dir = tempfile::tempdir().unwrap();
    let (result, _) = run_with(poisoned(&backend), &backend, settings.clone(), &source, dir.path());
    let error = result.unwrap_err();
    let TrainError::Diverged { step, skipped, ref reason, sequence } = error else { panic!("{error}") };
    assert_eq!((step, skipped, reason.as_str(), sequence), (5, 3, "the loss is NaN", 5 * BATCH));
    // Starting again does not get past it, though the count of skipped steps comes from the checkpoint.
    let (result, _) = run_with(poisoned(&backend), &backend, settings, &source, dir.path());
    assert_eq!(result.unwrap_err().to_string(), error.to_string());
}

#[test]
fn a_spike_of_the_loss_is_skipped() {
    let backend = Cpu::new(1).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let optimizer = OptimizerConfig { peak_lr: 1e-2, ..settings().optimizer };
    let settings = TrainConfig { steps: Some(26), spike_factor: 1.2, optimizer, ..settings() };
    let source = Source { noise_from: Some(25), ..Source::default() };
    let (report, _) = run_with(model(&backend, DType::F32), &backend, settings, &source, dir.path());
    let report = report.unwrap();
    let [remark] = &report.remarks[..] else { panic!("{:?}", report.remarks) };
    assert!(
        remark.starts_with("step 25 was skipped: the loss ") && remark.contains("recent mean"),
        "{remark}"
    );
}
