//! `llamero bench attention`.

use anyhow::Result;
use clap::Args;
use llamero_cpu::Cpu;
use llamero_tensor::{Backend, DType, Heads, Segments, Shape, Tensor};
use serde::Serialize;

use super::{CommonArgs, DTypeArg, SamplingArgs, Timed, median, must_fit, random, size, usage};
use crate::commands::{print, print_json};

#[derive(Args)]
#[command(
    after_help = "The tokens are divided into so many documents of equal length. Attention stays inside a document, so its \
    cost is the sum of the squared lengths; `relative_cost` is time per unit of that sum against the first division. \
    GFLOP/s count the pairs under the causal mask: 4·width operations each forward, 10·width backward.\n\n\
    Examples:\n  \
    llamero bench attention\n  \
    llamero bench attention --tokens 2048 --documents 1,8 --heads 8 --kv-heads 2 --head-dim 64 --dtype f32 --json"
)]
pub(crate) struct AttentionArgs {
    #[command(flatten)]
    common: CommonArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Packed tokens.
    #[arg(long, default_value_t = 8192, value_parser = size)]
    tokens: usize,
    /// Numbers of documents to divide them into.
    #[arg(long, value_delimiter = ',', default_value = "1,4,16,64", value_parser = size)]
    documents: Vec<usize>,
    /// Query heads.
    #[arg(long, default_value_t = 12, value_parser = size)]
    heads: usize,
    /// Key and value heads; a divisor of the query heads.
    #[arg(long, default_value_t = 4, value_parser = size)]
    kv_heads: usize,
    /// Width of a head.
    #[arg(long, default_value_t = 64, value_parser = size)]
    head_dim: usize,
    /// Element type of queries, keys and values.
    #[arg(long, value_enum, default_value = "bf16")]
    dtype: DTypeArg,
}

#[derive(Serialize)]
struct Division {
    documents: usize,
    sum_len_squared: u64,
    forward_seconds: f64,
    backward_seconds: f64,
    seconds: f64,
    gflops: f64,
    relative_cost: f64,
}

#[derive(Serialize)]
struct Report {
    tokens: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    dtype: &'static str,
    threads: usize,
    path: &'static str,
    samples: usize,
    divisions: Vec<Division>,
}

pub(super) fn attention(args: &AttentionArgs) -> Result<()> {
    check(args)?;
    let report = measure(args)?;
    if args.common.json {
        return print_json(&report);
    }
    print(format!(
        "{} tokens, {}/{} heads of {}, {}, {} x{}",
        report.tokens,
        report.heads,
        report.kv_heads,
        report.head_dim,
        report.dtype,
        report.path,
        report.threads
    ))?;
    print("documents      Σ len²  forward ms  backward ms  GFLOP/s  time per Σ len²")?;
    report.divisions.iter().try_for_each(|d| {
        let (forward, backward) = (1e3 * d.forward_seconds, 1e3 * d.backward_seconds);
        print(format!(
            "{:>9} {:>11} {forward:>11.2} {backward:>12.2} {:>8.1} {:>16.3}",
            d.documents, d.sum_len_squared, d.gflops, d.relative_cost
        ))
    })
}

fn check(args: &AttentionArgs) -> Result<()> {
    if !args.heads.is_multiple_of(args.kv_heads) {
        let (heads, kv_heads) = (args.heads, args.kv_heads);
        return Err(usage(format!("--kv-heads {kv_heads} does not divide --heads {heads}")));
    }
    if !args.head_dim.is_multiple_of(2) {
        return Err(usage(format!("--head-dim {} is odd; a head has an even width", args.head_dim)));
    }
    match args.documents.iter().find(|&&n| n > args.tokens) {
        Some(n) => {
            let tokens = args.tokens;
            Err(usage(format!(
                "--documents {n} is more than --tokens {tokens}: a document has a token at least"
            )))
        }
        None => Ok(()),
    }
}

/// Lengths of `documents` documents that together have `tokens`, as equal as they can be.
fn lengths(tokens: usize, documents: usize) -> Vec<usize> {
    (0..documents).map(|i| tokens * (i + 1) / documents - tokens * i / documents).collect()
}

fn measure(args: &AttentionArgs) -> Result<Report> {
    let width = (args.heads + 2 * args.kv_heads) * args.head_dim;
    // Inputs, packed copies, results and gradients; 8 bytes an element cover them in either dtype.
    must_fit(8 * 4 * (args.tokens * width) as u64, "fewer --tokens or heads")?;
    let cpu = Cpu::new(args.common.threads())?;
    let dtype = DType::from(args.dtype);
    let heads = Heads { query: args.heads, kv: args.kv_heads, dim: args.head_dim };
    let qkv = random(&cpu, 1, Shape::new(args.tokens, heads.width()), dtype);
    let dy = random(&cpu, 2, Shape::new(args.tokens, heads.query_width()), dtype);
    let mut runs: Vec<Run<'_>> = args
        .documents
        .iter()
        .map(|&n| Run::new(&cpu, (&qkv, &dy), heads, lengths(args.tokens, n), args.sampling.seconds))
        .collect();
    // All divisions in turn, so that a slow moment of the machine does not fall on one of them.
    for _ in 0..args.sampling.samples {
        for run in &mut runs {
            run.forward.push(run.time_forward.sample());
            run.backward.push(run.time_backward.sample());
        }
    }
    let first = runs.first().map_or(f64::NAN, Run::cost);
    let divisions = runs.iter().map(|run| run.division(heads, first)).collect();
    Ok(Report {
        tokens: args.tokens,
        heads: heads.query,
        kv_heads: heads.kv,
        head_dim: heads.dim,
        dtype: dtype.name(),
        threads: cpu.threads(),
        path: cpu.path().name(),
        samples: args.sampling.samples,
        divisions,
    })
}

/// One division of the tokens, and its samples.
struct Run<'a> {
    lengths: Vec<usize>,
    pairs: usize,
    time_forward: Timed<Box<dyn FnMut() + 'a>>,
    time_backward: Timed<Box<dyn FnMut() + 'a>>,
    forward: Vec<f64>,
    backward: Vec<f64>,
}

impl<'a> Run<'a> {
    fn new(
        cpu: &'a Cpu,
        (qkv, dy): (&'a Tensor, &'a Tensor),
        heads: Heads,
        lengths: Vec<usize>,
        seconds: f64,
    ) -> Self {
        let segments = Segments::documents(lengths.iter().copied());
        let pairs = segments.attention_pairs();
        let saved = cpu.attention(qkv, heads, &segments);
        let same = segments.clone();
        let forward: Box<dyn FnMut()> = Box::new(move || drop(cpu.attention(qkv, heads, &same)));
        let backward: Box<dyn FnMut()> =
            Box::new(move || drop(cpu.attention_backward(dy, qkv, &saved, heads, &segments)));
        Self {
            lengths,
            pairs,
            time_forward: Timed::new(forward, seconds),
            time_backward: Timed::new(backward, seconds),
            forward: Vec::new(),
            backward: Vec::new(),
        }
    }

    fn squares(&self) -> u64 {
        self.lengths.iter().map(|&n| (n as u64).pow(2)).sum()
    }

    fn seconds(&self) -> f64 {
        median(&self.forward) + median(&self.backward)
    }

    /// Seconds per unit of Σ len².
    fn cost(&self) -> f64 {
        self.seconds() / self.squares() as f64
    }

    fn division(&self, heads: Heads, first: f64) -> Division {
        let flops = 14.0 * self.pairs as f64 * heads.query_width() as f64;
        Division {
            documents: self.lengths.len(),
            sum_len_squared: self.squares(),
            forward_seconds: median(&self.forward),
            backward_seconds: median(&self.backward),
            seconds: self.seconds(),
            gflops: flops / self.seconds() / 1e9,
            relative_cost: self.cost() / first,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::lengths;

    #[test]
    fn documents_are_equal_and_add_up() {
        assert_eq!(lengths(8192, 4), [2048; 4]);
        let uneven = lengths(10, 3);
        assert_eq!((uneven.iter().sum::<usize>(), uneven.len()), (10, 3));
        assert!(uneven.iter().all(|n| [3, 4].contains(n)), "{uneven:?}");
    }
}
