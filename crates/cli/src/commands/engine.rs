//! Options of commands that generate: how keys and values are kept, and how tokens are guessed.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use clap::{Args, ValueEnum};
use llamero_infer::{Counts, Engine, EngineOptions, Guess};
use llamero_tensor::{Backend, KvFormat};

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
    #[arg(long, value_name = "MIB")]
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

    /// The engine with the draft model, if there is one.
    pub(crate) fn draft(&self, engine: Engine, backend: &Arc<dyn Backend>) -> Result<Engine> {
        match &self.draft {
            None => Ok(engine),
            Some(path) => {
                let draft = Engine::open(path, Arc::clone(backend), engine.dtype())?;
                Ok(engine.with_draft(Arc::new(draft))?)
            }
        }
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
