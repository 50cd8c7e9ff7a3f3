//! `llamero curate why-dropped`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use llamero_curate::BROKEN_FILE;
use llamero_curate::audit::{Corpus, Fate, Found, Outcome, Place};

use super::words::{indented, line};
use crate::commands::{print, print_json};

#[derive(Args)]
#[command(
    after_help = "A document is named by its id, the beginning of its id, the id that it came with, its URL or its path; a part of an \
    input that could not be read, by its file, or by file and byte.\n\n\
    Examples:\n  \
    llamero curate why-dropped runs/quickstart serde-1.0.228/LICENSE-MIT\n  \
    llamero curate why-dropped runs/crawl https://example.com/page 3f9a01 --json\n  \
    llamero curate why-dropped runs/crawl 'crawl/00017.warc.gz#81732'"
)]
pub(crate) struct WhyDroppedArgs {
    /// The folder of a corpus, or of a run that has one.
    folder: PathBuf,
    /// Documents.
    #[arg(required = true, value_parser = clap::builder::NonEmptyStringValueParser::new())]
    documents: Vec<String>,
    /// Print a list with an object for each name: what it stands for, and the documents that were kept in their place.
    #[arg(long)]
    json: bool,
}

pub(crate) fn why_dropped(args: &WhyDroppedArgs) -> Result<()> {
    let corpus = Corpus::open(&args.folder)?;
    let found = corpus.find(&args.documents)?;
    let missing: Vec<_> =
        found.iter().filter(|own| is_missing(own)).map(|own| format!("`{}`", own.wanted)).collect();
    let any = missing.len() < found.len();
    if args.json && any {
        print_json(&found)?;
    } else if any {
        found.iter().try_for_each(show)?;
    }
    if missing.is_empty() {
        return Ok(());
    }
    let broken = match corpus.report().broken.count {
        0 => String::new(),
        count => format!(
            ". {count} parts of inputs could not be read: `{}`",
            corpus.folder().join(BROKEN_FILE).display()
        ),
    };
    bail!(
        "no document of `{}` is called {}: it was neither kept nor dropped\nhint: names are ids, beginnings of ids, ids that documents came \
         with, URLs, and paths below a source; `llamero curate sample` shows some. A file that no source takes, or a record that is no document, has none{broken}",
        corpus.folder().display(),
        missing.join(", ")
    );
}

fn is_missing(found: &Found) -> bool {
    found.documents.is_empty() && found.broken.is_empty()
}

/// Broken parts that are shown of a file.
const BROKEN: usize = 20;

fn show(found: &Found) -> Result<()> {
    if !found.broken.is_empty() {
        print(format!("{}: {} broken parts", line(&found.wanted), found.broken.len()))?;
    }
    for part in found.broken.iter().take(BROKEN) {
        print(format!("  {}", line(&part.to_string())))?;
    }
    if found.broken.len() > BROKEN {
        print(format!("  and {} more, in {BROKEN_FILE}", found.broken.len() - BROKEN))?;
    }
    for document in &found.documents {
        heading(document)?;
        tell(document, "")?;
        let mut next = document.survivor();
        // Each survivor is named once, so this ends.
        for _ in 0..=found.survivors.len() {
            let Some(survivor) = next.and_then(|id| found.survivors.iter().find(|fate| fate.id == id)) else {
                break;
            };
            print(format!("  in its place: {}", title(survivor)))?;
            tell(survivor, "  ")?;
            next = survivor.survivor();
        }
    }
    Ok(())
}

fn heading(fate: &Fate) -> Result<()> {
    print(title(fate))
}

/// URL and id.
fn title(fate: &Fate) -> String {
    if fate.url.is_empty() || fate.url == fate.id {
        line(&fate.id)
    } else {
        format!("{} ({})", line(&fate.url), line(&fate.id))
    }
}

fn tell(fate: &Fate, indent: &str) -> Result<()> {
    match &fate.outcome {
        Outcome::Kept { places } => {
            let places: Vec<_> = places.iter().map(place).collect();
            print(format!("{indent}  kept: {}", places.join(", ")))
        }
        Outcome::Dropped { step, reason, detail, excerpt, .. } => {
            print(format!("{indent}  dropped by {}: {}, {}", line(step), line(reason), line(detail)))?;
            if indent.is_empty() && !excerpt.is_empty() {
                print(indented(excerpt, "  | "))?;
            }
            Ok(())
        }
    }
}

fn place(place: &Place) -> String {
    match place.times {
        1 => line(&place.file),
        times => format!("{} ({times} times)", line(&place.file)),
    }
}
