//! Hugging Face's folder layout: `config.json`, `generation_config.json`, `model.safetensors`.
//!
//! The fused parameters of this crate (`wqkv`, `w13`) are runs of rows of each other, so reading joins and writing cuts;
//! rows of queries and keys are in half-split order on both sides. Reading goes through a memory map, a tensor at a
//! time, and checks every name, shape and dtype before a value is used.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use half::bf16;
use llamero_artifact::MappedFile;
use llamero_tensor::{Backend, DType};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use crate::{Config, ConfigError, Llama, ParamSpec, RopeScaling};

/// Names of the files of a model folder.
pub const CONFIG_FILE: &str = "config.json";
/// Weights.
pub const WEIGHTS_FILE: &str = "model.safetensors";
/// Defaults for sampling.
pub const GENERATION_FILE: &str = "generation_config.json";

/// Name of the embedding in a weight file.
const EMBEDDING: &str = "model.embed_tokens.weight";
/// Name of the output projection, which an untied model has.
const OUTPUT: &str = "lm_head.weight";
/// How the names of buffers end that older files hold and nothing needs.
const ROTARY: &str = ".rotary_emb.inv_freq";

/// What can be wrong with a model folder.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HfError {
    /// A file could not be read or written.
    #[error("`{}`: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// `config.json` is not what this reader understands.
    #[error("`{}`: {reason}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// The sizes do not fit together.
    #[error("`{}`: {source}", path.display())]
    Sizes {
        /// The file.
        path: PathBuf,
        /// Which, and why.
        source: ConfigError,
    },
    /// The container of the weights is damaged or of another format.
    #[error("`{}`: not a readable safetensors file: {reason}", path.display())]
    Container {
        /// The file.
        path: PathBuf,
        /// What the reader said.
        reason: String,
    },
    /// A tensor is missing or not as the configuration says.
    #[error("`{}`: tensor `{tensor}` {reason}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// Name in the file.
        tensor: String,
        /// What was found and what was expected.
        reason: String,
    },
}

/// `config.json` in Hugging Face's terms; fields that do not matter here are ignored.
#[derive(Serialize, Deserialize)]
struct ConfigJson {
    architectures: Vec<String>,
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
    bos_token_id: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    eos_token_id: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    torch_dtype: Option<String>,
}

/// The base that `transformers` takes when a file names none.
const DEFAULT_THETA: f64 = 10_000.0;

fn silu() -> String {
    "silu".into()
}

#[derive(Serialize, Deserialize)]
struct RopeJson {
    rope_type: String,
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
        match self.rope_type.as_str() {
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

/// Token ids that the configuration files name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopTokens {
    /// Begins every text.
    pub begin_of_text: u32,
    /// Each ends a generation.
    pub stop: Vec<u32>,
}

/// A model folder, opened and checked; values are read tensor by tensor.
pub struct ModelFolder {
    /// Sizes from `config.json`.
    pub config: Config,
    path: PathBuf,
    map: MappedFile,
    dtype: DType,
}

impl ModelFolder {
    /// Opens `dir` and checks that every tensor the configuration needs is there in its shape, and no other that would
    /// change the result.
    ///
    /// # Errors
    /// A file that cannot be read; a configuration or a tensor that is not Llama's, by name.
    pub fn open(dir: &Path) -> Result<Self, HfError> {
        let config = read_config(&dir.join(CONFIG_FILE))?;
        let path = dir.join(WEIGHTS_FILE);
        let map = MappedFile::open(&path).map_err(|source| HfError::Io { path: path.clone(), source })?;
        let mut folder = Self { config, path, map, dtype: DType::F32 };
        let tensors = folder.tensors()?;
        let table = folder.config.params();
        for spec in &table {
            for part in &spec.parts {
                folder.checked(&tensors, &part.hf_name, part.rows, spec.shape.cols)?;
            }
        }
        folder.no_others(&tensors, &table)?;
        let stored = tensors.tensor(EMBEDDING).map(|view| view.dtype());
        folder.dtype = if stored.is_ok_and(|dtype| dtype == Dtype::BF16) { DType::Bf16 } else { DType::F32 };
        Ok(folder)
    }

    /// The dtype that the weights are stored in, and with which they were trained: that of the embedding. Half precision,
    /// which nothing computes in, counts as f32.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Refuses tensors that the model has no place for, such as biases: without them it would be another model. Rotary
    /// frequencies follow from the configuration, and a tied model may hold its embedding a second time.
    fn no_others(&self, tensors: &SafeTensors<'_>, table: &[ParamSpec]) -> Result<(), HfError> {
        let known: BTreeSet<&str> = table.iter().flat_map(|s| &s.parts).map(|p| p.hf_name.as_str()).collect();
        let mut names = tensors.names();
        names.sort_unstable();
        for name in names {
            if known.contains(name) || name.ends_with(ROTARY) {
                continue;
            }
            let bytes = |name| tensors.tensor(name).ok().map(|v| (v.dtype(), v.shape().to_vec(), v.data()));
            let reason = match name {
                OUTPUT if bytes(OUTPUT) == bytes(EMBEDDING) => continue,
                OUTPUT => {
                    format!("differs from `{EMBEDDING}`, but `{CONFIG_FILE}` says `tie_word_embeddings`")
                }
                _ => "is not part of a Llama; this model differs".into(),
            };
            return Err(HfError::Tensor { path: self.path.clone(), tensor: name.into(), reason });
        }
        Ok(())
    }

    /// Sum of the sizes of the weights in bytes, as stored.
    pub fn weight_bytes(&self) -> u64 {
        self.map.bytes().len() as u64
    }

    fn tensors(&self) -> Result<SafeTensors<'_>, HfError> {
        SafeTensors::deserialize(self.map.bytes())
            .map_err(|e| HfError::Container { path: self.path.clone(), reason: e.to_string() })
    }

    fn checked<'t>(
        &self,
        tensors: &SafeTensors<'t>,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<TensorView<'t>, HfError> {
        let bad = |reason: String| HfError::Tensor { path: self.path.clone(), tensor: name.into(), reason };
        let view = tensors.tensor(name).map_err(|_| bad("is missing".into()))?;
        let expected: &[usize] = if rows == 1 { &[cols] } else { &[rows, cols] };
        if view.shape() != expected {
            return Err(bad(format!(
                "has shape {:?}, but `{CONFIG_FILE}` asks for {expected:?}",
                view.shape()
            )));
        }
        if !matches!(view.dtype(), Dtype::F32 | Dtype::BF16 | Dtype::F16) {
            return Err(bad(format!("has dtype {:?}; readable are F32, BF16 and F16", view.dtype())));
        }
        Ok(view)
    }

    /// Rows `rows` of a parameter, its parts joined.
    pub fn values(&self, spec: &ParamSpec, rows: Range<usize>) -> Result<Vec<f32>, HfError> {
        let tensors = self.tensors()?;
        let cols = spec.shape.cols;
        let mut out = Vec::with_capacity(rows.len() * cols);
        for (part, own) in spec.parts_in(rows) {
            let view = self.checked(&tensors, &part.hf_name, part.rows, cols)?;
            let start = out.len();
            let first = own.start * cols;
            extend_f32(&mut out, &view, first..own.end * cols);
            if let Some(at) = out[start..].iter().position(|x| !x.is_finite()) {
                return Err(HfError::Tensor {
                    path: self.path.clone(),
                    tensor: part.hf_name.clone(),
                    reason: format!("holds {} at element {}", out[start + at], first + at),
                });
            }
        }
        Ok(out)
    }
}

fn extend_f32(out: &mut Vec<f32>, view: &TensorView<'_>, elements: Range<usize>) {
    let width = if view.dtype() == Dtype::F32 { 4 } else { 2 };
    let data = &view.data()[elements.start * width..elements.end * width];
    match view.dtype() {
        Dtype::BF16 => out.extend(data.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32())),
        Dtype::F16 => {
            out.extend(data.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()))
        }
        _ => out.extend(data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))),
    }
}

/// Reads and checks `config.json`.
pub fn read_config(path: &Path) -> Result<Config, HfError> {
    let text = std::fs::read_to_string(path).map_err(|source| HfError::Io { path: path.into(), source })?;
    let bad = |reason: String| HfError::Config { path: path.into(), reason };
    let json: ConfigJson = serde_json::from_str(&text).map_err(|e| bad(e.to_string()))?;
    if json.model_type != "llama" {
        return Err(bad(format!("`model_type` is `{}`; only `llama` can be opened", json.model_type)));
    }
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
    config.validate().map_err(|source| HfError::Sizes { path: path.into(), source })?;
    Ok(config)
}

/// Writes `config.json`, `generation_config.json` and `model.safetensors` for a whole model into `dir`.
pub fn save(dir: &Path, model: &Llama, backend: &dyn Backend, tokens: &StopTokens) -> Result<(), HfError> {
    let dtype = model.params().next().map_or(DType::F32, |p| p.value.dtype());
    write_configs(dir, &model.config, dtype, tokens)?;
    let table = model.config.params();
    let mut data: BTreeMap<&str, (Vec<usize>, Vec<u8>)> = BTreeMap::new();
    for param in model.params() {
        let spec = &table[param.id];
        let bytes = le_bytes(&backend.download(&param.value), dtype);
        let mut rest = bytes.as_slice();
        for part in &spec.parts {
            let (own, tail) = rest.split_at(part.rows * spec.shape.cols * dtype.bytes());
            let shape = if part.rows == 1 { vec![spec.shape.cols] } else { vec![part.rows, spec.shape.cols] };
            data.insert(&part.hf_name, (shape, own.to_vec()));
            rest = tail;
        }
    }
    let path = dir.join(WEIGHTS_FILE);
    let container =
        |e: safetensors::SafeTensorError| HfError::Container { path: path.clone(), reason: e.to_string() };
    let st_dtype = if dtype == DType::F32 { Dtype::F32 } else { Dtype::BF16 };
    let views = data
        .iter()
        .map(|(name, (shape, bytes))| Ok((*name, TensorView::new(st_dtype, shape.clone(), bytes)?)))
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
        .map_err(container)?;
    let metadata = [("format".to_string(), "pt".to_string())].into();
    safetensors::serialize_to_file(views, Some(metadata), &path).map_err(|e| match e {
        safetensors::SafeTensorError::IoError(source) => HfError::Io { path: path.clone(), source },
        other => container(other),
    })?;
    // The library makes the file readable for its owner only; it gets the rights of its neighbours.
    let rights = std::fs::metadata(dir.join(CONFIG_FILE)).map(|m| m.permissions());
    rights.and_then(|r| std::fs::set_permissions(&path, r)).map_err(|source| HfError::Io { path, source })
}

fn le_bytes(values: &[f32], dtype: DType) -> Vec<u8> {
    match dtype {
        DType::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        DType::Bf16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
    }
}

fn write_configs(dir: &Path, c: &Config, dtype: DType, tokens: &StopTokens) -> Result<(), HfError> {
    let json = ConfigJson {
        architectures: vec!["LlamaForCausalLM".into()],
        model_type: "llama".into(),
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
            rope_type: "llama3".into(),
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
        bos_token_id: Some(tokens.begin_of_text),
        eos_token_id: Some(tokens.stop.clone().into()),
        torch_dtype: Some(if dtype == DType::F32 { "float32" } else { "bfloat16" }.into()),
    };
    let generation = serde_json::json!({
        "bos_token_id": tokens.begin_of_text,
        "eos_token_id": tokens.stop,
        "do_sample": true,
        "temperature": 0.6,
        "top_p": 0.9,
    });
    write_json(&dir.join(CONFIG_FILE), &json)?;
    write_json(&dir.join(GENERATION_FILE), &generation)
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), HfError> {
    let io = |source| HfError::Io { path: path.into(), source };
    let mut text = serde_json::to_vec_pretty(value).map_err(|e| io(e.into()))?;
    text.push(b'\n');
    std::fs::write(path, text).map_err(io)
}
