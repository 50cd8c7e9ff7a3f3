//! `llamero tokenizer train|encode|decode`.

mod train;

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use llamero_model::weights::Layout;
use llamero_tokenizer::Tokenizer;
use serde::{Deserialize, Serialize};

use super::print;

#[derive(Subcommand)]
pub(crate) enum TokenizerCommand {
    /// Learn a byte-level BPE vocabulary from text files.
    Train(train::TrainArgs),
    /// Text to token ids.
    Encode(EncodeArgs),
    /// Token ids to text.
    Decode(DecodeArgs),
}

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    echo 'Hello world' | llamero tokenizer encode --tokenizer runs/quickstart/tokenizer\n  \
    llamero tokenizer encode --tokenizer tokenizer.model --jsonl < texts.jsonl > ids.jsonl")]
pub(crate) struct EncodeArgs {
    /// A `tokenizer.model`, a `tokenizer.json`, a folder with one, a run folder, or a GGUF file.
    #[arg(long)]
    tokenizer: PathBuf,
    /// Read lines {"text": …} and write lines {"ids": […]}.
    #[arg(long)]
    jsonl: bool,
    /// File to read; standard input when absent.
    file: Option<PathBuf>,
}

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    echo '9906 1917' | llamero tokenizer decode --tokenizer tokenizer.model\n  \
    llamero tokenizer decode --tokenizer tokenizer.model --jsonl < ids.jsonl")]
pub(crate) struct DecodeArgs {
    /// A `tokenizer.model`, a `tokenizer.json`, a folder with one, a run folder, or a GGUF file.
    #[arg(long)]
    tokenizer: PathBuf,
    /// Read lines {"ids": […]} and write lines {"text": …}.
    #[arg(long)]
    jsonl: bool,
    /// File to read; standard input when absent.
    file: Option<PathBuf>,
}

#[derive(Serialize, Deserialize)]
struct TextLine {
    text: String,
}

#[derive(Serialize, Deserialize)]
struct IdsLine {
    ids: Vec<u32>,
}

pub(crate) fn tokenizer(command: &TokenizerCommand) -> Result<()> {
    match command {
        TokenizerCommand::Train(args) => train::train(args),
        TokenizerCommand::Encode(args) => encode(args),
        TokenizerCommand::Decode(args) => decode(args),
    }
}

fn reader(file: Option<&Path>) -> Result<Box<dyn BufRead>> {
    match file {
        None => Ok(Box::new(BufReader::new(std::io::stdin()))),
        Some(path) => {
            let file = std::fs::File::open(path).with_context(|| format!("`{}`", path.display()))?;
            Ok(Box::new(BufReader::new(file)))
        }
    }
}

/// Every line as JSON, with the number of the line in errors.
fn for_lines<T: for<'de> Deserialize<'de>>(
    input: impl BufRead,
    shape: &str,
    mut f: impl FnMut(T) -> Result<()>,
) -> Result<()> {
    for (i, line) in input.lines().enumerate() {
        let line = line.with_context(|| format!("line {}", i + 1))?;
        if !line.trim().is_empty() {
            let wrong = || format!("line {} of the input is not {shape}", i + 1);
            f(serde_json::from_str(&line).with_context(wrong)?)?;
        }
    }
    Ok(())
}

/// A run folder stands for its tokenizer, a GGUF file for the one inside.
fn load(path: &Path) -> Result<Tokenizer> {
    if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) {
        return Ok(llamero_infer::open_tokenizer(&llamero_infer::resolve_model(path)?)?);
    }
    if matches!(Layout::of(path), Ok(Some(_))) {
        return Ok(llamero_infer::open_tokenizer(path)?);
    }
    let inside = path.join("tokenizer");
    Ok(Tokenizer::load(if inside.is_dir() { &inside } else { path })?)
}

fn encode(args: &EncodeArgs) -> Result<()> {
    let tokenizer = load(&args.tokenizer)?;
    let mut input = reader(args.file.as_deref())?;
    if args.jsonl {
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        for_lines(input, r#"{"text": …}"#, |line: TextLine| {
            serde_json::to_writer(&mut out, &IdsLine { ids: tokenizer.encode(&line.text) })?;
            Ok(out.write_all(b"\n")?)
        })?;
        return Ok(out.flush()?);
    }
    let mut text = String::new();
    input.read_to_string(&mut text).context("the input")?;
    let ids: Vec<String> = tokenizer.encode(&text).iter().map(u32::to_string).collect();
    print(ids.join(" "))
}

fn decode(args: &DecodeArgs) -> Result<()> {
    let tokenizer = load(&args.tokenizer)?;
    let mut input = reader(args.file.as_deref())?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    if args.jsonl {
        for_lines(input, r#"{"ids": […]}"#, |line: IdsLine| {
            serde_json::to_writer(&mut out, &TextLine { text: tokenizer.decode(&line.ids)? })?;
            Ok(out.write_all(b"\n")?)
        })?;
        return Ok(out.flush()?);
    }
    let mut text = String::new();
    input.read_to_string(&mut text).context("the input")?;
    let mut ids = Vec::new();
    for word in text.split_whitespace() {
        match word.parse::<u32>() {
            Ok(id) => ids.push(id),
            Err(_) => bail!("`{word}` is not a token id"),
        }
    }
    out.write_all(&tokenizer.decode_bytes(&ids)?)?;
    Ok(out.flush()?)
}
