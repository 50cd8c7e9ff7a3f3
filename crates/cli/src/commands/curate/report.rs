//! `llamero curate report`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use llamero_artifact::fsutil;
use llamero_curate::audit::Corpus;

use crate::commands::{print, print_json};
use crate::report::curation::{CurationData, render};

#[derive(Args)]
#[command(
    after_help = "The page shows what each step let through, why documents were dropped and some of them, lengths, languages, domains and \
    sources before and after, the largest clusters of duplicates, the mix, and what of the inputs is no document.\n\n\
    Examples:\n  \
    llamero curate report runs/quickstart\n  \
    llamero curate report runs/crawl/curate --out crawl.html\n  \
    llamero curate report runs/crawl --json | jq '.report.dropped'"
)]
pub(crate) struct ReportArgs {
    /// The folder of a corpus, or of a run that has one.
    folder: PathBuf,
    /// The page to write; `curation.html` beside the folder of the corpus when absent.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Print what the page shows as JSON; a page is written only with `--out`.
    #[arg(long)]
    json: bool,
}

/// Dropped documents shown of each reason.
const SAMPLES: usize = 3;

/// The file beside a corpus.
const PAGE: &str = "curation.html";

pub(crate) fn report(args: &ReportArgs) -> Result<()> {
    let corpus = Corpus::open(&args.folder)?;
    let data = collect(&corpus)?;
    let out = match &args.out {
        None if args.json => None,
        None => Some(beside(corpus.folder())?),
        Some(out) => Some(out.clone()),
    };
    if let Some(out) = &out {
        if out.is_dir() {
            bail!(
                "`{}` is a folder\nhint: name a file, such as `--out {}`",
                out.display(),
                out.join(PAGE).display()
            );
        }
        fsutil::write_atomic(out, render(&data)?.as_bytes())?;
    }
    match out {
        _ if args.json => print_json(&data),
        Some(out) => print(out.display()),
        None => Ok(()),
    }
}

/// A corpus is an artifact, so nothing is put into its folder.
fn beside(folder: &Path) -> Result<PathBuf> {
    let whole = folder.canonicalize().with_context(|| format!("`{}`", folder.display()))?;
    let Some(parent) = whole.parent() else {
        bail!("`{}` has no folder above it\nhint: give `--out`", folder.display())
    };
    // Said as it was given, where that names a folder above.
    let above = folder.parent().filter(|above| !above.as_os_str().is_empty() && folder.file_name().is_some());
    Ok(above.unwrap_or(parent).join(PAGE))
}

fn collect(corpus: &Corpus) -> Result<CurationData> {
    let report = corpus.report().clone();
    let clusters = report.duplicates.values().flat_map(|found| &found.largest);
    let ids: BTreeSet<String> = clusters.map(|cluster| cluster.survivor.clone()).collect();
    Ok(CurationData {
        folder: corpus.folder().display().to_string(),
        mix: corpus.mix()?,
        survivors: corpus.by_id(&ids)?,
        samples: corpus.sample_reasons(SAMPLES, 0)?,
        report,
    })
}
