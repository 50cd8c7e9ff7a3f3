//! `llamero run`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::{print, print_json};
use crate::pipeline::{self, Summary};
use crate::report::format::{bytes, duration};

#[derive(Args)]
#[command(
    after_help = "Run the same command again after an interruption: finished stages are kept, the others resume.\n\
    The settled recipe, with every key and its value, is written to RUN/recipe.toml; running that file gives the same weights.\n\n\
    Examples:\n  \
    llamero run recipes/quickstart.toml\n  \
    llamero run recipes/quickstart.toml --set budget=20m --set run.dir=runs/longer\n  \
    llamero run recipes/quickstart.toml --set run.dir=runs/books --set 'curate.sources=[\"/data/books\"]'"
)]
pub(crate) struct RunArgs {
    /// The recipe, a TOML file.
    recipe: PathBuf,
    /// Set a value of the recipe, e.g. `budget=20m` or `run.threads=2`; may be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Print the results as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &RunArgs) -> Result<()> {
    let summary = pipeline::run(&args.recipe, &args.sets)?;
    if args.json { print_json(&summary) } else { print_summary(&summary) }
}

fn print_summary(summary: &Summary) -> Result<()> {
    print("\nheld-out bits per byte   unigram   bigram  pre-trained  fine-tuned")?;
    for (domain, by_model) in &summary.evaluation.bits_per_byte {
        let bits = |model: &str| by_model.get(model).copied().unwrap_or(f64::NAN);
        let (one, two, base, tuned) = (bits("unigram"), bits("bigram"), bits("pretrain"), bits("sft"));
        print(format!("  {domain:<20} {one:>9.3} {two:>8.3} {base:>12.3} {tuned:>11.3}"))?;
    }
    print("  (fine-tuning teaches answers and forgets raw text: for continuations use RUN/pretrain)")?;
    print("multiple choice")?;
    for (model, c) in &summary.evaluation.multiple_choice {
        let (right, asked) = (c.score.correct, c.score.questions);
        let (accuracy, half, chance) = (100.0 * c.accuracy, 100.0 * c.half_width, 100.0 * c.score.chance);
        print(format!(
            "  {model:<20} {accuracy:.1} % ± {half:.1} ({right} of {asked}; chance {chance:.1} %)"
        ))?;
    }
    for remark in &summary.remarks {
        print(format!("note: {remark}"))?;
    }
    let memory = summary.peak_memory_bytes.map(|b| format!(", peak memory {}", bytes(b))).unwrap_or_default();
    let (took, expected) = (duration(summary.seconds), duration(summary.expected_seconds));
    print(format!("done in {took} (planned {expected}){memory}"))?;
    print(format!("report: {}", summary.report.display()))?;
    print(format!("next:   llamero chat {}", summary.run.display()))
}
