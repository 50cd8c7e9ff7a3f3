//! `llamero tokenizer inspect`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Result, anyhow, bail};
use clap::Args;
use llamero_tokenizer::{Split, Tokenizer};
use serde::Serialize;
use unicode_script::{Script, UnicodeScript};

use super::ReleaseArg;
use crate::commands::{print, print_json};
use crate::report::format::grouped;

/// How many of the longest tokens are shown.
const LONGEST: usize = 10;

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    llamero tokenizer inspect runs/quickstart\n  \
    llamero tokenizer inspect tokenizer.model --id 128000\n  \
    llamero tokenizer inspect tokenizer.json --token ' the' --json")]
pub(crate) struct InspectArgs {
    /// A `tokenizer.model`, a `tokenizer.json`, a folder with one, a run folder, or a GGUF file.
    tokenizer: PathBuf,
    #[command(flatten)]
    release: ReleaseArg,
    /// Show the token with this id instead.
    #[arg(long, conflicts_with = "token")]
    id: Option<u32>,
    /// Show the tokens of this text instead: one if it is a token.
    #[arg(long)]
    token: Option<String>,
    /// Print the result as one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    vocab_size: usize,
    /// Tokens that texts are made of.
    ordinary: usize,
    special: usize,
    split: &'static str,
    /// Whether ids are ranks, as in a `tokenizer.model`; otherwise there is a list of merges.
    ranks: bool,
    begin_of_text: Option<u32>,
    /// Tokens that end an answer.
    ends: Vec<u32>,
    chat_template: bool,
    fingerprint: String,
    missing_bytes: Vec<u8>,
    /// How many ordinary tokens have so many bytes.
    lengths: BTreeMap<usize, usize>,
    /// How many ordinary tokens have letters of a script, or what they are where they have none.
    scripts: Vec<(String, usize)>,
    longest: Vec<Shown>,
    special_tokens: Vec<(u32, String)>,
}

/// A token.
#[derive(Serialize)]
struct Shown {
    id: u32,
    /// As text, with U+FFFD for what is not UTF-8.
    text: String,
    /// Printable ASCII, the others as escapes.
    bytes: String,
    len: usize,
    special: bool,
}

impl Shown {
    fn new(tokenizer: &Tokenizer, id: u32) -> Option<Shown> {
        let bytes = tokenizer.token_bytes(id)?;
        Some(Shown {
            id,
            text: String::from_utf8_lossy(bytes).into_owned(),
            bytes: bytes.escape_ascii().to_string(),
            len: bytes.len(),
            special: tokenizer.special().contains(id),
        })
    }

    fn line(&self) -> String {
        let kind = if self.special { ", special" } else { "" };
        format!("{:>8}  {:?}  {} bytes: {}{kind}", self.id, self.text, self.len, self.bytes)
    }
}

pub(super) fn inspect(args: &InspectArgs) -> Result<()> {
    let tokenizer = args.release.load(&args.tokenizer)?;
    if args.id.is_some() || args.token.is_some() {
        let tokens = tokens(&tokenizer, args)?;
        if args.json {
            return print_json(&tokens);
        }
        return tokens.iter().try_for_each(|token| print(token.line()));
    }
    let report = report(&tokenizer);
    if args.json { print_json(&report) } else { say(&report) }
}

fn tokens(tokenizer: &Tokenizer, args: &InspectArgs) -> Result<Vec<Shown>> {
    let ids = match (args.id, &args.token) {
        (Some(id), _) => vec![id],
        (None, Some(text)) if text.is_empty() => bail!("`--token` is empty"),
        (None, Some(text)) => match tokenizer.special().id(text) {
            Some(id) => vec![id],
            None => tokenizer.encode(text),
        },
        (None, None) => Vec::new(),
    };
    let unknown = |id| anyhow!("no token `{id}`: ids are below {}", tokenizer.vocab_size());
    ids.into_iter().map(|id| Shown::new(tokenizer, id).ok_or_else(|| unknown(id))).collect()
}

pub(super) fn split_name(split: Split) -> &'static str {
    match split {
        Split::Llama3 => "Llama 3's",
        Split::Gpt2 => "GPT-2's",
        Split::SmolLm => "SmolLM2's: single digits, then GPT-2's",
    }
}

fn report(tokenizer: &Tokenizer) -> Report {
    let special = tokenizer.special();
    let ordinary = || (0..tokenizer.vocab_size() as u32).filter(|&id| !special.contains(id));
    let (mut lengths, mut scripts) = (BTreeMap::new(), BTreeMap::<String, usize>::new());
    for bytes in ordinary().filter_map(|id| tokenizer.token_bytes(id)) {
        *lengths.entry(bytes.len()).or_default() += 1;
        *scripts.entry(script(bytes)).or_default() += 1;
    }
    let mut scripts: Vec<(String, usize)> = scripts.into_iter().collect();
    scripts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let mut longest: Vec<u32> = ordinary().collect();
    longest.sort_by_key(|&id| std::cmp::Reverse(tokenizer.token_bytes(id).map(<[u8]>::len)));
    Report {
        vocab_size: tokenizer.vocab_size(),
        ordinary: tokenizer.num_ranks(),
        special: special.iter().len(),
        split: split_name(tokenizer.split()),
        ranks: tokenizer.has_ranks(),
        begin_of_text: special.begin_of_text,
        ends: special.ends().to_vec(),
        chat_template: tokenizer.chat_template().is_some(),
        fingerprint: tokenizer.fingerprint(),
        missing_bytes: tokenizer.missing_bytes(),
        lengths,
        scripts,
        longest: longest.iter().take(LONGEST).filter_map(|&id| Shown::new(tokenizer, id)).collect(),
        special_tokens: special.iter().map(|(id, name)| (id, name.to_owned())).collect(),
    }
}

/// The script of the first letter that has one; otherwise what the token is made of.
fn script(bytes: &[u8]) -> String {
    let Ok(text) = std::str::from_utf8(bytes) else { return "parts of characters".into() };
    let mut scripts = text.chars().map(|c| c.script());
    let of_letter = scripts.find(|s| !matches!(s, Script::Common | Script::Inherited | Script::Unknown));
    match of_letter {
        Some(script) => script.full_name().replace('_', " "),
        None if text.chars().all(char::is_whitespace) => "white space".into(),
        None if text.chars().any(char::is_numeric) => "numbers".into(),
        None => "symbols".into(),
    }
}

fn say(report: &Report) -> Result<()> {
    let named = |id: u32| {
        let name = report.special_tokens.iter().find(|(special, _)| *special == id);
        name.map_or(id.to_string(), |(_, name)| format!("{id} {name}"))
    };
    let some = |ids: Vec<String>| if ids.is_empty() { "none".to_owned() } else { ids.join(", ") };
    let yes = |yes| if yes { "yes" } else { "no" };
    for (name, value) in [
        ("tokens", grouped(report.vocab_size as u64)),
        ("ordinary", grouped(report.ordinary as u64)),
        ("special", grouped(report.special as u64)),
        ("split", report.split.to_owned()),
        ("ids are ranks", yes(report.ranks).to_owned()),
        ("begins texts", some(report.begin_of_text.map(named).into_iter().collect())),
        ("ends answers", some(report.ends.iter().copied().map(named).collect())),
        ("chat template", yes(report.chat_template).to_owned()),
        ("bytes without a token", some(report.missing_bytes.iter().map(|b| format!("0x{b:02x}")).collect())),
        ("fingerprint", report.fingerprint.clone()),
    ] {
        print(format!("{name:<24}{value}"))?;
    }
    print("\nordinary tokens by bytes")?;
    for (len, count) in &report.lengths {
        print(format!("{len:>8}  {}", grouped(*count as u64)))?;
    }
    print("\nordinary tokens by script")?;
    for (script, count) in &report.scripts {
        print(format!("{:>8}  {script}", grouped(*count as u64)))?;
    }
    print("\nlongest tokens")?;
    report.longest.iter().try_for_each(|token| print(token.line()))
}

#[cfg(test)]
mod tests {
    use super::script;

    #[test]
    fn tokens_are_sorted_by_what_they_are_made_of() {
        for (token, expected) in [
            (&b" the"[..], "Latin"),
            ("字".as_bytes(), "Han"),
            ("!привет".as_bytes(), "Cyrillic"),
            (b"\n  ", "white space"),
            (b" 123", "numbers"),
            (b"});", "symbols"),
            (b"\xe5\xad", "parts of characters"),
        ] {
            assert_eq!(script(token), expected);
        }
    }
}
