//! `llamero curate extract`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;

#[derive(Args)]
pub(crate) struct ExtractArgs {
    /// HTML or WARC files; `-` is standard input.
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

pub(crate) fn extract(args: &ExtractArgs) -> Result<()> {
    bail!("cannot extract from {} files yet", args.files.len())
}
