//! `llamero bench machine`.

use anyhow::Result;
use clap::Args;
use llamero_cpu::peak::{self, Streams, Unit};
use serde::Serialize;

use super::{CommonArgs, SamplingArgs, median, must_fit, print_rows, size, usage};
use crate::commands::print_json;

#[derive(Args)]
#[command(
    after_help = "Peaks are chains of multiply-adds that stay in registers, on all threads at the same time; a multiply-add \
    counts as two operations. Bandwidth is over arrays that no cache should hold; a copy counts the bytes read and the \
    bytes written.\n\n\
    Examples:\n  \
    llamero bench machine\n  \
    llamero bench machine --threads 1 --json"
)]
pub(crate) struct MachineArgs {
    #[command(flatten)]
    common: CommonArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Size of each of the two arrays that bandwidth is measured on, in MiB; at least 64, so that no cache holds them.
    #[arg(long, default_value_t = 256, value_parser = size)]
    array_mib: usize,
}

#[derive(Serialize)]
struct Peak {
    unit: &'static str,
    dtype: &'static str,
    gflops: f64,
    gflops_best: f64,
}

#[derive(Serialize)]
struct Machine {
    threads: usize,
    peaks: Vec<Peak>,
    /// Absent where there is no bf16 instruction.
    bf16_gflops: Option<f64>,
    f32_gflops: Option<f64>,
    read_gb_per_s: f64,
    copy_gb_per_s: f64,
    array_bytes: usize,
    samples: usize,
}

pub(super) fn machine(args: &MachineArgs) -> Result<()> {
    // Nothing here depends on it, but a wrong LLAMERO_CPU is an error everywhere.
    crate::device(Some(1))?;
    if args.array_mib < 64 {
        return Err(usage(format!(
            "--array-mib {} fits into a cache; at least 64 are measured",
            args.array_mib
        )));
    }
    must_fit((2 * args.array_mib as u64) << 20, "a smaller --array-mib")?;
    let machine = measure(args);
    if args.common.json { print_json(&machine) } else { print_machine(&machine) }
}

fn measure(args: &MachineArgs) -> Machine {
    let (threads, samples, seconds) = (args.common.threads(), args.sampling.samples, args.sampling.seconds);
    let peaks: Vec<Peak> = Unit::available()
        .into_iter()
        .map(|unit| {
            let runs: Vec<f64> = (0..samples).map(|_| peak::flops(unit, threads, seconds) / 1e9).collect();
            let gflops_best = runs.iter().copied().fold(0.0, f64::max);
            Peak { unit: unit.name(), dtype: unit.dtype().name(), gflops: median(&runs), gflops_best }
        })
        .collect();
    let highest = |dtype: &str| peaks.iter().filter(|p| p.dtype == dtype).map(|p| p.gflops).reduce(f64::max);
    let array_bytes = args.array_mib << 20;
    let mut streams = Streams::new(threads, array_bytes);
    streams.bandwidth();
    let runs: Vec<_> = (0..samples).map(|_| streams.bandwidth()).collect();
    let gb = |of: fn(&peak::Bandwidth) -> f64| median(&runs.iter().map(of).collect::<Vec<_>>()) / 1e9;
    Machine {
        threads,
        bf16_gflops: highest("bf16"),
        f32_gflops: highest("f32"),
        peaks,
        read_gb_per_s: gb(|b| b.read),
        copy_gb_per_s: gb(|b| b.copy),
        array_bytes,
        samples,
    }
}

fn print_machine(machine: &Machine) -> Result<()> {
    let mut rows = vec![("threads".to_owned(), machine.threads.to_string())];
    rows.extend(machine.peaks.iter().map(|p| {
        let name = format!("{} multiply-add, {}", p.dtype, p.unit);
        (name, format!("{:.1} GFLOP/s", p.gflops))
    }));
    if machine.bf16_gflops.is_none() {
        rows.push(("bf16 dot product".into(), "not on this processor".into()));
    }
    rows.push(("memory read".into(), format!("{:.1} GB/s", machine.read_gb_per_s)));
    rows.push(("memory copy".into(), format!("{:.1} GB/s", machine.copy_gb_per_s)));
    print_rows(&rows)
}
