//! `llamero tokenizer compare`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Args;
use llamero_tokenizer::{LeftOut, Tokenizer};
use serde::Serialize;

use super::{Source, TextLine};
use crate::commands::{print, print_json, score};
use crate::report::format::grouped;

/// How many tokens or ids are shown as examples.
const SHOWN: usize = 8;

#[derive(Args)]
#[command(
    after_help = "Two tokenizers are equal when every id means the same and every text gets the same ids. The exit code is 0 when they are, 1 \
    when they differ or when something failed (stderr says which), 2 for wrong usage.\n\n\
    Examples:\n  \
    llamero tokenizer compare tokenizer.model hugging-face/tokenizer.json\n  \
    llamero tokenizer compare old new --text prose.txt code.jsonl --json"
)]
pub(crate) struct CompareArgs {
    /// A `tokenizer.model`, a `tokenizer.json`, a folder with one, a run folder, or a GGUF file.
    a: PathBuf,
    /// Another.
    b: PathBuf,
    /// Texts in UTF-8 to encode with both; the lines of a `.jsonl` are documents {"text": …}.
    #[arg(long, num_args = 1..)]
    text: Vec<PathBuf>,
    /// Print the result as one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    equal: bool,
    a: Side,
    b: Side,
    tokens: Tokens,
    special: Tokens,
    texts: Vec<Text>,
}

#[derive(Serialize)]
struct Side {
    path: PathBuf,
    vocab_size: usize,
    split: &'static str,
    fingerprint: String,
}

/// Tokens by their bytes.
#[derive(Default, Serialize)]
struct Tokens {
    shared: usize,
    /// Shared ones that have another id.
    moved: usize,
    only_a: usize,
    only_b: usize,
    /// Some of them: (token, id in A, id in B).
    examples: Vec<(String, Option<u32>, Option<u32>)>,
}

/// What both made of a file.
#[derive(Serialize)]
struct Text {
    file: PathBuf,
    documents: u64,
    bytes: u64,
    tokens_a: u64,
    tokens_b: u64,
    bytes_per_token_a: f64,
    bytes_per_token_b: f64,
    differing: u64,
    first: Option<Difference>,
}

/// The first place where ids differ.
#[derive(Serialize)]
struct Difference {
    /// The line of a `.jsonl`.
    line: Option<usize>,
    /// Bytes of the document before it.
    offset: usize,
    a: Vec<(u32, String)>,
    b: Vec<(u32, String)>,
}

pub(super) fn compare(args: &CompareArgs) -> Result<()> {
    let (a, b) = (super::load(&args.a)?, super::load(&args.b)?);
    let mut left = [LeftOut::new(&a), LeftOut::new(&b)];
    let texts = args.text.iter().map(|file| text(&a, &b, file, &mut left)).collect::<Result<Vec<Text>>>()?;
    for (name, left) in ["A", "B"].iter().zip(&left).filter(|(_, left)| left.count() > 0) {
        say!("warning: by {name}, {left}");
    }
    let side = |path: &Path, tokenizer: &Tokenizer| Side {
        path: path.into(),
        vocab_size: tokenizer.vocab_size(),
        split: super::inspect::split_name(tokenizer.split()),
        fingerprint: tokenizer.fingerprint(),
    };
    let (tokens, special) = (tokens(&a, &b, false), tokens(&a, &b, true));
    let (a, b) = (side(&args.a, &a), side(&args.b, &b));
    let equal = a.fingerprint == b.fingerprint && texts.iter().all(|text| text.differing == 0);
    let report = Report { equal, a, b, tokens, special, texts };
    if args.json {
        print_json(&report)?;
    } else {
        say(&report)?;
    }
    if !equal {
        bail!("the tokenizers differ");
    }
    Ok(())
}

fn tokens(a: &Tokenizer, b: &Tokenizer, special: bool) -> Tokens {
    let all = |tokenizer: &Tokenizer| {
        let ids =
            (0..tokenizer.vocab_size() as u32).filter(|&id| tokenizer.special().contains(id) == special);
        ids.filter_map(|id| Some((tokenizer.token_bytes(id)?.to_vec(), id))).collect::<Vec<_>>()
    };
    let (of_a, of_b) = (all(a), all(b));
    let in_a: HashMap<&[u8], u32> = of_a.iter().map(|(bytes, id)| (&bytes[..], *id)).collect();
    let in_b: HashMap<&[u8], u32> = of_b.iter().map(|(bytes, id)| (&bytes[..], *id)).collect();
    let mut tokens = Tokens::default();
    for (bytes, id) in &of_a {
        let other = in_b.get(&bytes[..]).copied();
        match other {
            None => tokens.only_a += 1,
            Some(other) => {
                tokens.shared += 1;
                tokens.moved += usize::from(other != *id);
            }
        }
        if other != Some(*id) && tokens.examples.len() < SHOWN {
            tokens.examples.push((bytes.escape_ascii().to_string(), Some(*id), other));
        }
    }
    let only_b = || of_b.iter().filter(|(bytes, _)| !in_a.contains_key(&bytes[..]));
    tokens.only_b = only_b().count();
    let examples =
        only_b().take(SHOWN).map(|(bytes, id)| (bytes.escape_ascii().to_string(), None, Some(*id)));
    tokens.examples.extend(examples);
    tokens
}

fn text(a: &Tokenizer, b: &Tokenizer, file: &Path, left: &mut [LeftOut; 2]) -> Result<Text> {
    let mut all = Text {
        file: file.into(),
        documents: 0,
        bytes: 0,
        tokens_a: 0,
        tokens_b: 0,
        bytes_per_token_a: 0.0,
        bytes_per_token_b: 0.0,
        differing: 0,
        first: None,
    };
    if file.extension().is_some_and(|extension| extension == "jsonl") {
        Source::open(file)?.for_lines(r#"{"text": …}"#, |TextLine { text }, line, _| {
            all.add((a, b), &text, Some(line), left);
            Ok(())
        })?;
    } else {
        all.add((a, b), &score::read_text(file)?, None, left);
    }
    all.bytes_per_token_a = all.bytes as f64 / all.tokens_a.max(1) as f64;
    all.bytes_per_token_b = all.bytes as f64 / all.tokens_b.max(1) as f64;
    Ok(all)
}

impl Text {
    fn add(
        &mut self,
        (a, b): (&Tokenizer, &Tokenizer),
        text: &str,
        line: Option<usize>,
        left: &mut [LeftOut; 2],
    ) {
        let (of_a, of_b) = rayon::join(|| a.encode(text), || b.encode(text));
        left.iter_mut().zip([&of_a, &of_b]).for_each(|(left, ids)| left.add(text, ids));
        self.documents += 1;
        self.bytes += text.len() as u64;
        self.tokens_a += of_a.len() as u64;
        self.tokens_b += of_b.len() as u64;
        if of_a == of_b {
            return;
        }
        self.differing += 1;
        self.first.get_or_insert_with(|| {
            let at = of_a.iter().zip(&of_b).take_while(|(a, b)| a == b).count();
            let bytes = of_a[..at].iter().filter_map(|&id| a.token_bytes(id)).map(<[u8]>::len);
            let shown = |tokenizer: &Tokenizer, ids: &[u32]| {
                let token = |id| tokenizer.token_bytes(id).unwrap_or_default().escape_ascii().to_string();
                ids[at..].iter().take(SHOWN / 2).map(|&id| (id, token(id))).collect()
            };
            Difference { line, offset: bytes.sum(), a: shown(a, &of_a), b: shown(b, &of_b) }
        });
    }
}

fn say(report: &Report) -> Result<()> {
    for (name, side) in [("A", &report.a), ("B", &report.b)] {
        let size = grouped(side.vocab_size as u64);
        print(format!(
            "{name}: {}: {size} tokens, split {}, {}",
            side.path.display(),
            side.split,
            side.fingerprint
        ))?;
    }
    for (name, tokens) in [("ordinary tokens", &report.tokens), ("special tokens", &report.special)] {
        let [shared, moved, only_a, only_b] =
            [tokens.shared, tokens.moved, tokens.only_a, tokens.only_b].map(|n| grouped(n as u64));
        print(format!(
            "{name}: {shared} in both, {moved} of them with another id; {only_a} only in A, {only_b} only in B"
        ))?;
        let id = |id: &Option<u32>| id.map_or("none".to_owned(), |id| id.to_string());
        for (token, a, b) in &tokens.examples {
            print(format!("  `{token}`: {} in A, {} in B", id(a), id(b)))?;
        }
    }
    for text in &report.texts {
        print(format!(
            "{}: {} bytes; per token {:.3} in A, {:.3} in B; {} of {} documents differ",
            text.file.display(),
            grouped(text.bytes),
            text.bytes_per_token_a,
            text.bytes_per_token_b,
            text.differing,
            text.documents
        ))?;
        if let Some(Difference { line, offset, a, b }) = &text.first {
            let place = line.map_or(String::new(), |line| format!("in line {line}, "));
            let shown = |ids: &[(u32, String)]| {
                ids.iter().map(|(id, token)| format!("{id} `{token}`")).collect::<Vec<_>>().join(" ")
            };
            print(format!("  first {place}after {offset} bytes: A {}; B {}", shown(a), shown(b)))?;
        }
    }
    print(if report.equal { "equal" } else { "different" })
}
