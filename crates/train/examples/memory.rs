//! Trains a few steps on made-up tokens and compares three numbers: what [`llamero_train::estimate_memory`] expects, the
//! peak that the backend counted, and the peak of the process's resident memory.
//!
//! ```text
//! cargo run --release -p llamero-train --example memory -- DIM LAYERS HEADS KV_HEADS FFN VOCAB SEQUENCE BATCH MICRO_BATCH \
//!     f32|bf16 none|selective|blocks THREADS
//! ```

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "an example")]

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use llamero_comm::{Comm, Solo};
use llamero_cpu::Cpu;
use llamero_data::Sequence;
use llamero_model::{Config, Llama, Placement, Recompute, initial_values};
use llamero_tensor::{Backend, DType};
use llamero_train::{Kernels, TrainConfig, Trainer, estimate_memory};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let defaults = ["288", "6", "6", "2", "768", "4096", "512", "8", "8", "bf16", "selective", "2"];
    let arg = |i: usize| args.get(i).map_or(defaults[i], String::as_str);
    let size = |i: usize| arg(i).parse::<usize>().unwrap();
    let model = Config {
        dim: size(0),
        layers: size(1),
        heads: size(2),
        kv_heads: size(3),
        head_dim: size(0) / size(2),
        ffn: size(4),
        vocab: size(5),
        context: size(6),
        ..Config::preset("1m").unwrap()
    };
    let dtype = if arg(9) == "f32" { DType::F32 } else { DType::Bf16 };
    let recompute = match arg(10) {
        "none" => Recompute::Nothing,
        "blocks" => Recompute::Blocks,
        _ => Recompute::Selective,
    };
    let config = TrainConfig {
        steps: Some(100),
        sequence: size(6),
        batch: size(7),
        micro_batch: size(8),
        recompute,
        ..TrainConfig::default()
    };
    let backend = Cpu::new(size(11)).unwrap();
    let kernels = Kernels { threads: backend.threads(), pairs: backend.packs_pairs() };
    let estimate = estimate_memory(&model, &config, dtype, kernels);
    let before = resident();
    let counted = train(&backend, &model, &config, dtype);
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!("{} parameters, {dtype}, {recompute:?}: {estimate}", model.num_params());
    println!("estimate of the tensors {:8.1} MiB", mib(estimate.tensors()));
    println!("counted                 {:8.1} MiB", mib(counted));
    println!("estimate of the process {:8.1} MiB", mib(estimate.total()));
    println!("resident at the peak    {:8.1} MiB ({:.1} before the model)", mib(resident()), mib(before));
}

/// Bytes of tensors at the peak.
fn train(backend: &Cpu, model: &Config, config: &TrainConfig, dtype: DType) -> u64 {
    let ranks: Arc<dyn Comm> = Arc::new(Solo);
    let values = |spec: &_, rows| Ok::<_, Infallible>(initial_values(spec, rows, 1));
    let Ok(llama) = Llama::build(model, &Placement::whole(model), (backend, dtype), &ranks, values);
    let mut trainer = Trainer::new(llama, backend, config.clone());
    for step in 0..3 {
        let made_up = |i: usize| {
            let id = |t: usize| ((t * 7919 + i * 104_729) % model.vocab) as u32;
            let tokens: Vec<u32> = (0..config.sequence).map(id).collect();
            let targets = (1..=config.sequence).map(id).collect();
            Sequence { tokens, targets, documents: vec![config.sequence] }
        };
        let started = Instant::now();
        trainer.step(step, (0..config.batch).map(made_up).collect()).unwrap();
        let rate = config.step_tokens() as f64 / started.elapsed().as_secs_f64();
        println!("step {step}: {rate:.0} tokens/s, peak {} MiB resident", resident() >> 20);
    }
    backend.memory().peak_bytes as u64
}

/// Largest resident memory of this process so far in bytes; 0 where the system does not tell.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}
