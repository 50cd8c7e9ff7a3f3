//! `llamero why`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::{print, print_json};

#[derive(Args)]
#[command(after_help = "Example:\n  llamero why runs/quickstart/sft")]
pub(crate) struct WhyArgs {
    /// An artifact folder, such as a stage of a run.
    artifact: PathBuf,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn why(args: &WhyArgs) -> Result<()> {
    let lineage = llamero_artifact::why(&args.artifact)?;
    if args.json { print_json(&lineage) } else { print(lineage) }
}
