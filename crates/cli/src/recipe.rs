//! The recipe: one TOML file that says everything a run depends on.
//!
//! Every section is the settings type of the crate that does the work; keys it does not know are refused. Only `[run]`
//! may change without changing the result. A recipe with a `budget` leaves sizes open; the plan settles them, and the
//! settled recipe, which has no budget, is written into the run folder.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use llamero_align::InstructConfig;
use llamero_curate::CurateConfig;
use llamero_data::DataConfig;
use llamero_model::{Config, PRESETS};
use llamero_tensor::DType;
use llamero_train::TrainConfig;
use serde::{Deserialize, Serialize};

/// A whole recipe.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Recipe {
    /// Wall-clock time for the whole run, e.g. `8m` or `1h30m`; sizes left open are fitted to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) budget: Option<String>,
    pub(crate) run: RunSection,
    pub(crate) curate: CurateConfig,
    pub(crate) tokenizer: TokenizerSection,
    pub(crate) data: DataConfig,
    pub(crate) model: ModelSection,
    pub(crate) pretrain: TrainConfig,
    pub(crate) instruct: InstructConfig,
    pub(crate) sft: TrainConfig,
    pub(crate) evaluate: EvaluateSection,
}

/// How the run is done; nothing here changes the result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RunSection {
    /// Folder that holds the run.
    pub(crate) dir: String,
    /// Threads; all cores when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) threads: Option<usize>,
    /// Seconds between two checkpoints of a training stage, so what a kill loses at most; 10 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) checkpoint_seconds: Option<f64>,
}

impl Default for RunSection {
    fn default() -> Self {
        Self { dir: "runs/default".into(), threads: None, checkpoint_seconds: None }
    }
}

impl RunSection {
    /// Time between two checkpoints, where it is given.
    pub(crate) fn checkpoint_interval(&self) -> Result<Option<Duration>> {
        let Some(seconds) = self.checkpoint_seconds else { return Ok(None) };
        match Duration::try_from_secs_f64(seconds) {
            Ok(interval) => Ok(Some(interval)),
            Err(_) => bail!("`run.checkpoint_seconds` is {seconds}, but must be at least 0"),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct TokenizerSection {
    /// Size of the vocabulary, the 256 bytes and the 256 special tokens included.
    pub(crate) vocab_size: usize,
    /// Pairs seen less often are not merged.
    pub(crate) min_frequency: u64,
    /// Bytes of text to learn from; documents are sampled by hash.
    pub(crate) sample_bytes: u64,
}

impl Default for TokenizerSection {
    fn default() -> Self {
        Self { vocab_size: 4096, min_frequency: 2, sample_bytes: 16 << 20 }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ModelSection {
    /// Name of a preset; chosen by the plan when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) preset: Option<String>,
    /// Element type of the computation: `f32` or `bf16`.
    pub(crate) dtype: String,
    /// Seed of the initial weights.
    pub(crate) seed: u64,
    /// Whether the output projection is the embedding table.
    pub(crate) tied: bool,
}

impl Default for ModelSection {
    fn default() -> Self {
        Self { preset: None, dtype: "f32".into(), seed: 1, tied: false }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct EvaluateSection {
    /// Prompts that the pre-trained model continues for the report.
    pub(crate) prompts: Vec<String>,
    /// Questions that the fine-tuned model answers for the report; some of the held-out ones when empty.
    pub(crate) questions: Vec<String>,
    /// Longest sample, in tokens.
    pub(crate) max_tokens: usize,
}

impl Default for EvaluateSection {
    fn default() -> Self {
        Self {
            prompts: vec!["pub fn new(".into(), "# Installation\n".into(), "This crate".into()],
            questions: Vec::new(),
            max_tokens: 64,
        }
    }
}

impl Recipe {
    /// Checks every section, naming the key in full.
    pub(crate) fn validate(&self) -> Result<()> {
        self.curate.validate()?;
        self.data.validate()?;
        self.instruct.validate()?;
        self.pretrain.validate().context("section [pretrain]")?;
        self.sft.validate().context("section [sft]")?;
        self.dtype()?;
        if let Some(preset) = &self.model.preset {
            preset_named(preset)?;
        }
        let t = &self.tokenizer;
        if !(512 + 64..=1 << 20).contains(&t.vocab_size) {
            bail!(
                "`tokenizer.vocab_size` is {}, but must be 576 to 1048576 (256 bytes, 256 special tokens, merges)",
                t.vocab_size
            );
        }
        if t.sample_bytes == 0 {
            bail!("`tokenizer.sample_bytes` is 0, but must be at least 1");
        }
        if self.evaluate.max_tokens == 0 {
            bail!("`evaluate.max_tokens` is 0, but must be at least 1");
        }
        if self.run.threads == Some(0) {
            bail!("`run.threads` is 0, but must be at least 1");
        }
        self.run.checkpoint_interval()?;
        if self.sft.sequence > self.pretrain.sequence {
            bail!(
                "`sft.sequence` is {}, but must be at most `pretrain.sequence` ({}), the context of the model",
                self.sft.sequence,
                self.pretrain.sequence
            );
        }
        self.budget_seconds()?;
        Ok(())
    }

    /// The budget in seconds. An error when there is none and something is left open.
    pub(crate) fn budget_seconds(&self) -> Result<Option<f64>> {
        let open = [
            ("model.preset", self.model.preset.is_none()),
            ("pretrain.steps", self.pretrain.steps.is_none()),
            ("sft.steps", self.sft.steps.is_none()),
        ];
        let missing = open.into_iter().find(|(_, open)| *open);
        match (&self.budget, missing) {
            (Some(text), _) => Ok(Some(parse_duration(text)?)),
            (None, None) => Ok(None),
            (None, Some((key, _))) => {
                bail!("`{key}` is missing\nhint: set it, or set `budget = \"8m\"` and let the plan choose")
            }
        }
    }

    pub(crate) fn dtype(&self) -> Result<DType> {
        match self.model.dtype.as_str() {
            "f32" => Ok(DType::F32),
            "bf16" => Ok(DType::Bf16),
            other => bail!("`model.dtype` is `{other}`, but must be `f32` or `bf16`"),
        }
    }

    /// The model's sizes for a vocabulary, by the name of its preset.
    pub(crate) fn model_config(&self, preset: &str, vocab: usize) -> Result<Config> {
        let config =
            Config { vocab, context: self.pretrain.sequence, tied: self.model.tied, ..preset_named(preset)? };
        config.validate()?;
        Ok(config)
    }
}

fn preset_named(name: &str) -> Result<Config> {
    match Config::preset(name) {
        Some(config) => Ok(config),
        None => bail!(
            "`model.preset` is `{name}`, but must be one of {}",
            PRESETS.map(|p| format!("`{p}`")).join(", ")
        ),
    }
}

/// `90s`, `8m`, `1h30m` → seconds.
fn parse_duration(text: &str) -> Result<f64> {
    let wrong = || format!("`budget` is `{text}`, but must be a time such as `90s`, `8m` or `1h30m`");
    let (mut total, mut number) = (0.0, String::new());
    for c in text.trim().chars() {
        let unit = match c {
            '0'..='9' | '.' => {
                number.push(c);
                continue;
            }
            's' => 1.0,
            'm' => 60.0,
            'h' => 3600.0,
            _ => bail!(wrong()),
        };
        total += unit * number.parse::<f64>().with_context(wrong)?;
        number.clear();
    }
    if !number.is_empty() {
        // Seconds and minutes are too easily mistaken for each other.
        bail!("{}; `{text}` has no unit", wrong());
    }
    if !(1.0..=30.0 * 86_400.0).contains(&total) {
        bail!("`budget` is `{text}`, but must be 1 s to 30 days");
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use llamero_train::{Device, MeshQuestion, Zero, plan_mesh};

    use super::*;

    #[test]
    fn durations_are_read() {
        for (text, seconds) in [("90s", 90.0), ("8m", 480.0), ("1h30m", 5400.0), ("1.5m", 90.0)] {
            assert_eq!(parse_duration(text).unwrap(), seconds, "{text}");
        }
        for text in ["", "m", "8", "8x", "0", "-3m", "1e9h"] {
            let error = parse_duration(text).unwrap_err().to_string();
            assert!(error.contains("`budget`"), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_open_needs_a_budget() {
        let recipe = Recipe::default();
        assert!(recipe.validate().unwrap_err().to_string().contains("model.preset"));
        let recipe = Recipe { budget: Some("8m".into()), ..recipe };
        recipe.validate().unwrap();
        let mut wrong = recipe.clone();
        wrong.model.preset = Some("2b".into());
        assert!(wrong.validate().unwrap_err().to_string().contains("`8m`"));
        let mut wrong = recipe;
        wrong.pretrain.optimizer.beta2 = 1.0;
        assert!(format!("{:#}", wrong.validate().unwrap_err()).contains("optimizer.beta2"));
    }

    /// The released models: their recipes are valid, and a plan of them has the published numbers of parameters.
    #[test]
    fn recipes_of_released_models_are_planned() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes");
        for (name, params, mesh, peak_lr) in [
            ("8b", 8.03e9, "dp=64,tp=8", 3e-4),
            ("70b", 70.6e9, "dp=64,pp=4,tp=8", 1.5e-4),
            ("405b", 405.9e9, "dp=64,pp=16,tp=8", 8e-5),
        ] {
            let recipe: Recipe =
                llamero_artifact::recipe::load(folder.join(format!("llama3-{name}.toml")), &[]).unwrap();
            recipe.validate().unwrap();
            let preset = recipe.model.preset.as_deref().unwrap();
            let model = recipe.model_config(preset, recipe.tokenizer.vocab_size).unwrap();
            let plan = plan_mesh(&MeshQuestion {
                model: &model,
                config: &recipe.pretrain,
                dtype: recipe.dtype().unwrap(),
                mesh: mesh.parse().unwrap(),
                cp: 1,
                zero: Zero::One,
                device: Device::h100(),
                mfu: None,
            })
            .unwrap();
            assert!((plan.params as f64 / params - 1.0).abs() < 1e-3, "{name}: {}", plan.params);
            assert_eq!(
                (plan.tokens_per_step, recipe.pretrain.optimizer.peak_lr),
                (1 << 24, peak_lr),
                "{name}"
            );
            // 15T tokens, or the whole cosine of the 405B.
            let tokens = plan.tokens.unwrap() as f64;
            assert!(
                (15e12..15.1e12).contains(&tokens) || name == "405b" && tokens == 1.2e6 * f64::from(1 << 24)
            );
            assert!(plan.fits(), "{plan}");
        }
    }
}
