//! Silent corruption: every planted bit is found, named and undone; a clean run has no alarm.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::{Made, config, llama, values};
use llamero_comm::{Solo, Threads, World, WorldOptions};
use llamero_cpu::Cpu;
use llamero_model::{Config, Placement};
use llamero_tensor::testing::splitmix;
use llamero_tensor::{Backend, CheckedProducts, DType};
use llamero_train::{
    Checkpoints, Fault, Finding, Guard, Mesh, Observer, OptimizerConfig, Order, Orders, Ranks,
    SequenceSource, Sharding, Sign, StepRecord, TrainConfig, TrainReport, Trainer, build_stages, train,
};

fn settings(steps: u64) -> TrainConfig {
    TrainConfig {
        steps: Some(steps),
        sequence: config().context,
        batch: 4,
        micro_batch: 1,
        optimizer: OptimizerConfig { peak_lr: 1e-3, warmup_steps: 4, ..OptimizerConfig::default() },
        ..TrainConfig::default()
    }
}

/// A mesh to train on and what on it.
#[derive(Clone, Copy)]
struct Case<'a> {
    mesh: &'a str,
    model: &'a Config,
    dtype: DType,
    sharding: Sharding,
    steps: u64,
    guard: Guard,
}

type Weights = BTreeMap<(usize, usize), Vec<f32>>;

impl Case<'_> {
    fn trainer<'b>(&self, world: &World, backend: &'b dyn Backend) -> Trainer<'b> {
        let ranks = Ranks::new(world, self.mesh.parse().unwrap());
        let settings = TrainConfig { sharding: self.sharding, ..settings(self.steps) };
        let Ok(stages) = build_stages(self.model, &settings, &ranks, (backend, self.dtype), values);
        Trainer::on_mesh(stages, ranks, backend, settings).guarded(self.guard)
    }

    /// Trains on threads, checkpoints and orders below `dir`; the first rank's report, everybody's weights, and the observer.
    fn run<O: Observer + Send>(&self, dir: &Path, observer: O) -> (TrainReport, Weights, O) {
        let mesh: Mesh = self.mesh.parse().unwrap();
        let worlds = Threads::world(mesh.size(), WorldOptions { hash: true, ..WorldOptions::default() });
        let mut observers: Vec<Option<O>> = (1..mesh.size()).map(|_| None).collect();
        observers.insert(0, Some(observer));
        let one = |(world, mut observer): (World, Option<O>)| {
            let backend = Cpu::new(1).unwrap();
            let mut trainer = self.trainer(&world, &backend).obeying(Orders::new(dir.join("orders")));
            let checkpoints = Checkpoints::new(dir.join("resume")).every(Duration::ZERO);
            let report = match &mut observer {
                Some(observer) => train(&mut trainer, &Made, &checkpoints, observer),
                None => train(&mut trainer, &Made, &checkpoints, &mut |_: &StepRecord, _: f64| {}),
            };
            let rank = trainer.ranks().all.rank();
            let params = trainer.stages().iter().flat_map(|s| s.params());
            let weights: Weights = params.map(|p| ((rank, p.id), backend.download(&p.value))).collect();
            trainer.ranks().all.barrier().unwrap();
            (report.unwrap(), weights, observer)
        };
        let one = &one;
        let ranks: Vec<_> = std::thread::scope(|scope| {
            let ranks: Vec<_> =
                worlds.into_iter().zip(observers).map(|r| scope.spawn(move || one(r))).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        let weights = ranks.iter().flat_map(|(_, weights, _)| weights.clone()).collect();
        let (report, _, observer) = ranks.into_iter().next().unwrap();
        (report, weights, observer.unwrap())
    }
}

/// Orders a fault after every third step, and compares what is found with what was ordered.
struct Saboteur {
    orders: Orders,
    ranks: usize,
    random: u64,
    left: usize,
    /// The step after which the next is ordered.
    next: u64,
    ordered: Option<(usize, Fault, u64)>,
    found: usize,
}

impl Observer for Saboteur {
    fn step(&mut self, record: &StepRecord, _: f64) {
        assert!(
            self.ordered.is_none_or(|(_, _, step)| step + 1 >= record.step),
            "{:?} was not found",
            self.ordered
        );
        if self.ordered.is_some() || self.left == 0 || record.step < self.next {
            return;
        }
        // What is found before the checkpoint of a step is there takes the run back by two.
        self.next = record.step + 3;
        let fault = Fault::ALL[(splitmix(&mut self.random) % 5) as usize];
        let rank = (splitmix(&mut self.random) % self.ranks as u64) as usize;
        self.orders.give(rank, Order { fault, random: splitmix(&mut self.random) }).unwrap();
        self.left -= 1;
        self.ordered = Some((rank, fault, record.step));
    }

    fn corrupted(&mut self, step: u64, found: &[Finding]) {
        let (rank, fault, ordered) = self.ordered.take().expect("no alarm without a fault");
        assert!(step <= ordered + 2, "ordered after step {ordered}, found in {step}");
        let sign = match fault {
            Fault::Weight => Sign::Weight,
            Fault::LowHalves => Sign::LowHalves,
            Fault::FirstMoment => Sign::FirstMoment,
            Fault::SecondMoment => Sign::SecondMoment,
            _ => Sign::Gradient,
        };
        let named = |f: &Finding| f.ranks == [rank] && (f.sign == sign || f.sign == Sign::Weight);
        assert!(found.iter().any(named), "{fault:?} on rank {rank}: {found:?}");
        self.found += 1;
    }
}

/// Weights, lower halves, moments and gradients, on any rank: the guard sees the bit in the step in which it turned over, all
/// ranks go back, and the run ends with the weights of a calm one.
#[test]
fn planted_bits_are_found_named_and_undone() {
    const EACH: usize = 36;
    let model = config();
    for (mesh, dtype, sharding) in [
        ("dp=2,tp=2", DType::Bf16, Sharding::Optimizer),
        ("dp=2,pp=2", DType::Bf16, Sharding::Gradients),
        ("dp=2", DType::F32, Sharding::Parameters),
    ] {
        let (steps, guard) = (3 * EACH as u64 + 8, Guard::every(4));
        let case = Case { mesh, model: &model, dtype, sharding, steps, guard };
        let calm = tempfile::tempdir().unwrap();
        let quiet = Case { guard: Guard::default(), ..case };
        let (expected, weights, _) = quiet.run(calm.path(), |_: &StepRecord, _: f64| {});
        let dir = tempfile::tempdir().unwrap();
        let saboteur = Saboteur {
            orders: Orders::new(dir.path().join("orders")),
            ranks: mesh.parse::<Mesh>().unwrap().size(),
            random: 17,
            left: EACH,
            next: 0,
            ordered: None,
            found: 0,
        };
        let (report, broken, saboteur) = case.run(dir.path(), saboteur);
        println!("| {mesh}, {dtype}, {sharding} sharded | {} of {EACH} bits found |", saboteur.found);
        assert_eq!((saboteur.left, saboteur.found), (0, EACH), "{mesh}");
        assert_eq!(report.history, expected.history, "{mesh}");
        assert!(weights == broken, "{mesh}: other weights");
    }
}

/// Where it was planted, down to the tensor.
#[test]
fn a_finding_names_the_tensor() {
    let (backend, model) = (Cpu::new(1).unwrap(), config());
    let mut random = 5;
    for fault in [Fault::Weight, Fault::LowHalves, Fault::FirstMoment, Fault::SecondMoment] {
        for step in 0..5 {
            let whole = llama(&model, &Placement::whole(&model), (&backend, DType::Bf16), Arc::new(Solo));
            let mut trainer = Trainer::new(whole, &backend, settings(9)).guarded(Guard::every(1));
            let sequences = || (0..4).map(|i| Made.sequence(i).unwrap()).collect();
            trainer.step(0, sequences()).unwrap();
            assert_eq!(trainer.take_findings(), []);
            let tensor = trainer.plant(Order { fault, random: splitmix(&mut random) }).unwrap();
            trainer.step(1 + step, sequences()).unwrap();
            let found = trainer.take_findings();
            assert!(
                matches!(&found[..], [f] if f.tensor == tensor && f.step == 1 + step),
                "{tensor}: {found:?}"
            );
            assert!(found[0].to_string().contains(&tensor));
        }
    }
}

/// With everything watched at every step.
#[test]
fn a_clean_run_has_no_alarm() {
    let model = Config { layers: 2, ..config() };
    let mut alarms = 0;
    for (mesh, steps) in [("dp=2", 1200), ("dp=2,tp=2", 400), ("pp=2", 400), ("dp=2,cp=2", 200)] {
        let case = Case {
            mesh,
            model: &model,
            dtype: DType::Bf16,
            sharding: Sharding::Optimizer,
            steps,
            guard: Guard::every(1),
        };
        let mesh: Mesh = mesh.parse().unwrap();
        let worlds = Threads::world(mesh.size(), WorldOptions { hash: true, ..WorldOptions::default() });
        let one = |world: World| {
            let backend = Cpu::new(1).unwrap();
            let mut trainer = case.trainer(&world, &backend);
            let read = |places: Range<usize>| places.map(|i| Made.sequence(i as u64).unwrap()).collect();
            let mut found = 0;
            for step in 0..steps {
                trainer.repeat(read(trainer.repeated_sequences(step).unwrap()));
                trainer.step(step, read(trainer.own_sequences(step))).unwrap();
                found += trainer.take_findings().len() + trainer.check_replicas(step).unwrap().len();
            }
            trainer.ranks().all.barrier().unwrap();
            found
        };
        let one = &one;
        alarms += std::thread::scope(|scope| {
            let ranks: Vec<_> = worlds.into_iter().map(|world| scope.spawn(move || one(world))).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).sum::<usize>()
        });
    }
    assert_eq!(alarms, 0);
}

/// One rank's arithmetic goes wrong once, by a few hundredths of one number: the rank that repeats its micro-batch sees it. By
/// much: the checks of products see it too.
#[test]
fn wrong_arithmetic_is_found_by_repeating_it() {
    let model = config();
    // Of a value in the first block's `wqkv` product; a query of a document's first row would not count.
    let (low_bit, upper_bit) = (2, 14);
    for (mesh, bit, products) in [("dp=2", low_bit, 0), ("dp=2,tp=2", low_bit, 0), ("dp=2", upper_bit, 1)] {
        let guard = Guard { repeat: 3, products, ..Guard::default() };
        let case =
            Case { mesh, model: &model, dtype: DType::Bf16, sharding: Sharding::Optimizer, steps: 9, guard };
        let mesh: Mesh = mesh.parse().unwrap();
        let (wrong_rank, wrong_step) = (1, 3);
        let cols = 80 / mesh.tp as u64;
        let bit = (41 * cols - 5) * 16 + bit;
        let one = |world: World| {
            let cpu = Cpu::new(1).unwrap();
            let backend = CheckedProducts::new(&cpu, products);
            let mut trainer = case.trainer(&world, &backend);
            let read = |places: Range<usize>| places.map(|i| Made.sequence(i as u64).unwrap()).collect();
            let mut found = Vec::new();
            for step in 0..case.steps {
                if let Some(places) = trainer.repeated_sequences(step) {
                    trainer.repeat(read(places));
                }
                if (world.rank(), step) == (wrong_rank, wrong_step) {
                    backend.damage_next(bit);
                }
                trainer.step(step, read(trainer.own_sequences(step))).unwrap();
                found.extend(trainer.take_findings());
                let faults = backend.take_faults();
                let here = (world.rank(), step) == (wrong_rank, wrong_step);
                assert_eq!(faults.len(), usize::from(here && products > 0), "{faults:?}");
            }
            trainer.ranks().all.barrier().unwrap();
            found
        };
        let worlds = Threads::world(mesh.size(), WorldOptions::default());
        let found: Vec<Finding> = std::thread::scope(|scope| {
            let one = &one;
            let ranks: Vec<_> = worlds.into_iter().map(|world| scope.spawn(move || one(world))).collect();
            ranks.into_iter().flat_map(|rank| rank.join().unwrap()).collect()
        });
        assert!(!found.is_empty(), "{mesh}: not seen");
        let named = |f: &Finding| f.step == wrong_step && f.sign == Sign::Repeat;
        assert!(found.iter().all(named), "{mesh}: {found:?}");
        // What went wrong on one tensor-parallel rank reaches the others of its replica.
        let replica = |rank: usize| mesh.place(rank).dp;
        let apart = |f: &Finding| f.ranks.len() == 2 && replica(f.ranks[0]) != replica(f.ranks[1]);
        assert!(found.iter().all(apart), "{found:?}");
    }
}
