//! Options of commands that generate: how keys and values are kept, and how tokens are guessed.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Result, anyhow, bail};
use clap::{Args, ValueEnum};
use llamero_infer::{Counts, Engine, EngineOptions, Guess, InferError};
use llamero_tensor::{Backend, KV_PAGE, KvFormat};

use super::no_preset;
use crate::report::format::precise_bytes;

/// How keys and values are kept.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum KvArg {
    /// As the model computes them
    Same,
    /// In 8 bits: half the memory, and a little less exact
    Int8,
}

/// How an engine works. What is generated depends on `--kv` only.
#[derive(Args)]
pub(crate) struct EngineArgs {
    /// How keys and values are kept.
    #[arg(long, value_enum, default_value = "same")]
    kv: KvArg,
    /// Most memory for keys and values in MiB, and a quarter of it more for requests that must wait; what is available when absent.
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..))]
    kv_memory: Option<u64>,
    /// Guess tokens by what followed the last ones where they occurred before: faster where a text repeats itself.
    #[arg(long, conflicts_with = "draft")]
    lookup: bool,
    /// Guess tokens by this smaller model with the same tokenizer.
    #[arg(long, value_name = "MODEL")]
    draft: Option<PathBuf>,
}

impl EngineArgs {
    /// As the engine takes them.
    pub(crate) fn options(&self) -> EngineOptions {
        let kv = match self.kv {
            KvArg::Same => KvFormat::Same,
            KvArg::Int8 => KvFormat::Int8,
        };
        let guess = if self.lookup { Guess::Lookup } else { Guess::Off };
        let kv_bytes = self.kv_memory.map(|mib| mib.saturating_mul(1 << 20));
        EngineOptions { kv, kv_bytes, guess, ..EngineOptions::default() }
    }

    /// The engine with the draft model, if there is one. One whose memory holds no keys and values is refused.
    pub(crate) fn draft(&self, mut engine: Engine, backend: &Arc<dyn Backend>) -> Result<Engine> {
        if let Some(path) = &self.draft {
            no_preset(path)?;
            let draft = Engine::open(path, Arc::clone(backend), engine.dtype())?;
            engine = engine.with_draft(Arc::new(draft))?;
        }
        match (self.kv_memory, engine.kv_page_bytes()) {
            (Some(mib), page) if mib.saturating_mul(1 << 20) < page => bail!(
                "`--kv-memory {mib}` (MiB) is too little: keys and values of {KV_PAGE} tokens, the least that is kept of a \
                 request, take {}\nhint: give `--kv-memory {}` or more",
                precise_bytes(page),
                in_mib(page)
            ),
            _ => Ok(engine),
        }
    }

    /// The error of a request, where it is one of memory with the options that matter. `most` is the option that says how many
    /// tokens are generated.
    pub(crate) fn explain(&self, error: anyhow::Error, most: &str) -> anyhow::Error {
        let Some(&InferError::Memory { tokens, needed, limit }) = error.downcast_ref() else { return error };
        let (there, wanted) = match self.kv_memory {
            Some(mib) => {
                (format!("`--kv-memory {mib}` holds"), format!("`--kv-memory {}`, ", in_mib(needed)))
            }
            None => ("the memory that is available holds".into(), String::new()),
        };
        let smaller = if self.kv == KvArg::Same { " or `--kv int8`" } else { "" };
        anyhow!(
            "keys and values of {tokens} tokens, prompt and `{most}`, take {}, but {there} {}\n\
             hint: give {wanted}a smaller `{most}`{smaller}",
            precise_bytes(needed),
            precise_bytes(limit)
        )
    }

    pub(crate) fn kv_name(&self) -> &'static str {
        if self.kv == KvArg::Int8 { "int8" } else { "same" }
    }

    /// Whether tokens are guessed.
    pub(crate) fn guesses(&self) -> bool {
        self.lookup || self.draft.is_some()
    }

    /// How many tokens were guessed and how many of them right, where any are.
    pub(crate) fn guessed(&self, counts: Counts) -> Option<[u64; 2]> {
        self.guesses().then_some([counts.guessed, counts.accepted])
    }
}

/// So many MiB hold these bytes.
fn in_mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}
