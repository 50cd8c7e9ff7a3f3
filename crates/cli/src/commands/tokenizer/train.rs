//! `llamero tokenizer train`.

mod input;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args;
use llamero_tokenizer::{Fit, Survey, Tokenizer, TrainReport, Trainer};
use serde::Serialize;

use crate::commands::folder::{may_write, new_folder};
use crate::commands::{print, print_json};
use crate::machine;
use crate::progress::Progress;
use crate::report::format::{bytes, duration, grouped};
use input::{Inputs, Reading};

/// What reading and writing files takes, of the memory that training may take.
const FILES: u64 = 64 << 20;
/// How many domains and languages the table shows.
const SHOWN: usize = 20;

#[derive(Args)]
#[command(
    long_about = "Learn a byte-level BPE vocabulary from text files.\n\n\
        The result depends on the text only: not on threads, on memory, or on the order of the files. Afterwards the texts are \
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
    /// Keep the tokens of this tokenizer, with their ids, and learn the others over them: a `tokenizer.model`, a
    /// `tokenizer.json`, a folder with one, a run folder, or a GGUF file.
    #[arg(long, value_name = "BASE")]
    extend: Option<PathBuf>,
    /// Pairs seen less often are not merged.
    #[arg(long, default_value_t = 2, value_name = "N")]
    min_frequency: u64,
    /// Words seen less often are left out, which changes the result.
    #[arg(long, default_value_t = 1, value_name = "N")]
    min_word_count: u64,
    /// Memory to keep to, such as `2GiB`; counts of words that need more go to disk.
    #[arg(long, value_parser = parse_size, value_name = "SIZE")]
    memory: Option<u64>,
    /// Folder for counts that go to disk; that of the system for temporary files when absent.
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// Threads to read with; all when absent.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..), value_name = "N")]
    threads: Option<u16>,
    /// Use this many bytes of text from the beginning only, such as `100MB`.
    #[arg(long, value_parser = parse_size, value_name = "SIZE")]
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
    fit: Option<&'a Survey>,
    train_seconds: f64,
    report_seconds: Option<f64>,
    peak_memory_bytes: Option<u64>,
}

pub(crate) fn train(args: &TrainArgs) -> Result<()> {
    may_write(&args.out, args.force, "tokenizer", |name| FILES_WRITTEN.contains(&name))?;
    let base = args.extend.as_deref().map(super::load).transpose()?;
    let inputs = Inputs::find(&args.input)?;
    if let Some(threads) = args.threads {
        rayon::ThreadPoolBuilder::new().num_threads(threads.into()).build_global().ok();
    }
    let started = Instant::now();
    let (tokenizer, trained) = learn(args, base.as_ref(), &inputs)?;
    let train_seconds = started.elapsed().as_secs_f64();
    save(&tokenizer, &args.out)?;
    if !trained.reached_size() {
        say!(
            "note: the text has only enough frequent pairs for {} of {} entries; give more text for more",
            trained.vocab_size,
            trained.wanted_vocab_size
        );
    }
    let started = Instant::now();
    let survey = if args.no_report { None } else { Some(survey(args, &tokenizer, &inputs, trained.bytes)?) };
    let report = Report {
        bytes_per_token: trained.bytes as f64 / trained.tokens.max(1) as f64,
        spilled_bytes: trained.spilled_bytes,
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
        threads: args.threads.map(usize::from),
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
            let (tokenizer, mut report) = learned?;
            // The trainer was given pieces of them.
            report.documents = documents.get();
            Ok((tokenizer, report))
        }
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

/// A size in bytes, with or without a unit.
fn parse_size(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 9] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("TiB", 1 << 40),
        ("kB", 1000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("TB", 1_000_000_000_000),
        ("B", 1),
    ];
    let unit = UNITS.iter().find_map(|&(name, size)| Some((text.strip_suffix(name)?, size)));
    let (number, size) = unit.unwrap_or((text, 1));
    match number.trim().parse::<f64>() {
        Ok(number) if number > 0.0 && number.is_finite() && number * (size as f64) < 2f64.powi(63) => {
            Ok((number * size as f64) as u64)
        }
        _ => Err("not a size such as `2GiB`, `500MB` or a number of bytes".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, size) in
            [("2GiB", 2 << 30), ("1.5 KiB", 1536), ("500MB", 500_000_000), ("7", 7), ("7B", 7)]
        {
            assert_eq!(parse_size(text), Ok(size), "{text}");
        }
        for text in ["", "GiB", "0", "-1GB", "2 gigs", "nan", "1e30TB"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
