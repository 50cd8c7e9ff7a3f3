//! The recipe: one TOML file that says everything a run depends on.
//!
//! Every section is the settings type of the crate that does the work; keys it does not know are refused. Only `[run]`
//! may change without changing the result. A recipe with a `budget` leaves sizes open; the plan settles them, and the
//! settled recipe, which has no budget, is written into the run folder.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::ValueEnum;
use llamero_align::InstructConfig;
use llamero_comm::WorldOptions;
use llamero_curate::CurateConfig;
use llamero_data::DataConfig;
use llamero_model::{Config, PRESETS};
use llamero_tensor::DType;
use llamero_train::{Checkpoints, Guard, Mesh, PipelineConfig, Sharding, TrainConfig};
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
    /// Threads; all cores when absent. Ranks that are threads divide them; each that is a process has so many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) threads: Option<usize>,
    /// Time between two checkpoints of a training stage, e.g. `30s`, so what a kill loses at most; or `auto`, which it is when
    /// absent: chosen from what a checkpoint costs and how often jobs of this run failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) checkpoint_every: Option<String>,
    /// The same in seconds, as older recipes have it; 0 is after every step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) checkpoint_seconds: Option<f64>,
    /// Mean time between failures that the machines are known for, e.g. `3h` (when absent), for the time between checkpoints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) expected_mtbf: Option<String>,
    /// Checkpoints of a training stage that are kept; 2 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) keep_checkpoints: Option<usize>,
    /// Whether training goes on while a checkpoint is written, which takes memory for a copy of it; it does when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) checkpoint_background: Option<bool>,
    /// A second place for checkpoints, e.g. `s3://bucket/prefix` or `file:///mnt/x`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) remote_checkpoints: Option<String>,
    /// Whether training begins again when there are checkpoints, but none that can be used; an error when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) start_over: Option<bool>,
    /// Ranks that share the training stages, e.g. `dp=2,pp=2`; one when absent. Sums are made in another order on some
    /// meshes, so the last bits of weights may differ between meshes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) mesh: Option<String>,
    /// Chunks of the model on each pipeline stage; more than one is the interleaved schedule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) chunks: Option<usize>,
    /// What data-parallel ranks divide among each other: `optimizer` (when absent), `gradients` too, or `parameters` too. Sums
    /// over several micro-batches are made in another order with the latter two.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) shard: Option<String>,
    /// Micro-batches that follow each other in a chunk; as many as there are stages when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) chunk_run: Option<usize>,
    /// What is watched for silent corruption while training; everything on a mesh, nothing on one rank, when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) guard: Option<GuardSection>,
    /// Longest wait of a rank for another, e.g. `10m`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) timeout: Option<String>,
    /// What the ranks of the mesh are.
    #[serde(skip_serializing_if = "Transport::is_threads")]
    pub(crate) transport: Transport,
}

/// What ranks are, and so how messages go between them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Transport {
    /// Threads of one process
    #[default]
    Threads,
    /// Processes that `mpirun` or `srun` has started, on one machine or many
    Mpi,
}

impl Transport {
    fn is_threads(&self) -> bool {
        *self == Self::Threads
    }
}

/// What is watched for silent corruption; what is absent is as usual.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct GuardSection {
    /// See [`Guard::state`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) state: Option<bool>,
    /// See [`Guard::messages`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) messages: Option<bool>,
    /// See [`Guard::products`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) products: Option<u64>,
    /// See [`Guard::replicas`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) replicas: Option<u64>,
    /// See [`Guard::repeat`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) repeat: Option<u64>,
}

/// Steps between two of the rare checks of the guard, where the recipe does not say.
const RARE: u64 = 100;

impl Default for RunSection {
    fn default() -> Self {
        Self {
            dir: "runs/default".into(),
            threads: None,
            checkpoint_every: None,
            checkpoint_seconds: None,
            expected_mtbf: None,
            keep_checkpoints: None,
            checkpoint_background: None,
            remote_checkpoints: None,
            start_over: None,
            mesh: None,
            chunks: None,
            chunk_run: None,
            guard: None,
            timeout: None,
            shard: None,
            transport: Transport::Threads,
        }
    }
}

impl RunSection {
    /// The ranks of the training stages.
    pub(crate) fn mesh(&self) -> Result<Mesh> {
        let parsed = self.mesh.as_deref().map(str::parse).transpose();
        parsed.map(Option::unwrap_or_default).map_err(|e| anyhow!("`run.mesh`: {e}"))
    }

    /// How the stages of a pipeline share the work.
    pub(crate) fn pipeline(&self) -> Result<PipelineConfig> {
        match self.chunks {
            Some(0) => bail!("`run.chunks` is 0, but must be at least 1"),
            Some(chunks) if chunks > 1 && self.mesh()?.pp == 1 => {
                bail!(
                    "`run.chunks` is {chunks}, but must be 1 or absent: `run.mesh` has one pipeline stage\nhint: add e.g. `pp=2`"
                )
            }
            chunks => {
                let (chunks, stages) = (chunks.unwrap_or(1), self.mesh()?.pp);
                match self.chunk_run {
                    Some(run) if chunks == 1 => {
                        bail!(
                            "`run.chunk_run` is {run}, but must be absent without `run.chunks`: there is one chunk"
                        )
                    }
                    Some(run) if run < stages => {
                        bail!(
                            "`run.chunk_run` is {run}, but must be at least {stages}, the pipeline stages of `run.mesh`"
                        )
                    }
                    run => Ok(PipelineConfig { chunks, run }),
                }
            }
        }
    }

    /// What is watched for silent corruption.
    pub(crate) fn guard(&self) -> Result<Guard> {
        let alone = self.mesh()?.size() == 1;
        let usual = if alone { Guard::default() } else { Guard::every(RARE) };
        let given = self.guard.unwrap_or_default();
        let products = given.products.unwrap_or(usual.products);
        if alone && products > 0 {
            bail!(
                "`run.guard.products` is {products}, but must be 0 or absent without `run.mesh`: ranks check products"
            );
        }
        Ok(Guard {
            state: given.state.unwrap_or(usual.state),
            messages: given.messages.unwrap_or(usual.messages),
            products,
            replicas: given.replicas.unwrap_or(usual.replicas),
            repeat: given.repeat.unwrap_or(usual.repeat),
        })
    }

    /// How ranks talk to each other.
    pub(crate) fn world(&self) -> Result<WorldOptions> {
        let mut options = WorldOptions {
            hash: self.guard()?.messages || cfg!(debug_assertions),
            ..WorldOptions::default()
        };
        if let Some(text) = &self.timeout {
            options.timeout = Duration::from_secs_f64(parse_duration("run.timeout", text)?);
        }
        Ok(options)
    }

    /// What data-parallel ranks divide among each other.
    pub(crate) fn sharding(&self) -> Result<Sharding> {
        let parsed = self.shard.as_deref().map(str::parse).transpose();
        parsed.map(Option::unwrap_or_default).map_err(|e| anyhow!("`run.shard` is {e}"))
    }

    /// Time between two checkpoints, where it is given.
    fn checkpoint_interval(&self) -> Result<Option<Duration>> {
        let every = match self.checkpoint_every.as_deref() {
            None | Some("auto") => None,
            Some(every) => Some(parse_duration("run.checkpoint_every", every)?),
        };
        if self.checkpoint_every.is_some() && self.checkpoint_seconds.is_some() {
            bail!("`run.checkpoint_every` and `run.checkpoint_seconds` are the same: give one");
        }
        let Some(seconds) = every.or(self.checkpoint_seconds) else { return Ok(None) };
        match Duration::try_from_secs_f64(seconds) {
            Ok(interval) => Ok(Some(interval)),
            Err(_) => bail!("`run.checkpoint_seconds` is {seconds}, but must be at least 0"),
        }
    }

    /// Checkpoints below `dir`, which are `what` in the second place.
    pub(crate) fn checkpoints(&self, dir: PathBuf, what: &str) -> Result<Checkpoints> {
        let mut checkpoints = Checkpoints::new(dir)
            .background(self.checkpoint_background.unwrap_or(true))
            .start_over(self.start_over.unwrap_or(false));
        if let Some(interval) = self.checkpoint_interval()? {
            checkpoints = checkpoints.every(interval);
        }
        if let Some(every) = &self.expected_mtbf {
            let seconds = parse_duration("run.expected_mtbf", every)?;
            checkpoints = checkpoints.expect_failures(Duration::from_secs_f64(seconds));
        }
        match self.keep_checkpoints {
            Some(0) => bail!("`run.keep_checkpoints` is 0, but must be at least 1"),
            Some(number) => checkpoints = checkpoints.keep(number),
            None => {}
        }
        if let Some(url) = &self.remote_checkpoints {
            let place = format!("{}/{what}", url.trim_end_matches('/'));
            checkpoints = checkpoints.remote(&place).context("`run.remote_checkpoints`")?;
        }
        Ok(checkpoints)
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
        self.run.checkpoints(PathBuf::new(), "")?;
        self.run.mesh()?;
        self.run.pipeline()?;
        self.run.sharding()?;
        self.run.guard()?;
        self.run.world()?;
        let context = self.pretrain.longest_sequence();
        if self.sft.sequence > context {
            bail!(
                "`sft.sequence` is {}, but must be at most `pretrain.sequence` ({context}), the context of the model",
                self.sft.sequence,
            );
        }
        if !self.sft.mix.is_empty() || self.sft.ramp.iter().any(|stage| stage.sequence.is_some()) {
            bail!(
                "`sft.mix` and `sft.ramp.sequence` must be absent: dialogs have no domain and are not divided"
            );
        }
        for (section, config) in [("pretrain", &self.pretrain), ("sft", &self.sft)] {
            if config.is_open() && !config.ramp.is_empty() {
                bail!(
                    "`{section}.ramp` is given, but not how long the run is: a budget fits updates of one size\n\
                     hint: set `{section}.steps` or `{section}.tokens`"
                );
            }
        }
        self.budget_seconds()?;
        Ok(())
    }

    /// The budget in seconds. An error when there is none and something is left open.
    pub(crate) fn budget_seconds(&self) -> Result<Option<f64>> {
        let open = [
            ("model.preset", self.model.preset.is_none()),
            ("pretrain.steps", self.pretrain.is_open()),
            ("sft.steps", self.sft.is_open()),
        ];
        let missing = open.into_iter().find(|(_, open)| *open);
        match (&self.budget, missing) {
            (Some(text), _) => match parse_duration("budget", text)? {
                seconds if seconds < 1.0 => bail!("`budget` is `{text}`, but must be at least 1 s"),
                seconds => Ok(Some(seconds)),
            },
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
        let config = Config {
            vocab,
            context: self.pretrain.longest_sequence(),
            tied: self.model.tied,
            ..preset_named(preset)?
        };
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
pub(crate) fn parse_duration(key: &str, text: &str) -> Result<f64> {
    let wrong = || format!("`{key}` is `{text}`, but must be a time such as `90s`, `8m` or `1h30m`");
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
    if !(0.01..=30.0 * 86_400.0).contains(&total) {
        bail!("`{key}` is `{text}`, but must be 0.01 s to 30 days");
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use llamero_train::{Device, MeshQuestion, plan_mesh};

    use super::*;

    #[test]
    fn durations_are_read() {
        for (text, seconds) in [("90s", 90.0), ("8m", 480.0), ("1h30m", 5400.0), ("1.5m", 90.0)] {
            assert_eq!(parse_duration("budget", text).unwrap(), seconds, "{text}");
        }
        for text in ["", "m", "8", "8x", "0", "-3m", "1e9h"] {
            let error = parse_duration("budget", text).unwrap_err().to_string();
            assert!(error.contains("`budget`"), "{text}: {error}");
        }
    }

    #[test]
    fn the_recipe_of_the_405b_run_is_what_the_paper_says() {
        let text = include_str!("../../../docs/fidelity.md");
        let recipe = text.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
        let recipe: Recipe = llamero_artifact::recipe::load_str(recipe, "docs/fidelity.md", &[]).unwrap();
        let recipe = Recipe { budget: Some("8m".into()), ..recipe };
        recipe.validate().unwrap();
        let run = &recipe.pretrain;
        let million = |step| run.at(step).batch * run.at(step).sequence / 1_000_000;
        assert_eq!([0, 60, 61, 300_000, 400_000].map(million), [4, 4, 8, 8, 16]);
        let steps = run.num_steps();
        assert_eq!(run.tokens_before(61) / 1_000_000, 255);
        // Three updates of annealing, from where the cosine is.
        let rates = [4, 3, 2, 1].map(|left| run.at(steps - left).lr / 8e-5);
        assert!(rates[0] > rates[1] && rates[0] / rates[1] < 1.001, "{rates:?}");
        assert!((rates[3] * 3.0 / rates[1] - 1.0).abs() < 1e-12, "{rates:?}");
        // What is written is read again.
        let written = llamero_artifact::recipe::to_toml(&recipe).unwrap();
        let again: Recipe = llamero_artifact::recipe::load_str(&written, "written", &[]).unwrap();
        assert_eq!(again, recipe);
    }

    #[test]
    fn what_has_no_length_or_no_parts_is_refused() {
        let refused = |text: &str, why: &str| {
            let text = format!("budget = \"8m\"\n{text}");
            let recipe: Recipe = llamero_artifact::recipe::load_str(&text, "test", &[]).unwrap();
            let error = format!("{:#}", recipe.validate().unwrap_err());
            assert!(error.contains(why), "{error}");
        };
        refused("[[pretrain.ramp]]\nat_tokens = 9\nbatch = 8", "pretrain.tokens");
        refused("[sft]\nsteps = 9\nmix = [{ weights = { code = 1.0 } }]", "sft.mix");
        refused("[sft]\nsteps = 9\nramp = [{ at_tokens = 9, sequence = 256 }]", "sft.ramp.sequence");
        refused("[pretrain]\nsteps = 9\ntokens = 9", "`tokens` is 9");
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
            // One update more, at most, than the paper and the model card say.
            let tokens =
                plan.tokens.unwrap() - if name == "405b" { 15_600_000_000_000 } else { 15_000_000_000_000 };
            assert!(tokens < 1 << 24, "{name}: {tokens}");
            // The beginning of the 405B has smaller updates.
            assert_eq!(plan.batches.len(), if name == "405b" { 3 } else { 1 });
            assert!(plan.fits(), "{plan}");
        }
    }
}
