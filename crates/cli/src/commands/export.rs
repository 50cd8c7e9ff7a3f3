//! `llamero export`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use llamero_infer::resolve_model;
use llamero_model::hf;

use super::folder::{new_folder, verify};
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
    verify(&from)?;
    hf::ModelFolder::open(&from)?;
    let hint = "name a new folder with `--out`";
    if args.out.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        bail!("`{}` is not empty\nhint: {hint}", args.out.display());
    }
    new_folder(&args.out, hint, |partial| fill(&from, partial))?;
    print(format!("{}", args.out.display()))
}

/// Copies the model's files.
fn fill(from: &Path, partial: &Path) -> Result<()> {
    for file in FILES {
        let (source, target) = (from.join(file), partial.join(file));
        std::fs::copy(&source, &target)
            .with_context(|| format!("`{}` to `{}`", source.display(), target.display()))?;
    }
    Ok(())
}
