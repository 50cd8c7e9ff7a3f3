//! `llamero export`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use llamero_infer::{open_tokenizer, resolve_model};
use llamero_model::weights;

use super::convert::Folder;
use super::folder::verify;
use super::{no_preset, print};

#[derive(Args)]
#[command(
    after_help = "The folder opens in `transformers` (AutoModelForCausalLM, AutoTokenizer). Weights stay as they are stored, but \
    blocks of a GGUF file become BF16; `convert` writes other encodings, shards and GGUF.\n\n\
    Example:\n  llamero export runs/quickstart --out exported"
)]
pub(crate) struct ExportArgs {
    /// A run, artifact, Hugging Face or Meta folder, or a GGUF file.
    model: PathBuf,
    /// Folder to write; must not exist yet, or be empty.
    #[arg(long)]
    out: PathBuf,
}

pub(crate) fn export(args: &ExportArgs) -> Result<()> {
    no_preset(&args.model)?;
    let from = resolve_model(&args.model)?;
    verify(&from)?;
    let weights = weights::open(&from)?;
    // Without a tokenizer the folder would not open.
    open_tokenizer(&from)?;
    let hint = "name a new folder with `--out`";
    if args.out.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        bail!("`{}` is not empty\nhint: {hint}", args.out.display());
    }
    Folder { out: &args.out, hint, encoding: None, shard_bytes: None, threads: crate::machine::threads() }
        .write(&from, &*weights)?;
    print(args.out.display())
}
