//! The Llama 3 model: configuration, parameter table, forward pass and file formats.
//!
//! - [`Config`] and its presets say what a model is; [`Config::params`] is the one table of its parameters, from which
//!   initialisation, sharding, optimiser groups, file names, FLOPs and memory follow.
//! - [`Llama`] is the forward pass. It names no rank, device or cache; how a weight is divided over ranks is
//!   declared in the table and done by `linear`.
//! - [`Weights`] is a model as files hold it, whatever the format; [`weights::open`] opens one.
//! - [`hf`] reads and writes Hugging Face's folder layout; [`gguf`] reads and writes GGUF files; [`meta`] reads Meta's
//!   layout.

mod config;
pub mod gguf;
pub mod hf;
mod init;
mod linear;
mod llama;
pub mod meta;
mod params;
mod rope;
pub mod weights;

pub use config::{Config, ConfigError, PRESETS, RopeScaling};
pub use init::initial_values;
pub use linear::{Division, Linear, Vocabulary};
pub use llama::{Block, Input, Llama, Recompute};
pub use params::{Group, Init, ParamPart, ParamSpec, Placement, Shard};
pub use rope::{half_split_rows, interleaved_rows, rope_table};
pub use weights::{StopTokens, WeightError, Weights};
