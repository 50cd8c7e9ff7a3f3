//! `llamero bench`: the machine's limits, and how close the kernels, a training step and a request come to them.

mod attention;
mod curate;
mod gemm;
mod infer;
mod machine;
mod shape;
mod tokenizer;
mod tokens;
mod train;

use std::time::Instant;

use anyhow::{Result, bail};
use clap::error::ErrorKind;
use clap::{Args, Subcommand, ValueEnum};
use llamero_cpu::peak::{self, Unit};
use llamero_tensor::{Backend, DType, Shape, Tensor};

use crate::report::format::precise_bytes;

#[derive(Subcommand)]
#[command(after_help = "Examples:\n  \
    llamero bench machine\n  \
    llamero bench gemm --m 2048 --n 2048 --k 2048 --dtype bf16\n  \
    llamero bench attention --documents 1,4,16,64\n  \
    llamero bench train --shape 125m --json\n  \
    llamero bench infer runs/quickstart --json\n  \
    llamero bench tokenizer --tokenizer runs/quickstart --text corpus.txt\n  \
    llamero bench curate --text documents.jsonl --stage filters --threads 1\n\n\
    LLAMERO_CPU=scalar|avx2|avx512|avx512bf16 forces one set of kernels; otherwise the last that the processor has is \
    taken.")]
pub(crate) enum BenchCommand {
    /// The limits of this machine: multiply-adds in registers, and memory bandwidth.
    Machine(machine::MachineArgs),
    /// Speed of a matrix product.
    Gemm(gemm::GemmArgs),
    /// Time of attention over documents of several lengths.
    Attention(attention::AttentionArgs),
    /// Speed and memory of training steps.
    Train(Box<train::TrainArgs>),
    /// Speed and memory of using a model.
    Infer(infer::InferArgs),
    /// Speed of encoding and decoding text.
    Tokenizer(tokenizer::TokenizerArgs),
    /// Speed and memory of filters and deduplication over documents in files.
    Curate(curate::CurateArgs),
}

pub(crate) fn bench(command: &BenchCommand) -> Result<()> {
    match command {
        BenchCommand::Machine(args) => machine::machine(args),
        BenchCommand::Gemm(args) => gemm::gemm(args),
        BenchCommand::Attention(args) => attention::attention(args),
        BenchCommand::Train(args) => train::train(args),
        BenchCommand::Infer(args) => infer::infer(args),
        BenchCommand::Tokenizer(args) => tokenizer::tokenizer(args),
        BenchCommand::Curate(args) => curate::curate(args),
    }
}

/// Options of every benchmark.
#[derive(Args)]
struct CommonArgs {
    /// Threads; all cores when absent.
    #[arg(long, value_parser = crate::machine::parse_threads)]
    threads: Option<usize>,
    /// Print the result as one JSON object.
    #[arg(long)]
    json: bool,
}

impl CommonArgs {
    fn threads(&self) -> usize {
        self.threads.unwrap_or_else(crate::machine::threads)
    }
}

/// How often and how long to measure.
#[derive(Args)]
struct SamplingArgs {
    /// Timed samples; the median counts.
    #[arg(long, default_value_t = 5, value_parser = size)]
    samples: usize,
    /// Least seconds of work in a sample.
    #[arg(long, default_value_t = 0.2, value_parser = seconds)]
    seconds: f64,
}

/// Element type of weights and activations.
#[derive(Clone, Copy, ValueEnum)]
enum DTypeArg {
    F32,
    Bf16,
}

impl From<DTypeArg> for DType {
    fn from(arg: DTypeArg) -> Self {
        match arg {
            DTypeArg::F32 => DType::F32,
            DTypeArg::Bf16 => DType::Bf16,
        }
    }
}

/// Sizes beyond this are typing errors, and no machine has the memory.
const LARGEST: usize = 1 << 20;

/// A size on the command line.
fn size(text: &str) -> Result<usize, String> {
    let size = text.parse().ok().filter(|n| (1..=LARGEST).contains(n));
    size.ok_or_else(|| format!("it is not a whole number from 1 to {LARGEST}"))
}

/// A time on the command line.
fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|s| (0.001..=60.0).contains(s));
    seconds.ok_or_else(|| "it is not a number of seconds from 0.001 to 60".to_owned())
}

/// Refuses work that needs more memory than there is, before it begins.
fn must_fit(bytes: u64, hint: &str) -> Result<()> {
    match crate::machine::available_memory() {
        Some(there) if bytes > there => bail!(
            "this needs about {}, but {} of memory are available. hint: {hint}",
            precise_bytes(bytes),
            precise_bytes(there)
        ),
        _ => Ok(()),
    }
}

/// Options that do not fit together: an error of usage, as if the parser had found it.
fn usage(message: impl std::fmt::Display) -> anyhow::Error {
    let message = format!("{message}\n\nFor more information, try '--help'.\n");
    clap::Error::raw(ErrorKind::ValueValidation, message).into()
}

/// Seconds of one call.
fn time(f: impl FnOnce()) -> f64 {
    let begun = Instant::now();
    f();
    begun.elapsed().as_secs_f64()
}

/// Calls of something that together take at least the asked time.
struct Timed<F> {
    f: F,
    calls: usize,
}

impl<F: FnMut()> Timed<F> {
    /// Warms up, and finds out how many calls a sample needs.
    fn new(mut f: F, seconds: f64) -> Self {
        f();
        let (mut calls, mut took) = (1, time(&mut f));
        while took < seconds && calls < 1 << 30 {
            // Towards the goal, but never far beyond it on the strength of one short measurement.
            let wanted = (calls as f64 * 1.1 * seconds / took.max(1e-9)).ceil() as usize;
            calls = wanted.clamp(calls + 1, calls * 16);
            took = time(|| (0..calls).for_each(|_| f()));
        }
        Self { f, calls }
    }

    /// Mean seconds of a call in one sample.
    fn sample(&mut self) -> f64 {
        time(|| (0..self.calls).for_each(|_| (self.f)())) / self.calls as f64
    }
}

/// The middle value; the mean of the two middle ones where there is none.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (low, high) = (sorted.len().saturating_sub(1) / 2, sorted.len() / 2);
    match (sorted.get(low), sorted.get(high)) {
        (Some(a), Some(b)) => f64::midpoint(*a, *b),
        _ => f64::NAN,
    }
}

/// The limit that products of `dtype` are held against, in GFLOP/s, from one run of this many seconds.
fn peak_gflops(dtype: DType, threads: usize, seconds: f64) -> f64 {
    peak::flops(Unit::fastest(dtype), threads, seconds) / 1e9
}

/// Prints rows of a name and a value, aligned.
fn print_rows(rows: &[(String, String)]) -> Result<()> {
    let wide = |column: fn(&(String, String)) -> &String| {
        rows.iter().map(|row| column(row).chars().count()).max().unwrap_or(0)
    };
    let (left, right) = (wide(|r| &r.0), wide(|r| &r.1));
    rows.iter().try_for_each(|(name, value)| super::print(format!("{name:<left$}  {value:>right$}")))
}

/// The same number on every machine for the same two: SplitMix64's finaliser over a counter.
fn hash(seed: u64, index: u64) -> u64 {
    let mut z =
        seed.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A tensor of values in `[−1, 1)`.
fn random(backend: &dyn Backend, seed: u64, shape: Shape, dtype: DType) -> Tensor {
    let unit = |i| (hash(seed, i) >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
    let values: Vec<f32> = (0..shape.elements() as u64).map(unit).collect();
    backend.upload(&values, shape, dtype)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn a_sample_is_the_mean_of_as_many_calls_as_it_needs() {
        let calls = std::cell::Cell::new(0);
        let call = || {
            calls.set(calls.get() + 1);
            std::thread::sleep(std::time::Duration::from_millis(1));
        };
        let mut timed = Timed::new(call, 0.01);
        let (before, wanted) = (calls.get(), timed.calls);
        let mean = timed.sample();
        assert_eq!(calls.get() - before, wanted);
        // A call takes a millisecond at least, so eleven are enough however slow the machine is.
        assert!(
            (1..=11).contains(&wanted) && before > wanted && mean >= 0.001,
            "{wanted} calls, {before} before"
        );
    }

    #[test]
    fn sizes_are_bounded() {
        assert_eq!(size("77"), Ok(77));
        for text in ["0", "-1", "1.5", "many", "1048577", ""] {
            assert!(size(text).unwrap_err().contains("1 to 1048576"), "{text}");
        }
        assert!(seconds("0.5").is_ok() && seconds("nan").is_err() && seconds("-1").is_err());
    }
}
