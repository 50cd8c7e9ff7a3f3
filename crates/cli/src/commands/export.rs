//! `llamero export`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use llamero_artifact::{Artifact, MANIFEST, fsutil};
use llamero_infer::resolve_model;
use llamero_model::hf;

use super::print;

#[derive(Args)]
#[command(after_help = "The folder opens in `transformers` (AutoModelForCausalLM, AutoTokenizer).\n\n\
    Example:\n  llamero export runs/quickstart --out exported")]
pub(crate) struct ExportArgs {
    /// A run folder, an artifact folder or an exported folder.
    model: PathBuf,
    /// Folder to write; must not exist yet, or be empty.
    #[arg(long)]
    out: PathBuf,
}

/// What an exported folder holds; the tokenizer's files last.
const FILES: [&str; 6] = [
    hf::CONFIG_FILE,
    hf::GENERATION_FILE,
    hf::WEIGHTS_FILE,
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
];

pub(crate) fn export(args: &ExportArgs) -> Result<()> {
    let from = resolve_model(&args.model)?;
    if from.join(MANIFEST).exists() {
        Artifact::open(&from, None)?.verify()?;
    }
    hf::ModelFolder::open(&from)?;
    let mut name = args.out.file_name().context("`--out` must name a folder")?.to_owned();
    if args.out.exists() && !args.out.is_dir() {
        bail!("`{}` is a file\nhint: name a new folder with `--out`", args.out.display());
    }
    if args.out.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        bail!("`{}` is not empty\nhint: name a new folder with `--out`", args.out.display());
    }
    name.push(format!(".{}.partial", std::process::id()));
    let partial = args.out.with_file_name(name);
    if let Some(parent) = partial.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("`{}`", parent.display()))?;
    }
    // Fails where the name is taken: what we did not make is never written to or removed.
    std::fs::create_dir(&partial).with_context(|| format!("`{}`", partial.display()))?;
    if let Err(error) = fill(&from, &partial).and_then(|()| put(&partial, &args.out)) {
        // The first error is the one to tell.
        std::fs::remove_dir_all(&partial).ok();
        return Err(error);
    }
    print(format!("{}", args.out.display()))
}

/// Copies the model's files and makes them durable.
fn fill(from: &Path, partial: &Path) -> Result<()> {
    for file in FILES {
        let (source, target) = (from.join(file), partial.join(file));
        std::fs::copy(&source, &target)
            .with_context(|| format!("`{}` to `{}`", source.display(), target.display()))?;
    }
    Ok(fsutil::sync_tree(partial)?)
}

/// Renames the folder to `out`, which may be an empty folder; one with anything in it is left alone.
fn put(partial: &Path, out: &Path) -> Result<()> {
    if out.exists() {
        std::fs::remove_dir(out).with_context(|| format!("`{}` cannot be replaced", out.display()))?;
    }
    std::fs::rename(partial, out).with_context(|| format!("`{}` to `{}`", partial.display(), out.display()))
}
