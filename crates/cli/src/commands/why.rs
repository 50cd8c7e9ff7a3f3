//! `llamero why`.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use llamero_artifact::MANIFEST;

use super::{print, print_json};
use crate::pipeline::{RECIPE_FILE, STAGES};

#[derive(Args)]
#[command(after_help = "Example:\n  llamero why runs/quickstart/sft")]
pub(crate) struct WhyArgs {
    /// An artifact folder, such as a stage of a run; a run folder stands for its last finished stage.
    artifact: PathBuf,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn why(args: &WhyArgs) -> Result<()> {
    let lineage = llamero_artifact::why(&artifact_of(&args.artifact))?;
    if args.json { print_json(&lineage) } else { print(lineage) }
}

/// The last finished stage of a run folder, or the path as it is.
fn artifact_of(path: &Path) -> PathBuf {
    let is_run = path.join(RECIPE_FILE).is_file() && !path.join(MANIFEST).exists();
    let mut stages = STAGES.iter().rev().map(|stage| path.join(stage));
    let last = stages.find(|stage| is_run && stage.join(MANIFEST).exists());
    last.unwrap_or_else(|| path.to_owned())
}
