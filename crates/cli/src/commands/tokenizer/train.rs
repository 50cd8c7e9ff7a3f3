//! `llamero tokenizer train`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use llamero_artifact::fsutil;
use llamero_tokenizer::Trainer;

use crate::commands::{print, print_json, score};
use crate::progress::Progress;

#[derive(Args)]
#[command(
    after_help = "Example:\n  llamero tokenizer train --input a.txt b.txt --vocab-size 8192 --out my-tokenizer"
)]
pub(crate) struct TrainArgs {
    /// Text files in UTF-8, each one document.
    #[arg(long, required = true, num_args = 1..)]
    input: Vec<PathBuf>,
    /// Size of the vocabulary, the 256 bytes and the 256 special tokens included.
    #[arg(long)]
    vocab_size: usize,
    /// Pairs seen less often are not merged.
    #[arg(long, default_value_t = 2)]
    min_frequency: u64,
    /// Folder to write `tokenizer.model`, `tokenizer.json` and `tokenizer_config.json` into.
    #[arg(long)]
    out: PathBuf,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn train(args: &TrainArgs) -> Result<()> {
    let texts = args.input.iter().map(|p| score::read_text(p)).collect::<Result<Vec<String>>>()?;
    let mut trainer = Trainer::new(args.vocab_size);
    trainer.min_frequency = args.min_frequency;
    let bar = Progress::new("tokenizer", args.vocab_size as u64, "merges");
    let trained = trainer.train(texts.iter().map(String::as_str), &mut |done, wanted| {
        if wanted > 0 {
            bar.at(done, "merges");
        }
    });
    bar.finish();
    let (tokenizer, report) = trained?;
    std::fs::create_dir_all(&args.out).with_context(|| format!("`{}`", args.out.display()))?;
    tokenizer.save_hf(&args.out)?;
    tokenizer.save_model(args.out.join("tokenizer.model"))?;
    fsutil::sync_tree(&args.out)?;
    if !report.reached_size() {
        say!(
            "note: the text has only enough frequent pairs for {} of {} entries; give more text for more",
            report.vocab_size,
            report.wanted_vocab_size
        );
    }
    if args.json {
        return print_json(&report);
    }
    let per_token = report.bytes as f64 / report.tokens.max(1) as f64;
    print(format!("{} entries, {per_token:.2} bytes per token: {}", report.vocab_size, args.out.display()))
}
