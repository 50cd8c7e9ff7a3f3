//! GGUF files: what is written is read back, the reference's files are ours, and everything that can be wrong with a file
//! is an error that names it.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod damage;
mod raw;
mod round_trip;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use llamero_model::gguf::{GgufArray, GgufValue, Writer};
use llamero_model::weights::TensorInfo;
use llamero_model::{Config, ParamSpec, StopTokens, WeightError, Weights, initial_values};
use llamero_tensor::{DType, Encoding, StoredRows};

/// Heads are wider than the model's width divided by them; some rows are whole blocks of 256, others of 32, others of none.
fn config() -> Config {
    Config {
        dim: 32,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 64,
        ffn: 40,
        vocab: 21,
        context: 64,
        rope_theta: 500_000.0,
        rope_scaling: None,
        norm_eps: 1e-5,
        tied: false,
    }
}

/// A model that is in memory.
struct Memory<F> {
    config: Config,
    values: F,
}

fn made_up(config: Config) -> Memory<impl Fn(&ParamSpec, Range<usize>) -> Vec<f32> + Send + Sync> {
    Memory { config, values: |spec: &ParamSpec, rows| initial_values(spec, rows, 5) }
}

impl<F: Fn(&ParamSpec, Range<usize>) -> Vec<f32> + Send + Sync> Weights for Memory<F> {
    fn config(&self) -> &Config {
        &self.config
    }

    fn dtype(&self) -> DType {
        DType::F32
    }

    fn rows(&self, spec: &ParamSpec, rows: Range<usize>) -> Result<Vec<StoredRows<'_>>, WeightError> {
        let values = (self.values)(spec, rows);
        let rows = values.chunks(spec.shape.cols).map(|row| Cow::Owned(Encoding::F32.encode(row))).collect();
        Ok(vec![StoredRows { encoding: Encoding::F32, rows }])
    }

    fn release(&self, _spec: &ParamSpec) {}

    fn tensors(&self) -> Vec<TensorInfo> {
        Vec::new()
    }

    fn stop_tokens(&self) -> Option<StopTokens> {
        None
    }
}

fn vocabulary() -> BTreeMap<String, GgufValue> {
    let mut tokens: Vec<String> = (b'a'..=b'r').map(|b| char::from(b).to_string()).collect();
    tokens.extend(["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"].map(String::from));
    let strings = |all: &[String]| GgufValue::Array(GgufArray::String(all.iter().collect()));
    let types = (0..21).map(|id| if id < 18 { 1 } else { 3 }).collect();
    let entries: [(&str, GgufValue); 8] = [
        ("ggml.model", "gpt2".into()),
        ("ggml.pre", "llama-bpe".into()),
        ("ggml.tokens", strings(&tokens)),
        ("ggml.token_type", GgufValue::Array(GgufArray::I32(types))),
        ("ggml.merges", strings(&["a b".into(), "ab c".into()])),
        ("ggml.bos_token_id", 18u32.into()),
        ("ggml.eos_token_id", 19u32.into()),
        ("chat_template", "{{ messages }} «é»".into()),
    ];
    entries.into_iter().map(|(key, value)| (format!("tokenizer.{key}"), value)).collect()
}

fn write(path: &Path, weights: &dyn Weights, encoding: Encoding) -> Result<(), WeightError> {
    Writer::new(weights, encoding, 2).describe("tiny", vocabulary()).write(path)
}

/// The stored bytes of all rows of a parameter.
fn stored(weights: &dyn Weights, spec: &ParamSpec) -> Vec<(Encoding, Vec<u8>)> {
    let runs = weights.stored(spec).unwrap();
    runs.into_iter().map(|run| (run.encoding, run.rows.concat())).collect()
}
