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
use std::sync::Arc;

use anyhow::Result;
use llamero_infer::Engine;
use llamero_tensor::Backend;
use serde::Serialize;

use crate::ModelArgs;

/// Opens a model on the CPU.
fn open(args: &ModelArgs) -> Result<Engine> {
    let backend: Arc<dyn Backend> = Arc::new(crate::device(args.threads)?);
    Ok(Engine::open(&args.model, backend, args.dtype.dtype())?)
}

/// Opens a model for generating.
fn open_with(args: &ModelArgs, engine: &engine::EngineArgs) -> Result<Engine> {
    let backend: Arc<dyn Backend> = Arc::new(crate::device(args.threads)?);
    let opened = Engine::open(&args.model, Arc::clone(&backend), args.dtype.dtype())?;
    engine.draft(opened.with_options(engine.options()), &backend)
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
