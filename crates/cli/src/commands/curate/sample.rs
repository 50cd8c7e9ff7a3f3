//! `llamero curate sample`.

use std::path::PathBuf;

use anyhow::Result;
use clap::{ArgGroup, Args};
use llamero_curate::DroppedRecord;
use llamero_curate::audit::{Corpus, Kept, Pick};

use super::words::{indented, line};
use crate::commands::{print, print_json};
use crate::report::format::grouped;

#[derive(Args)]
#[command(
    group(ArgGroup::new("what").required(true).multiple(true).args(["reason", "filter", "kept"])),
    after_help = "The same seed draws the same documents. Of a dropped document there is as much text as `curate.excerpt_bytes` let be \
    written down.\n\n\
    Examples:\n  \
    llamero curate sample runs/quickstart --reason low_letters\n  \
    llamero curate sample runs/crawl --filter gopher_quality -n 50 --seed 7 --json\n  \
    llamero curate sample runs/crawl --kept -n 20 | less"
)]
pub(crate) struct SampleArgs {
    /// The folder of a corpus, or of a run that has one.
    folder: PathBuf,
    /// Documents that were dropped for this reason.
    #[arg(long)]
    reason: Option<String>,
    /// Documents that were dropped by this step, as the recipe and the report call it.
    #[arg(long, value_name = "STEP")]
    filter: Option<String>,
    /// Documents that were kept.
    #[arg(long, conflicts_with_all = ["reason", "filter"])]
    kept: bool,
    /// How many documents.
    #[arg(short = 'n', long = "count", default_value_t = 10, allow_negative_numbers = true,
        value_parser = clap::value_parser!(u32).range(1..=100_000))]
    count: u32,
    /// Another seed draws others.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    seed: u64,
    /// Bytes of text that are shown of a document.
    #[arg(long, value_name = "BYTES", default_value_t = 240, allow_negative_numbers = true)]
    text: u32,
    /// Print one JSON object: how many there are, and the documents that were drawn.
    #[arg(long)]
    json: bool,
}

pub(crate) fn sample(args: &SampleArgs) -> Result<()> {
    let corpus = Corpus::open(&args.folder)?;
    let (count, seed) = (args.count as usize, args.seed);
    if args.kept {
        let mut sampled = corpus.sample_kept(count, seed)?;
        sampled.documents.iter_mut().for_each(|document| shorten(&mut document.text, args.text));
        if args.json {
            return print_json(&sampled);
        }
        print(format!("{} of {} documents kept", sampled.documents.len(), grouped(sampled.of)))?;
        return sampled.documents.iter().try_for_each(show_kept);
    }
    let pick = Pick { reason: args.reason.clone(), step: args.filter.clone(), count, seed };
    let mut sampled = corpus.sample_dropped(&pick)?;
    sampled.documents.iter_mut().for_each(|record| shorten(&mut record.excerpt, args.text));
    if args.json {
        return print_json(&sampled);
    }
    print(format!("{} of {} documents dropped", sampled.documents.len(), grouped(sampled.of)))?;
    sampled.documents.iter().try_for_each(show_dropped)
}

fn shorten(text: &mut String, bytes: u32) {
    text.truncate(text.floor_char_boundary(bytes as usize));
}

fn title(id: &str, url: &str) -> String {
    if url.is_empty() || url == id { line(id) } else { format!("{} ({})", line(url), line(id)) }
}

fn show_dropped(record: &DroppedRecord) -> Result<()> {
    print(format!("\n{}", title(&record.id, &record.url)))?;
    print(format!("  {} by {}: {}", line(&record.reason), line(&record.step), line(&record.detail)))?;
    if let Some(survivor) = &record.survivor {
        print(format!("  in its place: {}", line(survivor)))?;
    }
    if record.excerpt.is_empty() { Ok(()) } else { print(indented(&record.excerpt, "  | ")) }
}

fn show_kept(document: &Kept) -> Result<()> {
    print(format!("\n{}", title(&document.id, &document.url)))?;
    let facts = [&document.domain, &document.lang, &document.source, &document.file];
    let facts: Vec<_> = facts.into_iter().filter(|fact| !fact.is_empty()).map(|fact| line(fact)).collect();
    print(format!("  {}", facts.join(", ")))?;
    print(indented(&document.text, "  | "))
}
