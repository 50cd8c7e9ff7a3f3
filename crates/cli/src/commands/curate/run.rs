//! `llamero curate run`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use llamero_curate::Estimate;

use crate::commands::{print, print_json};
use crate::pipeline::{self, CurateOptions, Curated};
use crate::report::format::{bytes, count, duration, grouped};

#[derive(Args)]
#[command(
    after_help = "The corpus is written to RUN/curate, as `llamero run` does; run the same command again after an interruption: \
    partitions that are finished are kept.\n\n\
    Examples:\n  \
    llamero curate run recipes/quickstart.toml\n  \
    llamero curate run crawl.toml --estimate\n  \
    llamero curate run crawl.toml --memory 2GiB --threads 8\n  \
    llamero curate run crawl.toml --cluster df://10.0.0.1:50050\n  \
    llamero curate run crawl.toml --set 'curate.sources=[\"crawl/*.warc.gz\"]' --set curate.gopher_quality.min_words=30"
)]
pub(crate) struct RunArgs {
    /// The recipe, a TOML file; its sections `[run]` and `[curate]` count.
    recipe: PathBuf,
    /// Set a value of the recipe, e.g. `curate.mix={}`; may be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Make the corpus anew where RUN/curate has a finished one of another recipe or other inputs.
    #[arg(long, conflicts_with = "estimate")]
    replace: bool,
    /// Most memory for buffers, e.g. `512MiB`, at least 1 MiB a thread; models and the document at hand come on top. 1 GiB when
    /// absent.
    #[arg(long, value_parser = crate::machine::parse_size, allow_negative_numbers = true)]
    memory: Option<u64>,
    /// Tasks at a time; all cores when absent.
    #[arg(long, value_parser = crate::machine::parse_threads, allow_negative_numbers = true)]
    threads: Option<usize>,
    /// Partitions of a shuffle, 4096 at most, and above 256 one for each 64 KiB of input at most: each stage writes a file for each,
    /// and notes of each in every one of them. One for each 64 MiB of input when absent.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=4096), allow_negative_numbers = true)]
    partitions: Option<u32>,
    /// Run on the cluster of this scheduler, whose executors see the inputs and RUN under the same paths; the build needs the
    /// feature `ballista`.
    #[arg(long, value_name = "df://HOST:PORT", conflicts_with_all = ["memory", "threads", "estimate"])]
    cluster: Option<String>,
    /// Read a sample, and say what time, memory and disk the whole will take; no corpus is made.
    #[arg(long)]
    estimate: bool,
    /// Print the results as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &RunArgs) -> Result<()> {
    let options = CurateOptions {
        memory_bytes: args.memory,
        threads: args.threads,
        partitions: args.partitions,
        cluster: args.cluster.as_deref(),
        announce: args.cluster.is_none(),
        keep: !args.replace,
    };
    if args.estimate {
        let found = pipeline::estimate(&args.recipe, &args.sets, options)?;
        return if args.json { print_json(&found) } else { print_estimate(&found) };
    }
    let curated = pipeline::curate(&args.recipe, &args.sets, options)?;
    if !args.json {
        return print_summary(&curated);
    }
    pipeline::lost(&curated.report.broken).iter().for_each(|line| say!("{line}"));
    print_json(&curated)
}

fn print_estimate(found: &Estimate) -> Result<()> {
    print(format!(
        "from {} of {}, about {} documents:",
        bytes(found.sample_bytes),
        bytes(found.input_bytes),
        count(found.documents)
    ))?;
    print(format!("time    {}", duration(found.seconds)))?;
    print(format!("memory  at most {}", bytes(found.memory_bytes)))?;
    print(format!("disk    {}, for the time of the run", bytes(found.disk_bytes)))
}

/// What was wanted, what there was and what was written, and what fell short: why a mix leaves documents out or repeats them.
fn print_mix(curated: &Curated) -> Result<()> {
    for (name, mix) in llamero_curate::audit::Corpus::open(&curated.folder)?.mix()? {
        for (domain, found) in mix.domains {
            print(format!(
                "{name} {domain}: {} wanted ({:.1} %), {} there, {} written",
                bytes(found.target_bytes),
                100.0 * found.target_share,
                bytes(found.available_bytes),
                bytes(found.bytes)
            ))?;
        }
        for words in mix.short {
            print(format!("{name} is not as wanted: {words}"))?;
        }
    }
    Ok(())
}

/// How often documents are written where a mix repeats them or leaves them out.
fn print_copies(curated: &Curated) -> Result<()> {
    let report = &curated.report;
    let copies: u64 = report.files.values().map(|tally| tally.documents).sum();
    let written: u64 = report.files.values().map(|tally| tally.bytes).sum();
    if copies == report.documents_kept {
        return Ok(());
    }
    let times = copies as f64 / report.documents_kept.max(1) as f64;
    print(format!(
        "the mix writes these {} documents {} times in all, {times:.2} times each on average: {}",
        grouped(report.documents_kept),
        grouped(copies),
        bytes(written)
    ))
}

fn print_summary(curated: &Curated) -> Result<()> {
    let report = &curated.report;
    let row = |step: &str, rest: [String; 4]| {
        print(format!("{step:<18} {:>13} {:>13} {:>13} {:>11}", rest[0], rest[1], rest[2], rest[3]))
    };
    row("step", ["documents in", "dropped", "edited", "text left"].map(str::to_owned))?;
    for passage in &report.steps {
        let counts = [passage.before.documents, passage.dropped(), passage.edited].map(grouped);
        let [documents, dropped, edited] = counts;
        row(&passage.step, [documents, dropped, edited, bytes(passage.after.bytes)])?;
    }
    for (domain, tally) in &report.domains {
        print(format!("domain {domain}: {} documents, {}", grouped(tally.documents), bytes(tally.bytes)))?;
    }
    print_mix(curated)?;
    if report.broken.count > 0 {
        print(format!(
            "{} parts of the sources could not be read: {}",
            grouped(report.broken.count),
            curated.folder.join(llamero_curate::BROKEN_FILE).display()
        ))?;
    }
    for set in &report.evaluation_sets {
        print(format!(
            "evaluation set {}: {} examples, {} more are too short to be recognised",
            set.name,
            grouped(set.examples),
            grouped(set.too_short)
        ))?;
    }
    for (kind, count) in &report.passed {
        print(format!("counted beside documents: {} {kind}", grouped(*count)))?;
    }
    let memory =
        curated.peak_memory_bytes.map(|peak| format!(", peak memory {}", bytes(peak))).unwrap_or_default();
    let done = if curated.reused { "was there already, made" } else { "done" };
    print(format!(
        "{} of {} documents kept, {}; {done} in {}{memory}",
        grouped(report.documents_kept),
        grouped(report.documents_in),
        bytes(report.bytes_kept),
        duration(curated.seconds)
    ))?;
    print_copies(curated)?;
    pipeline::lost(&report.broken).iter().try_for_each(print)?;
    print(format!("corpus: {}", curated.folder.display()))
}
