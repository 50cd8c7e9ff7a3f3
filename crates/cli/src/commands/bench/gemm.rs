//! `llamero bench gemm`.

use anyhow::Result;
use clap::{Args, ValueEnum};
use llamero_cpu::Cpu;
use llamero_cpu::peak::Unit;
use llamero_tensor::{Backend, DType, Shape, Tensor};
use serde::Serialize;

use super::{
    CommonArgs, DTypeArg, SamplingArgs, Timed, median, must_fit, peak_gflops, print_rows, random, size, usage,
};
use crate::commands::print_json;

/// Which of the three products of a linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Op {
    /// Forward: y (m × n) = x (m × k) · w (n × k)ᵀ
    Nt,
    /// Gradient of the input: dx (m × n) = dy (m × k) · w (k × n)
    Nn,
    /// Gradient of the weight: dw (m × n) += dy (k × m)ᵀ · x (k × n), in f32
    Tn,
}

#[derive(Args)]
#[command(
    after_help = "GFLOP/s count 2·m·n·k operations. `peak_gflops` is the register peak of the dtype, measured between the \
    samples of the product.\n\n\
    Examples:\n  \
    llamero bench gemm --m 2048 --n 2048 --k 2048 --dtype bf16\n  \
    llamero bench gemm --m 768 --n 2048 --k 2048 --op tn --threads 1 --json"
)]
pub(crate) struct GemmArgs {
    #[command(flatten)]
    common: CommonArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Rows of the result.
    #[arg(long, default_value_t = 2048, value_parser = size)]
    m: usize,
    /// Columns of the result.
    #[arg(long, default_value_t = 2048, value_parser = size)]
    n: usize,
    /// Terms of each sum.
    #[arg(long, default_value_t = 2048, value_parser = size)]
    k: usize,
    /// Element type of the factors.
    #[arg(long, value_enum, default_value = "bf16")]
    dtype: DTypeArg,
    /// Which product.
    #[arg(long, value_enum, default_value = "nt")]
    op: Op,
    /// With `nt`: w is packed once and not timed, as the engine that decodes does.
    #[arg(long)]
    packed: bool,
}

#[derive(Serialize)]
struct Gemm {
    m: usize,
    n: usize,
    k: usize,
    dtype: &'static str,
    op: String,
    packed: bool,
    threads: usize,
    path: &'static str,
    gflops: f64,
    gflops_best: f64,
    peak_unit: &'static str,
    peak_gflops: f64,
    fraction_of_peak: f64,
    samples: usize,
}

pub(super) fn gemm(args: &GemmArgs) -> Result<()> {
    if args.packed && args.op != Op::Nt {
        return Err(usage(
            "--packed is for --op nt: only the weight of a forward product is used many times unchanged",
        ));
    }
    let gemm = measure(args)?;
    if args.common.json {
        return print_json(&gemm);
    }
    let Gemm { m, n, k, dtype, op, .. } = &gemm;
    print_rows(&[
        (format!("{op} {dtype}"), format!("m {m}, n {n}, k {k}")),
        ("path, threads".into(), format!("{} x{}", gemm.path, gemm.threads)),
        ("median".into(), format!("{:.1} GFLOP/s", gemm.gflops)),
        ("best".into(), format!("{:.1} GFLOP/s", gemm.gflops_best)),
        (format!("register peak, {}", gemm.peak_unit), format!("{:.1} GFLOP/s", gemm.peak_gflops)),
        ("share of peak".into(), format!("{:.1} %", 100.0 * gemm.fraction_of_peak)),
    ])
}

fn measure(args: &GemmArgs) -> Result<Gemm> {
    let element = DType::from(args.dtype).bytes() as u64;
    let [m, n, k] = [args.m, args.n, args.k].map(|n| n as u64);
    // The factors, each once more in another order, and a result in f32.
    must_fit(2 * element * (m * k + n * k) + 4 * m * n, "smaller sizes")?;
    let cpu = Cpu::new(args.common.threads())?;
    let (dtype, seconds) = (DType::from(args.dtype), args.sampling.seconds);
    let mut product = Timed::new(product(&cpu, args, dtype), seconds);
    let flops = 2.0 * args.m as f64 * args.n as f64 * args.k as f64;
    // The clock of a processor wanders, so limit and product are measured in turn.
    let runs = (0..args.sampling.samples)
        .map(|_| (flops / product.sample() / 1e9, peak_gflops(dtype, cpu.threads(), seconds)));
    let (speeds, peaks): (Vec<f64>, Vec<f64>) = runs.unzip();
    let (gflops, peak) = (median(&speeds), median(&peaks));
    Ok(Gemm {
        m: args.m,
        n: args.n,
        k: args.k,
        dtype: dtype.name(),
        op: format!("{:?}", args.op).to_lowercase(),
        packed: args.packed,
        threads: cpu.threads(),
        path: cpu.path().name(),
        gflops,
        gflops_best: speeds.iter().copied().fold(0.0, f64::max),
        peak_unit: Unit::fastest(dtype).name(),
        peak_gflops: peak,
        fraction_of_peak: gflops / peak,
        samples: args.sampling.samples,
    })
}

/// One call of the product, with operands of its own.
fn product<'c>(cpu: &'c Cpu, args: &GemmArgs, dtype: DType) -> Box<dyn FnMut() + 'c> {
    let (m, n, k) = (args.m, args.n, args.k);
    let operand = |seed, rows, cols| -> Tensor { random(cpu, seed, Shape::new(rows, cols), dtype) };
    match args.op {
        Op::Nt => {
            let (x, w) = (operand(1, m, k), operand(2, n, k));
            let w = if args.packed { cpu.pack(&w) } else { w };
            Box::new(move || drop(cpu.linear(&x, &w)))
        }
        Op::Nn => {
            let (dy, w) = (operand(1, m, k), operand(2, k, n));
            Box::new(move || drop(cpu.linear_backward_input(&dy, &w)))
        }
        Op::Tn => {
            let (dy, x) = (operand(1, k, m), operand(2, k, n));
            let mut dw = cpu.zeros(Shape::new(m, n), DType::F32);
            Box::new(move || cpu.linear_backward_weight(&dy, &x, &mut dw))
        }
    }
}
