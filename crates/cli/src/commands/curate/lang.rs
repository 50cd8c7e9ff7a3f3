//! `llamero curate lang`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use llamero_curate::language::{Guess, Identifier};

use crate::commands::score::read_text;
use crate::commands::{print, print_json};

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    llamero curate lang --model lid.176.ftz < page.txt\n  \
    llamero curate lang --model lid.176.ftz --lines --top 3 --json < page.txt\n  \
    llamero curate lang page.txt")]
pub(crate) struct LangArgs {
    /// File with UTF-8 text; `-` is standard input.
    #[arg(default_value = "-")]
    file: PathBuf,
    /// A fastText model, such as lid.176.ftz. Without one, built-in trigrams of 70 languages decide. The scores of the two are of
    /// different kinds: a model's is a probability; the built-in one says how far the best language is ahead of the next, 1 for most
    /// texts of some length, less for short ones. `language.min_score` in a recipe is 0.65 for the one and 0.2 for the other.
    #[arg(long)]
    model: Option<PathBuf>,
    /// How many languages to print, the most probable first. The built-in identifier knows one.
    #[arg(long, default_value_t = 1, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..), allow_negative_numbers = true)]
    top: usize,
    /// Judge each line that is not blank by itself.
    #[arg(long)]
    lines: bool,
    /// Print the guesses as JSON, a line per text.
    #[arg(long)]
    json: bool,
}

pub(crate) fn lang(args: &LangArgs) -> Result<()> {
    let identifier = Identifier::open(args.model.as_deref())?;
    if args.model.is_none() {
        say!(
            "note: no `--model`, so {} decides; its scores are no probabilities (see `--help`)",
            identifier.name()
        );
    }
    let text = read_text(&args.file)?;
    if !args.lines {
        return say_languages(args, &identifier, &text, None);
    }
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines.into_iter().try_for_each(|(number, line)| say_languages(args, &identifier, line, Some(number + 1)))
}

/// Prints the languages of one text, which is line `line` of its file.
fn say_languages(args: &LangArgs, identifier: &Identifier, text: &str, line: Option<usize>) -> Result<()> {
    let found = identifier.identify(text, args.top);
    if args.json {
        let mut value = serde_json::json!({ "identifier": identifier.name(), "languages": found });
        if let Some(line) = line {
            value["line"] = line.into();
        }
        return print_json(&value);
    }
    let one = |guess: &Guess| format!("{} {:.4}", guess.language, guess.score);
    let guesses = match found.is_empty() {
        true => "unknown".to_owned(),
        false => found.iter().map(one).collect::<Vec<_>>().join("  "),
    };
    match line {
        Some(line) => print(format!("{line}: {guesses}")),
        None => print(guesses),
    }
}
