//! From metadata to [`Config`].

use std::collections::BTreeMap;
use std::path::Path;

use llamero_tensor::Encoding;

use super::factors::scaling_of;
use super::names::{EMBEDDING, FACTORS, OUTPUT};
use super::value::short;
use super::{ARCHITECTURE, ARCHITECTURE_KEY, Contents, GgufArray, GgufValue};
use crate::Config;
use crate::weights::WeightError;

/// The base of the rotary frequencies where a file names none.
const DEFAULT_THETA: f64 = 10_000.0;

/// Keys of models that compute something else, each with the values at which it changes nothing.
const OTHERS: [(&str, &[f64]); 9] = [
    ("llama.expert_count", &[0.0]),
    ("llama.attention.sliding_window", &[0.0]),
    ("llama.attention.max_alibi_bias", &[0.0]),
    ("llama.attention.clamp_kqv", &[0.0]),
    ("llama.attention.scale", &[0.0]),
    ("llama.logit_scale", &[0.0]),
    ("llama.residual_scale", &[0.0]),
    ("llama.embedding_scale", &[0.0]),
    ("llama.rope.scaling.attn_factor", &[1.0]),
];

/// Factors by which positions are divided, and the values at which they are not. They hold without a type of scaling too,
/// which is then the linear one, but not with the type [`UNSCALED`].
const FACTORS_OF_POSITIONS: [(&str, &[f64]); 2] =
    [("llama.rope.scale_linear", &[0.0, 1.0]), ("llama.rope.scaling.factor", &[0.0, 1.0])];
const UNSCALED: &str = "none";

/// Sizes of the model in a file.
///
/// # Errors
/// No Llama, or one that is computed otherwise, by the key that says so; a key that is missing or absurd.
pub(super) fn config(path: &Path, contents: &Contents, bytes: &[u8]) -> Result<Config, WeightError> {
    let bad = |reason: String| WeightError::config(path, reason);
    let keys = Keys { metadata: &contents.metadata };
    architecture(path, contents)?;
    keys.refuse_others().map_err(bad)?;
    let (dim, heads) = (keys.size("embedding_length"), keys.size("attention.head_count"));
    let (dim, heads) = (dim.map_err(bad)?, heads.map_err(bad)?);
    let head_dim = keys.head_dim(dim / heads.max(1)).map_err(bad)?;
    let tensors = &contents.tensors;
    let vocab = tensors.get(EMBEDDING).ok_or_else(|| {
        WeightError::tensor(path, EMBEDDING, "is missing. hint: a file of a vocabulary alone is no model")
    })?;
    let mut config = Config {
        dim,
        layers: keys.size("block_count").map_err(bad)?,
        heads,
        kv_heads: keys.size_or("attention.head_count_kv", heads).map_err(bad)?,
        head_dim,
        ffn: keys.size("feed_forward_length").map_err(bad)?,
        vocab: vocab.shape[0],
        context: keys.size("context_length").map_err(bad)?,
        rope_theta: keys.number("rope.freq_base").map_err(bad)?.unwrap_or(DEFAULT_THETA),
        rope_scaling: None,
        norm_eps: keys.norm_eps().map_err(bad)?,
        tied: !tensors.contains_key(OUTPUT),
    };
    keys.check_vocab(config.vocab).map_err(bad)?;
    config.validate().map_err(|source| WeightError::Sizes { path: path.into(), source })?;
    if let Some(factors) = factors(path, contents, bytes, &config)? {
        let scaling = scaling_of(&config, &factors);
        config.rope_scaling = scaling.map_err(|reason| WeightError::tensor(path, FACTORS, reason))?;
        config.validate().map_err(|source| WeightError::Sizes { path: path.into(), source })?;
    }
    Ok(config)
}

fn architecture(path: &Path, contents: &Contents) -> Result<(), WeightError> {
    let found = match contents.metadata.get(ARCHITECTURE_KEY) {
        Some(GgufValue::String(name)) if name == ARCHITECTURE => return Ok(()),
        Some(other) => format!("`{ARCHITECTURE_KEY}` is {}", other.describe()),
        None => format!("`{ARCHITECTURE_KEY}` is missing"),
    };
    Err(WeightError::Architecture { path: path.into(), found })
}

/// The divisors of the rotary frequencies, where the file has them.
fn factors(
    path: &Path,
    contents: &Contents,
    bytes: &[u8],
    config: &Config,
) -> Result<Option<Vec<f32>>, WeightError> {
    let Some(tensor) = contents.tensors.get(FACTORS) else { return Ok(None) };
    let half = config.head_dim / 2;
    if tensor.shape != [half] || tensor.encoding != Some(Encoding::F32) {
        let found = format!("is {} {:?}, but must be F32 [{half}]", tensor.dtype, tensor.shape);
        return Err(WeightError::tensor(path, FACTORS, found));
    }
    let mut factors = vec![0.0; half];
    Encoding::F32.decode(&bytes[tensor.bytes.clone()], &mut factors);
    Ok(Some(factors))
}

/// The metadata of a Llama.
struct Keys<'a> {
    metadata: &'a BTreeMap<String, GgufValue>,
}

impl Keys<'_> {
    fn get(&self, key: &str) -> Option<&GgufValue> {
        self.metadata.get(&format!("{ARCHITECTURE}.{key}"))
    }

    fn size(&self, key: &str) -> Result<usize, String> {
        self.optional(key)?.ok_or_else(|| format!("`{ARCHITECTURE}.{key}` is missing"))
    }

    fn size_or(&self, key: &str, default: usize) -> Result<usize, String> {
        Ok(self.optional(key)?.unwrap_or(default))
    }

    fn optional(&self, key: &str) -> Result<Option<usize>, String> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let size = value.as_u64().and_then(|x| usize::try_from(x).ok());
        let size =
            size.ok_or_else(|| format!("`{ARCHITECTURE}.{key}` is {}; it must be a size", value.describe()))?;
        Ok(Some(size))
    }

    fn number(&self, key: &str) -> Result<Option<f64>, String> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value.as_f64();
        let number = number
            .ok_or_else(|| format!("`{ARCHITECTURE}.{key}` is {}; it must be a number", value.describe()))?;
        Ok(Some(number))
    }

    fn norm_eps(&self) -> Result<f32, String> {
        let key = "attention.layer_norm_rms_epsilon";
        match self.number(key)? {
            Some(eps) => Ok(eps as f32),
            None => Err(format!("`{ARCHITECTURE}.{key}` is missing")),
        }
    }

    /// Width of a head, which keys, values and the rotary embedding must share.
    fn head_dim(&self, default: usize) -> Result<usize, String> {
        let keys = self.size_or("attention.key_length", default)?;
        for key in ["attention.value_length", "rope.dimension_count"] {
            let other = self.size_or(key, keys)?;
            if other != keys {
                return Err(format!(
                    "`{ARCHITECTURE}.{key}` is {other}, but heads are {keys} wide; a Llama rotates all of a head"
                ));
            }
        }
        Ok(keys)
    }

    fn check_vocab(&self, rows: usize) -> Result<(), String> {
        let named = self.optional("vocab_size")?;
        if named.is_some_and(|n| n != rows) {
            return Err(format!(
                "`{ARCHITECTURE}.vocab_size` is {}, but `{EMBEDDING}` has {rows} rows",
                named.unwrap_or_default()
            ));
        }
        match self.metadata.get("tokenizer.ggml.tokens") {
            Some(GgufValue::Array(GgufArray::String(tokens))) if tokens.len() > rows => Err(format!(
                "`tokenizer.ggml.tokens` has {} entries, but `{EMBEDDING}` has {rows} rows",
                tokens.len()
            )),
            _ => Ok(()),
        }
    }

    fn refuse_others(&self) -> Result<(), String> {
        let unscaled = self.get("rope.scaling.type").and_then(GgufValue::as_str) == Some(UNSCALED);
        let factors = FACTORS_OF_POSITIONS.iter().filter(|_| !unscaled);
        for (key, nothing) in OTHERS.iter().chain(factors) {
            let Some(value) = self.metadata.get(*key) else { continue };
            let number = value.as_f64().or(value.as_u64().map(|x| x as f64));
            if !number.is_some_and(|number| nothing.contains(&number)) {
                return Err(format!("`{key}` is {}; such a model is not computed here", value.describe()));
            }
        }
        let known: [(&str, &[&str]); 2] =
            [("rope.scaling.type", &[UNSCALED, "linear"]), ("tensor_data_layout", &["Meta AI original pth"])];
        for (key, allowed) in known {
            let Some(value) = self.get(key) else { continue };
            if !value.as_str().is_some_and(|text| allowed.contains(&text)) {
                let found = value.as_str().map_or_else(|| value.describe(), short);
                return Err(format!("`{ARCHITECTURE}.{key}` is {found}; only {allowed:?} is known here"));
            }
        }
        if self.get("attention.causal").is_some_and(|v| v.as_bool() != Some(true)) {
            return Err(format!(
                "`{ARCHITECTURE}.attention.causal` is not true; such a model is not computed here"
            ));
        }
        match self.metadata.get("split.count").map(|v| (v, v.as_u64())) {
            None | Some((_, Some(0 | 1))) => Ok(()),
            Some((found, _)) => Err(format!(
                "it is one of {} parts (`split.count`). hint: join them with `llama-gguf-split --merge`",
                found.describe()
            )),
        }
    }
}
