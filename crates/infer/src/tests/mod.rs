//! Tests over a tiny model with random weights.

mod chat;
mod embed;
mod equal;
mod invariance;
mod limits;
mod open;
mod sampling;
mod sampling_reference;
mod scheduling;
mod service;
mod speculation;

use std::ops::ControlFlow;
use std::sync::Arc;

use llamero_comm::{Comm, Solo};
use llamero_cpu::Cpu;
use llamero_model::{Config, Llama, Placement, initial_values};
use llamero_tensor::testing::random_ids;
use llamero_tensor::{Backend, DType};

use crate::testing::byte_tokenizer;
use crate::{Engine, Generation, SamplingParams};

const CONTEXT: usize = 160;

fn backend() -> Arc<dyn Backend> {
    Arc::new(Cpu::new(2).unwrap())
}

fn config() -> Config {
    Config {
        dim: 16,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 4,
        ffn: 24,
        vocab: 512,
        context: CONTEXT,
        ..Config::preset("300k").unwrap()
    }
}

fn model(config: &Config, backend: &dyn Backend, dtype: DType, seed: u64) -> Llama {
    let ranks: Arc<dyn Comm> = Arc::new(Solo);
    let place = Placement::whole(config);
    Llama::build(config, &place, (backend, dtype), &ranks, |spec, rows| {
        Ok::<_, std::convert::Infallible>(initial_values(spec, rows, seed))
    })
    .unwrap()
}

fn engine_of(config: &Config, dtype: DType) -> Engine {
    engine_on(2, config, dtype)
}

fn engine_on(threads: usize, config: &Config, dtype: DType) -> Engine {
    let backend: Arc<dyn Backend> = Arc::new(Cpu::new(threads).unwrap());
    Engine::new(model(config, &*backend, dtype, 1), byte_tokenizer(), backend).unwrap()
}

fn engine() -> Engine {
    engine_of(&config(), DType::F32)
}

fn ids(seed: u64, n: usize) -> Vec<u32> {
    random_ids(seed, n, 512)
}

/// Generates and throws the stream away.
fn generate(engine: &Engine, prompt: &[u32], params: &SamplingParams) -> Generation {
    engine.generate(prompt, params, &mut |_| ControlFlow::Continue(())).unwrap()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn an_engine_can_be_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Engine>();
    shared::<Box<dyn crate::Lm>>();
}
