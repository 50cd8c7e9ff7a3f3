//! One module per command: its arguments, and what it does with the libraries.

pub(crate) mod bench;
pub(crate) mod chat;
pub(crate) mod convert;
pub(crate) mod curate;
pub(crate) mod dry_run;
pub(crate) mod engine;
pub(crate) mod export;
mod folder;
pub(crate) mod generate;
pub(crate) mod inspect;
pub(crate) mod pretrain;
pub(crate) mod pull;
pub(crate) mod run;
mod sampling;
pub(crate) mod score;
pub(crate) mod supervise;
pub(crate) mod tokenizer;
pub(crate) mod why;

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, bail};
use llamero_infer::Engine;
use llamero_model::Config;
use llamero_tensor::Backend;
use llamero_tokenizer::{LeftOut, Tokenizer};
use serde::Serialize;

use crate::ModelArgs;

/// Refuses the name of a preset where a model with weights is wanted.
fn no_preset(model: &Path) -> Result<()> {
    let name = model.to_string_lossy().to_lowercase();
    let size = name.strip_prefix("llama").and_then(|rest| rest.rsplit('-').next());
    match size.into_iter().chain([name.as_str()]).find(|name| Config::preset(name).is_some()) {
        Some(preset) if !model.exists() => bail!(
            "`{}` names a preset, which has sizes and no weights\nhint: name a model's file or folder, such as one that \
             `llamero pull` fetched or `llamero run` made; `llamero inspect {preset}` shows the sizes",
            model.display()
        ),
        _ => Ok(()),
    }
}

/// Opens a model on the CPU.
fn open(args: &ModelArgs) -> Result<Engine> {
    no_preset(&args.model)?;
    let backend: Arc<dyn Backend> = Arc::new(crate::device(args.threads)?);
    Ok(Engine::open(&args.model, backend, args.dtype.dtype())?)
}

/// Opens a model for generating.
fn open_with(args: &ModelArgs, engine: &engine::EngineArgs) -> Result<Engine> {
    no_preset(&args.model)?;
    let backend: Arc<dyn Backend> = Arc::new(crate::device(args.threads)?);
    let opened = Engine::open(&args.model, Arc::clone(&backend), args.dtype.dtype())?;
    engine.draft(opened.with_options(engine.options()), &backend)
}

/// Says on stderr what was left out of texts, if anything was.
fn warn_of_left_out(left: &LeftOut) {
    if left.count() > 0 {
        say!("warning: {left}");
    }
}

/// The same of a single text.
fn warn_of_text(tokenizer: &Tokenizer, text: &str) {
    let mut left = LeftOut::new(tokenizer);
    left.add_text(text);
    warn_of_left_out(&left);
}

/// A line of result on stdout.
fn print(text: impl std::fmt::Display) -> Result<()> {
    writeln!(std::io::stdout().lock(), "{text}")?;
    Ok(())
}

/// A value as one line of JSON on stdout.
fn print_json(value: &impl Serialize) -> Result<()> {
    print(serde_json::to_string(value)?)
}
