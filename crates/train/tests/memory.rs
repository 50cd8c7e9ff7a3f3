//! What a training step is expected to take against what it takes.

use std::convert::Infallible;
use std::sync::Arc;

use llamero_comm::Solo;
use llamero_cpu::{Cpu, Path};
use llamero_data::Sequence;
use llamero_model::{Config, Llama, Placement, Recompute, initial_values};
use llamero_tensor::{Backend, DType};
use llamero_train::{Annealing, Kernels, RampStage, TrainConfig, Trainer, estimate_memory};

const THREADS: usize = 2;

/// Bytes of tensors at the peak of a step.
fn counted(backend: &Cpu, model: &Config, settings: &TrainConfig, dtype: DType) -> u64 {
    let values = |spec: &_, rows| Ok::<_, Infallible>(initial_values(spec, rows, 1));
    let ranks: Arc<dyn llamero_comm::Comm> = Arc::new(Solo);
    let Ok(llama) = Llama::build(model, &Placement::whole(model), (backend, dtype), &ranks, values);
    backend.reset_peak();
    let mut trainer = Trainer::new(llama, backend, settings.clone());
    let sequence = |i: usize| {
        let id = |t: usize| ((t * 31 + i) % model.vocab) as u32;
        let (tokens, targets) = (0..settings.sequence).map(|t| (id(t), id(t + 1))).unzip();
        Sequence { tokens, targets, documents: vec![settings.sequence] }
    };
    // Threads need their work space at the same time in one step or another.
    for step in 0..settings.num_steps().min(4) {
        let outcome = trainer.step(step, (0..settings.batch).map(sequence).collect()).expect("made-up data");
        assert_eq!(outcome.skipped, None);
    }
    backend.memory().peak_bytes as u64
}

fn sized(dim: usize, layers: usize, ffn: usize, vocab: usize) -> Config {
    let (heads, kv_heads, context) = (dim / 32, dim / 64, 4096);
    let preset = Config::preset("1m").expect("a preset");
    Config { dim, layers, heads, kv_heads, head_dim: 32, ffn, vocab, context, ..preset }
}

/// Compares for every policy; `(sequence, batch, micro_batch)`.
fn compare(
    backend: &Cpu,
    model: &Config,
    (sequence, batch, micro_batch): (usize, usize, usize),
    dtype: DType,
) {
    let kernels = Kernels { threads: backend.threads(), pairs: backend.packs_pairs() };
    for recompute in [Recompute::Nothing, Recompute::Selective, Recompute::Blocks] {
        let steps = Some(10);
        let settings =
            TrainConfig { steps, sequence, batch, micro_batch, recompute, ..TrainConfig::default() };
        let estimate = estimate_memory(model, &settings, dtype, kernels);
        let counted = counted(backend, model, &settings, dtype);
        let ratio = estimate.tensors() as f64 / counted as f64;
        let what = format!(
            "{}, width {}, vocabulary {}, {dtype}, {recompute:?}",
            backend.path().name(),
            model.dim,
            model.vocab
        );
        assert!((0.9..1.1).contains(&ratio), "{what}: {counted} bytes, expected {estimate}");
    }
}

#[test]
fn the_estimate_is_within_a_tenth_of_the_peak() {
    let deep = (sized(128, 6, 352, 2_000), (256, 4, 4));
    let wide = (sized(256, 2, 704, 1_000), (512, 2, 2));
    let many_words = (sized(128, 3, 352, 24_000), (512, 2, 2));
    let accumulated = (Config { tied: true, ..sized(128, 4, 352, 4_000) }, (256, 4, 2));
    // Most at the gradient of attention.
    let long = (sized(128, 1, 64, 300), (2048, 1, 1));
    let backend = Cpu::new(THREADS).expect("two threads");
    for (model, sizes) in [deep, wide, many_words, accumulated, long] {
        for dtype in [DType::F32, DType::Bf16] {
            compare(&backend, &model, sizes, dtype);
        }
    }
}

#[test]
fn the_estimate_counts_sums_of_weights_and_the_largest_update() {
    let backend = Cpu::new(THREADS).expect("two threads");
    let kernels = Kernels { threads: backend.threads(), pairs: backend.packs_pairs() };
    let model = sized(256, 2, 704, 4_000);
    let plain =
        TrainConfig { steps: Some(3), sequence: 64, batch: 2, micro_batch: 2, ..TrainConfig::default() };
    let anneal = Some(Annealing { steps: Some(3), ..Annealing::default() });
    let averaged = TrainConfig { anneal, ..plain.clone() };
    let estimates = [&plain, &averaged].map(|c| estimate_memory(&model, c, DType::F32, kernels));
    assert_eq!(estimates[1].tensors() - estimates[0].tensors(), 4 * model.num_params());
    for dtype in [DType::F32, DType::Bf16] {
        let expected = estimate_memory(&model, &averaged, dtype, kernels);
        let counted = counted(&backend, &model, &averaged, dtype);
        let ratio = expected.tensors() as f64 / counted as f64;
        assert!((0.9..1.1).contains(&ratio), "{dtype}: {counted} bytes, expected {expected}");
    }
    let stage = RampStage { at_tokens: 1, sequence: Some(512), ..RampStage::default() };
    let ramp = TrainConfig { batch: 16, ramp: vec![stage], ..plain };
    let longest = TrainConfig { sequence: 512, ramp: Vec::new(), ..ramp.clone() };
    let [ramp, longest] = [&ramp, &longest].map(|c| estimate_memory(&model, c, DType::F32, kernels));
    assert_eq!(ramp, longest);
}

#[test]
fn the_estimate_knows_whether_bf16_is_packed_as_pairs() {
    for path in [Path::Avx512Bf16, Path::Avx512, Path::Avx2].into_iter().filter(|p| p.is_supported()).take(2)
    {
        let backend = Cpu::with_path(THREADS, path).expect("a supported path");
        compare(&backend, &sized(256, 1, 64, 30_000), (64, 1, 1), DType::Bf16);
    }
}
