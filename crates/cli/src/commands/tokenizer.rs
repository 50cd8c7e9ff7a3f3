//! `llamero tokenizer train|encode|decode|inspect|compare`.

mod compare;
mod decode;
mod encode;
mod inspect;
mod train;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use llamero_model::weights::Layout;
use llamero_tokenizer::{Error, Release, Tokenizer};
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
    /// A `tokenizer.model`, a `tokenizer.json`, a folder with one, a run folder, or a GGUF file. Of a folder with several, a GGUF file
    /// that is the only one is taken, then `tokenizer.json`, then `tokenizer.model`.
    #[arg(long)]
    tokenizer: PathBuf,
    #[command(flatten)]
    release: ReleaseArg,
}

impl TokenizerArg {
    fn load(&self) -> Result<Tokenizer> {
        self.release.load(&self.tokenizer)
    }
}

/// What a `tokenizer.model` does not say.
#[derive(Args)]
struct ReleaseArg {
    /// Whose special tokens a `tokenizer.model` has, which holds none: those of Llama 3 (April 2024), which are taken when absent, or
    /// of Llama 3.1 and later (July 2024).
    #[arg(long, value_enum)]
    release: Option<ReleaseName>,
}

#[derive(Clone, Copy, ValueEnum)]
enum ReleaseName {
    /// Llama 3
    #[value(name = "april-2024")]
    April2024,
    /// Llama 3.1, 3.2 and 3.3
    #[value(name = "july-2024")]
    July2024,
}

impl ReleaseArg {
    fn load(&self, path: &Path) -> Result<Tokenizer> {
        let release = match self.release {
            None => return load(path),
            Some(ReleaseName::April2024) => Release::April2024,
            Some(ReleaseName::July2024) => Release::July2024,
        };
        let inside = path.join("tokenizer");
        let folder = if inside.is_dir() { &inside } else { path };
        let file = if path.is_dir() { folder.join("tokenizer.model") } else { path.to_owned() };
        let says_itself = |file: &Path| file.extension().is_some_and(|e| e == "json" || is_gguf(file));
        if says_itself(&file) || path.is_dir() && (folder.join("tokenizer.json").exists() || !file.exists()) {
            bail!(
                "`--release` is for a `tokenizer.model`, whose special tokens no file names, and `{}` is none\n\
                 hint: leave it out, or name the `tokenizer.model`",
                path.display()
            );
        }
        Ok(Tokenizer::load_of(file, release)?)
    }
}

fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"))
}

#[derive(Serialize, Deserialize)]
pub(super) struct TextLine {
    pub(super) text: String,
}

#[derive(Serialize, Deserialize)]
struct IdsLine {
    ids: Vec<u32>,
}

/// A run folder stands for its tokenizer, a GGUF file for the one inside.
pub(super) fn load(path: &Path) -> Result<Tokenizer> {
    if is_gguf(path) {
        return Ok(llamero_infer::open_tokenizer(&llamero_infer::resolve_model(path)?)?);
    }
    let layout = Layout::of(path);
    if matches!(layout, Ok(Some(_))) {
        let tokenizer = llamero_infer::open_tokenizer(path)?;
        if let Ok(Some(Layout::Gguf(file))) = layout {
            tell_of_others(path, &file, &tokenizer);
        }
        return Ok(tokenizer);
    }
    let inside = path.join("tokenizer");
    let loaded = Tokenizer::load(if inside.is_dir() { &inside } else { path });
    match (loaded, layout) {
        // Such as several GGUF files, which a search for tokenizers does not see.
        (Err(Error::NotFound { .. }), Err(error)) => Err(error.into()),
        (loaded, _) => Ok(loaded?),
    }
}

/// Says it where a folder's GGUF file was taken, and a tokenizer beside it is another.
fn tell_of_others(folder: &Path, taken: &Path, tokenizer: &Tokenizer) {
    if folder.is_dir() {
        let other = match Tokenizer::load(folder) {
            Err(Error::NotFound { .. }) => return,
            other => other,
        };
        if other.map_or(true, |other| other.fingerprint() != tokenizer.fingerprint()) {
            say!(
                "note: the tokenizer is that of `{}`; the folder holds another, or one that cannot be read, as a file of its own: \
                 name that file to use it",
                taken.display()
            );
        }
    }
}

/// A file, or standard input for `-`.
pub(super) struct Source {
    /// As errors call it.
    name: String,
    reader: Box<dyn BufRead>,
}

impl Source {
    pub(super) fn open(path: &Path) -> Result<Source> {
        if path.as_os_str() == "-" {
            return Ok(Source {
                name: "standard input".into(),
                reader: Box::new(BufReader::new(std::io::stdin())),
            });
        }
        let name = format!("`{}`", path.display());
        let file = File::open(path).with_context(|| name.clone())?;
        if file.metadata().with_context(|| name.clone())?.is_dir() {
            bail!("{name} is a folder. hint: name the files in it");
        }
        if path.extension().is_some_and(|e| e == "gz" || e == "zst") {
            bail!(
                "{name} is compressed. hint: unpack it, or pipe it in: `zcat FILE.gz | llamero …`, `zstdcat FILE.zst | …`"
            );
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
    pub(super) fn for_lines<T: DeserializeOwned>(
        self,
        shape: &str,
        mut f: impl FnMut(T, usize, usize) -> Result<()>,
    ) -> Result<()> {
        let Source { name, reader } = self;
        for (line, number) in reader.lines().zip(1..) {
            let line = line.with_context(|| format!("line {number} of {name}"))?;
            if number == 1 && line.starts_with('\u{feff}') {
                bail!(
                    "line 1 of {name} begins with a byte order mark. hint: write the file as UTF-8 without one"
                );
            }
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
