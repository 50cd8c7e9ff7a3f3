//! Training on a mesh of ranks against training on one: 20 steps from the same weights and data.
//!
//! Ranks are threads here. Pipeline stages compute what the single rank computes, so losses and weights have the same bits.
//! Tensor and data parallelism add up in another order; what comes of that is held by [`LOSSES`] and [`WEIGHTS`]. On every
//! mesh all ranks must agree, and a second run must have the same bits.
//! `cargo test --release -p llamero-train --test mesh -- --nocapture` prints the table in docs/parallelism.md.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;
#[path = "mesh/sharding.rs"]
mod sharding;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::{Made, config, llama, values};
use llamero_comm::{Solo, Threads, World, WorldOptions};
use llamero_cpu::Cpu;
use llamero_data::{DataError, Sequence};
use llamero_model::{Config, Placement, Recompute, Shard};
use llamero_tensor::testing::splitmix;
use llamero_tensor::{Backend, DType, NO_TARGET};
use llamero_train::{
    Checkpoints, Mesh, MeshPlace, OptimizerConfig, PipelineConfig, Ranks, SequenceSource, StepOutcome,
    StepRecord, TrainConfig, Trainer, build_stages,
};

const STEPS: u64 = 20;

/// Largest relative difference of a loss, or of the norm of the gradient.
const LOSSES: f64 = 1e-5;

/// Largest difference of a weight after the last step, relative to the largest of its tensor.
const WEIGHTS: f64 = 1e-5;

fn settings() -> TrainConfig {
    TrainConfig {
        steps: Some(STEPS),
        sequence: config().context,
        batch: 4,
        micro_batch: 1,
        optimizer: OptimizerConfig { peak_lr: 3e-4, warmup_steps: 4, ..OptimizerConfig::default() },
        ..TrainConfig::default()
    }
}

/// What a rank has after the last step.
struct Rank {
    at: MeshPlace,
    steps: Vec<StepOutcome>,
    /// By parameter, this rank's slice.
    weights: BTreeMap<usize, Vec<f32>>,
}

/// What all ranks have together.
#[derive(Clone)]
struct Outcome {
    steps: Vec<StepOutcome>,
    /// By parameter, whole.
    weights: BTreeMap<usize, Vec<f32>>,
}

/// The canonical run.
fn alone(model: &Config, settings: &TrainConfig, dtype: DType) -> Outcome {
    alone_on(&Made, model, settings, dtype)
}

fn alone_on(source: &dyn SequenceSource, model: &Config, settings: &TrainConfig, dtype: DType) -> Outcome {
    let backend = Cpu::new(2).unwrap();
    let whole = llama(model, &Placement::whole(model), (&backend, dtype), Arc::new(Solo));
    let mut trainer = Trainer::new(whole, &backend, settings.clone());
    let steps = steps(&mut trainer, source);
    Outcome { steps, weights: weights(&trainer) }
}

fn rank(
    source: &dyn SequenceSource,
    (world, mesh): (&World, Mesh),
    model: &Config,
    settings: &TrainConfig,
    dtype: DType,
) -> Rank {
    let backend = Cpu::new(1).unwrap();
    let ranks = Ranks::new(world, mesh);
    let at = ranks.at;
    let Ok(stages) = build_stages(model, settings, &ranks, (&backend, dtype), values);
    let mut trainer = Trainer::on_mesh(stages, ranks, &backend, settings.clone());
    let (steps, weights) = (steps(&mut trainer, source), weights(&trainer));
    // A rank that leaves takes its messages with it.
    trainer.ranks().all.barrier().unwrap();
    Rank { at, steps, weights }
}

fn steps(trainer: &mut Trainer<'_>, source: &dyn SequenceSource) -> Vec<StepOutcome> {
    let (own, settings) = (trainer.own_sequences(0), trainer.config().clone());
    (0..settings.num_steps())
        .map(|step| {
            let first = step * settings.batch as u64;
            let sequences = own.clone().map(|i| source.sequence(first + i as u64).unwrap()).collect();
            trainer.step(step, sequences).unwrap()
        })
        .collect()
}

fn weights(trainer: &Trainer<'_>) -> BTreeMap<usize, Vec<f32>> {
    let params = trainer.stages().iter().flat_map(|s| s.params());
    let backend = trainer.backend();
    params.map(|p| (p.id, backend.download(&p.whole(backend).unwrap()))).collect()
}

fn train(mesh: Mesh, model: &Config, settings: &TrainConfig, dtype: DType) -> Outcome {
    train_on(&Made, mesh, model, settings, dtype)
}

fn train_on(
    source: &(dyn SequenceSource + Sync),
    mesh: Mesh,
    model: &Config,
    settings: &TrainConfig,
    dtype: DType,
) -> Outcome {
    mesh.check(model, settings).unwrap();
    let worlds = Threads::world(mesh.size(), WorldOptions { hash: true, ..WorldOptions::default() });
    let ranks: Vec<Rank> = std::thread::scope(|scope| {
        let one = |w: World| rank(source, (&w, mesh), model, settings, dtype);
        let ranks: Vec<_> = worlds.into_iter().map(|w| scope.spawn(move || one(w))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    });
    let steps = ranks[0].steps.clone();
    assert!(ranks.iter().all(|r| r.steps == steps), "{mesh}: ranks disagree");
    assert!(steps.iter().all(|s| s.skipped.is_none()), "{mesh}: {steps:?}");
    let mut weights = BTreeMap::new();
    for spec in model.params() {
        let holders: Vec<&Rank> = ranks.iter().filter(|r| r.weights.contains_key(&spec.id)).collect();
        let mut whole = vec![f32::NAN; spec.shape.elements()];
        for rank in holders {
            let place = Placement { tp_rank: rank.at.tp, tp_size: mesh.tp, ..Placement::whole(model) };
            let (cols, local) = (spec.local_cols(&place), &rank.weights[&spec.id]);
            let rows = spec.local_rows(&place).flatten();
            for (row, values) in rows.zip(local.chunks_exact(cols.len())) {
                for (at, value) in (row * spec.shape.cols + cols.start..).zip(values) {
                    let same = whole[at].is_nan() || whole[at].to_bits() == value.to_bits();
                    assert!(same, "{mesh}: ranks disagree on `{}`", spec.name);
                    whole[at] = *value;
                }
            }
            assert_eq!(local.len(), spec.local_shape(&place).elements());
            assert!(spec.shard != Shard::Whole || local.len() == whole.len());
        }
        assert!(whole.iter().all(|w| w.is_finite()), "{mesh}: `{}` is not whole", spec.name);
        weights.insert(spec.id, whole);
    }
    Outcome { steps, weights }
}

/// Largest relative difference of losses and gradient norms, and of weights relative to the largest of their tensor.
fn apart(found: &Outcome, expected: &Outcome) -> (f64, f64) {
    let losses = found
        .steps
        .iter()
        .zip(&expected.steps)
        .map(|(f, e)| (f.loss / e.loss - 1.0).abs().max((f.grad_norm / e.grad_norm - 1.0).abs()));
    let weights = found.weights.iter().map(|(id, f)| {
        let e = &expected.weights[id];
        let largest = e.iter().fold(0.0, |a: f32, x| a.max(x.abs()));
        let apart = f.iter().zip(e).fold(0.0, |a: f32, (f, e)| a.max((f - e).abs()));
        f64::from(apart / largest)
    });
    (losses.fold(0.0, f64::max), weights.fold(0.0, f64::max))
}

fn same_bits(found: &Outcome, expected: &Outcome) -> bool {
    let bits = |o: &Outcome| -> Vec<Vec<u32>> {
        o.weights.values().map(|w| w.iter().map(|x| x.to_bits()).collect()).collect()
    };
    found.steps == expected.steps && bits(found) == bits(expected)
}

fn mesh(text: &str) -> Mesh {
    text.parse().unwrap()
}

/// Runs of three and of four micro-batches: N does not divide M.
#[test]
fn runs_of_uneven_length_have_the_bits_of_one_rank() {
    let settings = TrainConfig { batch: 7, steps: Some(5), ..settings() };
    let canonical = alone(&config(), &settings, DType::F32);
    for run in [2, 3, 5, 7] {
        let pipeline = PipelineConfig { chunks: 2, run: Some(run) };
        let found = train(mesh("pp=2"), &config(), &TrainConfig { pipeline, ..settings.clone() }, DType::F32);
        assert!(same_bits(&found, &canonical), "runs of {run}: {:?}", apart(&found, &canonical));
    }
}

/// Meshes that compute the same sums in the same order.
#[test]
fn pipelines_have_the_bits_of_one_rank() {
    for dtype in [DType::F32, DType::Bf16] {
        let canonical = alone(&config(), &settings(), dtype);
        let interleaved = PipelineConfig { chunks: 2, run: None };

        let variants = [
            ("pp=2", settings()),
            ("pp=3", settings()),
            ("pp=2", TrainConfig { micro_batch: 2, ..settings() }),
            ("pp=2", TrainConfig { micro_batch: 4, ..settings() }),
            ("pp=2", TrainConfig { pipeline: interleaved, ..settings() }),
            ("pp=1", TrainConfig { pipeline: interleaved, ..settings() }),
            ("pp=2", TrainConfig { recompute: Recompute::Nothing, ..settings() }),
            ("pp=2", TrainConfig { recompute: Recompute::Blocks, ..settings() }),
        ];
        for (name, settings) in variants {
            let found = train(mesh(name), &config(), &settings, dtype);
            let TrainConfig { micro_batch, pipeline, recompute, .. } = settings;
            let what =
                format!("{name}, {dtype}, micro-batches of {micro_batch}, {pipeline:?}, {recompute:?}");
            assert!(same_bits(&found, &canonical), "{what}: {:?}", apart(&found, &canonical));
            println!("| {what} | same bits | |");
        }
    }
}

#[test]
fn other_meshes_agree_with_one_rank_to_rounding() {
    let canonical = alone(&config(), &settings(), DType::F32);
    let meshes = ["dp=2", "dp=4", "tp=2", "tp=2,pp=2", "dp=2,pp=2", "dp=2,tp=2", "dp=2,pp=2,tp=2"];
    let with_contexts =
        ["cp=2", "cp=3", "cp=4", "cp=2,tp=2", "cp=2,pp=2", "dp=2,cp=2", "dp=2,pp=2,cp=2,tp=2"];
    for name in meshes.into_iter().chain(with_contexts) {
        for recompute in [Recompute::Nothing, Recompute::Selective, Recompute::Blocks] {
            let settings = TrainConfig { recompute, ..settings() };
            let found = train(mesh(name), &config(), &settings, DType::F32);
            let (losses, weights) = apart(&found, &canonical);
            println!("| {name}, {recompute:?} | {losses:.1e} | {weights:.1e} |");
            assert!(losses < LOSSES && weights < WEIGHTS, "{name}: losses {losses:e}, weights {weights:e}");
            let again = train(mesh(name), &config(), &settings, DType::F32);
            assert!(same_bits(&again, &found), "{name}: a second run differs");
        }
    }
}

/// Documents as long as a sequence, so that ranks meet them in both of their chunks, and several sequences at a time. What is
/// computed again changes no bit.
#[test]
fn contexts_of_long_documents_agree_with_one_rank() {
    let batch = |micro_batch| TrainConfig { micro_batch, ..settings() };
    let canonical = alone_on(&Long, &config(), &batch(1), DType::F32);
    for name in ["cp=2", "cp=3", "cp=2,tp=2"] {
        for micro_batch in [1, 2, 4] {
            let mut found = Vec::new();
            for recompute in [Recompute::Nothing, Recompute::Selective, Recompute::Blocks] {
                let settings = TrainConfig { recompute, ..batch(micro_batch) };
                found.push(train_on(&Long, mesh(name), &config(), &settings, DType::F32));
            }
            let (losses, weights) = apart(&found[0], &canonical);
            println!(
                "| {name}, long documents, micro-batches of {micro_batch} | {losses:.1e} | {weights:.1e} |"
            );
            assert!(losses < LOSSES && weights < WEIGHTS, "{name}: losses {losses:e}, weights {weights:e}");
            assert!(
                found.iter().all(|other| same_bits(other, &found[0])),
                "{name}, {micro_batch}: recompute"
            );
        }
    }
}

/// Sequences of all lengths, some shorter than the number of chunks, as in fine-tuning: a rank may have no row of a micro-batch.
#[test]
fn contexts_of_short_sequences_agree_with_one_rank() {
    let canonical = alone_on(&Short, &config(), &settings(), DType::F32);
    for name in ["cp=4", "cp=2,pp=2,tp=2"] {
        let found = train_on(&Short, mesh(name), &config(), &settings(), DType::F32);
        let (losses, weights) = apart(&found, &canonical);
        println!("| {name}, short sequences | {losses:.1e} | {weights:.1e} |");
        assert!(losses < LOSSES && weights < WEIGHTS, "{name}: losses {losses:e}, weights {weights:e}");
    }
}

/// Sums of bf16 are rounded at other places than on one rank; losses stay near.
#[test]
fn contexts_in_bf16_stay_near_one_rank() {
    let canonical = alone(&config(), &settings(), DType::Bf16);
    for name in ["cp=2", "cp=2,tp=2", "dp=2,cp=2"] {
        let found = train(mesh(name), &config(), &settings(), DType::Bf16);
        let losses = found.steps.iter().zip(&canonical.steps).map(|(f, e)| (f.loss / e.loss - 1.0).abs());
        let losses = losses.fold(0.0, f64::max);
        println!("| {name}, bf16 | {losses:.1e} | |");
        assert!(losses < 1e-3, "{name}: {losses:e}");
    }
}

/// A mesh with stages has the bits of the mesh without them.
#[test]
fn stages_change_no_bit_of_other_meshes() {
    for (with, without) in [
        ("dp=2,pp=2", "dp=2"),
        ("tp=2,pp=2", "tp=2"),
        ("cp=2,pp=2", "cp=2"),
        ("dp=2,pp=2,tp=2", "dp=2,tp=2"),
        ("cp=2,pp=2,tp=2", "cp=2,tp=2"),
    ] {
        for dtype in [DType::F32, DType::Bf16] {
            let with_stages = train(mesh(with), &config(), &settings(), dtype);
            let whole = train(mesh(without), &config(), &settings(), dtype);
            assert!(same_bits(&with_stages, &whole), "{with}, {dtype}: {:?}", apart(&with_stages, &whole));
        }
    }
}

/// The first stage looks tokens up in the table, the last multiplies by it: both hold it, and hold the same.
#[test]
fn a_tied_table_stays_the_same_on_both_ends() {
    let tied = Config { tied: true, ..config() };
    let canonical = alone(&tied, &settings(), DType::F32);
    let interleaved = TrainConfig { pipeline: PipelineConfig { chunks: 2, run: None }, ..settings() };
    for (name, settings) in [
        ("pp=2", settings()),
        ("pp=2", interleaved.clone()),
        ("pp=1", interleaved),
        ("dp=2", settings()),
        ("cp=2,pp=2", settings()),
        ("dp=2,pp=2,tp=2", settings()),
    ] {
        let found = train(mesh(name), &tied, &settings, DType::F32);
        let (losses, weights) = apart(&found, &canonical);
        assert!(losses < LOSSES && weights < WEIGHTS, "{name}: losses {losses:e}, weights {weights:e}");
    }
}

/// The tokens of [`Made`] as one or two documents.
struct Long;

impl SequenceSource for Long {
    fn sequence(&self, index: u64) -> Result<Sequence, DataError> {
        let mut sequence = Made.sequence(index)?;
        let length = sequence.tokens.len();
        sequence.targets = sequence.tokens[1..].to_vec();
        sequence.targets.push(NO_TARGET);
        sequence.documents = vec![length];
        if index % 2 == 1 {
            // The end of the first is its last target.
            let first = 5;
            sequence.targets[first - 1] = NO_TARGET;
            sequence.documents = vec![first, length - first];
        }
        Ok(sequence)
    }
}

/// The beginnings of the sequences of [`Long`].
struct Short;

impl SequenceSource for Short {
    fn sequence(&self, index: u64) -> Result<Sequence, DataError> {
        let Sequence { mut tokens, mut targets, .. } = Long.sequence(2 * index)?;
        let length = 1 + index as usize * 5 % 23;
        tokens.truncate(length);
        targets.truncate(length);
        Ok(Sequence { tokens, targets, documents: vec![length] })
    }
}

/// The sequences of [`Made`], as if the data ended at a step.
struct Until(u64);

impl SequenceSource for Until {
    fn sequence(&self, index: u64) -> Result<Sequence, DataError> {
        if index >= self.0 * settings().batch as u64 {
            return Err(DataError::TooLittle { found: format!("sequence {index}"), hint: String::new() });
        }
        Made.sequence(index)
    }
}

/// Trains on a mesh with a checkpoint after every step, from the newest that is there, until a step.
fn fit(mesh: Mesh, settings: &TrainConfig, dtype: DType, until: u64, dir: &Path) -> Vec<StepRecord> {
    let worlds = Threads::world(mesh.size(), WorldOptions::default());
    let one = |world: World| {
        let backend = Cpu::new(1).unwrap();
        let ranks = Ranks::new(&world, mesh);
        let Ok(stages) = build_stages(&config(), settings, &ranks, (&backend, dtype), values);
        let mut trainer = Trainer::on_mesh(stages, ranks, &backend, settings.clone());
        let checkpoints = Checkpoints::new(dir).every(Duration::ZERO);
        let mut history = Vec::new();
        let mut observe = |record: &StepRecord, _| history.push(record.clone());
        let done = llamero_train::train(&mut trainer, &Until(until), &checkpoints, &mut observe);
        assert!(done.is_ok() || until < settings.num_steps(), "{:?}", done.err());
        trainer.ranks().all.barrier().unwrap();
        history
    };
    let one = &one;
    let mut histories: Vec<Vec<StepRecord>> = std::thread::scope(|scope| {
        let ranks: Vec<_> = worlds.into_iter().map(|world| scope.spawn(move || one(world))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    });
    let history = histories.pop().unwrap();
    assert!(histories.iter().all(|other| *other == history), "{mesh}: ranks disagree");
    history
}

/// A checkpoint of one mesh goes on on any other, as the first would have gone on.
#[test]
fn checkpoints_are_loaded_on_any_other_mesh() {
    let (saved_at, settings) = (5, TrainConfig { steps: Some(25), ..settings() });
    for dtype in [DType::F32, DType::Bf16] {
        for from in ["dp=2,pp=2,tp=2", "dp=2,cp=2", "dp=1"] {
            let saved = tempfile::tempdir().unwrap();
            fit(mesh(from), &settings, dtype, saved_at, saved.path());
            let go_on = |name: &str, chunks: usize| {
                let dir = tempfile::tempdir().unwrap();
                copy(saved.path(), dir.path());
                let pipeline = PipelineConfig { chunks, run: None };
                let settings = TrainConfig { pipeline, ..settings.clone() };
                let history = fit(mesh(name), &settings, dtype, 25, dir.path());
                assert_eq!(
                    (history.first().unwrap().step, history.len()),
                    (saved_at, 20),
                    "{from} to {name}"
                );
                history
            };
            let alone = go_on("dp=1", 1);
            // Other orders of sums, and with bf16 other roundings.
            let limit = if dtype == DType::F32 { LOSSES } else { 1e-3 };
            let others = [("pp=4", 1), ("pp=2", 2), ("dp=4", 1), ("dp=2,tp=2", 1), ("cp=2,pp=2", 1)];
            for (name, chunks) in [(from, 1)].into_iter().chain(others) {
                let history = go_on(name, chunks);
                let apart = history.iter().zip(&alone).map(|(f, e)| (f.loss / e.loss - 1.0).abs());
                let apart = apart.fold(0.0, f64::max);
                println!("| {from} to {name}, {dtype} | {apart:.1e} |");
                assert!(apart < limit, "{from} to {name}, {dtype}: {apart:e}");
                if name.starts_with("pp") {
                    assert_eq!(history, alone, "{from} to {name}, {dtype}");
                }
            }
        }
    }
}

/// What one rank cannot load, none does: the older checkpoint is taken by all.
#[test]
fn a_damaged_shard_is_passed_over_by_all_ranks() {
    let settings = TrainConfig { steps: Some(6), ..settings() };
    let whole = tempfile::tempdir().unwrap();
    let expected = fit(mesh("dp=2,pp=2"), &settings, DType::F32, 6, whole.path());
    for rank in 0..4 {
        let dir = tempfile::tempdir().unwrap();
        fit(mesh("dp=2,pp=2"), &settings, DType::F32, 4, dir.path());
        let file = dir.path().join(format!("step-0000000004/rank-000{rank}.f32"));
        let mut bytes = std::fs::read(&file).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x10;
        std::fs::write(&file, bytes).unwrap();
        let history = fit(mesh("dp=2,pp=2"), &settings, DType::F32, 6, dir.path());
        assert_eq!(history, expected[3..], "rank {rank}");
    }
}

/// A bit that turns over in a weight of one rank: found at the next comparison, with tensor and rank. Clean steps raise no
/// alarm.
#[test]
fn a_bit_turned_over_on_one_replica_is_found_and_named() {
    const PLANTS: u64 = 100;
    for (name, batch) in [("dp=3", 6), ("cp=3", 4), ("dp=2,tp=2", 4), ("dp=2,cp=2", 4), ("pp=2,tp=2", 4)] {
        let mesh = mesh(name);
        let settings = TrainConfig { steps: Some(PLANTS), batch, ..settings() };
        let worlds = Threads::world(mesh.size(), WorldOptions::default());
        let one = |world: World| {
            let backend = Cpu::new(1).unwrap();
            let ranks = Ranks::new(&world, mesh);
            let Ok(stages) = build_stages(&config(), &settings, &ranks, (&backend, DType::Bf16), values);
            let mut trainer = Trainer::on_mesh(stages, ranks, &backend, settings.clone());
            let own = trainer.own_sequences(0);
            let mut found = 0;
            for step in 0..PLANTS {
                if step % 10 == 0 {
                    let sequences = own.clone().map(|i| Made.sequence(step + i as u64).unwrap()).collect();
                    trainer.step(step, sequences).unwrap();
                }
                assert_eq!(trainer.check_replicas(0).unwrap(), [], "{name}: a clean step");
                // The same dice on every rank.
                let mut dice = step + 1;
                let mut roll = |n: usize| splitmix(&mut dice) as usize % n;
                let (rank, param, element, bit) = (roll(mesh.size()), roll(6), roll(1 << 20), roll(16));
                let here = trainer.ranks().all.rank() == rank;
                let planted = here.then(|| {
                    let param = trainer.model_mut().params_mut().nth(param).unwrap();
                    let original = param.value.clone();
                    let mut values = backend.download(&param.value);
                    let at = element % values.len();
                    values[at] = f32::from_bits(values[at].to_bits() ^ (1 << (16 + bit)));
                    param.value = backend.upload(&values, param.value.shape(), DType::Bf16);
                    (param.name.clone(), original)
                });
                let divergences = trainer.check_replicas(0).unwrap();
                if let Some((tensor, _)) = &planted {
                    let seen = divergences.iter().find(|d| d.tensor == *tensor);
                    // Slices of other ranks are not copies: only norms are compared along `tp`.
                    let copied = mesh.dp * mesh.cp > 1 || tensor.contains("norm");
                    assert_eq!(seen.is_some(), copied, "{name}: bit {bit} of `{tensor}`: {divergences:?}");
                    if let Some(seen) = seen {
                        let expected = if mesh.dp * mesh.cp > 2 { vec![rank] } else { seen.ranks.clone() };
                        assert!(seen.ranks == expected && seen.ranks.contains(&rank), "{name}: {seen}");
                    }
                }
                found += usize::from(!divergences.is_empty());
                if let Some((_, original)) = planted {
                    trainer.model_mut().params_mut().nth(param).unwrap().value = original;
                }
            }
            assert_eq!(trainer.check_replicas(0).unwrap(), []);
            trainer.ranks().all.barrier().unwrap();
            found
        };
        let one = &one;
        let found: Vec<usize> = std::thread::scope(|scope| {
            let ranks: Vec<_> = worlds.into_iter().map(|world| scope.spawn(move || one(world))).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        assert!(found.iter().all(|n| *n == found[0]), "{name}: ranks disagree: {found:?}");
        println!("| {name} | {} of {PLANTS} bits found |", found[0]);
        let all = mesh.dp * mesh.cp > 1;
        assert!(if all { found[0] == PLANTS as usize } else { found[0] > 0 }, "{name}: {found:?}");
    }
}

fn copy(from: &Path, to: &Path) {
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

#[test]
fn a_mesh_that_does_not_fit_is_refused() {
    for (name, hint) in [
        ("tp=3", "heads"),
        ("pp=9", "9 pipeline stages"),
        ("dp=3", "`batch`"),
        ("tp=4", "kv_heads"),
        ("cp=5", "`sequence` is 96; use a multiple of 10"),
    ] {
        let error = mesh(name).check(&config(), &settings()).unwrap_err().to_string();
        assert!(error.contains(hint), "{name}: {error}");
    }
}

/// The log-sum-exp that counts is that of the whole vocabulary.
#[test]
fn a_z_loss_is_the_same_on_slices_of_the_vocabulary() {
    let settings = TrainConfig { z_loss: 0.02, steps: Some(8), ..settings() };
    let expected = alone(&config(), &settings, DType::F32);
    for name in ["tp=2", "pp=2,tp=2", "cp=2"] {
        let found = train(mesh(name), &config(), &settings, DType::F32);
        for (a, b) in found.steps.iter().zip(&expected.steps) {
            assert!((a.z_loss.unwrap() / b.z_loss.unwrap() - 1.0).abs() < 1e-5, "{name}: {a:?} {b:?}");
        }
        let (losses, weights) = apart(&found, &expected);
        assert!(losses < 1e-5 && weights < WEIGHTS, "{name}: {losses:e} {weights:e}");
    }
}
