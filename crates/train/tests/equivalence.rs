//! One canonical run, and everything that must not change it: threads, instruction sets, recomputation, micro-batches,
//! packing. Where the order of sums is the same the bits are; each tolerance says why there is one.

mod common;

use std::sync::Arc;

use common::{Made, config, llama};
use llamero_comm::Solo;
use llamero_cpu::{Cpu, Path};
use llamero_data::Sequence;
use llamero_model::{Config, Placement, Recompute};
use llamero_tensor::{Backend, DType};
use llamero_train::{OptimizerConfig, SequenceSource, StepGradients, StepOutcome, TrainConfig, Trainer};

const STEPS: u64 = 3;

/// Largest difference between gradients whose sums run in another order, relative to the largest element of the tensor;
/// 1.3e-6 was seen.
const ROUNDING: f64 = 3e-6;

/// Largest relative difference between losses in bf16 with the dot product of pairs and with widened operands, where
/// weights of attention and gradients of logits are not rounded to bf16; 1.1e-4 was seen.
const DOT_PRODUCT: f64 = 1e-3;

fn settings() -> TrainConfig {
    TrainConfig {
        steps: Some(STEPS),
        sequence: config().context,
        batch: 4,
        micro_batch: 4,
        optimizer: OptimizerConfig { peak_lr: 3e-3, warmup_steps: 2, ..OptimizerConfig::default() },
        ..TrainConfig::default()
    }
}

fn trainer<'b>(
    backend: &'b dyn Backend,
    dtype: DType,
    config: &Config,
    settings: TrainConfig,
) -> Trainer<'b> {
    let model = llama(config, &Placement::whole(config), (backend, dtype), Arc::new(Solo));
    Trainer::new(model, backend, settings)
}

fn sequences(step: u64, batch: usize) -> Vec<Sequence> {
    let batch = batch as u64;
    (batch * step..batch * (step + 1)).map(|i| Made.sequence(i).expect("made up")).collect()
}

/// What a run leaves behind.
#[derive(PartialEq)]
struct Outcome {
    steps: Vec<StepOutcome>,
    weights: Vec<Vec<u32>>,
}

impl Outcome {
    fn losses(&self) -> Vec<f64> {
        self.steps.iter().map(|s| s.loss).collect()
    }
}

fn bits(values: Vec<f32>) -> Vec<u32> {
    values.into_iter().map(f32::to_bits).collect()
}

fn run_of(backend: &dyn Backend, dtype: DType, config: &Config, settings: TrainConfig) -> Outcome {
    let mut trainer = trainer(backend, dtype, config, settings.clone());
    let steps: Vec<StepOutcome> = (0..settings.num_steps())
        .map(|step| trainer.step(step, sequences(step, settings.batch)).expect("solo ranks and made-up data"))
        .collect();
    assert!(steps.iter().all(|s| s.skipped.is_none()), "{steps:?}");
    let weights = trainer.model().params().map(|p| bits(backend.download(&p.value))).collect();
    Outcome { steps, weights }
}

fn run(backend: &dyn Backend, dtype: DType, settings: TrainConfig) -> Outcome {
    run_of(backend, dtype, &config(), settings)
}

fn cpu() -> Cpu {
    Cpu::new(2).expect("two threads")
}

/// Panics with `what` instead of with two megabytes of weights.
fn same(what: &str, found: &Outcome, expected: &Outcome) {
    assert_eq!(found.steps, expected.steps, "{what}");
    assert!(found.weights == expected.weights, "{what}: the weights differ");
}

/// Loss, and the gradients in the order of the table.
fn gradients(
    (backend, dtype): (&dyn Backend, DType),
    config: &Config,
    settings: TrainConfig,
    sequences: Vec<Sequence>,
) -> (f64, Vec<Vec<f32>>) {
    let trainer = trainer(backend, dtype, config, settings);
    let StepGradients { loss, by_id, .. } =
        trainer.gradients(0, sequences).expect("solo ranks and made-up data");
    let gradients: Vec<_> = by_id.values().map(|g| backend.download(g)).collect();
    assert_eq!(gradients.len(), config.params().len());
    (loss, gradients)
}

/// Largest difference relative to the largest magnitude.
fn distance(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0, |a: f32, x| a.max(x.abs()));
    let apart = found.iter().zip(expected).fold(0.0, |a: f32, (f, e)| a.max((f - e).abs()));
    assert!(largest > 0.0 && apart.is_finite());
    f64::from(apart / largest)
}

#[test]
fn threads_and_instruction_sets_do_not_change_a_bit() {
    for dtype in [DType::F32, DType::Bf16] {
        let widened = run(&Cpu::with_path(1, Path::Scalar).expect("scalar"), dtype, settings());
        for path in Path::available() {
            // The bf16 dot product has bits of its own, for any number of threads.
            let own = (dtype, path) == (DType::Bf16, Path::Avx512Bf16);
            let own = own.then(|| run(&Cpu::with_path(1, path).expect("available"), dtype, settings()));
            if let Some(own) = &own {
                let pairs = own.losses().into_iter().zip(widened.losses());
                let apart = pairs.map(|(a, b)| (a / b - 1.0).abs()).fold(0.0, f64::max);
                assert!(apart < DOT_PRODUCT, "losses with the dot product are {apart:e} from those without");
            }
            let canonical = own.as_ref().unwrap_or(&widened);
            for threads in [1, 2, 3] {
                if path == Path::Scalar && threads == 2 {
                    continue; // Slow, and between the two others.
                }
                let backend = Cpu::with_path(threads, path).expect("available");
                let what = format!("{dtype}, {} x{threads}", path.name());
                same(&what, &run(&backend, dtype, settings()), canonical);
            }
        }
    }
}

#[test]
fn recomputation_does_not_change_a_bit_and_saves_memory() {
    // Wide and deep enough that activations and not the work space of kernels make the peak.
    let large = Config { dim: 64, layers: 8, ffn: 256, ..config() };
    for dtype in [DType::F32, DType::Bf16] {
        let peak_and_run = |recompute| {
            let backend = cpu();
            let settings =
                TrainConfig { recompute, steps: Some(2), batch: 24, micro_batch: 24, ..settings() };
            let outcome = run_of(&backend, dtype, &large, settings);
            (backend.memory().peak_bytes, outcome)
        };
        let (mut kept, canonical) = peak_and_run(Recompute::Nothing);
        for recompute in [Recompute::Selective, Recompute::Blocks] {
            let (less, recomputed) = peak_and_run(recompute);
            same(&format!("{dtype}, {recompute:?}"), &recomputed, &canonical);
            assert!(less < kept, "{dtype}: peak of {less} bytes with {recompute:?}, {kept} with less of it");
            kept = less;
        }
    }
}

#[test]
fn micro_batches_do_not_change_a_bit() {
    for dtype in [DType::F32, DType::Bf16] {
        let canonical = run(&cpu(), dtype, settings());
        for micro_batch in [1, 2, 3] {
            let found = run(&cpu(), dtype, TrainConfig { micro_batch, ..settings() });
            same(&format!("{dtype}, micro-batches of {micro_batch}"), &found, &canonical);
        }
    }
}

/// Where bf16 is multiplied in pairs, a pair of rows must not span two micro-batches for the sums to be the same.
#[test]
fn micro_batches_of_odd_sequences_agree_to_rounding() {
    let odd = || -> Vec<Sequence> {
        let cut = |s: Sequence| {
            let mut cut = separated(&[s]);
            cut.retain(|d| d.tokens.len() % 2 == 1);
            cut
        };
        sequences(0, 8).into_iter().flat_map(cut).take(4).collect()
    };
    assert_eq!(odd().len(), 4);
    for dtype in [DType::F32, DType::Bf16] {
        let (loss, canonical) = gradients((&cpu(), dtype), &config(), settings(), odd());
        for micro_batch in [1, 3] {
            let settings = TrainConfig { micro_batch, ..settings() };
            let (found_loss, found) = gradients((&cpu(), dtype), &config(), settings, odd());
            assert_eq!(found_loss, loss, "the forward pass has no sums over rows");
            for (found, canonical) in found.iter().zip(&canonical) {
                let apart = distance(found, canonical);
                let limit = if dtype == DType::F32 { 0.0 } else { ROUNDING };
                assert!(apart <= limit, "{dtype}, micro-batches of {micro_batch}: {apart:e}");
            }
        }
    }
}

/// Why a tolerance: the gradients of both uses of the table go into one buffer, and their order depends on the cut.
#[test]
fn micro_batches_of_a_tied_model_agree_to_rounding() {
    let tied = Config { tied: true, ..config() };
    let (loss, canonical) = gradients((&cpu(), DType::F32), &tied, settings(), sequences(0, 4));
    for micro_batch in [1, 2] {
        let settings = TrainConfig { micro_batch, ..settings() };
        let (found_loss, found) = gradients((&cpu(), DType::F32), &tied, settings, sequences(0, 4));
        assert_eq!(found_loss, loss);
        let apart = distance(&found[0], &canonical[0]);
        assert!(apart < ROUNDING, "micro-batches of {micro_batch}: {apart:e}");
        assert!(found[1..] == canonical[1..], "only the shared table may differ");
    }
}

/// Every document of `sequences` as a sequence of its own.
fn separated(sequences: &[Sequence]) -> Vec<Sequence> {
    let mut out = Vec::new();
    for s in sequences {
        let mut at = 0;
        for &n in &s.documents {
            out.push(Sequence {
                tokens: s.tokens[at..at + n].to_vec(),
                targets: s.targets[at..at + n].to_vec(),
                documents: vec![n],
            });
            at += n;
        }
    }
    out
}

#[test]
fn packed_documents_are_separate_documents() {
    let packed = sequences(0, 4);
    let documents = separated(&packed);
    assert!(documents.len() > 2 * packed.len());
    let (loss, canonical) = gradients((&cpu(), DType::F32), &config(), settings(), packed);
    let one_by_one = TrainConfig { micro_batch: 1, ..settings() };
    let (found_loss, found) =
        gradients((&cpu(), DType::F32), &config(), one_by_one.clone(), documents.clone());
    assert_eq!(found_loss, loss);
    assert!(found == canonical, "in the same order every chain of sums is the same");

    let reversed = documents.into_iter().rev().collect();
    let (found_loss, found) = gradients((&cpu(), DType::F32), &config(), one_by_one, reversed);
    assert!((found_loss / loss - 1.0).abs() < 1e-12);
    for (i, (found, canonical)) in found.iter().zip(&canonical).enumerate() {
        let apart = distance(found, canonical);
        assert!(apart < ROUNDING, "parameter {i}, documents in reverse: {apart:e}");
    }
}

#[test]
fn a_shared_table_gets_the_gradients_of_both_uses() {
    let tied = Config { tied: true, ..config() };
    let (_, shared) = gradients((&cpu(), DType::F32), &tied, settings(), sequences(0, 4));
    // The same function as the tied model, with the table in two buffers.
    let backend = cpu();
    let mut untied = trainer(&backend, DType::F32, &config(), settings());
    let table = untied.model().embedding.as_ref().map(|p| p.value.clone());
    let (Some(output), Some(table)) = (untied.model_mut().output.as_mut(), table) else {
        panic!("a whole model")
    };
    output.value = table;
    let apart = untied.gradients(0, sequences(0, 4)).expect("solo ranks and made-up data").by_id;
    let apart: Vec<_> = apart.values().map(|g| backend.download(g)).collect();
    let (embedding, output) = (&apart[0], &apart[apart.len() - 1]);
    let sum: Vec<f32> = embedding.iter().zip(output).map(|(a, b)| a + b).collect();
    assert!(distance(embedding, &sum) > 0.01 && distance(output, &sum) > 0.01, "both uses count");
    assert!(distance(&shared[0], &sum) < ROUNDING, "{:e}", distance(&shared[0], &sum));
    assert!(shared[1..] == apart[1..apart.len() - 1], "all other gradients are the same");
}

/// bf16 has 8 bits of mantissa, so the runs part (by 0.1 % here); they must not part far, and both must learn.
#[test]
fn bf16_learns_like_f32() {
    let settings = TrainConfig { steps: Some(30), ..settings() };
    let exact = run(&cpu(), DType::F32, settings.clone()).losses();
    let rounded = run(&cpu(), DType::Bf16, settings).losses();
    assert_ne!(exact, rounded);
    for (step, (e, r)) in exact.iter().zip(&rounded).enumerate() {
        assert!((r / e - 1.0).abs() < 0.004, "step {step}: {r} in bf16, {e} in f32");
    }
    assert!(rounded[29] < 0.7 * rounded[0], "{rounded:?}");
}
