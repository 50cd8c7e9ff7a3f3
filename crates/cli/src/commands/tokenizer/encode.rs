//! `llamero tokenizer encode`.

use std::io::{BufWriter, Stdout, Write};
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use clap::Args;
use llamero_tokenizer::{LeftOut, Tokenizer};
use rayon::prelude::*;
use serde::Serialize;

use super::{Bytes, IdsLine, Source, TextLine, TokenizerArg};
use crate::commands::{print, print_json, warn_of_left_out};
use crate::report::format::grouped;

/// Lines of --jsonl that are encoded together hold about this many bytes.
const BATCH: usize = 1 << 22;

#[derive(Args)]
#[command(
    after_help = "Every file is one document, or every line of it with --jsonl, where empty lines are passed over. Its ids are on one line. Bytes \
    that the tokenizer has no token for are left out, and a warning says which. Text is encoded as it is read, so \
    that files of any size take little memory; one that turns out not to be UTF-8 ends the command with the place of \
    the wrong byte.\n\n\
    Examples:\n  \
    echo 'Hello world' | llamero tokenizer encode --tokenizer runs/quickstart/tokenizer\n  \
    llamero tokenizer encode --tokenizer tokenizer.model --jsonl < texts.jsonl > ids.jsonl\n  \
    llamero tokenizer encode --tokenizer tokenizer.model --count book.txt notes.md"
)]
pub(crate) struct EncodeArgs {
    #[command(flatten)]
    tokenizer: TokenizerArg,
    /// Read lines {"text": …} and write lines {"ids": […]}.
    #[arg(long)]
    jsonl: bool,
    /// The name of a special token in the text stands for that token: for trusted text only. Without it, it is text.
    #[arg(long)]
    special: bool,
    /// Begin every document with the token that begins texts.
    #[arg(long)]
    bos: bool,
    /// End every document with the token that ends texts.
    #[arg(long)]
    eos: bool,
    /// Only say how many tokens there are, and how many bytes each has.
    #[arg(long)]
    count: bool,
    /// Write lines {"ids": […]}; with --count, the counts as one JSON object.
    #[arg(long)]
    json: bool,
    /// Threads; all cores when absent.
    #[arg(long, value_parser = crate::machine::parse_threads)]
    threads: Option<usize>,
    /// Files in UTF-8; standard input when absent.
    files: Vec<PathBuf>,
}

/// What --count says about a file or about all.
#[derive(Default, Serialize)]
struct Counts {
    documents: u64,
    bytes: u64,
    tokens: u64,
    /// Absent where there is no token.
    bytes_per_token: Option<f64>,
}

#[derive(Serialize)]
struct FileCounts {
    file: PathBuf,
    #[serde(flatten)]
    counts: Counts,
}

#[derive(Serialize)]
struct Report {
    files: Vec<FileCounts>,
    total: Counts,
}

impl Counts {
    fn add(&mut self, documents: u64, bytes: usize, tokens: usize) {
        self.documents += documents;
        self.bytes += bytes as u64;
        self.tokens += tokens as u64;
        self.bytes_per_token = (self.tokens > 0).then(|| self.bytes as f64 / self.tokens as f64);
    }

    fn say(&self, name: &str) -> Result<()> {
        let each = self.bytes_per_token.map_or(String::new(), |each| format!(", {each:.3} bytes per token"));
        let (tokens, bytes) = (grouped(self.tokens), grouped(self.bytes));
        print(format!("{name}: {tokens} tokens of {bytes} bytes{each}"))
    }
}

/// Encodes documents and writes or counts their ids.
struct Encoder<'a> {
    args: &'a EncodeArgs,
    tokenizer: Tokenizer,
    bos: Option<u32>,
    eos: Option<u32>,
    out: BufWriter<Stdout>,
    progress: Bytes,
    left_out: LeftOut,
}

pub(super) fn encode(args: &EncodeArgs) -> Result<()> {
    let tokenizer = args.tokenizer.load()?;
    let files = Source::check(&args.files)?;
    if let Some(threads) = args.threads {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    }
    let special = tokenizer.special();
    let none = || anyhow!("the tokenizer names no token that begins texts. hint: leave --bos out");
    let bos = if args.bos { Some(special.begin_of_text.ok_or_else(none)?) } else { None };
    let eos = args.eos.then_some(special.end_of_text);
    let (out, progress) = (BufWriter::new(std::io::stdout()), Bytes::new("encode", &args.files));
    let left_out = LeftOut::new(&tokenizer);
    let mut encoder = Encoder { args, tokenizer, bos, eos, out, progress, left_out };
    let mut report = Report { files: Vec::new(), total: Counts::default() };
    for file in files {
        let source = Source::open(&file)?;
        let counts = if args.jsonl { encoder.lines(source) } else { encoder.whole(source) };
        let counts = counts?;
        report.total.add(counts.documents, counts.bytes as usize, counts.tokens as usize);
        report.files.push(FileCounts { file, counts });
    }
    encoder.out.flush()?;
    encoder.progress.finish();
    warn_of_left_out(&encoder.left_out);
    match (args.count, args.json) {
        (false, _) => Ok(()),
        (true, true) => print_json(&report),
        (true, false) => {
            for FileCounts { file, counts } in report.files.iter().filter(|_| report.files.len() > 1) {
                counts.say(&file.display().to_string())?;
            }
            report.total.say("all")
        }
    }
}

impl Encoder<'_> {
    /// A source that is one document.
    fn whole(&mut self, source: Source) -> Result<Counts> {
        let Source { name, reader } = source;
        let (args, mut counts, mut first) = (self.args, Counts::default(), true);
        let stretches = self.tokenizer.stretches(reader);
        let stretches = if args.special { stretches.with_special() } else { stretches };
        self.begin()?;
        if let Some(id) = self.bos {
            self.ids(&[id], &mut first)?;
        }
        let encoded = stretches.encode_texts(|ids: &[u32], text| {
            counts.add(0, text.len(), ids.len());
            self.progress.add(text.len());
            self.left_out.add(text, ids);
            self.ids(ids, &mut first)
        });
        encoded.with_context(|| name.clone())?;
        if let Some(id) = self.eos {
            self.ids(&[id], &mut first)?;
        }
        self.end()?;
        counts.add(1, 0, self.bos.iter().chain(&self.eos).count());
        Ok(counts)
    }

    fn begin(&mut self) -> Result<()> {
        if !self.args.count && self.args.json {
            self.out.write_all(b"{\"ids\":[")?;
        }
        Ok(())
    }

    fn ids(&mut self, ids: &[u32], first: &mut bool) -> Result<()> {
        if self.args.count {
            return Ok(());
        }
        let separator = if self.args.json { "," } else { " " };
        for id in ids {
            let before = if *first { "" } else { separator };
            *first = false;
            write!(self.out, "{before}{id}")?;
        }
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        match (self.args.count, self.args.json) {
            (true, _) => {}
            (false, true) => self.out.write_all(b"]}\n")?,
            (false, false) => self.out.write_all(b"\n")?,
        }
        Ok(())
    }

    /// A source whose lines are documents.
    fn lines(&mut self, source: Source) -> Result<Counts> {
        let (mut counts, mut texts, mut held) = (Counts::default(), Vec::new(), 0);
        source.for_lines(r#"{"text": …}"#, |TextLine { text }, _, bytes| {
            held += bytes;
            texts.push(text);
            if held >= BATCH {
                self.batch(&texts, &mut counts)?;
                self.progress.add(held);
                (held, texts) = (0, Vec::new());
            }
            Ok(())
        })?;
        self.batch(&texts, &mut counts)?;
        self.progress.add(held);
        Ok(counts)
    }

    fn batch(&mut self, texts: &[String], counts: &mut Counts) -> Result<()> {
        let (tokenizer, special) = (&self.tokenizer, self.args.special);
        let encode = |text: &String| {
            if special { tokenizer.encode_with_special(text) } else { tokenizer.encode(text) }
        };
        let all: Vec<Vec<u32>> = texts.par_iter().map(encode).collect();
        for (ids, text) in all.into_iter().zip(texts) {
            self.left_out.add(text, &ids);
            let ids = [self.bos.as_slice(), &ids, self.eos.as_slice()].concat();
            counts.add(1, text.len(), ids.len());
            if !self.args.count {
                serde_json::to_writer(&mut self.out, &IdsLine { ids })?;
                self.out.write_all(b"\n")?;
            }
        }
        Ok(())
    }
}
