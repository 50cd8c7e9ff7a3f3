//! `params.json`: the sizes of a model in Meta's terms.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::weights::{WeightError, read_text};
use crate::{Config, RopeScaling};

/// Fields of `params.json`; others do not matter, but for those in [`FOREIGN`].
#[derive(Deserialize)]
struct ParamsJson {
    dim: usize,
    n_layers: usize,
    n_heads: usize,
    n_kv_heads: Option<usize>,
    vocab_size: i64,
    multiple_of: Option<usize>,
    ffn_dim_multiplier: Option<f64>,
    norm_eps: f32,
    rope_theta: Option<f64>,
    #[serde(default)]
    use_scaled_rope: bool,
    rope_scaling_factor: Option<f64>,
    max_seq_len: Option<usize>,
}

/// Fields that only models of other architectures have.
const FOREIGN: [&str; 6] =
    ["vision_chunk_size", "vision_args", "moe_args", "moe", "quantization_args", "lora_args"];

/// The base of Llama 1 and 2, which do not name theirs; Llama 3 names it.
const OLD_THETA: f64 = 10_000.0;
/// Context lengths that the files do not say: of Llama 2, of Llama 3, and of Llama 3.1 and later.
const OLD_CONTEXT: usize = 4096;
const CONTEXT: usize = 8192;
const SCALED_CONTEXT: usize = 131_072;

fn read_value(path: &Path) -> Result<Value, WeightError> {
    let value = serde_json::from_str(&read_text(path)?);
    let mut value: Value = value.map_err(|e| WeightError::config(path, e.to_string()))?;
    match value.get_mut("model").filter(|inner| inner.is_object()) {
        Some(inner) => Ok(inner.take()),
        None => Ok(value),
    }
}

/// Whether `params.json` asks for stretched frequencies.
pub(super) fn is_scaled(path: &Path) -> Result<bool, WeightError> {
    Ok(read_value(path)?["use_scaled_rope"] == true)
}

/// Reads and checks `params.json`. `table` are the rows of the embedding, for files that do not say the size of the vocabulary;
/// `tied` is whether the checkpoint has no output projection of its own.
pub(super) fn read_params(path: &Path, table: usize, tied: bool) -> Result<Config, WeightError> {
    let bad = |reason: String| WeightError::config(path, reason);
    let value = read_value(path)?;
    // -1 says that there is none.
    let says = |found: &Value| !matches!(found, Value::Null | Value::Bool(false)) && *found != -1;
    if let Some(key) = FOREIGN.iter().find(|key| value.get(**key).is_some_and(says)) {
        return Err(WeightError::Architecture { path: path.into(), found: format!("it has `{key}`") });
    }
    let json: ParamsJson = serde_json::from_value(value).map_err(|e| bad(e.to_string()))?;
    let vocab = match json.vocab_size {
        -1 => table,
        size => usize::try_from(size).map_err(|_| bad(format!("`vocab_size` is {size}")))?,
    };
    let context = match json.rope_theta {
        _ if json.use_scaled_rope => SCALED_CONTEXT,
        None => OLD_CONTEXT,
        Some(_) => CONTEXT,
    };
    let config = Config {
        dim: json.dim,
        layers: json.n_layers,
        heads: json.n_heads,
        kv_heads: json.n_kv_heads.unwrap_or(json.n_heads),
        head_dim: json.dim / json.n_heads.max(1),
        ffn: ffn(&json).ok_or_else(|| bad("its feed-forward width is no number".into()))?,
        vocab,
        context: json.max_seq_len.unwrap_or(context),
        rope_theta: json.rope_theta.unwrap_or(OLD_THETA),
        rope_scaling: json.use_scaled_rope.then(|| scaling(&json)),
        norm_eps: json.norm_eps,
        tied,
    };
    config.validate().map_err(|source| WeightError::Sizes { path: path.into(), source })?;
    if config.head_dim * config.heads != config.dim {
        return Err(bad(format!("`dim` {} is not a multiple of `n_heads` {}", config.dim, config.heads)));
    }
    Ok(config)
}

/// Two thirds of four times the width, times the multiplier, rounded up (Meta's `model.py`, `FeedForward`).
fn ffn(json: &ParamsJson) -> Option<usize> {
    let hidden = json.dim.checked_mul(8)? / 3;
    let hidden = json.ffn_dim_multiplier.map_or(hidden, |m| (m * hidden as f64) as usize);
    let step = json.multiple_of.unwrap_or(256);
    if step == 0 { None } else { hidden.checked_next_multiple_of(step) }
}

/// The stretching that `use_scaled_rope` means. The files do not say its factor: 8 in Llama 3.1, 32 in the two small models of
/// 3.2 (their Hugging Face configurations).
fn scaling(json: &ParamsJson) -> RopeScaling {
    let small = [(2048, 16), (3072, 28)].contains(&(json.dim, json.n_layers));
    RopeScaling {
        factor: json.rope_scaling_factor.unwrap_or(if small { 32.0 } else { 8.0 }),
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_context: CONTEXT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_models_are_refused_by_each_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("params.json");
        let read = |more: &[(&str, Value)]| {
            let mut json = serde_json::json!({
                "dim": 64, "n_layers": 1, "n_heads": 4, "vocab_size": 100, "norm_eps": 1e-5, "rope_theta": 1e4,
            });
            for (key, value) in more {
                json[*key] = value.clone();
            }
            std::fs::write(&path, json.to_string()).unwrap();
            read_params(&path, 100, true).map_err(|error| error.to_string())
        };
        let no: [Value; 3] = [Value::Null, false.into(), (-1).into()];
        let nothing: Vec<_> = FOREIGN.into_iter().zip(no.iter().cycle().cloned()).collect();
        read(&nothing).unwrap();
        for key in FOREIGN {
            let error =
                read(&[("vision_chunk_size", (-1).into()), (key, serde_json::json!({}))]).unwrap_err();
            assert!(error.contains(&format!("it has `{key}`")), "{error}");
        }
    }

    #[test]
    fn the_released_models_have_their_published_sizes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("params.json");
        for (name, multiplier, multiple, factor) in [
            ("8b", 1.3, 1024, 8.0),
            ("70b", 1.3, 4096, 8.0),
            ("405b", 1.2, 4096, 8.0),
            ("1b", 1.5, 256, 32.0),
            ("3b", 1.0, 256, 32.0),
        ] {
            let preset = Config::preset(name).unwrap();
            for scaled in [false, true] {
                let json = serde_json::json!({
                    "dim": preset.dim, "n_layers": preset.layers, "n_heads": preset.heads, "n_kv_heads": 8,
                    "vocab_size": if scaled { 128_256 } else { -1 }, "multiple_of": multiple,
                    "ffn_dim_multiplier": multiplier, "norm_eps": 1e-5, "rope_theta": 500_000.0,
                    "use_scaled_rope": scaled, "quantization_args": null, "vision_chunk_size": -1,
                });
                std::fs::write(&path, json.to_string()).unwrap();
                let config = read_params(&path, 128_256, preset.tied).unwrap();
                assert_eq!(config.rope_scaling.map(|s| s.factor), scaled.then_some(factor), "{name}");
                let context = if scaled { SCALED_CONTEXT } else { CONTEXT };
                let expected = Config { rope_scaling: config.rope_scaling, context, ..preset.clone() };
                assert_eq!(config, expected, "{name}");
            }
        }
    }
}
