//! `llamero bench tokenizer`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args;
use llamero_tokenizer::{LeftOut, Tokenizer};
use rayon::prelude::*;
use serde::Serialize;

use super::{CommonArgs, median, print_rows, size};
use crate::commands::tokenizer::{Source, TextLine};
use crate::commands::{print_json, warn_of_left_out};
use crate::report::format::{count, precise_bytes};

#[derive(Args)]
#[command(
    after_help = "A file that ends in .jsonl holds a document in each line, as {\"text\": …}; any other is one document. Several threads \
    share the documents; where there is only one, it is cut where its split has an end in any case, which changes no id unless an \
    added word lies across. `mb_per_s` is the text's size over the \
    time to encode it, in 10^6 bytes per second, `decode_mb_per_s` that of decoding its ids, medians over --reps after one pass \
    that does not count; `load_s` is the time that opening the tokenizer took.\n\n\
    Examples:\n  \
    llamero bench tokenizer --tokenizer tokenizer.model --text corpus.txt --threads 1 --json\n  \
    llamero bench tokenizer --tokenizer runs/quickstart --text corpus.jsonl"
)]
pub(crate) struct TokenizerArgs {
    /// A `tokenizer.model`, a `tokenizer.json`, a folder with one, a run folder, or a GGUF file; see `llamero tokenizer encode
    /// --help` on folders with several.
    #[arg(long)]
    tokenizer: PathBuf,
    /// Text to encode, in UTF-8.
    #[arg(long)]
    text: PathBuf,
    #[command(flatten)]
    common: CommonArgs,
    /// Timed repetitions; the median counts.
    #[arg(long, default_value_t = 3, value_parser = size)]
    reps: usize,
}

#[derive(Serialize)]
struct Report {
    threads: usize,
    documents: usize,
    bytes: u64,
    tokens: u64,
    bytes_per_token: f64,
    load_s: f64,
    encode_s: f64,
    mb_per_s: f64,
    decode_mb_per_s: f64,
    /// Absent where the system does not tell.
    peak_memory_bytes: Option<u64>,
}

pub(super) fn tokenizer(args: &TokenizerArgs) -> Result<()> {
    let report = run(args)?;
    if args.common.json {
        return print_json(&report);
    }
    let rows = [
        ("threads", report.threads.to_string()),
        ("text", format!("{} in {} documents", precise_bytes(report.bytes), report.documents)),
        ("tokens", format!("{}, {:.3} bytes each", count(report.tokens), report.bytes_per_token)),
        ("load", format!("{:.3} s", report.load_s)),
        ("encode", format!("{:.1} MB/s", report.mb_per_s)),
        ("decode", format!("{:.1} MB/s", report.decode_mb_per_s)),
        ("largest resident memory", report.peak_memory_bytes.map_or("unknown".into(), precise_bytes)),
    ];
    print_rows(&rows.map(|(name, value)| (name.to_owned(), value)))
}

fn run(args: &TokenizerArgs) -> Result<Report> {
    let documents = documents(&args.text)?;
    let bytes: usize = documents.iter().map(String::len).sum();
    if bytes == 0 {
        bail!("`{}` holds no text", args.text.display());
    }
    let begun = Instant::now();
    let tokenizer = crate::commands::tokenizer::load(&args.tokenizer)?;
    let load_s = begun.elapsed().as_secs_f64();
    let threads = args.common.threads();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    let texts = shares(&tokenizer, &documents, threads);
    let (mut encodes, mut decodes, mut tokens) = (Vec::new(), Vec::new(), 0);
    let mut left_out = LeftOut::new(&tokenizer);
    for rep in 0..=args.reps {
        let begun = Instant::now();
        let ids = pool.install(|| tokenizer.encode_batch(&texts));
        let encoded = begun.elapsed().as_secs_f64();
        tokens = ids.iter().map(Vec::len).sum();
        let begun = Instant::now();
        let decoded = pool.install(|| {
            ids.par_iter().map(|ids| tokenizer.decode_bytes(ids).map(|b| b.len())).sum::<Result<usize, _>>()
        })?;
        let took = begun.elapsed().as_secs_f64();
        if rep == 0 {
            texts.iter().zip(&ids).for_each(|(text, ids)| left_out.add(text, ids));
        }
        let expected = bytes as u64 - left_out.count();
        if decoded as u64 != expected {
            bail!(
                "{bytes} bytes of text, of which {expected} have tokens, were {decoded} bytes when decoded"
            );
        }
        if rep > 0 {
            encodes.push(encoded);
            decodes.push(took);
        }
    }
    warn_of_left_out(&left_out);
    let encode_s = median(&encodes);
    Ok(Report {
        threads,
        documents: documents.len(),
        bytes: bytes as u64,
        tokens: tokens as u64,
        bytes_per_token: bytes as f64 / tokens.max(1) as f64,
        load_s,
        encode_s,
        mb_per_s: bytes as f64 / 1e6 / encode_s,
        decode_mb_per_s: bytes as f64 / 1e6 / median(&decodes),
        peak_memory_bytes: crate::machine::peak_memory(),
    })
}

fn documents(path: &Path) -> Result<Vec<String>> {
    if path.extension().is_none_or(|extension| extension != "jsonl") {
        return Ok(vec![crate::commands::score::read_text(path)?]);
    }
    let mut documents = Vec::new();
    Source::open(path)?.for_lines(r#"{"text": …}"#, |TextLine { text }, _, _| {
        documents.push(text);
        Ok(())
    })?;
    Ok(documents)
}

/// The documents, or the parts of a single one that several threads share.
fn shares<'t>(tokenizer: &Tokenizer, documents: &'t [String], threads: usize) -> Vec<&'t str> {
    const PART: usize = 1 << 20;
    let [text] = documents else { return documents.iter().map(String::as_str).collect() };
    let (mut rest, mut parts) = (text.as_str(), Vec::new());
    while threads > 1
        && rest.len() > PART
        && let Some(cut) = tokenizer.split().safe_cut(&rest[..rest.floor_char_boundary(PART)])
    {
        let (part, after) = rest.split_at(cut);
        parts.push(part);
        rest = after;
    }
    parts.push(rest);
    parts
}
