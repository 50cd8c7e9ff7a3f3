//! Kills between any two changes to the disk, failures of one rank, and what a copy holds.

mod ladder;

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use llamero_comm::{Threads, World, WorldOptions};
use llamero_cpu::Cpu;
use llamero_data::{DataError, Sequence};
use llamero_model::{Config, initial_values};
use llamero_tensor::{Backend, DType};

use super::failpoint::stop_after;
use super::format::{self, Piece};
use super::{Checkpoints, Failures, Saver, snapshot};
use crate::{
    Mesh, Observer, Ranks, SequenceSource, StepRecord, TrainConfig, TrainError, TrainReport, Trainer,
    build_stages, train,
};

const STEPS: u64 = 6;

fn model() -> Config {
    let preset = Config::preset("1m").unwrap();
    Config { dim: 8, layers: 1, heads: 2, kv_heads: 2, head_dim: 4, ffn: 12, vocab: 19, context: 8, ..preset }
}

fn settings() -> TrainConfig {
    TrainConfig { steps: Some(STEPS), sequence: 8, batch: 2, micro_batch: 1, ..TrainConfig::default() }
}

/// Made-up sequences, as if there were none from a step on.
struct Until(u64);

impl SequenceSource for Until {
    fn sequence(&self, index: u64) -> Result<Sequence, DataError> {
        if index >= 2 * self.0 {
            return Err(DataError::TooLittle { found: format!("sequence {index}"), hint: String::new() });
        }
        let tokens: Vec<u32> = (0..8).map(|i| ((index + 1) * (i + 3) * 7 % 19) as u32).collect();
        let targets = tokens.iter().map(|t| (t + 5) % 19).collect();
        Ok(Sequence { tokens, targets, documents: vec![8] })
    }
}

/// What an observer was told.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    copied: Vec<u64>,
    saved: Vec<u64>,
    remarks: Vec<String>,
}

struct Watch<'a> {
    seen: Seen,
    after: &'a dyn Fn(u64),
}

impl Observer for Watch<'_> {
    fn step(&mut self, record: &StepRecord, _: f64) {
        (self.after)(record.step + 1);
    }

    fn copied(&mut self, step: u64) {
        self.seen.copied.push(step);
    }

    fn saved(&mut self, step: u64) {
        self.seen.saved.push(step);
    }

    fn remark(&mut self, text: &str) {
        self.seen.remarks.push(text.into());
    }
}

type Outcome = (Result<TrainReport, TrainError>, Vec<f32>, Seen);

fn rank(ranks: Ranks, dtype: DType, checkpoints: &Checkpoints, until: u64, after: &dyn Fn(u64)) -> Outcome {
    let backend = Cpu::new(1).unwrap();
    let mut trainer = trainer(ranks, dtype, &backend);
    let mut watch = Watch { seen: Seen::default(), after };
    let result = train(&mut trainer, &Until(until), checkpoints, &mut watch);
    let weights = trainer.stages().iter().flat_map(|s| s.params()).flat_map(|p| backend.download(&p.value));
    (result, weights.collect(), watch.seen)
}

fn trainer(ranks: Ranks, dtype: DType, backend: &Cpu) -> Trainer<'_> {
    let values = |spec: &_, rows| Ok::<_, Infallible>(initial_values(spec, rows, 1));
    let Ok(stages) = build_stages(&model(), &settings(), &ranks, (backend, dtype), values);
    Trainer::on_mesh(stages, ranks, backend, settings())
}

fn alone(checkpoints: &Checkpoints, until: u64) -> Outcome {
    rank(Ranks::solo(), DType::Bf16, checkpoints, until, &|_| ())
}

fn every_step(dir: &Path) -> Checkpoints {
    Checkpoints::new(dir).every(Duration::ZERO)
}

/// A run that nothing happens to.
fn calm() -> (Vec<StepRecord>, Vec<f32>) {
    let dir = tempfile::tempdir().unwrap();
    let (report, weights, seen) = alone(&every_step(dir.path()), STEPS);
    assert_eq!(seen.copied, [1, 2, 3, 4, 5]);
    assert_eq!(seen.saved, [1, 2, 3, 4, 5]);
    (report.unwrap().history, weights)
}

fn steps(dir: &Path) -> Vec<u64> {
    format::published(dir).into_iter().map(|(step, _)| step).collect()
}

#[test]
fn a_copy_stays_as_it_is_when_training_goes_on() {
    let copy = |trainer: &Trainer<'_>| {
        let mut all: Vec<(Piece, Bytes)> = Vec::new();
        let mut take = |piece, bytes| {
            all.push((piece, bytes));
            Ok(())
        };
        snapshot::pieces(trainer, true, &mut take).unwrap();
        all
    };
    for dtype in [DType::F32, DType::Bf16] {
        let backend = Cpu::new(2).unwrap();
        let mut trainer = trainer(Ranks::solo(), dtype, &backend);
        let step = |trainer: &mut Trainer<'_>, step: u64| {
            let sequences = (2 * step..2 * step + 2).map(|i| Until(STEPS).sequence(i).unwrap()).collect();
            trainer.step(step, sequences).unwrap();
        };
        step(&mut trainer, 0);
        let copied = copy(&trainer);
        // Those bytes, elsewhere.
        let bytes: Vec<Vec<u8>> = copied.iter().map(|(_, bytes)| bytes.to_vec()).collect();
        let without_copy = |trainer: &Trainer<'_>| {
            let mut all = Vec::new();
            let mut take = |_, bytes: Bytes| {
                all.push(bytes.to_vec());
                Ok(())
            };
            snapshot::pieces(trainer, false, &mut take).unwrap();
            all
        };
        assert_eq!(without_copy(&trainer), bytes);
        step(&mut trainer, 1);
        step(&mut trainer, 2);
        assert!(copied.iter().zip(&bytes).all(|((_, now), then)| now[..] == then[..]), "{dtype}");
        // Moments are zeros before the first step, so this would be seen.
        assert_ne!(without_copy(&trainer), bytes, "{dtype}");
    }
}

/// Calls `check` for 0, 1, 2 … changes to the disk until it says that nothing was stopped, which takes more than `least`.
fn every_change(least: isize, mut check: impl FnMut(isize) -> bool) {
    let changes = (0..400).find(|&n| check(n)).expect("ends within 400 changes");
    assert!(changes > least, "only {changes} changes: the fail points are not reached");
}

#[test]
fn a_kill_between_any_two_changes_leaves_a_checkpoint_that_loads() {
    let (history, weights) = calm();
    for (keep, background) in [(1, true), (2, false)] {
        let original = tempfile::tempdir().unwrap();
        alone(&every_step(original.path()).keep(keep), 2).0.unwrap_err();
        every_change(20, |n| {
            let dir = tempfile::tempdir().unwrap();
            copy_all(original.path(), dir.path());
            let checkpoints = every_step(dir.path()).keep(keep).background(background);
            stop_after(Some(n));
            let (killed, ..) = alone(&checkpoints, 3);
            stop_after(None);
            assert!(matches!(killed, Err(TrainError::Data(_))), "{killed:?}");
            let saved = checkpoints.newest_step() == 3;
            // What is too old goes last.
            let all_done = saved && std::fs::read_dir(dir.path()).unwrap().count() == keep;
            let (report, found, _) = alone(&checkpoints.every(Duration::from_secs(1000)), STEPS);
            let report = report.unwrap();
            // Nothing that has a name is half.
            assert_eq!(report.resumed_at, Some(if saved { 3 } else { 2 }), "stopped after {n} changes");
            assert!(report.remarks.is_empty(), "{n}: {:?}", report.remarks);
            assert_eq!(report.history, history, "stopped after {n} changes");
            assert!(found == weights, "stopped after {n} changes: other weights");
            let there = steps(dir.path());
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), there.len(), "leftovers after {n}");
            all_done
        });
    }
}

/// Runs every rank of a mesh on a thread; `after` is called on each after every step.
fn on_mesh(
    mesh: &str,
    dtype: DType,
    checkpoints: &Checkpoints,
    until: u64,
    after: &(dyn Fn(usize, u64) + Sync),
) -> Vec<Outcome> {
    let mesh: Mesh = mesh.parse().unwrap();
    let one = |world: World| {
        let ranks = Ranks::new(&world, mesh);
        let (all, number) = (Arc::clone(&ranks.all), ranks.all.rank());
        let outcome = rank(ranks, dtype, checkpoints, until, &|step| after(number, step));
        // A rank that goes takes its messages with it.
        all.barrier().unwrap();
        outcome
    };
    let one = &one;
    std::thread::scope(|scope| {
        let worlds = Threads::world(mesh.size(), WorldOptions::default());
        let ranks: Vec<_> = worlds.into_iter().map(|world| scope.spawn(move || one(world))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

#[test]
fn a_checkpoint_that_one_rank_cannot_write_is_told_and_tried_again() {
    let calm_dir = tempfile::tempdir().unwrap();
    let expected = on_mesh("dp=2,pp=2", DType::F32, &every_step(calm_dir.path()), STEPS, &|_, _| ());
    for bad in 0..4 {
        let dir = tempfile::tempdir().unwrap();
        let checkpoints = every_step(dir.path());
        let found = on_mesh("dp=2,pp=2", DType::F32, &checkpoints, STEPS, &|rank, step| {
            // After the second step, and the third, nothing can be written there.
            if rank == bad {
                stop_after((step == 2 || step == 3).then_some(1));
            }
        });
        for ((found, weights, seen), (expected, expected_weights, _)) in found.iter().zip(&expected) {
            let (found, expected) = (found.as_ref().unwrap(), expected.as_ref().unwrap());
            assert_eq!(found.history, expected.history);
            assert!(weights == expected_weights);
            assert_eq!(seen.saved, [1, 4, 5, 6]);
            assert_eq!(found.remarks, seen.remarks);
            let [second, third] = &seen.remarks[..] else { panic!("{:?}", seen.remarks) };
            let path = dir.path().join("writing-").display().to_string();
            for (remark, step) in [(second, "step 2"), (third, "step 3")] {
                let words = [step, &format!("rank {bad}:"), &path, "stopped by a test"];
                assert!(words.iter().all(|word| remark.contains(word)), "{remark}");
            }
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "the newest and one older");
    }
}

#[test]
fn what_all_ranks_have_written_is_published_although_one_of_them_has_gone() {
    let (dir, mesh) = (tempfile::tempdir().unwrap(), Mesh { dp: 2, ..Mesh::default() });
    let checkpoints = every_step(dir.path());
    let one = |world: World| {
        let ranks = Ranks::new(&world, mesh);
        // The second rank leaves after two steps.
        let until = if ranks.all.rank() == 1 { 2 } else { STEPS };
        rank(ranks, DType::F32, &checkpoints, until, &|_| ()).0.unwrap_err()
    };
    let one = &one;
    let errors: Vec<TrainError> = std::thread::scope(|scope| {
        let worlds = Threads::world(2, WorldOptions::default());
        let ranks: Vec<_> = worlds.into_iter().map(|world| scope.spawn(move || one(world))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    });
    assert!(matches!(errors[..], [TrainError::Comm(_), TrainError::Data(_)]), "{errors:?}");
    assert_eq!(steps(dir.path()), [1, 2]);
}

#[test]
fn checkpoints_that_fail_again_and_again_end_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let (result, ..) = rank(Ranks::solo(), DType::F32, &every_step(dir.path()), STEPS, &|step| {
        stop_after((step >= 2).then_some(0));
    });
    stop_after(None);
    let error = result.unwrap_err();
    let TrainError::NotSaved { times: 3, .. } = error else { panic!("{error}") };
    assert!(error.to_string().contains("step 4"), "{error}");
    // The first of a run is not worth two more tries: there is nothing to fall back on.
    let file = dir.path().join("file");
    std::fs::write(&file, b"in the way").unwrap();
    let error = alone(&every_step(&file), STEPS).0.unwrap_err();
    let TrainError::NotSaved { times: 1, ref reason } = error else { panic!("{error}") };
    assert!(reason.contains("step 1") && reason.contains(&file.display().to_string()), "{reason}");
}

#[test]
fn a_folder_that_is_lost_under_a_running_job_costs_nothing() {
    let (history, weights) = calm();
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("checkpoints");
    let checkpoints = every_step(&dir).background(false);
    let (result, found, seen) = rank(Ranks::solo(), DType::Bf16, &checkpoints, STEPS, &|step| match step {
        2 => std::fs::remove_dir_all(&dir).unwrap(),
        3 => {
            std::fs::remove_dir_all(&dir).unwrap();
            std::fs::write(&dir, b"in the way").unwrap();
        }
        5 => std::fs::remove_file(&dir).unwrap(),
        _ => {}
    });
    assert_eq!(result.unwrap().history, history);
    assert!(found == weights);
    assert_eq!(seen.saved, [1, 2, 5]);
    let told = |what: &str| seen.remarks.iter().filter(|remark| remark.contains(what)).count();
    assert_eq!((told("was not saved"), told("is gone"), seen.remarks.len()), (2, 2, 4), "{seen:?}");
    assert_eq!(steps(&dir), [5]);
}

#[test]
fn asked_to_stop_the_newest_state_is_saved() {
    for mesh in ["dp=1", "dp=2"] {
        let (dir, stop) = (tempfile::tempdir().unwrap(), Arc::new(AtomicBool::new(false)));
        let checkpoints =
            Checkpoints::new(dir.path()).every(Duration::from_secs(1000)).until(Arc::clone(&stop));
        let all = on_mesh(mesh, DType::F32, &checkpoints, STEPS, &|_, step| {
            if step == 3 {
                stop.store(true, Ordering::Relaxed);
            }
        });
        for (result, _, seen) in all {
            let error = result.unwrap_err();
            let TrainError::Stopped { step } = error else { panic!("{error}") };
            // Another rank may see step 3 a little earlier than the first.
            assert!(step == 2 || step == 3);
            assert_eq!(seen.saved, [step]);
            assert_eq!(checkpoints.newest_step(), step);
        }
    }
}

#[test]
fn the_time_between_two_follows_from_what_they_cost() {
    let backend = Cpu::new(1).unwrap();
    let trainer = trainer(Ranks::solo(), DType::F32, &backend);
    let pause = |checkpoints: &Checkpoints, cost: Option<(u64, u64)>| {
        let mut saver = Saver::new(checkpoints, &trainer, None);
        saver.cost = cost.map(|(stall, all)| (Duration::from_millis(stall), Duration::from_millis(all)));
        saver.pause().as_secs_f64()
    };
    let calm = Checkpoints::new("x");
    assert_eq!(pause(&calm, None), 10.0);
    let usual = pause(&calm, Some((100, 1000)));
    assert!((46.0..47.0).contains(&usual), "√(2 · 0.1 s · 3 h): {usual}");
    // One in two minutes or so.
    let broken = Checkpoints::new("x").failures(Failures { seconds: 1200.0, number: 99 });
    let often = pause(&broken, Some((100, 100)));
    assert_eq!(often, 10.0, "no more than one part in a hundred");
    assert!(pause(&broken, Some((1, 100))) < 1.01);
    assert_eq!(pause(&broken, Some((1, 700))), 7.0, "writing wants its time");
    let given = Checkpoints::new("x").every(Duration::from_secs(3));
    assert_eq!(pause(&given, Some((100, 1000))), 3.0);
}

#[test]
fn so_many_are_kept() {
    for keep in [1, 3] {
        let dir = tempfile::tempdir().unwrap();
        alone(&every_step(dir.path()).keep(keep), STEPS).0.unwrap();
        assert_eq!(steps(dir.path()), (6 - keep as u64..6).collect::<Vec<_>>());
    }
}

fn copy_all(from: &Path, to: &Path) {
    for entry in walkdir::WalkDir::new(from).min_depth(1) {
        let entry = entry.unwrap();
        let target = to.join(entry.path().strip_prefix(from).unwrap());
        if entry.file_type().is_dir() {
            std::fs::create_dir_all(target).unwrap();
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Written while steps go on or while they wait, with whatever is kept: the same bytes.
#[test]
fn background_and_foreground_make_the_same_files() {
    for (mesh, dtype) in [("dp=2,pp=2", DType::Bf16), ("tp=2", DType::F32), ("dp=1", DType::Bf16)] {
        let run = |background: bool, every: Duration| {
            let dir = tempfile::tempdir().unwrap();
            let checkpoints = Checkpoints::new(dir.path()).every(every).keep(100).background(background);
            let outcomes = on_mesh(mesh, dtype, &checkpoints, STEPS, &|_, _| ());
            let results: Vec<_> = outcomes.into_iter().map(|(r, w, _)| (r.unwrap().history, w)).collect();
            let mut files = Vec::new();
            for (step, path) in format::published(dir.path()) {
                let mut names: Vec<_> = path.read_dir().unwrap().map(|e| e.unwrap().file_name()).collect();
                names.sort();
                for name in names.into_iter().filter(|name| name.to_string_lossy().starts_with("rank-")) {
                    files.push((step, name.clone(), std::fs::read(path.join(name)).unwrap()));
                }
            }
            (results, files)
        };
        let ((async_results, async_files), (sync_results, sync_files)) =
            (run(true, Duration::ZERO), run(false, Duration::ZERO));
        let (calm_results, _) = run(true, Duration::from_secs(1000));
        assert!(async_results == sync_results && sync_results == calm_results, "{mesh}, {dtype}");
        assert!(async_files.len() >= 5 && async_files == sync_files, "{mesh}, {dtype}");
    }
}
