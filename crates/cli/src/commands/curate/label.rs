//! `llamero curate label`.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use llamero_curate::CurateError;
use llamero_curate::quality::{Judge, LabelTask, label};
use llamero_infer::{Lm, SamplingParams};
use llamero_tokenizer::{Message, Role};
use serde_json::Value;

use crate::ModelArgs;
use crate::commands::{open, print, print_json};

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    llamero curate label SmolLM2-135M-Instruct pages.jsonl --out labels.jsonl\n  \
    llamero curate label model.gguf pages.jsonl --out labels.jsonl --label proof --label sketch --label none \\\n    \
        --prompt $'{text}\\n\\nIs there mathematical reasoning in this text? Answer with one of {labels}.'")]
pub(crate) struct LabelArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Documents: a JSON object a line with its `text`, and its `id`, which is the line's number when absent.
    documents: PathBuf,
    /// The file of labels to write, or to go on with: documents that it has are not asked for again.
    #[arg(long)]
    out: PathBuf,
    /// The question; `{text}` stands for the document, `{labels}` for the labels.
    #[arg(long, default_value_t = LabelTask::default().prompt)]
    prompt: String,
    /// A label; `good` and `bad` when none is given.
    #[arg(long = "label")]
    labels: Vec<String>,
    /// Longer documents are shown up to here.
    #[arg(long, default_value_t = LabelTask::default().max_characters, allow_negative_numbers = true)]
    max_characters: usize,
    /// Longest answer, in tokens.
    #[arg(long, default_value_t = 16, allow_negative_numbers = true)]
    max_tokens: usize,
    /// Print the counts as JSON.
    #[arg(long)]
    json: bool,
}

/// A language model that is asked in its chat format, or with the plain prompt where it has none, and answers with its likeliest tokens.
struct ModelJudge<'a> {
    model: &'a dyn Lm,
    stop: Vec<u32>,
    max_tokens: usize,
}

impl Judge for ModelJudge<'_> {
    fn judge(&mut self, prompt: &str) -> Result<String, String> {
        let tokenizer = self.model.tokenizer();
        let dialog = [Message::new(Role::User, prompt)];
        let ids = tokenizer.encode_dialog_prompt(&dialog).unwrap_or_else(|_| {
            let mut ids = Vec::from_iter(tokenizer.special().begin_of_text);
            tokenizer.encode_into(prompt, &mut ids);
            ids
        });
        let params = SamplingParams {
            temperature: 0.0,
            max_tokens: self.max_tokens,
            stop: self.stop.clone(),
            ..SamplingParams::default()
        };
        let generation = self.model.generate(&ids, &params, &mut |_| ControlFlow::Continue(()));
        let generation = generation.map_err(|error| error.to_string())?;
        let bytes = tokenizer.decode_bytes(generation.content()).map_err(|error| error.to_string())?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

pub(crate) fn label_documents(args: &LabelArgs) -> Result<()> {
    let mut task = LabelTask {
        prompt: args.prompt.clone(),
        max_characters: args.max_characters,
        ..LabelTask::default()
    };
    if !args.labels.is_empty() {
        task.labels.clone_from(&args.labels);
    }
    task.validate()?;
    let file = File::open(&args.documents).with_context(|| format!("`{}`", args.documents.display()))?;
    let engine = open(&args.model)?;
    let mut judge = ModelJudge { model: &engine, stop: engine.stop_tokens(), max_tokens: args.max_tokens };
    let lines = BufReader::new(file).lines().enumerate();
    let documents =
        lines.filter_map(|(number, line)| document(&args.documents, number + 1, line).transpose());
    let report = label(documents, &task, &mut judge, &args.out)?;
    if args.json {
        return print_json(&report);
    }
    print(format!(
        "{} documents labelled, {} were there, {} answers without a label",
        report.labelled, report.present, report.unreadable
    ))
}

/// Id and text of a line; `None` for a blank one.
fn document(
    path: &Path,
    number: usize,
    line: std::io::Result<String>,
) -> Result<Option<(String, String)>, CurateError> {
    let bad = |cause: String| CurateError::Read {
        path: path.to_path_buf(),
        cause: format!("line {number}: {cause}"),
    };
    let line = line.map_err(|error| bad(error.to_string()))?;
    if line.trim().is_empty() {
        return Ok(None);
    }
    let value: Value = serde_json::from_str(&line).map_err(|error| bad(error.to_string()))?;
    let text = value
        .get("text")
        .and_then(Value::as_str)
        .ok_or_else(|| bad("no `text`, or it is no string".to_owned()))?;
    let id = value.get("id").and_then(Value::as_str).map_or_else(|| number.to_string(), str::to_owned);
    Ok(Some((id, text.to_owned())))
}
