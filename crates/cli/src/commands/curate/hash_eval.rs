//! `llamero curate hash-eval`.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Args;
use llamero_curate::contamination::{EXAMPLE_FIELDS, EvalSet, MAX_NGRAM};

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
    /// Words in an n-gram, the same as `decontaminate.ngram` in the recipe.
    #[arg(long, default_value_t = 8, allow_negative_numbers = true,
        value_parser = clap::value_parser!(u32).range(1..=MAX_NGRAM as i64))]
    ngram: u32,
}

/// Refuses what could not be written to before anything is read.
fn check_out(out: &Path) -> Result<()> {
    if out.is_dir() {
        bail!("`--out {}` is a folder\nhint: name a file, such as `--out quiz.hashes`", out.display());
    }
    let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
        bail!("`--out {}`: `{}` is no folder\nhint: make it first", out.display(), folder.display());
    }
    Ok(())
}

pub(crate) fn hash_eval(args: &HashEvalArgs) -> Result<()> {
    check_out(&args.out)?;
    let stem = args.file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let fields = match args.fields.is_empty() {
        true => EXAMPLE_FIELDS.map(str::to_owned).to_vec(),
        false => args.fields.clone(),
    };
    let set =
        EvalSet::read_text(args.name.as_deref().unwrap_or(&stem), args.ngram as usize, &args.file, &fields)?;
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
