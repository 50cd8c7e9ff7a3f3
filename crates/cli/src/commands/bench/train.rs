//! `llamero bench train`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use llamero_comm::WorldOptions;
use llamero_cpu::Cpu;
use llamero_model::hf::{self, StopTokens};
use llamero_model::{Llama, ParamSpec, Recompute, initial_values};
use llamero_tensor::{Backend, DType};
use llamero_train::{
    MemoryEstimate, Mesh, OptimizerConfig, PipelineConfig, RankMemory, RankOf, Ranks, Sharding, TrainConfig,
    Trainer, build_stages, learning_rate, rank_memory,
};
use serde::Serialize;

use super::shape::{ShapeArgs, Workload, flops_per_token};
use super::tokens::{Tokens, sequence};
use super::{CommonArgs, DTypeArg, median, must_fit, peak_gflops, print_rows, size, usage};
use crate::commands::{print, print_json};
use crate::progress::Progress;
use crate::ranks;
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
    Before it begins, the run says on stderr how much memory it will take (`--estimate` says only that). `--recompute none` \
    keeps every activation, `blocks` only the input of each block, which takes least memory and a third more arithmetic. \
    Results have the same bits whatever is chosen.\n\n\
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
    /// Ranks that share the work, e.g. `dp=2`, `cp=2` or `dp=2,pp=2,tp=2`; they are threads of this process, among which
    /// --threads are divided.
    #[arg(long, default_value_t = Mesh::default())]
    mesh: Mesh,
    /// Chunks of blocks that a pipeline stage holds (interleaved schedule).
    #[arg(long, default_value_t = 1, value_parser = size)]
    chunks: usize,
    /// What data-parallel ranks divide among each other: `optimizer` (state only), `gradients` or `parameters` (each also what
    /// comes before it).
    #[arg(long, value_name = "WHAT", default_value_t = Sharding::default())]
    shard: Sharding,
    /// Say how much memory the run would take, and stop there.
    #[arg(long)]
    estimate: bool,
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
    dim: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    ffn: usize,
    vocab: usize,
    dtype: &'static str,
    recompute: String,
    mesh: String,
    shard: String,
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
    /// All ranks and the process.
    estimated_memory_bytes: u64,
    /// A rank of each pipeline stage.
    estimated_rank_bytes: Vec<u64>,
    /// Absent where the system does not tell.
    peak_memory_bytes: Option<u64>,
    /// With several ranks it varies a little: a rank copies what another still reads.
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
    if args.estimate {
        return print_estimate(args, &job);
    }
    let report = run(args, &job)?;
    if args.common.json {
        return print_json(&report);
    }
    let rate = |pick: fn(f64, f64) -> f64| {
        let seconds = report.step_seconds.iter().copied().reduce(pick).unwrap_or(f64::NAN);
        (report.batch * report.seq) as f64 / seconds
    };
    let memory = |n: Option<u64>| n.map_or("unknown".to_owned(), precise_bytes);
    print_rows(&[
        ("parameters".into(), count(report.params)),
        (
            "width, blocks, heads".into(),
            format!("{} x {}, {}/{}", report.dim, report.layers, report.heads, report.kv_heads),
        ),
        ("feed-forward, vocabulary".into(), format!("{}, {}", report.ffn, report.vocab)),
        ("dtype, path, threads".into(), format!("{} {} x{}", report.dtype, report.path, report.threads)),
        ("mesh".into(), report.mesh),
        ("tokens a step".into(), format!("{} x {}", report.batch, report.seq)),
        ("micro-batch, recompute".into(), format!("{}, {}", report.micro_batch, report.recompute)),
        ("median".into(), format!("{:.0} tokens/s", report.tokens_per_s)),
        (
            "slowest to fastest step".into(),
            format!("{:.0} to {:.0} tokens/s", rate(f64::max), rate(f64::min)),
        ),
        ("model arithmetic".into(), format!("{:.1} GFLOP/s", report.gflops)),
        ("register peak".into(), format!("{:.1} GFLOP/s", report.peak_gflops)),
        ("share of peak".into(), format!("{:.1} %", 100.0 * report.mfu)),
        ("estimated memory".into(), precise_bytes(report.estimated_memory_bytes)),
        ("peak of tensors".into(), precise_bytes(report.tensor_peak_bytes as u64)),
        ("peak of process".into(), memory(report.peak_memory_bytes)),
        ("loss, first to last".into(), format!("{:.4} to {:.4}", report.first_loss, report.last_loss)),
    ])
}

/// `--estimate`.
fn print_estimate(args: &TrainArgs, job: &Job) -> Result<()> {
    let cpu = Cpu::new((args.common.threads() / args.mesh.size()).max(1))?;
    let estimate = Estimate::new(args.mesh, job, &cpu);
    if args.common.json {
        let Estimate { whole, ranks } = &estimate;
        return print_json(
            &serde_json::json!({ "total_bytes": whole.total(), "parts": whole, "ranks": ranks }),
        );
    }
    estimate.lines(args.mesh).into_iter().try_for_each(print)
}

/// Memory of the process, and of a rank of each pipeline stage.
struct Estimate {
    whole: MemoryEstimate,
    ranks: Vec<RankMemory>,
}

impl Estimate {
    /// Of ranks like `cpu`.
    fn new(mesh: Mesh, job: &Job, cpu: &Cpu) -> Self {
        let kernels = Some(crate::kernels(cpu));
        let of_stage = |stage| {
            let rank = RankOf { mesh, stage, kernels };
            rank_memory(&job.work.model, &job.config, job.dtype, &rank)
        };
        let ranks: Vec<RankMemory> = (0..mesh.pp).map(of_stage).collect();
        // Every stage is there for each place on the other axes.
        let all = std::iter::repeat_n(&ranks, mesh.dp * mesh.cp * mesh.tp).flatten().copied();
        Self { whole: all.sum::<RankMemory>().into(), ranks }
    }

    fn lines(&self, mesh: Mesh) -> Vec<String> {
        let mut lines = vec![format!("{} ({})", precise_bytes(self.whole.total()), self.whole)];
        if mesh.size() > 1 {
            let of_stage = |(stage, rank): (usize, &RankMemory)| {
                format!("a rank of stage {stage}: {} ({rank})", precise_bytes(rank.total()))
            };
            lines.extend(self.ranks.iter().enumerate().map(of_stage));
        }
        lines
    }
}

impl Job {
    fn new(args: &TrainArgs) -> Result<Self> {
        let work = args.shape.workload()?;
        if let Some(micro_batch) = args.micro_batch.filter(|n| *n > work.batch) {
            return Err(usage(format!(
                "--micro-batch {micro_batch} is larger than the batch of {}",
                work.batch
            )));
        }
        if args.warmup >= args.steps {
            let (warmup, steps) = (args.warmup, args.steps);
            return Err(usage(format!("--warmup {warmup} leaves none of --steps {steps} to be timed")));
        }
        let config = settings(args, &work)?;
        config.validate().map_err(usage)?;
        args.mesh.check(&work.model, &config).map_err(usage)?;
        if args.dump.is_some() && (args.mesh.size() > 1 || args.chunks > 1) {
            return Err(usage("--dump writes a whole model, and no rank of --mesh or --chunks has one"));
        }
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
        micro_batch: args.micro_batch.unwrap_or(work.batch),
        optimizer: OptimizerConfig { peak_lr: args.lr, ..OptimizerConfig::default() },
        pipeline: PipelineConfig { chunks: args.chunks, ..PipelineConfig::default() },
        sharding: args.shard,
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

/// What one rank measured.
struct Measured {
    step_seconds: Vec<f64>,
    losses: Vec<f64>,
    tensor_peak_bytes: usize,
    path: &'static str,
}

fn run(args: &TrainArgs, job: &Job) -> Result<Report> {
    let (work, config, mesh) = (&job.work, &job.config, args.mesh);
    let threads = args.common.threads();
    let cpus = ranks::devices(mesh, Some(threads))?;
    let each = cpus[0].threads();
    let estimate = Estimate::new(mesh, job, &cpus[0]);
    estimate.lines(mesh).iter().for_each(|line| say!("estimated memory: {line}"));
    must_fit(
        estimate.whole.total(),
        "a smaller --batch or --micro-batch, --recompute blocks, or a smaller model",
    )?;
    // Written at the end, but a file that cannot be is known now.
    let mut losses_file = match &args.losses {
        Some(path) => Some(std::fs::File::create(path).with_context(|| format!("`{}`", path.display()))?),
        None => None,
    };
    let peak = || peak_gflops(job.dtype, each * mesh.size(), 0.2);
    let mut peaks = vec![peak()];
    let mut measured = if mesh.size() == 1 {
        steps(args, job, &cpus[0], Ranks::solo())?
    } else {
        on_threads(args, job, &cpus)?
    };
    peaks.extend([peak(), peak()]);
    if let (Some(file), Some(path)) = (&mut losses_file, &args.losses) {
        let lines: String = measured.losses.iter().map(|loss| format!("{loss}\n")).collect();
        file.write_all(lines.as_bytes()).with_context(|| format!("`{}`", path.display()))?;
    }
    measured.step_seconds.drain(..args.warmup);
    let Measured { step_seconds, losses, tensor_peak_bytes, path } = measured;
    let tokens_per_s = config.step_tokens() as f64 / median(&step_seconds);
    let (gflops, peak_gflops) = (flops_per_token(work) * tokens_per_s / 1e9, median(&peaks));
    Ok(Report {
        params: work.model.num_params(),
        dim: work.model.dim,
        layers: work.model.layers,
        heads: work.model.heads,
        kv_heads: work.model.kv_heads,
        ffn: work.model.ffn,
        vocab: work.model.vocab,
        dtype: job.dtype.name(),
        recompute: format!("{:?}", args.recompute).to_lowercase(),
        mesh: mesh.to_string(),
        shard: args.shard.to_string(),
        threads: each * mesh.size(),
        path,
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
        estimated_memory_bytes: estimate.whole.total(),
        estimated_rank_bytes: estimate.ranks.iter().map(RankMemory::total).collect(),
        peak_memory_bytes: crate::machine::peak_memory(),
        tensor_peak_bytes,
        first_loss: losses.first().copied().unwrap_or(f64::NAN),
        last_loss: losses.last().copied().unwrap_or(f64::NAN),
    })
}

/// All steps on a mesh of threads, one backend each. Every rank takes the same steps, so the first one's times are those of
/// all; the memory is that of all together.
fn on_threads(args: &TrainArgs, job: &Job, cpus: &[Cpu]) -> Result<Measured> {
    let mut measured = ranks::on_threads(args.mesh, (WorldOptions::default(), None), cpus, |cpu, ranks| {
        steps(args, job, cpu, ranks)
    })?;
    let all = measured.iter().map(|m| m.tensor_peak_bytes).sum();
    Ok(Measured { tensor_peak_bytes: all, ..measured.swap_remove(0) })
}

/// All steps of one rank.
fn steps(args: &TrainArgs, job: &Job, cpu: &Cpu, ranks: Ranks) -> Result<Measured> {
    let config = &job.config;
    let stages = build(cpu, job, &ranks)?;
    if let Some(dir) = &args.dump {
        dump(dir, &stages[0], cpu, job)?;
    }
    cpu.reset_peak();
    let mut trainer = Trainer::on_mesh(stages, ranks, cpu, config.clone());
    let own = trainer.own_sequences(0);
    let first = trainer.ranks().all.rank() == 0;
    let progress = first.then(|| Progress::new("train", args.steps as u64, "steps"));
    let (mut step_seconds, mut losses) = (Vec::new(), Vec::new());
    for step in 0..args.steps {
        let windows = job.windows(step).skip(own.start).take(own.len());
        let sequences = windows.map(|window| sequence(&window)).collect();
        let begun = Instant::now();
        let outcome = trainer.step(step as u64, sequences)?;
        step_seconds.push(begun.elapsed().as_secs_f64());
        losses.push(outcome.loss);
        if let Some(progress) = &progress {
            progress.at(step as u64 + 1, &format!("loss {:.3}", outcome.loss));
        }
        if let Some(reason) = outcome.skipped {
            bail!("step {step} failed: {reason}. hint: lower --lr");
        }
    }
    if let Some(progress) = &progress {
        progress.finish();
    }
    trainer.ranks().all.barrier()?;
    let tensor_peak_bytes = cpu.memory().peak_bytes;
    Ok(Measured { step_seconds, losses, tensor_peak_bytes, path: cpu.path().name() })
}

/// What a rank has of the model at its start. Values are rounded to bf16 whatever the dtype, so that all dtypes start from
/// the same.
fn build(cpu: &Cpu, job: &Job, ranks: &Ranks) -> Result<Vec<Llama>> {
    let values = |spec: &ParamSpec, rows| -> Result<Vec<f32>> {
        let mut values = initial_values(spec, rows, 0);
        values.iter_mut().for_each(|v| *v = round_to_bf16(*v));
        Ok(values)
    };
    build_stages(&job.work.model, &job.config, ranks, (cpu, job.dtype), values)
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
    hf::save(dir, model, cpu, &StopTokens { begin_of_text: Some(0), stop: vec![0] })?;
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
