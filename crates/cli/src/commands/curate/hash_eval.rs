//! `llamero curate hash-eval`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use llamero_curate::contamination::{EXAMPLE_FIELDS, EvalSet};

use crate::commands::print;

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    llamero curate hash-eval gsm8k.jsonl --field question --field answer --out gsm8k.hashes\n  \
    llamero curate hash-eval sealed.txt --name sealed --out sealed.hashes")]
pub(crate) struct HashEvalArgs {
    /// Examples: JSON objects, one a line or in an array (`.jsonl`, `.ndjson`, `.json`), or a text with blank lines between them; also
    /// `.gz` and `.zst`.
    file: PathBuf,
    /// The file of hashes to write. Nobody reads the examples from it.
    #[arg(long)]
    out: PathBuf,
    /// The set's name in reports; the file's name when absent.
    #[arg(long)]
    name: Option<String>,
    /// Field of the JSON objects that holds text; several are joined. `text`, `question` and `prompt` when none is given.
    #[arg(long = "field")]
    fields: Vec<String>,
    /// Words in an n-gram.
    #[arg(long, default_value_t = 8)]
    ngram: usize,
}

pub(crate) fn hash_eval(args: &HashEvalArgs) -> Result<()> {
    let stem = args.file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let fields = match args.fields.is_empty() {
        true => EXAMPLE_FIELDS.map(str::to_owned).to_vec(),
        false => args.fields.clone(),
    };
    let set = EvalSet::read_text(args.name.as_deref().unwrap_or(&stem), args.ngram, &args.file, &fields)?;
    set.save(&args.out)?;
    print(format!("{} examples of `{}`: wrote `{}`", set.examples(), set.name, args.out.display()))?;
    if set.too_short > 0 {
        say!(
            "note: {} examples have fewer than {} words and cannot be recognised",
            set.too_short,
            set.least_words()
        );
    }
    Ok(())
}
