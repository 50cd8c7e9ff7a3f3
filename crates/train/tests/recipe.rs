//! What changes in the course of a run: ramps, mix, annealing with its average, kinds of weights, z-loss. However a run is
//! stopped and on whatever mesh, it reads the same tokens and ends the same.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{Made, config, llama, values};
use llamero_comm::{Solo, Threads, World, WorldOptions};
use llamero_cpu::Cpu;
use llamero_data::{DataError, Domain, Loader, Place, Sequence, TokenStore, TokenWriter};
use llamero_model::{Config, Group, Placement};
use llamero_tensor::testing::splitmix;
use llamero_tensor::{Backend, DType};
use llamero_train::{
    Annealing, Checkpoints, Mesh, MixStage, OptimizerConfig, RampStage, Ranks, SequenceSource, Sharding,
    StepRecord, TrainConfig, Trainer, build_stages,
};

const STEPS: u64 = 9;

/// 192 tokens an update, then 192 in longer sequences, then 384 in the longest; another mix from the fourth update on;
/// the last four are annealed. The first and the last but one weights of these are averaged.
fn settings() -> TrainConfig {
    let stage = |at_tokens, batch, sequence| RampStage {
        at_tokens,
        batch: Some(batch),
        sequence: Some(sequence),
        micro_batch: None,
    };
    let mix = |at_tokens, prose, code| MixStage {
        at_tokens,
        weights: [(Domain::Prose, prose), (Domain::Code, code)].into(),
    };
    TrainConfig {
        steps: Some(STEPS),
        sequence: 24,
        batch: 8,
        micro_batch: 2,
        ramp: vec![stage(350, 4, 48), stage(1_000, 4, 96)],
        mix: vec![mix(0, 1.0, 1.0), mix(576, 0.2, 0.8)],
        anneal: Some(Annealing { steps: Some(4), tokens: None, average_every: 2 }),
        z_loss: 1e-2,
        optimizer: OptimizerConfig { peak_lr: 3e-3, warmup_steps: 2, ..OptimizerConfig::default() },
        ..TrainConfig::default()
    }
}

fn small() -> Config {
    Config { layers: 2, ..config() }
}

/// A store of prose and code.
fn store(dir: &Path) {
    let mut writer = TokenWriter::create(dir, "train", config().vocab, "test").unwrap();
    let mut state = 3;
    for d in 0..200 {
        let (length, first) = (5 + splitmix(&mut state) % 60, splitmix(&mut state) % 31);
        let (domain, step) = if d % 3 == 0 { (Domain::Code, 7) } else { (Domain::Prose, 5) };
        let ids: Vec<u32> = (0..length).map(|i| ((first + i * step) % 31) as u32).collect();
        writer.push(&ids, length as usize, domain).unwrap();
    }
    writer.finish().unwrap();
}

/// The store's sequences; notes what was read, and ends before an update.
struct Source {
    loader: Loader,
    until: u64,
    read: Mutex<Vec<(u64, Vec<u32>)>>,
}

impl Source {
    fn new(dir: &Path, until: u64) -> Self {
        let store = TokenStore::open(dir, "train").unwrap();
        let loader = Loader::new(store, settings().longest_sequence(), 4).unwrap();
        Self { loader, until, read: Mutex::default() }
    }

    /// Everything read, in the order of the run.
    fn tokens(self) -> Vec<(u64, Vec<u32>)> {
        let mut read = self.read.into_inner().unwrap();
        read.sort();
        read.dedup();
        read
    }
}

impl SequenceSource for Source {
    fn sequence(&self, _: u64) -> Result<Sequence, DataError> {
        unreachable!("a run asks for places")
    }

    fn read(&self, place: &Place) -> Result<Sequence, DataError> {
        if place.number >= settings().at(self.until).first_sequence {
            return Err(DataError::TooLittle { found: "interrupted".into(), hint: String::new() });
        }
        let sequence = self.loader.read(place)?;
        self.read.lock().unwrap().push((place.number, sequence.tokens.clone()));
        Ok(sequence)
    }
}

/// What a run gives: history, weights by name, and what it read.
#[derive(Debug, PartialEq)]
struct Outcome {
    history: Vec<StepRecord>,
    weights: Vec<(String, Vec<f32>)>,
    tokens: Vec<(u64, Vec<u32>)>,
}

/// Trains on a mesh without tensor and pipeline parallelism, with a checkpoint after every step, until a step.
fn fit(mesh: &str, dtype: DType, until: u64, paths: (&Path, &Path)) -> Outcome {
    fit_sharded(Sharding::default(), mesh, dtype, until, paths)
}

fn fit_sharded(
    sharding: Sharding,
    mesh: &str,
    dtype: DType,
    until: u64,
    (data, checkpoints): (&Path, &Path),
) -> Outcome {
    let settings = || TrainConfig { sharding, ..settings() };
    let mesh: Mesh = mesh.parse().unwrap();
    mesh.check(&small(), &settings()).unwrap();
    let source = Source::new(data, until);
    let one = |world: World| {
        let backend = Cpu::new(1).unwrap();
        let ranks = Ranks::new(&world, mesh);
        let Ok(stages) = build_stages(&small(), &settings(), &ranks, (&backend, dtype), values);
        let mut trainer = Trainer::on_mesh(stages, ranks, &backend, settings());
        let checkpoints = Checkpoints::new(checkpoints).every(Duration::ZERO);
        let result = llamero_train::train(
            &mut trainer,
            &source,
            &checkpoints,
            &mut |_: &llamero_train::StepRecord, _: f64| (),
        );
        assert_eq!(result.is_ok(), until == STEPS, "{:?}", result.err());
        let params = trainer.stages().iter().flat_map(|stage| stage.params());
        let weights = params.map(|p| (p.name.clone(), backend.download(&p.whole(&backend).unwrap())));
        let weights = weights.collect();
        trainer.ranks().all.barrier().unwrap();
        (result.map(|report| report.history).unwrap_or_default(), weights)
    };
    let one = &one;
    let worlds = Threads::world(mesh.size(), WorldOptions::default());
    type Weights = Vec<(String, Vec<f32>)>;
    let mut all: Vec<(Vec<StepRecord>, Weights)> = std::thread::scope(|scope| {
        let ranks: Vec<_> = worlds.into_iter().map(|world| scope.spawn(move || one(world))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    });
    let (history, weights) = all.remove(0);
    assert!(all.iter().all(|(h, w)| *h == history && *w == weights), "{mesh}: ranks disagree");
    Outcome { history, weights, tokens: source.tokens() }
}

fn uninterrupted(mesh: &str, dtype: DType, data: &Path) -> Outcome {
    fit(mesh, dtype, STEPS, (data, tempfile::tempdir().unwrap().path()))
}

/// Largest difference of weights, relative to the largest of their tensor.
fn apart(a: &[(String, Vec<f32>)], b: &[(String, Vec<f32>)]) -> f32 {
    assert_eq!(a.len(), b.len());
    let tensors = a.iter().zip(b).map(|((_, a), (_, b))| {
        let largest = b.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        let apart = a.iter().zip(b).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
        apart / largest
    });
    tensors.fold(0.0, f32::max)
}

#[test]
fn a_run_killed_before_any_step_ends_with_the_same_bits() {
    let data = tempfile::tempdir().unwrap();
    store(data.path());
    for dtype in [DType::F32, DType::Bf16] {
        let expected = uninterrupted("dp=1", dtype, data.path());
        assert!(expected.history.iter().all(|r| r.z_loss.is_some_and(|z| z > 0.0)));
        let tokens: u64 = expected.history.last().unwrap().tokens;
        assert_eq!(tokens, settings().tokens_before(STEPS));
        for at in 1..STEPS {
            let dir = tempfile::tempdir().unwrap();
            let mut before = fit("dp=1", dtype, at, (data.path(), dir.path())).tokens;
            let mut found = fit("dp=1", dtype, STEPS, (data.path(), dir.path()));
            before.append(&mut found.tokens);
            found.tokens = before;
            assert!(found == expected, "{dtype}, killed before step {at}");
        }
    }
}

#[test]
fn every_mesh_reads_the_same_tokens_and_none_twice() {
    let data = tempfile::tempdir().unwrap();
    store(data.path());
    let expected = uninterrupted("dp=1", DType::F32, data.path());
    for mesh in ["dp=2", "dp=4", "dp=2,cp=2"] {
        let found = uninterrupted(mesh, DType::F32, data.path());
        assert!(found.tokens == expected.tokens, "{mesh}: other tokens");
        for (a, b) in found.history.iter().zip(&expected.history) {
            let (z, of_one) = (a.z_loss.unwrap(), b.z_loss.unwrap());
            assert!(
                (a.loss / b.loss - 1.0).abs() < 1e-6 && (z / of_one - 1.0).abs() < 1e-6,
                "{mesh}: {a:?} {b:?}"
            );
        }
        let apart = apart(&found.weights, &expected.weights);
        assert!(apart < 3e-5, "{mesh}: weights are {apart:e} apart");
    }
    // Whole chunks of one domain after another, of which the epoch has each once.
    let loader = Source::new(data.path(), 0).loader;
    let seen = settings().seen(STEPS);
    assert_eq!(seen.values().sum::<u64>(), settings().tokens_before(STEPS));
    let mut read: Vec<u32> = expected.tokens.iter().flat_map(|(_, ids)| ids.clone()).collect();
    let mut chunks: Vec<u32> = Vec::new();
    for (domain, tokens) in seen {
        assert!(tokens > 0 && tokens <= loader.tokens_per_epoch(domain).unwrap(), "the test needs one epoch");
        for chunk in 0..tokens / 96 {
            let place = Place { number: 0, domain: Some(domain), chunk, part: 0..96 };
            chunks.extend(loader.read(&place).unwrap().tokens);
        }
    }
    read.sort_unstable();
    chunks.sort_unstable();
    assert!(read == chunks);
}

#[test]
fn annealing_begun_on_two_ranks_is_finished_on_one_and_on_four() {
    let data = tempfile::tempdir().unwrap();
    store(data.path());
    let expected = uninterrupted("dp=2", DType::F32, data.path());
    for (mesh, bound) in [("dp=2", 0.0), ("dp=1", 3e-5), ("dp=4", 3e-5), ("dp=2,cp=2", 3e-5)] {
        let dir = tempfile::tempdir().unwrap();
        // One sum of two is there.
        fit("dp=2", DType::F32, 7, (data.path(), dir.path()));
        let found = fit(mesh, DType::F32, STEPS, (data.path(), dir.path()));
        let apart = apart(&found.weights, &expected.weights);
        assert!(apart <= bound, "{mesh}: weights are {apart:e} apart");
    }
    let dir = tempfile::tempdir().unwrap();
    fit("dp=2", DType::F32, 7, (data.path(), dir.path()));
    let found = fit_sharded(Sharding::Parameters, "dp=4", DType::F32, STEPS, (data.path(), dir.path()));
    let apart = apart(&found.weights, &expected.weights);
    assert!(apart <= 3e-5, "sharded: weights are {apart:e} apart");
}

#[test]
fn sequences_that_cannot_be_divided_have_one_length_and_no_mix() {
    let place = Place { number: 3, domain: None, chunk: 3, part: 0..96 };
    assert_eq!(Made.read(&place).unwrap(), Made.sequence(3).unwrap());
    for place in [Place { chunk: 1, ..place.clone() }, Place { domain: Some(Domain::Code), ..place }] {
        assert!(Made.read(&place).unwrap_err().to_string().contains("ramp.sequence or mix"));
    }
}

fn trainer<'b>(backend: &'b dyn Backend, dtype: DType, settings: TrainConfig) -> Trainer<'b> {
    let model = llama(&small(), &Placement::whole(&small()), (backend, dtype), Arc::new(Solo));
    Trainer::new(model, backend, settings)
}

fn step(trainer: &mut Trainer<'_>, source: &Source, step: u64) {
    let settings = trainer.config().at(step);
    let sequences = (0..settings.batch).map(|i| source.read(&settings.place(i)).unwrap()).collect();
    assert_eq!(trainer.step(step, sequences).unwrap().skipped, None);
}

fn weights(trainer: &Trainer<'_>) -> Vec<(String, Vec<f32>)> {
    trainer.model().params().map(|p| (p.name.clone(), trainer.backend().download(&p.value))).collect()
}

#[test]
fn the_average_is_that_of_the_weights_after_each_step() {
    let data = tempfile::tempdir().unwrap();
    store(data.path());
    let source = Source::new(data.path(), STEPS);
    let backend = Cpu::new(2).unwrap();
    let anneal = Some(Annealing { steps: Some(4), ..Annealing::default() });
    // The weights of a bf16 model are its masters, rounded.
    for (dtype, bound) in [(DType::F32, 1e-6), (DType::Bf16, 1.0 / 128.0)] {
        let settings = TrainConfig { anneal: anneal.clone(), ..settings() };
        let mut trainer = trainer(&backend, dtype, settings);
        let mut sums: Vec<(String, Vec<f32>)> = Vec::new();
        for n in 0..STEPS {
            step(&mut trainer, &source, n);
            if n < STEPS - 4 {
                continue;
            }
            let after = weights(&trainer);
            if sums.is_empty() {
                sums = after;
                continue;
            }
            for ((_, sum), (_, after)) in sums.iter_mut().zip(after) {
                sum.iter_mut().zip(after).for_each(|(sum, x)| *sum += x);
            }
        }
        sums.iter_mut().for_each(|(_, sum)| sum.iter_mut().for_each(|x| *x /= 4.0));
        let last = weights(&trainer);
        trainer.finish_average().unwrap();
        let found = weights(&trainer);
        let off = apart(&found, &sums);
        assert!(off <= bound, "{dtype}: {off:e} apart");
        assert!(apart(&found, &last) > 1e-5, "{dtype}: the last weights are no average");
        trainer.finish_average().unwrap();
        assert!(weights(&trainer) == found, "{dtype}: averaged twice");
    }
}

#[test]
fn kinds_of_weights_decay_and_learn_as_they_are_told() {
    let data = tempfile::tempdir().unwrap();
    store(data.path());
    let source = Source::new(data.path(), STEPS);
    let backend = Cpu::new(2).unwrap();
    let after = |change: &dyn Fn(&mut OptimizerConfig)| {
        let mut settings = settings();
        change(&mut settings.optimizer);
        let mut trainer = trainer(&backend, DType::F32, settings);
        let before = weights(&trainer);
        step(&mut trainer, &source, 0);
        (before, weights(&trainer))
    };
    let decay = 0.5;
    let (before, plain) = after(&|o| o.weight_decay = decay);
    let (_, kept) = after(&|o| (o.weight_decay, o.decay_embeddings) = (decay, false));
    let (_, none) = after(&|o| o.weight_decay = 0.0);
    let (_, faster) = after(&|o| (o.weight_decay, o.embedding_lr) = (0.0, 3.0));
    let lr = settings().at(0).lr * decay;
    for (i, spec) in small().params().iter().enumerate() {
        let (name, [before, plain, kept, none, faster]) =
            (&before[i].0, [&before, &plain, &kept, &none, &faster].map(|w| &w[i].1));
        let vocabulary = spec.group() == Group::Vocabulary;
        assert_eq!(vocabulary, name == "tok_embeddings.weight" || name == "output.weight");
        if spec.group() == Group::Norm {
            assert!(plain == none, "`{name}` decays");
        } else {
            let decayed = before.iter().zip(plain).zip(none);
            let off = decayed.map(|((w, plain), none)| (f64::from(none - plain) - lr * f64::from(*w)).abs());
            assert!(off.fold(0.0, f64::max) < 1e-6, "`{name}` does not decay");
        }
        assert!(
            if vocabulary { kept == none } else { kept == plain },
            "`{name}` without decay of embeddings"
        );
        let times = |after: &[f32]| -> f64 {
            before.iter().zip(after).map(|(a, b)| f64::from((b - a).abs())).sum::<f64>()
        };
        let expected = if vocabulary { 3.0 } else { 1.0 };
        let found = times(faster) / times(none);
        assert!((found - expected).abs() < 1e-2, "`{name}` moved {found} times as far");
    }
}

#[test]
fn a_z_loss_draws_the_log_sum_exp_to_zero_and_is_no_part_of_the_loss() {
    let data = tempfile::tempdir().unwrap();
    store(data.path());
    let source = Source::new(data.path(), STEPS);
    let backend = Cpu::new(2).unwrap();
    let run = |z_loss: f64| {
        let optimizer = OptimizerConfig { peak_lr: 3e-2, ..settings().optimizer };
        let mut trainer = trainer(&backend, DType::F32, TrainConfig { z_loss, optimizer, ..settings() });
        let sequences = |s: u64| {
            let settings = settings().at(s);
            (0..settings.batch).map(|i| source.read(&settings.place(i)).unwrap()).collect::<Vec<_>>()
        };
        let outcomes: Vec<_> = (0..STEPS).map(|s| trainer.step(s, sequences(s)).unwrap()).collect();
        (outcomes[0].clone(), outcomes.last().unwrap().z_loss)
    };
    let (none, weak, strong) = (run(0.0), run(1e-9), run(1e-1));
    assert_eq!([&none, &weak, &strong].map(|r| r.0.loss), [none.0.loss; 3]);
    assert_eq!(none.0.z_loss, None);
    let lse_square = weak.0.z_loss.unwrap() / 1e-9;
    assert!((strong.0.z_loss.unwrap() / 1e-1 / lse_square - 1.0).abs() < 1e-9);
    assert!(strong.0.grad_norm != none.0.grad_norm);
    let [weak, strong] = [weak.1.unwrap() / 1e-9, strong.1.unwrap() / 1e-1];
    assert!(strong < 0.9 * weak, "{strong} with, {weak} without");
}
