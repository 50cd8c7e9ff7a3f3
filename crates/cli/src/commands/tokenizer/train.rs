//! `llamero tokenizer train`.

mod input;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, anyhow, bail};
use clap::Args;
use llamero_tokenizer::{Fit, Survey, Tokenizer, TrainReport, Trainer};
use serde::Serialize;

use super::ReleaseArg;
use crate::commands::folder::{may_write, new_folder};
use crate::commands::{print, print_json};
use crate::machine;
use crate::progress::Progress;
use crate::report::format::{bytes, duration, grouped};
use input::{Inputs, Reading};

/// What reading and writing files takes, of the memory that training may take.
const FILES: u64 = 64 << 20;
/// How many special tokens there are behind the others.
const SPECIAL: usize = 256;
/// How many domains and languages the table shows.
const SHOWN: usize = 20;

#[derive(Args)]
#[command(
    long_about = "Learn a byte-level BPE vocabulary from text files.\n\n\
        The result depends on the text only: not on threads, on memory, or on the order of the files (with --limit-bytes it depends on \
        which text comes first: files are read in the order of --input, those of a folder by name). Afterwards the texts are \
        read again and encoded, for a report by domain and language: bytes per token, tokens per word (what stands between \
        white space), and tokens that are never used.",
    after_help = "Examples:\n  \
        llamero tokenizer train --input a.txt b.txt --vocab-size 8192 --out my-tokenizer\n  \
        llamero tokenizer train --input books/ code/ web.jsonl.gz --vocab-size 128256 --out mine --memory 2GiB\n  \
        llamero tokenizer train --input german.txt --extend tokenizer.model --vocab-size 136448 --out german"
)]
pub(crate) struct TrainArgs {
    /// Texts in UTF-8: plain files, each one document; `.jsonl` with lines {"text": …} and perhaps "domain" and "lang"; either with
    /// `.gz` or `.zst` behind; or folders of such files.
    #[arg(long, required = true, num_args = 1.., value_name = "PATH")]
    input: Vec<PathBuf>,
    /// Size of the vocabulary, the 256 bytes and the 256 special tokens included.
    #[arg(long, value_name = "N")]
    vocab_size: usize,
    /// Folder to write `tokenizer.model`, `tokenizer.json` and `tokenizer_config.json` into.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Keep the ordinary tokens of this tokenizer, with their ids, and learn others over them: a `tokenizer.model`, a
    /// `tokenizer.json`, a folder with one, a run folder, or a GGUF file. The new tokens come behind the ordinary ones, so the
    /// 256 special tokens get other ids, and in a model the rows of their embeddings must move with them.
    #[arg(long, value_name = "BASE")]
    extend: Option<PathBuf>,
    #[command(flatten)]
    release: ReleaseArg,
    /// Pairs seen less often are not merged.
    #[arg(long, default_value_t = 2, value_name = "N")]
    min_frequency: u64,
    /// Words seen less often are left out, which changes the result.
    #[arg(long, default_value_t = 1, value_name = "N")]
    min_word_count: u64,
    /// Memory to keep to, such as `2GiB`, 128MiB at least. Counts of words that need more go to disk; the distinct words
    /// themselves, and the pairs in them, must fit.
    #[arg(long, value_parser = crate::machine::parse_size, value_name = "SIZE")]
    memory: Option<u64>,
    /// Folder for counts that go to disk; that of the system for temporary files when absent.
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// Threads to read with; all when absent.
    #[arg(long, value_parser = crate::machine::parse_threads, value_name = "N")]
    threads: Option<usize>,
    /// Use this many bytes of text from the beginning only, such as `100MB`.
    #[arg(long, value_parser = crate::machine::parse_size, value_name = "SIZE")]
    limit_bytes: Option<u64>,
    /// Do not read the texts again for the report.
    #[arg(long)]
    no_report: bool,
    /// Replace the tokenizer that is in the folder.
    #[arg(long)]
    force: bool,
    /// Print the report as one line of JSON.
    #[arg(long)]
    json: bool,
}

/// What is printed with `--json`.
#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    trained: &'a TrainReport,
    bytes_per_token: f64,
    /// Bytes of counts that went to disk.
    spilled_bytes: u64,
    /// Of an extended vocabulary.
    special_tokens_moved: Option<Moved>,
    fit: Option<&'a Survey>,
    train_seconds: f64,
    report_seconds: Option<f64>,
    peak_memory_bytes: Option<u64>,
}

/// The first ids of the special tokens, before and after a vocabulary was extended.
#[derive(Clone, Copy, Serialize)]
struct Moved {
    from: usize,
    to: usize,
}

pub(crate) fn train(args: &TrainArgs) -> Result<()> {
    may_write(&args.out, args.force, "tokenizer", |name| FILES_WRITTEN.contains(&name))?;
    let base = args.extend.as_deref().map(|base| args.release.load(base)).transpose()?;
    if args.release.release.is_some() && base.is_none() {
        bail!("`--release` is for the tokenizer that `--extend` names\nhint: leave it out");
    }
    let inputs = Inputs::find(&args.input)?;
    if let Some(threads) = args.threads {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().ok();
    }
    let started = Instant::now();
    let (tokenizer, trained) = learn(args, base.as_ref(), &inputs)?;
    let train_seconds = started.elapsed().as_secs_f64();
    if trained.bytes == 0 {
        bail!("there is no text in what `--input` names");
    }
    save(&tokenizer, &args.out)?;
    if !trained.reached_size() {
        let mut limits = String::new();
        if args.min_word_count > 1 {
            write!(limits, ", or a smaller `--min-word-count` than {}", args.min_word_count)?;
        }
        if args.min_frequency > 1 {
            write!(limits, ", or a smaller `--min-frequency` than {}", args.min_frequency)?;
        }
        say!(
            "note: the text has only enough frequent pairs for {} of {} entries; give more text for more{limits}",
            trained.vocab_size,
            trained.wanted_vocab_size
        );
    }
    let started = Instant::now();
    let survey = if args.no_report { None } else { Some(survey(args, &tokenizer, &inputs, trained.bytes)?) };
    let report = Report {
        bytes_per_token: trained.bytes as f64 / trained.tokens.max(1) as f64,
        spilled_bytes: trained.spilled_bytes,
        special_tokens_moved: base
            .as_ref()
            .map(|base| Moved { from: base.num_ranks(), to: tokenizer.num_ranks() }),
        fit: survey.as_ref(),
        train_seconds,
        report_seconds: survey.is_some().then(|| started.elapsed().as_secs_f64()),
        peak_memory_bytes: machine::peak_memory(),
        trained: &trained,
    };
    if args.json {
        return print_json(&report);
    }
    print(shown(&report, tokenizer.num_ranks(), &args.out)?)
}

fn learn(args: &TrainArgs, base: Option<&Tokenizer>, inputs: &Inputs) -> Result<(Tokenizer, TrainReport)> {
    let memory = match args.memory {
        Some(memory) if memory < 2 * FILES => {
            bail!("`--memory` is {}; it takes {} at least", bytes(memory), bytes(2 * FILES))
        }
        memory => memory.map(|memory| memory - FILES),
    };
    let trainer = Trainer {
        min_frequency: args.min_frequency,
        min_word_count: args.min_word_count,
        threads: args.threads,
        memory,
        scratch: args.scratch.clone(),
        ..Trainer::new(args.vocab_size)
    };
    let texts = inputs.read(args.limit_bytes);
    let (done, documents, failure) = (texts.done(), texts.documents(), texts.failure());
    let reading = Progress::new("read", inputs.bytes, "bytes");
    let mut merging = None;
    let mut progress = |learned: u64, wanted: u64| {
        if wanted == 0 {
            return reading.at(done.get(), "");
        }
        let bar = merging.get_or_insert_with(|| {
            reading.finish();
            Progress::new("merge", wanted, "merges")
        });
        // Merges are many, and a bar is not free.
        if learned.is_multiple_of(64) || learned == wanted {
            bar.at(learned, "");
        }
    };
    let learned = match base {
        Some(base) => trainer.extend(base, texts, &mut progress),
        None => trainer.train(texts, &mut progress),
    };
    reading.finish();
    if let Some(bar) = merging {
        bar.finish();
    }
    // What could not be read comes first: what was learned is from the texts before it.
    match failure.take() {
        Some(error) => Err(error),
        None => {
            let (tokenizer, mut report) = learned.map_err(explain)?;
            // The trainer was given pieces of them.
            report.documents = documents.get();
            Ok((tokenizer, report))
        }
    }
}

/// A lack of memory with what is to be given instead, which counts reading files, too.
fn explain(error: llamero_tokenizer::Error) -> anyhow::Error {
    match error {
        llamero_tokenizer::Error::Memory { what, needed, cap } => anyhow!(
            "`--memory` is {} MiB, and {what} take {} MiB or more beside the {} MiB for reading\n\
             hint: give `--memory {}MiB` or more, leave out rare words (`--min-word-count 2`), or give less text",
            (cap + FILES) >> 20,
            needed.div_ceil(1 << 20),
            FILES >> 20,
            (needed + FILES).div_ceil(1 << 20)
        ),
        error => error.into(),
    }
}

fn survey(args: &TrainArgs, tokenizer: &Tokenizer, inputs: &Inputs, total: u64) -> Result<Survey> {
    let texts: Reading = inputs.read(args.limit_bytes);
    let failure = texts.failure();
    let bar = Progress::new("report", total, "bytes");
    let survey = Survey::new(tokenizer, texts, &mut |done| bar.at(done, ""));
    bar.finish();
    failure.take().map_or(Ok(survey), Err)
}

/// Files that training writes.
const FILES_WRITTEN: [&str; 3] = ["tokenizer.model", "tokenizer.json", "tokenizer_config.json"];

/// Writes the folder whole or not at all.
fn save(tokenizer: &Tokenizer, out: &Path) -> Result<()> {
    new_folder(out, "name a new folder", |partial| {
        tokenizer.save_hf(partial)?;
        Ok(tokenizer.save_model(partial.join(FILES_WRITTEN[0]))?)
    })
}

/// The report for people.
fn shown(report: &Report<'_>, ordinary: usize, out: &Path) -> Result<String> {
    let Report { trained, fit, .. } = report;
    let mut text = format!(
        "{} entries, {:.2} bytes per token: {}\nread {} in {} documents, {} distinct words; {}",
        grouped(trained.vocab_size as u64),
        report.bytes_per_token,
        out.display(),
        bytes(trained.bytes),
        grouped(trained.documents),
        grouped(trained.distinct_words),
        duration(report.train_seconds),
    );
    if let Some(peak) = report.peak_memory_bytes {
        write!(text, ", {} of memory at most", bytes(peak))?;
    }
    if trained.spilled_bytes > 0 {
        write!(text, ", {} on disk", bytes(trained.spilled_bytes))?;
    }
    if let Some(Moved { from, to }) = report.special_tokens_moved {
        write!(
            text,
            "\nids 0 to {} are those of the base; the {SPECIAL} special tokens moved from {from} to {} to {to} to {}: in a model, \
             the rows of their embeddings must move, too",
            from - 1,
            from + SPECIAL - 1,
            to + SPECIAL - 1
        )?;
    }
    let Some(fit) = fit else { return Ok(text) };
    write!(
        text,
        "\n\n{:24} {:>12} {:>10} {:>15} {:>12} {:>12}",
        "", "documents", "text", "tokens", "bytes/token", "tokens/word"
    )?;
    row(&mut text, "all", &fit.all)?;
    rows(&mut text, "domain", &fit.domains)?;
    rows(&mut text, "language", &fit.languages)?;
    write!(
        text,
        "\n\nof {} ordinary tokens {} are not used in these texts, and {} are in no text",
        grouped(ordinary as u64),
        grouped(fit.unused.len() as u64),
        grouped(fit.unreachable.len() as u64)
    )?;
    Ok(text)
}

/// Those with the most text first.
fn rows(text: &mut String, what: &str, fits: &BTreeMap<String, Fit>) -> Result<()> {
    let mut fits: Vec<_> = fits.iter().collect();
    fits.sort_by_key(|(_, fit)| std::cmp::Reverse(fit.bytes));
    for (name, fit) in fits.iter().take(SHOWN) {
        row(text, &format!("{what} {name}"), fit)?;
    }
    if fits.len() > SHOWN {
        write!(text, "\n… and {} more, see `--json`", fits.len() - SHOWN)?;
    }
    Ok(())
}

fn row(text: &mut String, name: &str, fit: &Fit) -> Result<()> {
    let number = |number: Option<f64>| number.map_or("–".to_owned(), |number| format!("{number:.3}"));
    write!(
        text,
        "\n{name:24} {:>12} {:>10} {:>15} {:>12} {:>12}",
        grouped(fit.documents),
        bytes(fit.bytes),
        grouped(fit.tokens),
        number(fit.bytes_per_token()),
        number(fit.fertility())
    )?;
    Ok(())
}
