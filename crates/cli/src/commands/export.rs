//! `llamero export`.

use std::path::PathBuf;

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
    if args.out.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        bail!("`{}` is not empty\nhint: name a new folder with `--out`", args.out.display());
    }
    let mut name = args.out.file_name().context("`--out` must name a folder")?.to_owned();
    name.push(".partial");
    let partial = args.out.with_file_name(name);
    fsutil::remove_dir(&partial)?;
    std::fs::create_dir_all(&partial).with_context(|| format!("`{}`", partial.display()))?;
    for file in FILES {
        let (source, target) = (from.join(file), partial.join(file));
        std::fs::copy(&source, &target)
            .with_context(|| format!("`{}` to `{}`", source.display(), target.display()))?;
    }
    fsutil::sync_tree(&partial)?;
    fsutil::publish_dir(&partial, &args.out)?;
    print(format!("{}", args.out.display()))
}
