//! `llamero score`.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use clap::Args;
use llamero_infer::ScoredText;

use super::sampling::Clock;
use super::{open, print, print_json, warn_of_text};
use crate::ModelArgs;
use crate::progress::Progress;

#[derive(Args)]
#[command(
    after_help = "Every token of the text is predicted from those before it; the first one from the token that begins texts, and where \
    the model has none it is not predicted. Bits per byte are the negative log-likelihood of the predicted tokens over the bytes of \
    the same tokens, so that models with other tokenizers can be compared.\n\n\
    A text longer than the context is read in windows of the context's length, each of which begins half a context after the one \
    before it and scores the tokens that none before it has scored: all but the first ones have at least half a context before \
    them.\n\nExamples:\n  \
    llamero score runs/quickstart --text README.md --json\n  \
    llamero score model.gguf --text README.md --dtype f32 --json --tokens\n  \
    echo 'fn main() {}' | llamero score runs/quickstart --text -"
)]
pub(crate) struct ScoreArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// File with UTF-8 text, or `-` for standard input.
    #[arg(long)]
    text: PathBuf,
    /// Print one object of JSON: `tokens` predicted, their total `nll` in nats, their `bytes`, `bits_per_byte` (nll / ln 2 /
    /// bytes), `text_bytes` of the whole text, `windows` that it was read in, the model's `context`, `seconds`.
    #[arg(long)]
    json: bool,
    /// With `--json`: `ids` and `logprobs` of the predicted tokens, too.
    #[arg(long, requires = "json")]
    tokens: bool,
}

pub(crate) fn score(args: &ScoreArgs) -> Result<()> {
    let text = read_text(&args.text)?;
    let engine = open(&args.model)?;
    let clock = Clock::start();
    let mut progress = None;
    let scored = engine.score_each(&text, &mut |done, all| {
        let progress = progress.get_or_insert_with(|| Progress::new("score", all as u64, "tokens"));
        progress.at(done as u64, "");
    })?;
    if let Some(progress) = progress {
        progress.finish();
    }
    warn_of_text(engine.tokenizer(), &text);
    let ScoredText { ids, nll, score } = scored;
    if score.windows > 1 {
        say!(
            "note: the text is longer than the context of {context} tokens: it was read in {} windows of {context} tokens, each of \
             which begins {} tokens after the one before it",
            score.windows,
            (engine.context() / 2).max(1),
            context = engine.context()
        );
    }
    if !args.json {
        return print(format!(
            "{} tokens, {:.3} nats in all, {:.4} bits per byte over {} bytes",
            score.tokens, score.nll, score.bits_per_byte, score.bytes
        ));
    }
    let mut result = serde_json::to_value(score)?;
    result["text_bytes"] = text.len().into();
    result["context"] = engine.context().into();
    if args.tokens {
        result["ids"] = ids.into();
        result["logprobs"] = nll.iter().map(|x| -x).collect::<Vec<f32>>().into();
    }
    result["seconds"] = clock.seconds().into();
    print_json(&result)
}

/// Text of a file or of standard input; bytes that are not UTF-8 are an error.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    if path.as_os_str() == "-" {
        let mut bytes = Vec::new();
        std::io::stdin().read_to_end(&mut bytes).context("standard input")?;
        return utf8(bytes, "standard input");
    }
    let bytes = std::fs::read(path).with_context(|| format!("`{}`", path.display()))?;
    utf8(bytes, &format!("`{}`", path.display()))
}

fn utf8(bytes: Vec<u8>, from: &str) -> Result<String> {
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        anyhow!("{from} is not UTF-8: an invalid byte at {at}\nhint: give plain text, or convert the file to UTF-8")
    })
}
