//! From a recipe with a budget to a settled recipe.
//!
//! The machine is measured for a few seconds; model and steps are chosen; the crates that `cargo-registry` stands for are
//! named. The plan is an artifact, so it is made once: the same recipe in the same folder keeps it, whatever the
//! machine does later.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, bail};
use llamero_artifact::Outcome;
use llamero_curate::CurateConfig;
use llamero_infer::resolve_model;
use llamero_model::Config;
use llamero_train::{Measurement, MemoryEstimate, estimate_memory, measure, plan};
use serde::{Deserialize, Serialize};

use super::{Run, write_json};
use crate::recipe::{Recipe, RunSection};
use crate::report::format::{bytes, count, duration};

/// File of the plan in its artifact.
const PLAN_FILE: &str = "plan.json";

/// Sizes that a budget may choose from.
const SIZES: [&str; 5] = ["300k", "1m", "3m", "8m", "25m"];

/// The largest size is taken that still sees this many tokens per active parameter: far fewer than Chinchilla's 20.
/// An estimate from short runs (LOG.md); where a larger size begins to win has not been measured.
const TOKENS_PER_PARAM: f64 = 2.0;

/// Seconds of the stages that only handle text, on anything like a laptop.
const TEXT_SECONDS: f64 = 4.0;

/// Seconds that the plan itself takes, about.
const MEASURING_SECONDS: f64 = 4.0;

/// Share of the budget left for what goes slower than measured.
const RESERVE: f64 = 0.08;

/// Share of the training time that goes to fine-tuning.
const SFT_SHARE: f64 = 0.05;

/// Tokens read for one choice of a question, about; the prompt is read once for all of them.
const CHOICE_TOKENS: f64 = 30.0;

/// A settled recipe and what it is expected to cost.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PlanFile {
    pub(crate) recipe: Recipe,
    pub(crate) measured_on: String,
    pub(crate) measurements: Vec<Measurement>,
    pub(crate) expected: BTreeMap<String, f64>,
    pub(crate) expected_seconds: f64,
    pub(crate) expected_memory: MemoryEstimate,
}

impl Run {
    /// Settles the recipe, from the plan where something is open, and prints what it will cost.
    pub(super) fn settle(&mut self) -> Result<PlanFile> {
        self.absolute_sources()?;
        let curate = &self.recipe.curate;
        let open_crates =
            curate.crates.is_none() && curate.sources.iter().any(|s| s == llamero_curate::REGISTRY);
        let budget = self.recipe.budget_seconds()?;
        let plan = if budget.is_some() || open_crates { self.planned(budget)? } else { self.estimated()? };
        self.recipe = Recipe { run: self.recipe.run.clone(), ..plan.recipe.clone() };
        self.print(&plan);
        if let Some(budget) = budget.filter(|b| plan.expected_seconds > 1.15 * b) {
            let (time, budget) = (duration(plan.expected_seconds), duration(budget));
            self.remarks.push(format!(
                "plan: the recipe's own steps take about {time}, more than the budget of {budget}"
            ));
        }
        Ok(plan)
    }

    /// The settled recipe must mean the same files from any working directory.
    pub(super) fn absolute_sources(&mut self) -> Result<()> {
        let curate = &mut self.recipe.curate;
        let here = std::env::current_dir().context("the working directory")?;
        for source in &mut curate.sources {
            let is_path = source != llamero_curate::REGISTRY && !source.contains("://");
            if is_path && Path::new(source).is_relative() {
                *source = here.join(&source).to_string_lossy().into_owned();
            }
        }
        for (key, path) in curate.side_files() {
            *path = here.join(&*path);
            if CurateConfig::is_language_model(&key) {
                // A run's folder stands for its latest model.
                *path = resolve_model(path).with_context(|| format!("`curate.{key}`"))?;
            }
        }
        Ok(())
    }

    fn planned(&mut self, budget: Option<f64>) -> Result<PlanFile> {
        let open = Recipe { run: RunSection::default(), ..self.recipe.clone() };
        let artifact = self.stage("plan", open, vec![], |run, draft| {
            let mut recipe = Recipe { budget: None, run: RunSection::default(), ..run.recipe.clone() };
            settle_crates(&mut recipe.curate)?;
            // A source that is not there should not wait for the measurement to be noticed.
            llamero_curate::inventory(&recipe.curate, &())?;
            let plan = match budget {
                Some(budget) => run.make_plan(recipe, budget)?,
                None => run.estimate(recipe)?,
            };
            write_json(&draft.path().join(PLAN_FILE), &plan)?;
            Ok(Outcome::default())
        })?;
        read_plan(&artifact.file(PLAN_FILE)?)
    }

    /// Chooses what the recipe leaves open so that the whole run takes `budget` seconds.
    fn make_plan(&self, mut recipe: Recipe, budget: f64) -> Result<PlanFile> {
        let sizes: Vec<&str> = recipe.model.preset.as_deref().map_or(SIZES.to_vec(), |p| vec![p]);
        let mut measurements = Vec::new();
        for size in sizes {
            // A size that cannot see enough tokens makes all larger ones pointless, and they take longest to measure.
            let measured = match self.measure(&recipe, size) {
                Ok(measured) => measured,
                Err(_) if !measurements.is_empty() => break,
                Err(error) => return Err(error),
            };
            let tokens = budget / measured.seconds_per_token;
            let too_large = tokens < TOKENS_PER_PARAM * measured.active_params as f64;
            measurements.push(measured);
            if too_large {
                break;
            }
        }
        let training = |m: &Measurement| {
            budget * (1.0 - RESERVE) - MEASURING_SECONDS - TEXT_SECONDS - evaluation_seconds(&recipe, m)
        };
        let pretrain_seconds = |m: &Measurement| training(m) * (1.0 - SFT_SHARE);
        let pretrain =
            plan(&measurements, pretrain_seconds, recipe.pretrain.step_tokens(), TOKENS_PER_PARAM)?;
        let chosen = pretrain.chosen.clone();
        let tune_steps = training(&chosen) * SFT_SHARE / chosen.step_seconds(recipe.sft.step_tokens());
        recipe.model.preset = Some(chosen.preset.clone());
        for (config, steps) in
            [(&mut recipe.pretrain, pretrain.steps), (&mut recipe.sft, (tune_steps as u64).max(1))]
        {
            if config.is_open() {
                config.steps = Some(steps);
            }
        }
        self.file(recipe, chosen, measurements)
    }

    /// The cost of a recipe whose sizes are all given.
    fn estimate(&self, recipe: Recipe) -> Result<PlanFile> {
        let preset = recipe.model.preset.clone().context("`model.preset` is missing")?;
        let chosen = self.measure(&recipe, &preset)?;
        self.file(recipe, chosen.clone(), vec![chosen])
    }

    fn estimated(&self) -> Result<PlanFile> {
        self.estimate(self.recipe.clone())
    }

    /// Trains a size for a moment, unless it would not fit into memory.
    fn measure(&self, recipe: &Recipe, size: &str) -> Result<Measurement> {
        let config = planned_model(recipe, size)?;
        let needed = self.memory(recipe, &config)?.total();
        if let Some(available) = crate::machine::available_memory().filter(|a| *a < needed) {
            bail!(
                "training `{size}` needs about {}, but only {} of memory are free\n\
                 hint: lower `pretrain.micro_batch` or `pretrain.sequence`, set `pretrain.recompute = \"blocks\"`, or take a \
                 smaller `model.preset`",
                bytes(needed),
                bytes(available)
            );
        }
        Ok(measure(&*self.backend, (size, &config), &recipe.pretrain, recipe.dtype()?)?)
    }

    fn file(&self, recipe: Recipe, chosen: Measurement, measurements: Vec<Measurement>) -> Result<PlanFile> {
        let seconds = |t: &llamero_train::TrainConfig| {
            let steps = t.num_steps();
            t.tokens_before(steps) as f64 * chosen.seconds_per_token
                + steps as f64 * chosen.seconds_per_update
        };
        let expected: BTreeMap<String, f64> = [
            ("text".to_string(), TEXT_SECONDS),
            ("pretrain".to_string(), seconds(&recipe.pretrain)),
            ("sft".to_string(), seconds(&recipe.sft)),
            ("evaluate".to_string(), evaluation_seconds(&recipe, &chosen)),
        ]
        .into();
        let model = planned_model(&recipe, &chosen.preset)?;
        Ok(PlanFile {
            expected_memory: self.memory(&recipe, &model)?,
            expected_seconds: expected.values().sum(),
            expected,
            measured_on: self.backend.name(),
            measurements,
            recipe,
        })
    }

    /// What the training stage that takes more is expected to take.
    fn memory(&self, recipe: &Recipe, model: &Config) -> Result<MemoryEstimate> {
        let dtype = recipe.dtype()?;
        let [a, b] = [&recipe.pretrain, &recipe.sft].map(|t| estimate_memory(model, t, dtype, self.kernels));
        let more = if a.total() >= b.total() { a } else { b };
        let background = recipe.run.checkpoint_background != Some(false);
        Ok(if background { more.with_checkpoint_copy() } else { more })
    }

    fn print(&self, plan: &PlanFile) {
        let r = &plan.recipe;
        let preset = r.model.preset.as_deref().unwrap_or_default();
        say!("      plan on {}", self.backend.name());
        if let Ok(model) = planned_model(r, preset) {
            let (d, l, h, g) = (model.dim, model.layers, model.heads, model.kv_heads);
            let (parameters, active) = (count(model.num_params()), count(model.num_active_params()));
            say!(
                "           model `{preset}`: {parameters} parameters, {active} of them active for every token (width {d}, {l} layers, {h} heads, {g} key/value heads, vocabulary {})",
                model.vocab
            );
        }
        for (name, t) in [("pretrain", &r.pretrain), ("sft", &r.sft)] {
            let (steps, tokens) = (t.num_steps(), t.tokens_before(t.num_steps()));
            let time = duration(plan.expected[name]);
            say!("           {name}: {steps} steps, {} tokens, about {time}", count(tokens));
        }
        let (time, memory) = (duration(plan.expected_seconds), plan.expected_memory);
        say!(
            "           in all about {time}; memory of about {} at the peak of training",
            bytes(memory.total())
        );
        say!("           ({memory})");
    }
}

/// Names the crates that `cargo-registry` stands for, where the recipe does not.
pub(super) fn settle_crates(curate: &mut CurateConfig) -> Result<()> {
    if curate.crates.is_none() && curate.sources.iter().any(|source| source == llamero_curate::REGISTRY) {
        curate.crates = Some(own_crates(llamero_curate::registry_crates()?));
    }
    Ok(())
}

/// Those of `crates` that llamero was built from; all of them where (almost) none of those are there.
///
/// The registry of somebody who works with Rust holds much else, and would make every machine's quickstart another one.
fn own_crates(crates: Vec<String>) -> Vec<String> {
    const LOCK: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.lock"));
    let value = |line: &'static str, key: &str| line.strip_prefix(key)?.strip_suffix('"');
    let mut own = BTreeSet::new();
    let mut name = "";
    for line in LOCK.lines() {
        if let Some(found) = value(line, "name = \"") {
            name = found;
        } else if let Some(version) = value(line, "version = \"") {
            own.insert(format!("{name}-{version}"));
        }
    }
    let kept: Vec<String> = crates.iter().filter(|c| own.contains(*c)).cloned().collect();
    if kept.len() < MIN_OWN_CRATES { crates } else { kept }
}

/// With fewer of llamero's own crates in the registry, everything there is used.
const MIN_OWN_CRATES: usize = 40;

/// The model's sizes if the tokenizer reaches the vocabulary that is asked for.
fn planned_model(recipe: &Recipe, preset: &str) -> Result<Config> {
    recipe.model_config(preset, recipe.tokenizer.vocab_size)
}

/// Scoring is about a third of training; both models read the held-out text and every choice.
fn evaluation_seconds(recipe: &Recipe, chosen: &Measurement) -> f64 {
    let choices = recipe.instruct.max_questions as f64 * recipe.instruct.choices as f64 * CHOICE_TOKENS;
    2.0 * (recipe.data.max_held_out_tokens as f64 + choices) * chosen.seconds_per_token / 3.0
}

/// Reads the plan of a run.
pub(super) fn read_plan(path: &Path) -> Result<PlanFile> {
    let text = std::fs::read(path).with_context(|| format!("`{}`", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("`{}`", path.display()))
}
