//! What a model is: sizes, presets, and what follows from them by arithmetic.

use serde::{Deserialize, Serialize};

/// A configuration that no model can have.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
#[error("model configuration: `{key}` is {found}, but must be {allowed}")]
pub struct ConfigError {
    /// Field of [`Config`].
    pub key: &'static str,
    /// Its value.
    pub found: String,
    /// What would be valid.
    pub allowed: String,
}

/// Llama 3.1's stretching of the rotary frequencies to longer contexts (llama-models, `apply_scaling`).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RopeScaling {
    /// Low frequencies are divided by this.
    pub factor: f64,
    /// Wavelengths above `original_context / low_freq_factor` are stretched in full.
    pub low_freq_factor: f64,
    /// Wavelengths below `original_context / high_freq_factor` are left alone.
    pub high_freq_factor: f64,
    /// Context length that the frequencies were trained for.
    pub original_context: usize,
}

impl RopeScaling {
    fn validate(&self) -> Result<(), ConfigError> {
        let (low, high) = (self.low_freq_factor, self.high_freq_factor);
        let checks = [
            ("rope_scaling.factor", self.factor, self.factor >= 1.0 && self.factor.is_finite(), "at least 1"),
            ("rope_scaling.low_freq_factor", low, low > 0.0 && low.is_finite(), "above 0"),
            (
                "rope_scaling.high_freq_factor",
                high,
                high > low && high.is_finite(),
                "above `low_freq_factor`",
            ),
            (
                "rope_scaling.original_context",
                self.original_context as f64,
                self.original_context > 0,
                "at least 1",
            ),
        ];
        match checks.into_iter().find(|(_, _, ok, _)| !ok) {
            None => Ok(()),
            Some((key, found, _, allowed)) => {
                Err(ConfigError { key, found: found.to_string(), allowed: allowed.into() })
            }
        }
    }
}

/// Sizes of a Llama.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Model width `C`.
    pub dim: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Query heads `H`.
    pub heads: usize,
    /// Key/value heads `G`; divides `H`.
    pub kv_heads: usize,
    /// Head width `D`; `C / H` in every released model.
    pub head_dim: usize,
    /// Feed-forward width `F`.
    pub ffn: usize,
    /// Vocabulary `V`, special tokens included.
    pub vocab: usize,
    /// Longest sequence in tokens.
    pub context: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Llama 3.1's frequency scaling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_scaling: Option<RopeScaling>,
    /// Epsilon of every RMS norm.
    pub norm_eps: f32,
    /// Whether the output projection is the embedding table.
    pub tied: bool,
}

/// Names of the presets: the released sizes, then laptop sizes with Llama 3's proportions.
pub const PRESETS: [&str; 11] = ["8b", "70b", "405b", "1b", "3b", "300k", "1m", "3m", "8m", "25m", "60m"];

impl Config {
    /// A preset by name (see [`PRESETS`]), with Llama 3's vocabulary of 128,256 and context of 8,192; laptop sizes
    /// have a context of 1,024 and usually get their own vocabulary. Names of laptop sizes count the parameters of the
    /// blocks, without embedding and output.
    pub fn preset(name: &str) -> Option<Self> {
        let c = match name {
            "8b" => Self::sized(4096, 32, 32, 8, 14336),
            "70b" => Self::sized(8192, 80, 64, 8, 28672),
            "405b" => Self::sized(16384, 126, 128, 8, 53248),
            "1b" => Self { tied: true, ..Self::sized(2048, 16, 32, 8, 8192) },
            "3b" => Self { tied: true, ..Self::sized(3072, 28, 24, 8, 8192) },
            "300k" => Self::laptop(96, 3, 3, 1, 256),
            "1m" => Self::laptop(128, 5, 4, 2, 352),
            "3m" => Self::laptop(192, 7, 6, 2, 512),
            "8m" => Self::laptop(288, 9, 6, 2, 768),
            "25m" => Self::laptop(448, 12, 7, 1, 1216),
            "60m" => Self::laptop(640, 14, 10, 2, 1728),
            _ => return None,
        };
        Some(c)
    }

    fn sized(dim: usize, layers: usize, heads: usize, kv_heads: usize, ffn: usize) -> Self {
        Self {
            dim,
            layers,
            heads,
            kv_heads,
            head_dim: dim / heads,
            ffn,
            vocab: 128_256,
            context: 8192,
            rope_theta: 500_000.0,
            rope_scaling: None,
            norm_eps: 1e-5,
            tied: false,
        }
    }

    fn laptop(dim: usize, layers: usize, heads: usize, kv_heads: usize, ffn: usize) -> Self {
        Self { context: 1024, ..Self::sized(dim, layers, heads, kv_heads, ffn) }
    }

    /// Checks that the sizes fit together.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let bad =
            |key, found: String, allowed: &str| Err(ConfigError { key, found, allowed: allowed.into() });
        for (key, value, most) in [
            ("dim", self.dim, 1 << 20),
            ("layers", self.layers, 1 << 16),
            ("heads", self.heads, 1 << 16),
            ("kv_heads", self.kv_heads, 1 << 16),
            ("head_dim", self.head_dim, 1 << 12),
            ("ffn", self.ffn, 1 << 24),
            ("vocab", self.vocab, 1 << 24),
            ("context", self.context, 1 << 24),
        ] {
            if value == 0 || value > most {
                return bad(key, value.to_string(), &format!("between 1 and {most}"));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return bad(
                "kv_heads",
                self.kv_heads.to_string(),
                &format!("a divisor of `heads` ({})", self.heads),
            );
        }
        if !self.head_dim.is_multiple_of(2) {
            return bad("head_dim", self.head_dim.to_string(), "even (rotary embedding works on pairs)");
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 1.0) {
            return bad("rope_theta", self.rope_theta.to_string(), "above 1");
        }
        if !(self.norm_eps.is_finite() && self.norm_eps >= 0.0) {
            return bad("norm_eps", self.norm_eps.to_string(), "0 or a small positive number");
        }
        self.rope_scaling.map_or(Ok(()), |s| s.validate())
    }

    /// Number of parameters.
    pub fn num_params(&self) -> u64 {
        self.params().iter().map(|p| p.elements()).sum()
    }

    /// Parameters that take part in a matrix product for every token: all but the embedding table's rows.
    pub fn num_active_params(&self) -> u64 {
        let embedding = if self.tied { 0 } else { (self.vocab * self.dim) as u64 };
        self.num_params() - embedding
    }

    /// Bytes of keys and values per token of context, with elements of `element_bytes`.
    pub fn kv_bytes_per_token(&self, element_bytes: usize) -> u64 {
        (2 * self.layers * self.kv_heads * self.head_dim * element_bytes) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_count_as_published() {
        for (name, count, kv) in [
            ("8b", 8_030_261_248, 131_072),
            ("70b", 70_553_706_496, 327_680),
            ("405b", 405_853_388_800, 516_096),
            ("1b", 1_235_814_400, 32_768),
            ("3b", 3_212_749_824, 114_688),
        ] {
            let c = Config::preset(name).unwrap();
            assert_eq!(c.num_params(), count, "{name}");
            assert_eq!(c.kv_bytes_per_token(2), kv, "{name}");
        }
    }

    #[test]
    fn every_preset_is_valid_and_laptop_names_are_honest() {
        for name in PRESETS {
            let c = Config::preset(name).unwrap();
            c.validate().unwrap();
            assert_eq!(c.head_dim * c.heads, c.dim, "{name}");
            let digits: f64 = name.trim_end_matches(char::is_alphabetic).parse().unwrap();
            let unit = match name.chars().last() {
                Some('k') => 1e3,
                Some('m') => 1e6,
                _ => 1e9,
            };
            let ends = if c.tied || unit == 1e9 { 0 } else { 2 * c.vocab * c.dim };
            let body = (c.num_params() - ends as u64) as f64;
            assert!((body / (digits * unit) - 1.0).abs() < 0.25, "{name}: {body}");
        }
        assert_eq!(Config::preset("9b"), None);
    }

    #[test]
    fn impossible_sizes_are_named() {
        let c = Config { kv_heads: 3, ..Config::preset("1m").unwrap() };
        assert_eq!(c.validate().unwrap_err().key, "kv_heads");
        let c = Config { head_dim: 31, ..Config::preset("1m").unwrap() };
        assert_eq!(c.validate().unwrap_err().key, "head_dim");
        let c = Config { dim: 0, ..Config::preset("1m").unwrap() };
        assert!(c.validate().unwrap_err().to_string().contains("`dim` is 0"));
    }
}
