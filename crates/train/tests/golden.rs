//! Llama against PyTorch: logits, loss, every gradient, ten training losses and a greedy continuation.
//!
//! The numbers and the script that made them are in `tests/goldens`.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use llamero_autograd::Tape;
use llamero_comm::{Comm, Solo};
use llamero_cpu::Cpu;
use llamero_data::Sequence;
use llamero_model::{
    Config, Input, Llama, ParamSpec, Placement, Recompute, half_split_rows, interleaved_rows,
};
use llamero_tensor::testing::Oracle;
use llamero_tensor::{Backend, DType, NO_TARGET, Segments};
use llamero_train::{OptimizerConfig, StepGradients, TrainConfig, Trainer};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// Largest difference allowed, relative to the largest magnitude of the tensor; 3.6e-6 was seen.
const TOLERANCE: f64 = 1e-5;

struct Golden {
    json: Value,
    /// Floating-point tensors by name.
    tensors: BTreeMap<String, Vec<f32>>,
    sequence: Sequence,
    config: Config,
}

impl Golden {
    fn open() -> Self {
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens");
        let json: Value =
            serde_json::from_slice(&std::fs::read(dir.join("llama_tiny.json")).unwrap()).unwrap();
        let bytes = std::fs::read(dir.join("llama_tiny.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let (mut tensors, mut ints) = (BTreeMap::new(), BTreeMap::new());
        for (name, view) in file.tensors() {
            let words = view.data().as_chunks::<4>().0.iter();
            match view.dtype() {
                Dtype::F32 => {
                    tensors.insert(name, words.map(|w| f32::from_le_bytes(*w)).collect::<Vec<_>>());
                }
                Dtype::I32 => {
                    ints.insert(name, words.map(|w| i32::from_le_bytes(*w)).collect::<Vec<_>>());
                }
                other => panic!("`{name}` has dtype {other:?}"),
            }
        }
        let target = |&t: &i32| if t == -100 { NO_TARGET } else { t as u32 };
        let sequence = Sequence {
            tokens: ints["tokens"].iter().map(|&t| t as u32).collect(),
            targets: ints["targets"].iter().map(target).collect(),
            documents: numbers(&json["document_lengths"]).iter().map(|&n| n as usize).collect(),
        };
        assert_eq!(sequence.documents, [9, 14]);
        let config = config(&json["config"]);
        Self { json, tensors, sequence, config }
    }

    /// A parameter's parts, joined.
    fn joined(&self, prefix: &str, spec: &ParamSpec) -> Vec<f32> {
        spec.parts.iter().flat_map(|p| &self.tensors[&format!("{prefix}{}", p.hf_name)]).copied().collect()
    }

    fn model(&self, backend: &dyn Backend) -> Llama {
        let ranks: Arc<dyn Comm> = Arc::new(Solo);
        let values = |spec: &ParamSpec, rows: Range<usize>| {
            let cols = spec.shape.cols;
            Ok::<_, Infallible>(self.joined("", spec)[rows.start * cols..rows.end * cols].to_vec())
        };
        let place = Placement::whole(&self.config);
        let Ok(model) = Llama::build(&self.config, &place, (backend, DType::F32), &ranks, values);
        model
    }

    fn train_config(&self) -> TrainConfig {
        let o = &self.json["optimizer"];
        let number = |key: &str| o[key].as_f64().unwrap();
        TrainConfig {
            steps: o["steps"].as_u64(),
            sequence: self.sequence.tokens.len(),
            batch: 1,
            micro_batch: 1,
            optimizer: OptimizerConfig {
                peak_lr: number("lr"),
                final_lr_ratio: 1.0,
                warmup_steps: 0,
                beta1: number("beta1"),
                beta2: number("beta2"),
                eps: number("eps"),
                weight_decay: number("weight_decay"),
                clip_norm: number("max_grad_norm"),
                ..OptimizerConfig::default()
            },
            ..TrainConfig::default()
        }
    }

    fn trainer<'b>(&self, backend: &'b dyn Backend) -> Trainer<'b> {
        Trainer::new(self.model(backend), backend, self.train_config())
    }
}

fn config(json: &Value) -> Config {
    let size = |key: &str| json[key].as_u64().unwrap() as usize;
    Config {
        dim: size("hidden_size"),
        layers: size("num_hidden_layers"),
        heads: size("num_attention_heads"),
        kv_heads: size("num_key_value_heads"),
        head_dim: size("head_dim"),
        ffn: size("intermediate_size"),
        vocab: size("vocab_size"),
        context: size("max_position_embeddings"),
        rope_theta: json["rope_theta"].as_f64().unwrap(),
        rope_scaling: None,
        norm_eps: json["rms_norm_eps"].as_f64().unwrap() as f32,
        tied: json["tie_word_embeddings"].as_bool().unwrap(),
    }
}

fn numbers(json: &Value) -> Vec<f64> {
    json.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

/// Logits of every token, `[T, V]`.
fn logits(backend: &dyn Backend, model: &Llama, tokens: &[u32], documents: &[usize]) -> Vec<f32> {
    let mut tape = Tape::infer(backend);
    let segments = Segments::documents(documents.iter().copied());
    let h = model.forward(&mut tape, Input::Tokens(tokens), &segments, Recompute::Nothing);
    backend.download(&backend.linear(h.value(), &model.head().unwrap().value))
}

fn close(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0.0, |a: f64, x| a.max(f64::from(x.abs())));
    assert!(largest > 0.0, "{what}: nothing to compare with");
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        let difference = (f64::from(*f) - f64::from(*e)).abs() / largest;
        assert!(difference <= TOLERANCE, "{what}, element {i}: {f} instead of {e}, {difference:e} apart");
    }
}

fn backends() -> [Box<dyn Backend>; 2] {
    [Box::new(Cpu::new(2).unwrap()), Box::new(Oracle::rounding())]
}

#[test]
fn logits_are_those_of_pytorch() {
    let golden = Golden::open();
    let Sequence { tokens, documents, .. } = &golden.sequence;
    for backend in backends() {
        let found = logits(&*backend, &golden.model(&*backend), tokens, documents);
        close(&format!("{}: logits", backend.name()), &found, &golden.tensors["logits"]);
    }
}

#[test]
fn loss_and_every_gradient_are_those_of_pytorch() {
    let golden = Golden::open();
    let table = golden.config.params();
    for backend in backends() {
        let StepGradients { loss, by_id: gradients, .. } =
            golden.trainer(&*backend).gradients(0, vec![golden.sequence.clone()]).unwrap();
        let expected = golden.json["loss"].as_f64().unwrap();
        assert!((loss / expected - 1.0).abs() <= TOLERANCE, "{}: {loss}", backend.name());
        for spec in &table {
            let whole = backend.download(gradients.get(&spec.id).unwrap());
            let mut rest = whole.as_slice();
            for part in &spec.parts {
                let (found, tail) = rest.split_at(part.rows * spec.shape.cols);
                let name = format!("grad.{}", part.hf_name);
                close(&format!("{}: {name}", backend.name()), found, &golden.tensors[&name]);
                rest = tail;
            }
        }
    }
    let gradients = golden.tensors.keys().filter(|name| name.starts_with("grad.")).count();
    assert_eq!(gradients, table.iter().map(|s| s.parts.len()).sum::<usize>());
}

#[test]
fn ten_training_losses_are_those_of_pytorch() {
    let golden = Golden::open();
    let (losses, norms) = (numbers(&golden.json["losses"]), numbers(&golden.json["grad_norms"]));
    assert_eq!(losses.len(), 10);
    for backend in backends() {
        let mut trainer = golden.trainer(&*backend);
        for (step, (loss, norm)) in losses.iter().zip(&norms).enumerate() {
            let outcome = trainer.step(step as u64, vec![golden.sequence.clone()]).unwrap();
            assert_eq!(outcome.skipped, None);
            for (what, found, expected) in [("loss", outcome.loss, loss), ("norm", outcome.grad_norm, norm)] {
                let difference = (found / expected - 1.0).abs();
                let name = backend.name();
                assert!(difference <= TOLERANCE, "{name}: {what} of step {step}: {difference:e}");
            }
        }
    }
}

#[test]
fn the_greedy_continuation_is_that_of_pytorch() {
    let golden = Golden::open();
    let expected: Vec<u32> = numbers(&golden.json["greedy"]).iter().map(|&t| t as u32).collect();
    let prompt = golden.sequence.documents[0];
    for backend in backends() {
        let model = golden.model(&*backend);
        let mut tokens = golden.sequence.tokens[..prompt].to_vec();
        while tokens.len() < prompt + expected.len() {
            let all = logits(&*backend, &model, &tokens, &[tokens.len()]);
            let last = &all[all.len() - golden.config.vocab..];
            let best = (0..last.len()).max_by(|&a, &b| last[a].total_cmp(&last[b])).unwrap();
            tokens.push(best as u32);
        }
        assert_eq!(tokens[prompt..], expected, "{}", backend.name());
    }
}

#[test]
fn rows_of_queries_and_keys_convert_between_meta_and_hugging_face() {
    let golden = Golden::open();
    let (dim, cols) = (golden.config.head_dim, golden.config.dim);
    for (meta, hf) in [("wq", "q_proj"), ("wk", "k_proj")] {
        let interleaved = &golden.tensors[&format!("meta.layers.0.attention.{meta}.weight")];
        let half_split = &golden.tensors[&format!("model.layers.0.self_attn.{hf}.weight")];
        assert_ne!(interleaved, half_split, "{meta}");
        assert_eq!(half_split_rows(interleaved, dim, cols), *half_split, "{meta}");
        assert_eq!(interleaved_rows(half_split, dim, cols), *interleaved, "{meta}");
    }
}
