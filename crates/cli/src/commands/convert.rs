//! `llamero convert`.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use llamero_artifact::fsutil;
use llamero_infer::{gguf_vocabulary, open_tokenizer, resolve_model};
use llamero_model::gguf::{self, GgufValue};
use llamero_model::hf::{self, SaveOptions};
use llamero_model::weights::{self, Layout, TensorInfo};
use llamero_model::{Config, ParamSpec, StopTokens, WeightError, Weights};
use llamero_tensor::{DType, Encoding, StoredRows};
use llamero_tokenizer::Tokenizer;

use super::folder::{TOKENIZER_FILES, is_ours, may_write, new_folder, verify};
use super::{no_preset, print};
use crate::progress::Progress;
use crate::termination::Unfinished;

#[derive(Args)]
#[command(after_help = "\
Rows that are no whole blocks of an encoding are stored in another: Q4_K gives way to Q5_0, Q5_K to Q5_1, Q6_K to Q8_0, and\n\
these to F16. Norms stay F32; the output projection is at least Q6_K.\n\n\
Examples:\n  \
llamero convert runs/quickstart model.gguf --encoding Q8_0\n  \
llamero convert model.gguf folder --encoding BF16")]
pub(crate) struct ConvertArgs {
    /// A run, artifact, Hugging Face or Meta folder, or a GGUF file.
    source: PathBuf,
    /// The GGUF file or Hugging Face folder to write.
    out: PathBuf,
    /// Format to write; where absent, GGUF if OUT ends in `.gguf`, otherwise a Hugging Face folder.
    #[arg(long, value_enum)]
    to: Option<Format>,
    /// How to store matrices: F32, F16, BF16, and in GGUF Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K. Where absent, as
    /// most of SOURCE is stored, but no blocks in a Hugging Face folder.
    #[arg(long, visible_alias = "dtype", value_parser = encoding)]
    encoding: Option<Encoding>,
    /// Divide a Hugging Face folder's weights over files of at most so many MiB; one file when absent.
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=1 << 40))]
    shard_size: Option<u64>,
    /// Replace what is at OUT.
    #[arg(long)]
    force: bool,
    /// Threads that encode; all cores when absent.
    #[arg(long, value_parser = crate::machine::parse_threads)]
    threads: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A folder with `config.json`, safetensors and `tokenizer.json`.
    Hf,
    /// One file for llama.cpp.
    Gguf,
}

fn encoding(name: &str) -> Result<Encoding, String> {
    let names = || Encoding::ALL.map(Encoding::name).join(", ");
    Encoding::from_name(name).ok_or_else(|| format!("`{name}` is none of {}", names()))
}

pub(crate) fn convert(args: &ConvertArgs) -> Result<()> {
    let is_gguf = args.out.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
    let format = args.to.unwrap_or(if is_gguf { Format::Gguf } else { Format::Hf });
    if format == Format::Gguf && args.shard_size.is_some() {
        bail!("`--shard-size` is for Hugging Face folders; a GGUF file is one file");
    }
    check_out(&args.out, format, args.force)?;
    no_preset(&args.source)?;
    let from = resolve_model(&args.source)?;
    verify(&from)?;
    let weights = weights::open(&from)?;
    not_its_source(&args.out, &from, &*weights)?;
    let threads = args.threads.unwrap_or_else(crate::machine::threads);
    match format {
        Format::Gguf => to_gguf(args, threads, &from, &*weights)?,
        Format::Hf => {
            let shard_bytes = args.shard_size.map(|mib| mib << 20);
            let hint = "name a new folder";
            let folder = Folder { out: &args.out, hint, encoding: args.encoding, shard_bytes, threads };
            folder.write(&from, &*weights)?;
        }
    }
    print(args.out.display())
}

/// Refuses to write over what is read, by whatever name.
fn not_its_source(out: &Path, from: &Path, weights: &dyn Weights) -> Result<()> {
    let Ok(identity) = identity(out) else { return Ok(()) };
    let files = weights.tensors().into_iter().map(|tensor| tensor.file);
    let sources: BTreeSet<PathBuf> = files.chain([from.to_owned()]).collect();
    for source in sources {
        if self::identity(&source).is_ok_and(|id| id == identity) {
            bail!(
                "`{}` is the model itself, `{}`: it cannot be replaced while it is read\nhint: name another place",
                out.display(),
                source.display()
            );
        }
    }
    Ok(())
}

/// What a file or folder is, whatever its name: device and number on it.
fn identity(path: &Path) -> std::io::Result<(u64, u64)> {
    let there = path.metadata()?;
    Ok((there.dev(), there.ino()))
}

/// Refuses to write where something is, unless `force`; and even then over anything but a model.
fn check_out(out: &Path, format: Format, force: bool) -> Result<()> {
    let shown = out.display();
    if format == Format::Gguf {
        if out.is_dir() {
            bail!("`{shown}` is a folder\nhint: name a file, such as `{}`", out.join("model.gguf").display());
        }
        if out.exists() && !force {
            bail!("`{shown}` exists\nhint: name a new file, or replace it with `--force`");
        }
        return Ok(());
    }
    may_write(out, force, "model", is_ours)
}

/// The encoding of most bytes of a model's files.
pub(super) fn main_encoding(weights: &dyn Weights) -> Encoding {
    let mut bytes: BTreeMap<Encoding, u64> = BTreeMap::new();
    for tensor in weights.tensors() {
        if let Some(encoding) = Encoding::from_name(&tensor.encoding) {
            *bytes.entry(encoding).or_default() += tensor.bytes;
        }
    }
    let most = bytes.into_iter().max_by_key(|(_, bytes)| *bytes).map(|(encoding, _)| encoding);
    most.unwrap_or(if weights.dtype() == DType::F32 { Encoding::F32 } else { Encoding::Bf16 })
}

/// The tokenizer of a model; one that has none gets a word about it.
fn tokenizer(from: &Path) -> Result<Option<Tokenizer>> {
    let is_folder = Layout::of(from)?.is_some_and(|layout| !matches!(layout, Layout::Gguf(_)));
    if is_folder && !["tokenizer.json", "tokenizer.model"].iter().any(|name| from.join(name).exists()) {
        say!("warning: `{}` has no tokenizer, and neither will the new model", from.display());
        return Ok(None);
    }
    Ok(Some(open_tokenizer(from)?))
}

fn to_gguf(args: &ConvertArgs, threads: usize, from: &Path, weights: &dyn Weights) -> Result<()> {
    let encoding = args.encoding.unwrap_or_else(|| main_encoding(weights));
    let watched = Watched::new(weights);
    let writer = gguf::Writer::new(&watched, encoding, threads);
    let writer = match Layout::of(from)? {
        Some(Layout::Gguf(file)) => writer.copy(&gguf::GgufFile::open(&file)?),
        _ => {
            let vocabulary = tokenizer(from)?.map(|t| vocabulary(&t, weights.config())).transpose()?;
            let name = args.source.canonicalize().unwrap_or_else(|_| args.source.clone());
            let name = name.file_name().map_or_else(|| "llama".into(), |n| n.to_string_lossy());
            writer.describe(&name, vocabulary.into_iter().flatten())
        }
    };
    if let Some(parent) = args.out.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent).with_context(|| format!("`{}`", parent.display()))?;
    }
    let temporary = fsutil::temporary(&args.out)?;
    let _removed = Unfinished::new(temporary).context("signals cannot be listened to")?;
    writer.write(&args.out)?;
    watched.finish();
    Ok(())
}

/// What the file is to say about a tokenizer, which must not have more tokens than the model.
fn vocabulary(tokenizer: &Tokenizer, config: &Config) -> Result<Vec<(String, GgufValue)>> {
    let (tokens, rows) = (tokenizer.vocab_size(), config.vocab);
    if tokens > rows {
        bail!(
            "the tokenizer has {tokens} tokens, but the model {rows}\nhint: they belong to different models"
        );
    }
    Ok(gguf_vocabulary(tokenizer, rows)?)
}

/// A Hugging Face folder to write.
pub(super) struct Folder<'a> {
    pub(super) out: &'a Path,
    /// What to do about a file in the way.
    pub(super) hint: &'a str,
    /// The weights' own where this is `None`, but no blocks.
    pub(super) encoding: Option<Encoding>,
    /// As in [`SaveOptions`].
    pub(super) shard_bytes: Option<u64>,
    /// Threads that encode.
    pub(super) threads: usize,
}

impl Folder<'_> {
    /// Writes the model of `weights`, which are those at `from`, whole or not at all.
    pub(super) fn write(&self, from: &Path, weights: &dyn Weights) -> Result<()> {
        let stored = main_encoding(weights);
        let plain = if stored.is_quantized() { Encoding::Bf16 } else { stored };
        let encoding = self.encoding.unwrap_or(plain);
        if encoding.is_quantized() {
            bail!(
                "a Hugging Face folder cannot hold {encoding}\nhint: take F32, F16 or BF16, or write GGUF with `--to gguf`"
            );
        }
        let tokenizer = tokenizer(from)?;
        let tokens = match weights.stop_tokens() {
            Some(tokens) => Some(tokens),
            None => tokenizer.as_ref().map(stop_tokens),
        };
        let watched = Watched::new(weights);
        new_folder(self.out, self.hint, |partial| {
            let (shard_bytes, threads) = (self.shard_bytes, self.threads);
            let options = SaveOptions { encoding, shard_bytes, tokens: tokens.as_ref(), threads };
            hf::save_weights(partial, &watched, options)?;
            put_tokenizer(from, tokenizer.as_ref(), partial)
        })?;
        watched.finish();
        tell_what_is_lost(from)
    }
}

/// Says what a GGUF file tells about itself and a folder has no place for: its licence, its authors.
fn tell_what_is_lost(from: &Path) -> Result<()> {
    // What a folder says in other words, and what is about the file only.
    const KEPT: [&str; 5] = ["architecture", "file_type", "quantization_version", "alignment", "type"];
    if let Some(Layout::Gguf(file)) = Layout::of(from)? {
        let file = gguf::GgufFile::open(&file)?;
        let general = file
            .metadata()
            .keys()
            .filter(|key| key.strip_prefix("general.").is_some_and(|name| !KEPT.contains(&name)));
        let lost: Vec<String> = general.map(|key| format!("`{key}`")).collect();
        if !lost.is_empty() {
            say!(
                "note: a folder has no place for {}: see `llamero inspect` for what they say",
                lost.join(", ")
            );
        }
    }
    Ok(())
}

/// The files of a model's tokenizer, and `tokenizer.json` where they lack it.
fn put_tokenizer(from: &Path, tokenizer: Option<&Tokenizer>, folder: &Path) -> Result<()> {
    let beside = if matches!(Layout::of(from)?, Some(Layout::Gguf(_))) { &[] } else { &TOKENIZER_FILES[..] };
    for name in beside.iter().filter(|name| from.join(name).is_file()) {
        std::fs::copy(from.join(name), folder.join(name)).with_context(|| format!("`{name}`"))?;
    }
    match tokenizer {
        Some(tokenizer) if !folder.join("tokenizer.json").exists() => Ok(tokenizer.save_hf(folder)?),
        _ => Ok(()),
    }
}

fn stop_tokens(tokenizer: &Tokenizer) -> StopTokens {
    let special = tokenizer.special();
    StopTokens { begin_of_text: special.begin_of_text, stop: special.ends().to_vec() }
}

/// Weights whose reading is shown.
struct Watched<'a> {
    weights: &'a dyn Weights,
    read: AtomicU64,
    progress: Mutex<Progress>,
}

impl<'a> Watched<'a> {
    fn new(weights: &'a dyn Weights) -> Self {
        let progress = Progress::new("convert", weights.config().num_params(), "parameters");
        Self { weights, read: AtomicU64::new(0), progress: Mutex::new(progress) }
    }

    fn finish(&self) {
        if let Ok(progress) = self.progress.lock() {
            progress.finish();
        }
    }
}

impl Weights for Watched<'_> {
    fn config(&self) -> &Config {
        self.weights.config()
    }

    fn dtype(&self) -> DType {
        self.weights.dtype()
    }

    fn rows(&self, spec: &ParamSpec, rows: Range<usize>) -> Result<Vec<StoredRows<'_>>, WeightError> {
        let new = (rows.len() * spec.shape.cols) as u64;
        let read = self.read.fetch_add(new, Ordering::Relaxed) + new;
        if let Ok(progress) = self.progress.lock() {
            progress.at(read, &spec.name);
        }
        self.weights.rows(spec, rows)
    }

    fn release(&self, spec: &ParamSpec) {
        self.weights.release(spec);
    }

    fn tensors(&self) -> Vec<TensorInfo> {
        self.weights.tensors()
    }

    fn stop_tokens(&self) -> Option<StopTokens> {
        self.weights.stop_tokens()
    }
}
