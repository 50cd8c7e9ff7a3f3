//! `llamero curate extract`.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use llamero_curate::read::{Format, Input, ReadConfig, find};
use llamero_curate::{Article, Document, Extraction, Filter, OWN_ID, in_corpus};
use serde::Serialize;

use crate::commands::{print, print_json};

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    llamero curate extract page.html\n  \
    llamero curate extract crawl.warc.gz --json > texts.jsonl\n  \
    llamero curate extract 'crawl/**/*.warc.gz' | less\n  \
    curl -s https://example.com | llamero curate extract -")]
pub(crate) struct ExtractArgs {
    /// HTML, WARC, WET, JSON Lines, Parquet or text; files, folders, globs or URLs of an object store. `-` is standard input.
    #[arg(required = true)]
    files: Vec<String>,
    /// Print one JSON object per document: id, own_id (that it came with), url, title, date (of the source, else of the page), lang,
    /// offset, text. Id and url are those of the corpus that a recipe makes whose `sources` name the file in the same way; the
    /// path of a page is its url and begins at what is named, so at the folder of `folder` and at the file of `folder/page.html`.
    #[arg(long)]
    json: bool,
    /// Leave out the alternative text of images.
    #[arg(long)]
    no_alt_text: bool,
    /// The format of all files; from their names when absent.
    #[arg(long, value_enum)]
    format: Option<FormatArg>,
}

/// How documents lie in a file.
#[derive(Clone, Copy, ValueEnum)]
enum FormatArg {
    Html,
    Warc,
    Jsonl,
    Parquet,
    Text,
}

impl FormatArg {
    fn format(self) -> Format {
        match self {
            Self::Html => Format::Html,
            Self::Warc => Format::Warc,
            Self::Jsonl => Format::Jsonl,
            Self::Parquet => Format::Parquet,
            Self::Text => Format::Text,
        }
    }
}

/// What is printed of a document as JSON.
#[derive(Serialize)]
struct Line<'a> {
    id: &'a str,
    own_id: &'a str,
    url: &'a str,
    title: &'a str,
    date: &'a str,
    lang: &'a str,
    offset: u64,
    text: &'a str,
}

/// What became of the documents so far.
#[derive(Default)]
struct Counts {
    printed: u64,
    without_text: u64,
    broken: u64,
    passed: u64,
}

pub(crate) fn extract(args: &ExtractArgs) -> Result<()> {
    let config = ReadConfig { format: args.format.map(FormatArg::format), ..ReadConfig::default() };
    let article = Extraction(Article { alt_text: !args.no_alt_text });
    let inputs = inputs(&args.files)?;
    let mut counts = Counts::default();
    for input in &inputs {
        let mut records = input.records(&config);
        // A page alone needs no name above it.
        let is_whole = records.is_whole();
        let headed = inputs.len() > 1 || !is_whole;
        for record in records.by_ref() {
            match record {
                Ok(record) => {
                    let offset = record.place.offset;
                    let document = in_corpus(record, input.name(), is_whole);
                    show(document, offset, &article, args.json, headed, &mut counts)?;
                }
                Err(broken) => {
                    say!("warning: {broken}");
                    counts.broken += 1;
                }
            }
        }
        counts.passed += records.passed().values().sum::<u64>();
    }
    if counts.printed > 0 {
        return Ok(());
    }
    let Counts { without_text, broken, passed, .. } = counts;
    bail!(
        "no text found: {without_text} pages have no main text, {broken} parts are broken, {passed} records are no pages. \
         hint: `--format` says what a file holds where its name does not"
    )
}

fn inputs(files: &[String]) -> Result<Vec<Input>> {
    let mut inputs = Vec::new();
    for file in files {
        if file == "-" {
            let mut bytes = Vec::new();
            std::io::stdin().lock().read_to_end(&mut bytes).context("standard input cannot be read")?;
            inputs.push(Input::memory("", bytes));
        } else if !file.contains("://") && !file.contains(['*', '?', '[', '{']) && !Path::new(file).exists() {
            bail!(
                "there is no file or folder `{file}`. hint: `-` reads standard input, and globs need quotes"
            );
        } else {
            inputs.extend(find(std::slice::from_ref(file))?);
        }
    }
    Ok(inputs)
}

fn show(
    mut document: Document,
    offset: u64,
    article: &Extraction<Article>,
    json: bool,
    headed: bool,
    counts: &mut Counts,
) -> Result<()> {
    if let Some(dropped) = article.apply(&mut document) {
        let name = if document.url.is_empty() { &document.id } else { &document.url };
        say!("warning: `{name}`: {}", dropped.detail);
        counts.without_text += 1;
        return Ok(());
    }
    counts.printed += 1;
    if json {
        let meta = |key| document.meta.get(key).map_or("", String::as_str);
        let date = if document.date.is_empty() { meta("written") } else { &document.date };
        return print_json(&Line {
            id: &document.id,
            own_id: meta(OWN_ID),
            url: &document.url,
            title: meta("title"),
            date,
            lang: &document.lang,
            offset,
            text: &document.text,
        });
    }
    if headed {
        let gap = if counts.printed > 1 { "\n" } else { "" };
        let name = if document.url.is_empty() { &document.id } else { &document.url };
        print(format_args!("{gap}=== {name}"))?;
    }
    print(&document.text)
}
