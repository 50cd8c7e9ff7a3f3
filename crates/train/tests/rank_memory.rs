//! What a rank of a mesh is expected to take against what it takes: ranks are threads, each with its own backend.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests; ratios for the docs")]

use std::convert::Infallible;

use llamero_comm::{Threads, World, WorldOptions};
use llamero_cpu::Cpu;
use llamero_data::Sequence;
use llamero_model::{Config, Recompute, initial_values};
use llamero_tensor::{Backend, DType, NO_TARGET};
use llamero_train::{
    Kernels, Mesh, PipelineConfig, RankOf, Ranks, Sharding, TrainConfig, Trainer, build_stages, rank_memory,
};

fn sized(dim: usize, layers: usize, ffn: usize, vocab: usize) -> Config {
    let (heads, kv_heads) = (dim / 32, dim / 64);
    let preset = Config::preset("1m").unwrap();
    Config { dim, layers, heads, kv_heads, head_dim: 32, ffn, vocab, context: 1024, ..preset }
}

/// Stage and peak of one rank.
fn counted(world: &World, mesh: Mesh, model: &Config, settings: &TrainConfig, dtype: DType) -> (usize, u64) {
    let backend = Cpu::new(1).unwrap();
    let ranks = Ranks::new(world, mesh);
    let stage = ranks.at.pp;
    let values = |spec: &_, rows| Ok::<_, Infallible>(initial_values(spec, rows, 1));
    let Ok(stages) = build_stages(model, settings, &ranks, (&backend, dtype), values);
    backend.reset_peak();
    let mut trainer = Trainer::on_mesh(stages, ranks, &backend, settings.clone());
    let sequence = |i: usize| {
        let id = |t: usize| ((t * 31 + i) % model.vocab) as u32;
        let (tokens, mut targets): (Vec<u32>, Vec<u32>) =
            (0..settings.sequence).map(|t| (id(t), id(t + 1))).unzip();
        // As at the end of a document.
        targets[settings.sequence - 1] = NO_TARGET;
        Sequence { tokens, targets, documents: vec![settings.sequence] }
    };
    for step in 0..2 {
        let outcome = trainer.step(step, trainer.own_sequences(step).map(sequence).collect()).unwrap();
        assert_eq!(outcome.skipped, None);
    }
    let peak = backend.memory().peak_bytes as u64;
    trainer.ranks().all.barrier().unwrap();
    (stage, peak)
}

/// The peak over the ranks of each stage, for every policy.
fn compare(mesh: &str, chunks: usize, model: &Config, sizes: (usize, usize, usize)) {
    compare_sharded((mesh, Sharding::Optimizer), chunks, model, sizes);
}

fn compare_sharded(
    (mesh, sharding): (&str, Sharding),
    chunks: usize,
    model: &Config,
    (sequence, batch, micro_batch): (usize, usize, usize),
) {
    let mesh: Mesh = mesh.parse().unwrap();
    let kernels = Some(Kernels { threads: 1, pairs: Cpu::new(1).unwrap().packs_pairs() });
    for recompute in [Recompute::Nothing, Recompute::Selective, Recompute::Blocks] {
        for dtype in [DType::F32, DType::Bf16] {
            let pipeline = PipelineConfig { chunks, run: None };
            let settings = TrainConfig {
                steps: Some(10),
                sequence,
                batch,
                micro_batch,
                recompute,
                pipeline,
                sharding,
                ..TrainConfig::default()
            };
            mesh.check(model, &settings).unwrap();
            let worlds = Threads::world(mesh.size(), WorldOptions::default());
            let found: Vec<(usize, u64)> = std::thread::scope(|scope| {
                let settings = &settings;
                let run = move |w: World| counted(&w, mesh, model, settings, dtype);
                let ranks: Vec<_> = worlds.into_iter().map(|w| scope.spawn(move || run(w))).collect();
                ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
            });
            for stage in 0..mesh.pp {
                let most = found.iter().filter(|(s, _)| *s == stage).map(|(_, bytes)| *bytes).max().unwrap();
                let rank = RankOf { mesh, stage, kernels };
                let expected = rank_memory(model, &settings, dtype, &rank);
                let ratio = expected.total() as f64 / most as f64;
                println!(
                    "{mesh}, {sharding} sharded, {chunks} chunks, {dtype}, {recompute:?}, stage {stage}: {ratio:.3}"
                );
                assert!(
                    (0.9..1.1).contains(&ratio),
                    "{mesh}, {chunks} chunks, {dtype}, {recompute:?}, stage {stage}: {most}, expected {expected:?}"
                );
            }
        }
    }
}

#[test]
fn data_parallel_ranks_take_what_is_expected() {
    compare("dp=2", 1, &sized(128, 6, 352, 2_000), (256, 8, 4));
    compare("dp=2", 1, &sized(256, 4, 704, 500), (256, 8, 2));
}

#[test]
fn tensor_parallel_ranks_take_what_is_expected() {
    compare("tp=2", 1, &sized(128, 6, 352, 2_000), (256, 4, 4));
    compare("tp=2", 1, &sized(256, 3, 704, 4_000), (256, 4, 2));
}

#[test]
fn stages_take_what_is_expected() {
    compare("pp=2", 1, &sized(128, 6, 352, 2_000), (256, 8, 2));
    compare("pp=2", 1, &sized(256, 4, 704, 500), (256, 4, 1));
}

#[test]
fn interleaved_stages_take_what_is_expected() {
    compare("pp=2", 2, &sized(128, 6, 352, 2_000), (256, 8, 2));
    compare("pp=2", 2, &sized(256, 6, 704, 500), (256, 4, 1));
}

#[test]
fn all_axes_together_take_what_is_expected() {
    compare("dp=2,pp=2,tp=2", 1, &sized(128, 6, 352, 2_000), (256, 8, 2));
}

#[test]
fn context_parallel_ranks_take_what_is_expected() {
    compare("cp=2", 1, &sized(128, 6, 352, 2_000), (256, 4, 2));
}

#[test]
fn ranks_that_divide_gradients_and_weights_take_what_is_expected() {
    for sharding in [Sharding::Gradients, Sharding::Parameters] {
        compare_sharded(("dp=2", sharding), 1, &sized(128, 6, 352, 2_000), (256, 8, 2));
    }
}
