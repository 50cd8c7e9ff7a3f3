//! `llamero curate`: the steps of curation one by one, on files given by hand.

mod extract;

use anyhow::Result;
use clap::Subcommand;

#[derive(Subcommand)]
pub(crate) enum CurateCommand {
    /// The text of web pages, as curation sees it.
    Extract(extract::ExtractArgs),
}

pub(crate) fn curate(command: &CurateCommand) -> Result<()> {
    match command {
        CurateCommand::Extract(args) => extract::extract(args),
    }
}
