//! `llamero bench train`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use llamero_comm::{Comm, Solo};
use llamero_cpu::Cpu;
use llamero_model::hf::{self, StopTokens};
use llamero_model::{Llama, ParamSpec, Placement, Recompute, initial_values};
use llamero_tensor::{Backend, DType};
use llamero_train::{OptimizerConfig, TrainConfig, Trainer, estimate_memory, learning_rate};
use serde::Serialize;

use super::shape::{ShapeArgs, Workload, flops_per_token};
use super::tokens::{Tokens, sequence};
use super::{CommonArgs, DTypeArg, median, peak_gflops, print_rows, size, usage};
use crate::commands::print_json;
use crate::report::format::{count, precise_bytes};

/// What is computed again in the backward pass instead of being kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum RecomputeArg {
    /// Nothing
    None,
    /// What is cheap to compute for the memory it takes
    Selective,
    /// All of each block but its input
    Blocks,
}

#[derive(Args)]
#[command(
    after_help = "Steps are those of training: forward, backward, clipping, AdamW. Every dtype starts from the same weights \
    (rounded to bf16) and reads the same tokens.\n\n\
    `gflops` is tokens per second times 6·(params − embedding table) + 6·layers·seq·dim, and `mfu` its share of the \
    register peak of the dtype, measured before and after the steps. `peak_memory_bytes` is the largest resident memory of \
    the process, `tensor_peak_bytes` what tensors and kernels took of it.\n\n\
    Examples:\n  \
    llamero bench train --shape 125m\n  \
    llamero bench train --dim 288 --layers 6 --heads 6 --kv-heads 2 --ffn 768 --vocab 4096 --seq 512 --batch 8 --json\n  \
    llamero bench train --shape 8m --steps 200 --text book.txt --losses ours.txt --dump start"
)]
pub(crate) struct TrainArgs {
    #[command(flatten)]
    common: CommonArgs,
    #[command(flatten)]
    shape: ShapeArgs,
    /// Element type of weights and activations.
    #[arg(long, value_enum, default_value = "bf16")]
    dtype: DTypeArg,
    /// Sequences of one forward pass; the whole batch when absent. Results do not depend on it, but
    /// for the last bits in bf16 where the sequence length is odd.
    #[arg(long, value_parser = size)]
    micro_batch: Option<usize>,
    /// Steps in all.
    #[arg(long, default_value_t = 7, value_parser = size)]
    steps: usize,
    /// The first so many steps are not timed.
    #[arg(long, default_value_t = 2)]
    warmup: usize,
    /// What is computed again in the backward pass instead of being kept.
    #[arg(long, value_enum, default_value = "selective")]
    recompute: RecomputeArg,
    /// Largest learning rate.
    #[arg(long, default_value_t = 3e-4)]
    lr: f64,
    /// Train on the bytes of this file, each an id, instead of made-up tokens.
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Write the loss of each step, one a line.
    #[arg(long, value_name = "FILE")]
    losses: Option<PathBuf>,
    /// Write the initial weights, all tokens and the settings into this folder, so that others can train the same.
    #[arg(long, value_name = "DIR")]
    dump: Option<PathBuf>,
}

#[derive(Serialize)]
struct Report {
    params: u64,
    dtype: &'static str,
    recompute: String,
    threads: usize,
    path: &'static str,
    seq: usize,
    batch: usize,
    micro_batch: usize,
    steps: usize,
    timed_steps: usize,
    tokens_per_s: f64,
    step_seconds: Vec<f64>,
    gflops: f64,
    peak_gflops: f64,
    mfu: f64,
    estimated_memory_bytes: u64,
    /// Absent where the system does not tell.
    peak_memory_bytes: Option<u64>,
    tensor_peak_bytes: usize,
    first_loss: f64,
    last_loss: f64,
}

/// Everything that is settled before the first step.
struct Job {
    work: Workload,
    config: TrainConfig,
    dtype: DType,
    tokens: Tokens,
}

pub(super) fn train(args: &TrainArgs) -> Result<()> {
    let job = Job::new(args)?;
    let report = run(args, &job)?;
    if args.common.json {
        return print_json(&report);
    }
    let memory = |n: Option<u64>| n.map_or("unknown".to_owned(), precise_bytes);
    print_rows(&[
        ("parameters".into(), count(report.params)),
        ("dtype, path, threads".into(), format!("{} {} x{}", report.dtype, report.path, report.threads)),
        ("tokens a step".into(), format!("{} x {}", report.batch, report.seq)),
        ("median".into(), format!("{:.0} tokens/s", report.tokens_per_s)),
        ("model arithmetic".into(), format!("{:.1} GFLOP/s", report.gflops)),
        ("register peak".into(), format!("{:.1} GFLOP/s", report.peak_gflops)),
        ("share of peak".into(), format!("{:.1} %", 100.0 * report.mfu)),
        ("estimated memory".into(), precise_bytes(report.estimated_memory_bytes)),
        ("peak of tensors".into(), precise_bytes(report.tensor_peak_bytes as u64)),
        ("peak of process".into(), memory(report.peak_memory_bytes)),
        ("loss, first to last".into(), format!("{:.4} to {:.4}", report.first_loss, report.last_loss)),
    ])
}

impl Job {
    fn new(args: &TrainArgs) -> Result<Self> {
        let work = args.shape.workload()?;
        if args.warmup >= args.steps {
            let (warmup, steps) = (args.warmup, args.steps);
            return Err(usage(format!("--warmup {warmup} leaves none of --steps {steps} to be timed")));
        }
        let config = settings(args, &work)?;
        config.validate().map_err(usage)?;
        let tokens = match &args.text {
            Some(_) if work.model.vocab < 256 => {
                return Err(usage(format!(
                    "--vocab {} is too small for --text: a byte takes 256",
                    work.model.vocab
                )));
            }
            Some(path) => Tokens::of_file(path, work.seq)?,
            None => Tokens::Random { vocab: work.model.vocab },
        };
        Ok(Self { work, config, dtype: args.dtype.into(), tokens })
    }

    /// The windows of tokens of one step.
    fn windows(&self, step: usize) -> impl Iterator<Item = Vec<u32>> {
        let Workload { seq, batch, .. } = self.work;
        (step * batch..(step + 1) * batch).map(move |index| self.tokens.window(index as u64, seq))
    }
}

fn settings(args: &TrainArgs, work: &Workload) -> Result<TrainConfig> {
    let config = TrainConfig {
        steps: Some(args.steps as u64),
        sequence: work.seq,
        batch: work.batch,
        micro_batch: args.micro_batch.unwrap_or(work.batch).min(work.batch),
        optimizer: OptimizerConfig { peak_lr: args.lr, ..OptimizerConfig::default() },
        // No step is refused: what is compared does not refuse any either.
        spike_factor: 1e9,
        ..TrainConfig::default()
    };
    Ok(TrainConfig { recompute: args.recompute.into(), ..config })
}

impl From<RecomputeArg> for Recompute {
    fn from(arg: RecomputeArg) -> Self {
        match arg {
            RecomputeArg::None => Recompute::Nothing,
            RecomputeArg::Selective => Recompute::Selective,
            RecomputeArg::Blocks => Recompute::Blocks,
        }
    }
}

fn run(args: &TrainArgs, job: &Job) -> Result<Report> {
    let cpu = Cpu::new(args.common.threads())?;
    let (work, config) = (&job.work, &job.config);
    let estimate = estimate_memory(&work.model, config, job.dtype, crate::kernels(&cpu));
    say!("estimated memory: {} ({estimate})", precise_bytes(estimate.total()));
    let model = build(&cpu, job)?;
    if let Some(dir) = &args.dump {
        dump(dir, &model, &cpu, job)?;
    }
    let peak = || peak_gflops(job.dtype, cpu.threads(), 0.2);
    let mut peaks = vec![peak()];
    cpu.reset_peak();
    let mut trainer = Trainer::new(model, &cpu, config.clone());
    let (mut step_seconds, mut losses) = (Vec::new(), Vec::new());
    for step in 0..args.steps {
        let sequences = job.windows(step).map(|window| sequence(&window)).collect();
        let begun = Instant::now();
        let outcome = trainer.step(step as u64, sequences)?;
        step_seconds.push(begun.elapsed().as_secs_f64());
        losses.push(outcome.loss);
        if let Some(reason) = outcome.skipped {
            bail!("step {step} failed: {reason}. hint: lower --lr");
        }
    }
    let tensor_peak_bytes = cpu.memory().peak_bytes;
    peaks.extend([peak(), peak()]);
    if let Some(path) = &args.losses {
        let lines: String = losses.iter().map(|loss| format!("{loss}\n")).collect();
        std::fs::write(path, lines).with_context(|| format!("`{}`", path.display()))?;
    }
    step_seconds.drain(..args.warmup);
    let tokens_per_s = config.step_tokens() as f64 / median(&step_seconds);
    let (gflops, peak_gflops) = (flops_per_token(work) * tokens_per_s / 1e9, median(&peaks));
    Ok(Report {
        params: work.model.num_params(),
        dtype: job.dtype.name(),
        recompute: format!("{:?}", args.recompute).to_lowercase(),
        threads: cpu.threads(),
        path: cpu.path().name(),
        seq: work.seq,
        batch: work.batch,
        micro_batch: config.micro_batch,
        steps: args.steps,
        timed_steps: step_seconds.len(),
        tokens_per_s,
        step_seconds,
        gflops,
        peak_gflops,
        mfu: gflops / peak_gflops,
        estimated_memory_bytes: estimate.total(),
        peak_memory_bytes: crate::machine::peak_memory(),
        tensor_peak_bytes,
        first_loss: losses.first().copied().unwrap_or(f64::NAN),
        last_loss: losses.last().copied().unwrap_or(f64::NAN),
    })
}

/// The model at its start. Values are rounded to bf16 whatever the dtype, so that all dtypes start from the same.
fn build(cpu: &Cpu, job: &Job) -> Result<Llama> {
    let ranks: Arc<dyn Comm> = Arc::new(Solo);
    let values = |spec: &ParamSpec, rows| -> Result<Vec<f32>> {
        let mut values = initial_values(spec, rows, 0);
        values.iter_mut().for_each(|v| *v = round_to_bf16(*v));
        Ok(values)
    };
    let place = Placement::whole(&job.work.model);
    Llama::build(&job.work.model, &place, (cpu, job.dtype), &ranks, values)
}

/// The nearest number of 16 bits, ties to even; for numbers that are finite.
fn round_to_bf16(value: f32) -> f32 {
    let bits = value.to_bits();
    f32::from_bits((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff_0000)
}

/// What a peer needs beside weights and tokens.
#[derive(Serialize)]
struct Meta<'a> {
    steps: usize,
    batch: usize,
    seq: usize,
    /// Learning rate of every step.
    lr: Vec<f64>,
    optimizer: &'a OptimizerConfig,
}

/// Writes the weights as a model folder, `tokens.u32` (`[steps, batch, seq + 1]`, little endian) and `meta.json`.
fn dump(dir: &Path, model: &Llama, cpu: &Cpu, job: &Job) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("`{}`", dir.display()))?;
    hf::save(dir, model, cpu, &StopTokens { begin_of_text: 0, stop: vec![0] })?;
    let steps = job.config.num_steps();
    let windows = (0..steps as usize).flat_map(|step| job.windows(step).collect::<Vec<_>>());
    let tokens: Vec<u8> = windows.flatten().flat_map(u32::to_le_bytes).collect();
    let optimizer = &job.config.optimizer;
    let meta = Meta {
        steps: steps as usize,
        batch: job.work.batch,
        seq: job.work.seq,
        lr: (0..steps).map(|step| learning_rate(optimizer, step, steps)).collect(),
        optimizer,
    };
    let meta = serde_json::to_vec_pretty(&meta)?;
    for (name, data) in [("tokens.u32", tokens), ("meta.json", meta)] {
        let path = dir.join(name);
        std::fs::write(&path, data).with_context(|| format!("`{}`", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::round_to_bf16;

    #[test]
    fn values_keep_sixteen_bits() {
        assert_eq!(round_to_bf16(1.0), 1.0);
        // Half way between two numbers: to the even one.
        assert_eq!(round_to_bf16(f32::from_bits(0x3f80_8000)).to_bits(), 0x3f80_0000);
        assert_eq!(round_to_bf16(f32::from_bits(0x3f81_8000)).to_bits(), 0x3f82_0000);
        assert_eq!(round_to_bf16(f32::from_bits(0xbf80_8001)).to_bits(), 0xbf81_0000);
    }
}
