//! Hugging Face's folder layout: `config.json`, `generation_config.json`, and `model.safetensors` or shards of it with
//! `model.safetensors.index.json`.
//!
//! The fused parameters of this crate (`wqkv`, `w13`) are runs of rows of each other, so reading joins and writing cuts;
//! rows of queries and keys are in half-split order on both sides. Reading goes through memory maps and checks every name, shape
//! and dtype before a value is used.

mod config;
mod index;
mod read;
mod write;

pub use crate::weights::StopTokens;
pub use config::read_config;
pub use read::ModelFolder;
pub use write::{SaveOptions, save, save_weights};

/// Sizes of the model.
pub const CONFIG_FILE: &str = "config.json";
/// Weights in one file.
pub const WEIGHTS_FILE: &str = "model.safetensors";
/// The files that hold the weights where there are several.
pub const INDEX_FILE: &str = "model.safetensors.index.json";
/// Defaults for sampling.
pub const GENERATION_FILE: &str = "generation_config.json";

/// Name of the embedding in a weight file.
const EMBEDDING: &str = "model.embed_tokens.weight";
/// Name of the output projection, which an untied model has.
const OUTPUT: &str = "lm_head.weight";
/// How the names of buffers end that older files hold and nothing needs.
const ROTARY: &str = ".rotary_emb.inv_freq";

/// What an index says, without files: for fuzzing.
#[doc(hidden)]
pub fn parse_index(text: &str) -> Result<std::collections::BTreeMap<String, String>, String> {
    index::parse_index(text)
}
