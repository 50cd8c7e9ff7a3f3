//! `llamero tokenizer train|encode|decode|inspect|compare`.

mod compare;
mod decode;
mod encode;
mod inspect;
mod train;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use llamero_model::weights::Layout;
use llamero_tokenizer::Tokenizer;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::progress::Progress;

#[derive(Subcommand)]
pub(crate) enum TokenizerCommand {
    /// Learn a byte-level BPE vocabulary from text files.
    Train(train::TrainArgs),
    /// Text to token ids.
    Encode(encode::EncodeArgs),
    /// Token ids to text.
    Decode(decode::DecodeArgs),
    /// What a tokenizer holds: sizes, special tokens, and what its tokens are.
    Inspect(inspect::InspectArgs),
    /// How two tokenizers differ, and how each does on text.
    Compare(compare::CompareArgs),
}

pub(crate) fn tokenizer(command: &TokenizerCommand) -> Result<()> {
    match command {
        TokenizerCommand::Train(args) => train::train(args),
        TokenizerCommand::Encode(args) => encode::encode(args),
        TokenizerCommand::Decode(args) => decode::decode(args),
        TokenizerCommand::Inspect(args) => inspect::inspect(args),
        TokenizerCommand::Compare(args) => compare::compare(args),
    }
}

/// The tokenizer of a command.
#[derive(Args)]
struct TokenizerArg {
    /// A `tokenizer.model`, a `tokenizer.json`, a folder with one, a run folder, or a GGUF file.
    #[arg(long)]
    tokenizer: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct TextLine {
    text: String,
}

#[derive(Serialize, Deserialize)]
struct IdsLine {
    ids: Vec<u32>,
}

/// A run folder stands for its tokenizer, a GGUF file for the one inside.
pub(super) fn load(path: &Path) -> Result<Tokenizer> {
    if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) {
        return Ok(llamero_infer::open_tokenizer(&llamero_infer::resolve_model(path)?)?);
    }
    if matches!(Layout::of(path), Ok(Some(_))) {
        return Ok(llamero_infer::open_tokenizer(path)?);
    }
    let inside = path.join("tokenizer");
    Ok(Tokenizer::load(if inside.is_dir() { &inside } else { path })?)
}

/// A file, or standard input for `-`.
struct Source {
    /// As errors call it.
    name: String,
    reader: Box<dyn BufRead>,
}

impl Source {
    fn open(path: &Path) -> Result<Source> {
        if path.as_os_str() == "-" {
            return Ok(Source {
                name: "standard input".into(),
                reader: Box::new(BufReader::new(std::io::stdin())),
            });
        }
        let name = format!("`{}`", path.display());
        let file = File::open(path).with_context(|| name.clone())?;
        if file.metadata().with_context(|| name.clone())?.is_dir() {
            anyhow::bail!("{name} is a folder. hint: name the files in it");
        }
        Ok(Source { name, reader: Box::new(BufReader::with_capacity(1 << 16, file)) })
    }

    /// Opens all; standard input where none is named. They are opened one by one, but one that is not there is told at once.
    fn check(files: &[PathBuf]) -> Result<Vec<PathBuf>> {
        for path in files {
            Source::open(path)?;
        }
        Ok(if files.is_empty() { vec!["-".into()] } else { files.to_vec() })
    }

    /// Every line that is not empty as JSON, with its number.
    fn for_lines<T: DeserializeOwned>(
        self,
        shape: &str,
        mut f: impl FnMut(T, usize, usize) -> Result<()>,
    ) -> Result<()> {
        let Source { name, reader } = self;
        for (line, number) in reader.lines().zip(1..) {
            let line = line.with_context(|| format!("line {number} of {name}"))?;
            if !line.trim().is_empty() {
                let wrong = || format!("line {number} of {name} is not {shape}");
                f(serde_json::from_str(&line).with_context(wrong)?, number, line.len() + 1)?;
            }
        }
        Ok(())
    }
}

/// Progress over the bytes of files; nothing for short ones and for standard input, whose size nobody knows.
struct Bytes {
    bar: Option<Progress>,
    done: u64,
}

impl Bytes {
    /// Less is done before a bar can be read.
    const LEAST: u64 = 16 << 20;

    fn new(name: &str, files: &[PathBuf]) -> Bytes {
        let sizes =
            files.iter().map(|path| std::fs::metadata(path).ok().filter(|m| m.is_file()).map(|m| m.len()));
        let total = sizes.sum::<Option<u64>>().filter(|&total| total >= Bytes::LEAST);
        Bytes { bar: total.map(|total| Progress::new(name, total, "bytes")), done: 0 }
    }

    fn add(&mut self, bytes: usize) {
        self.done += bytes as u64;
        if let Some(bar) = &self.bar {
            bar.at(self.done, "");
        }
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish();
        }
    }
}
