//! What it saves to divide gradients and weights among data-parallel ranks: memory that the device counts.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::convert::Infallible;

use llamero_comm::{Threads, World, WorldOptions};
use llamero_cpu::Cpu;
use llamero_data::Sequence;
use llamero_model::{Config, initial_values};
use llamero_tensor::{Backend, DType};
use llamero_train::{Mesh, Ranks, Sharding, TrainConfig, Trainer, build_stages};

const RANKS: usize = 2;

fn model() -> Config {
    let preset = Config::preset("1m").unwrap();
    Config { dim: 128, layers: 12, heads: 4, kv_heads: 2, head_dim: 32, ffn: 352, vocab: 512, ..preset }
}

/// Bytes of tensors on one rank.
struct Bytes {
    /// At rest: weights, moments and, in bf16, lower halves of masters.
    state: usize,
    /// At the peak of a step, beside them.
    step: usize,
}

/// The rank that takes most of two steps of two micro-batches, so short that gradients outweigh activations.
fn counted(sharding: Sharding, dtype: DType) -> Bytes {
    let settings = TrainConfig {
        steps: Some(2),
        sequence: 16,
        batch: 2 * RANKS,
        micro_batch: 1,
        sharding,
        ..TrainConfig::default()
    };
    let mesh = Mesh { dp: RANKS, ..Mesh::default() };
    let one = |world: World| {
        let backend = Cpu::new(1).unwrap();
        let values = |spec: &_, rows| Ok::<_, Infallible>(initial_values(spec, rows, 1));
        let ranks = Ranks::new(&world, mesh);
        let Ok(stages) = build_stages(&model(), &settings, &ranks, (&backend, dtype), values);
        let mut trainer = Trainer::on_mesh(stages, ranks, &backend, settings.clone());
        let state = backend.memory().live_bytes;
        backend.reset_peak();
        for step in 0..2 {
            let own = trainer.own_sequences(step);
            let outcome = trainer.step(step, own.map(sequence).collect()).unwrap();
            assert_eq!(outcome.skipped, None);
            trainer.ranks().all.barrier().unwrap();
        }
        assert_eq!(backend.memory().live_bytes, state, "{sharding}: a step leaves tensors behind");
        Bytes { state, step: backend.memory().peak_bytes - state }
    };
    let one = &one;
    let of_ranks: Vec<Bytes> = std::thread::scope(|scope| {
        let worlds = Threads::world(RANKS, WorldOptions::default());
        let ranks: Vec<_> = worlds.into_iter().map(|world| scope.spawn(move || one(world))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    });
    let most = |of: fn(&Bytes) -> usize| of_ranks.iter().map(of).max().unwrap();
    let counted = Bytes { state: most(|b| b.state), step: most(|b| b.step) };
    let (state, step) = (counted.state as f64 / 1e6, counted.step as f64 / 1e6);
    println!("| {sharding}, {dtype} | {state:.2} MB | {step:.2} MB |");
    counted
}

fn sequence(i: usize) -> Sequence {
    let id = |t: usize| ((t * 31 + i) % 500) as u32;
    let (tokens, targets) = (0..16).map(|t| (id(t), id(t + 1))).unzip();
    Sequence { tokens, targets, documents: vec![16] }
}

#[test]
fn sharding_takes_less_memory() {
    let params = model().num_params() as f64;
    for dtype in [DType::F32, DType::Bf16] {
        let [one, two] = [Sharding::Optimizer, Sharding::Gradients].map(|sharding| counted(sharding, dtype));
        assert_eq!(one.state, two.state);
        let saved = (one.step as f64 - two.step as f64) / (4.0 * params);
        // A rank's half of the gradients, less what is whole for a moment: a block's larger ones.
        assert!(saved > 0.35, "{dtype}: sharded gradients save {saved:.2} of all gradients");
    }
}
