//! `llamero inspect`.

use std::path::Path;

use anyhow::{Result, bail};
use clap::Args;
use llamero_artifact::{Artifact, MANIFEST};
use llamero_infer::resolve_model;
use llamero_model::{Config, PRESETS, hf};
use serde::Serialize;

use super::{print, print_json};
use crate::report::format::{bytes, count};

#[derive(Args)]
#[command(after_help = "Examples:\n  llamero inspect 8b --json\n  llamero inspect runs/quickstart")]
pub(crate) struct InspectArgs {
    /// A preset (8b, 70b, 405b, 1b, 3b, 300k, 1m, 3m, 8m, 25m, 60m), or a run, artifact or exported folder.
    model: String,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Inspection {
    model: String,
    parameters: u64,
    active_parameters: u64,
    weight_bytes_bf16: u64,
    kv_bytes_per_token_bf16: u64,
    #[serde(flatten)]
    config: Config,
}

pub(crate) fn inspect(args: &InspectArgs) -> Result<()> {
    let config = config_of(&args.model)?;
    let inspection = Inspection {
        model: args.model.clone(),
        parameters: config.num_params(),
        active_parameters: config.num_active_params(),
        weight_bytes_bf16: 2 * config.num_params(),
        kv_bytes_per_token_bf16: config.kv_bytes_per_token(2),
        config,
    };
    if args.json {
        return print_json(&inspection);
    }
    let Inspection { parameters, config: c, .. } = &inspection;
    print(format!("{}: {} parameters ({parameters})", args.model, count(*parameters)))?;
    print(format!(
        "  width {}, {} layers, {} heads of {}, {} key/value heads",
        c.dim, c.layers, c.heads, c.head_dim, c.kv_heads
    ))?;
    print(format!(
        "  feed-forward {}, vocabulary {}, context {}, RoPE base {}",
        c.ffn, c.vocab, c.context, c.rope_theta
    ))?;
    let context = inspection.kv_bytes_per_token_bf16 * c.context as u64;
    print(format!(
        "  bf16: weights {}, keys and values {} at full context",
        bytes(inspection.weight_bytes_bf16),
        bytes(context)
    ))
}

fn config_of(model: &str) -> Result<Config> {
    if let Some(config) = Config::preset(model) {
        return Ok(config);
    }
    if !Path::new(model).exists() {
        bail!("`{model}` is neither a folder nor a preset; presets are {}", PRESETS.join(", "));
    }
    let dir = resolve_model(Path::new(model))?;
    if dir.join(MANIFEST).exists() {
        Artifact::open(&dir, None)?.verify()?;
    }
    Ok(hf::read_config(&dir.join(hf::CONFIG_FILE))?)
}
