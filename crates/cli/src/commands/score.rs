//! `llamero score`.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use clap::Args;
use llamero_infer::Score;

use super::sampling::Clock;
use super::{open, print, print_json};
use crate::ModelArgs;

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    llamero score runs/quickstart --text README.md --json\n  \
    llamero score model.gguf --text README.md --dtype f32 --json --tokens\n  \
    echo 'fn main() {}' | llamero score runs/quickstart --text -")]
pub(crate) struct ScoreArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// File with UTF-8 text, or `-` for standard input.
    #[arg(long)]
    text: PathBuf,
    /// Print the result as JSON: tokens predicted, total negative log-likelihood in nats, bits per byte, seconds.
    #[arg(long)]
    json: bool,
    /// With `--json`: the id and the log-probability of every token, too.
    #[arg(long, requires = "json")]
    tokens: bool,
}

pub(crate) fn score(args: &ScoreArgs) -> Result<()> {
    let text = read_text(&args.text)?;
    let engine = open(&args.model)?;
    let clock = Clock::start();
    if !args.json {
        let score = engine.score_text(&text)?;
        return print(format!(
            "{} tokens, {:.3} nats in all, {:.4} bits per byte over {} bytes",
            score.tokens, score.nll, score.bits_per_byte, score.bytes
        ));
    }
    let mut result = if args.tokens {
        let mut ids = Vec::from_iter(engine.tokenizer().special().begin_of_text);
        engine.tokenizer().encode_into(&text, &mut ids);
        let nll = engine.score_tokens(&ids)?;
        let mut result = serde_json::to_value(Score::new(&nll, text.len()))?;
        result["ids"] = ids[1..].into();
        result["logprobs"] = nll.iter().map(|x| -x).collect::<Vec<f32>>().into();
        result
    } else {
        serde_json::to_value(engine.score_text(&text)?)?
    };
    result["seconds"] = clock.seconds().into();
    print_json(&result)
}

/// Text of a file or of standard input; bytes that are not UTF-8 are an error.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    if path.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("standard input")?;
        return Ok(text);
    }
    let bytes = std::fs::read(path).with_context(|| format!("`{}`", path.display()))?;
    String::from_utf8(bytes).map_err(|error| {
        let (path, at) = (path.display(), error.utf8_error().valid_up_to());
        anyhow!("`{path}` is not UTF-8: an invalid byte at {at}\nhint: give plain text, or convert the file to UTF-8")
    })
}
