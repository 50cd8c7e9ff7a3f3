//! `config.json` and `generation_config.json`.

use std::path::Path;

use llamero_tensor::Encoding;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{CONFIG_FILE, GENERATION_FILE};
use crate::weights::{StopTokens, WeightError, read_text};
use crate::{Config, RopeScaling};

/// `config.json` in Hugging Face's terms; fields that do not matter here are ignored.
#[derive(Serialize, Deserialize)]
struct ConfigJson {
    #[serde(default)]
    architectures: Option<Vec<String>>,
    model_type: String,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    max_position_embeddings: usize,
    rms_norm_eps: f32,
    rope_theta: Option<f64>,
    #[serde(default)]
    rope_scaling: Option<RopeJson>,
    /// Where `transformers` 5 puts the base and the scaling; it still reads the older two.
    #[serde(default, skip_serializing)]
    rope_parameters: Option<RopeJson>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default = "silu")]
    hidden_act: String,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bos_token_id: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    eos_token_id: Option<Value>,
    /// What the weights are stored in, `dtype` in newer files. Only written: the weights say it themselves.
    #[serde(skip_deserializing)]
    torch_dtype: Option<String>,
}

/// The base that `transformers` takes when a file names none.
const DEFAULT_THETA: f64 = 10_000.0;
const MODEL_TYPE: &str = "llama";
const ARCHITECTURE: &str = "LlamaForCausalLM";

fn silu() -> String {
    "silu".into()
}

#[derive(Serialize, Deserialize)]
struct RopeJson {
    rope_type: Option<String>,
    /// The name of `rope_type` in older files.
    #[serde(default, rename = "type", skip_serializing)]
    old_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<usize>,
}

impl RopeJson {
    /// The scaling it describes, or what is wrong with it.
    fn scaling(&self) -> Result<Option<RopeScaling>, String> {
        let missing = |key: &str| format!("`{key}` of `rope_type` = `llama3` is missing");
        match self.rope_type.as_deref().or(self.old_type.as_deref()).unwrap_or("default") {
            "default" => Ok(None),
            "llama3" => Ok(Some(RopeScaling {
                factor: self.factor.ok_or_else(|| missing("factor"))?,
                low_freq_factor: self.low_freq_factor.ok_or_else(|| missing("low_freq_factor"))?,
                high_freq_factor: self.high_freq_factor.ok_or_else(|| missing("high_freq_factor"))?,
                original_context: self
                    .original_max_position_embeddings
                    .ok_or_else(|| missing("original_max_position_embeddings"))?,
            })),
            other => Err(format!("`rope_type` is `{other}`; only `llama3` and `default` are known")),
        }
    }
}

/// Reads and checks `config.json`.
///
/// # Errors
/// A file that cannot be read, another architecture, sizes that do not fit together.
pub fn read_config(path: &Path) -> Result<Config, WeightError> {
    let bad = |reason: String| WeightError::config(path, reason);
    let value: Value = serde_json::from_str(&read_text(path)?).map_err(|e| bad(e.to_string()))?;
    // Before the sizes, which other models name otherwise.
    check_architecture(path, &value)?;
    let json: ConfigJson = serde_json::from_value(value).map_err(|e| bad(e.to_string()))?;
    if json.hidden_act != "silu" || json.attention_bias || json.mlp_bias {
        return Err(bad("Llama has `hidden_act` = `silu` and no biases; this model differs".into()));
    }
    let rope = json.rope_parameters.or(json.rope_scaling);
    let rope_scaling = rope.as_ref().map_or(Ok(None), RopeJson::scaling).map_err(bad)?;
    let rope_theta = rope.and_then(|r| r.rope_theta).or(json.rope_theta).unwrap_or(DEFAULT_THETA);
    let heads = json.num_attention_heads;
    let config = Config {
        dim: json.hidden_size,
        layers: json.num_hidden_layers,
        heads,
        kv_heads: json.num_key_value_heads.unwrap_or(heads),
        head_dim: json.head_dim.unwrap_or(json.hidden_size / heads.max(1)),
        ffn: json.intermediate_size,
        vocab: json.vocab_size,
        context: json.max_position_embeddings,
        rope_theta,
        rope_scaling,
        norm_eps: json.rms_norm_eps,
        tied: json.tie_word_embeddings,
    };
    config.validate().map_err(|source| WeightError::Sizes { path: path.into(), source })?;
    Ok(config)
}

fn check_architecture(path: &Path, json: &Value) -> Result<(), WeightError> {
    let other = |found: String| Err(WeightError::Architecture { path: path.into(), found });
    match json.get("model_type").map(|t| t.as_str().map_or_else(|| t.to_string(), str::to_owned)) {
        Some(found) if found != MODEL_TYPE => return other(format!("`model_type` is `{found}`")),
        Some(_) => {}
        None => return Err(WeightError::config(path, "`model_type` is missing")),
    }
    let listed = json.get("architectures").and_then(Value::as_array);
    let names: Vec<&str> = listed.into_iter().flatten().filter_map(Value::as_str).collect();
    match names.first() {
        Some(first) if !names.contains(&ARCHITECTURE) => other(format!("`architectures` is `{first}`")),
        _ => Ok(()),
    }
}

/// The tokens that `generation_config.json`, or where it names none `config.json`, begins and ends a text with.
pub(super) fn read_stop_tokens(dir: &Path, vocab: usize) -> Result<Option<StopTokens>, WeightError> {
    let (mut begin, mut stop) = (None, Vec::new());
    for path in [dir.join(GENERATION_FILE), dir.join(CONFIG_FILE)] {
        if !path.is_file() {
            continue;
        }
        let json: Value = serde_json::from_str(&read_text(&path)?)
            .map_err(|e| WeightError::config(&path, e.to_string()))?;
        let ids = |key: &str| {
            ids(&json, key, vocab).map_err(|found| {
                let reason = format!("`{key}` is {found}, which is no id of a vocabulary of {vocab} tokens");
                WeightError::config(&path, reason)
            })
        };
        begin = begin.or(ids("bos_token_id")?.first().copied());
        if stop.is_empty() {
            stop = ids("eos_token_id")?;
        }
    }
    Ok(StopTokens::named(begin, stop))
}

/// The ids under a key that holds none, one or several; or what it holds instead.
fn ids(json: &Value, key: &str, vocab: usize) -> Result<Vec<u32>, String> {
    let found = match json.get(key) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(list)) => list.clone(),
        Some(one) => vec![one.clone()],
    };
    let id =
        |v: Value| v.as_u64().filter(|id| (*id as usize) < vocab).map(|id| id as u32).ok_or(v.to_string());
    found.into_iter().map(id).collect()
}

/// Writes `config.json` and `generation_config.json`.
pub(super) fn write_configs(
    dir: &Path,
    c: &Config,
    encoding: Encoding,
    tokens: Option<&StopTokens>,
) -> Result<(), WeightError> {
    let json = ConfigJson {
        architectures: Some(vec![ARCHITECTURE.into()]),
        model_type: MODEL_TYPE.into(),
        hidden_size: c.dim,
        intermediate_size: c.ffn,
        num_hidden_layers: c.layers,
        num_attention_heads: c.heads,
        num_key_value_heads: Some(c.kv_heads),
        head_dim: Some(c.head_dim),
        vocab_size: c.vocab,
        max_position_embeddings: c.context,
        rms_norm_eps: c.norm_eps,
        rope_theta: Some(c.rope_theta),
        rope_scaling: c.rope_scaling.map(|s| RopeJson {
            rope_type: Some("llama3".into()),
            old_type: None,
            rope_theta: None,
            factor: Some(s.factor),
            low_freq_factor: Some(s.low_freq_factor),
            high_freq_factor: Some(s.high_freq_factor),
            original_max_position_embeddings: Some(s.original_context),
        }),
        rope_parameters: None,
        tie_word_embeddings: c.tied,
        hidden_act: silu(),
        attention_bias: false,
        mlp_bias: false,
        bos_token_id: tokens.and_then(|t| t.begin_of_text).map(Value::from),
        eos_token_id: tokens.map(|t| t.stop.clone().into()),
        torch_dtype: Some(torch_name(encoding).into()),
    };
    let mut generation = serde_json::json!({ "do_sample": true, "temperature": 0.6, "top_p": 0.9 });
    if let Some(StopTokens { begin_of_text, stop }) = tokens {
        if let Some(id) = begin_of_text {
            generation["bos_token_id"] = (*id).into();
        }
        generation["eos_token_id"] = stop.clone().into();
    }
    write_json(&dir.join(CONFIG_FILE), &json)?;
    write_json(&dir.join(GENERATION_FILE), &generation)
}

fn torch_name(encoding: Encoding) -> &'static str {
    match encoding {
        Encoding::F16 => "float16",
        Encoding::Bf16 => "bfloat16",
        _ => "float32",
    }
}

/// Writes a JSON file for people to read.
pub(super) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), WeightError> {
    let io = |source| WeightError::io(path, source);
    let mut text = serde_json::to_vec_pretty(value).map_err(|e| io(e.into()))?;
    text.push(b'\n');
    std::fs::write(path, text).map_err(io)
}
