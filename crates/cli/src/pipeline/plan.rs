//! From a recipe with a budget to a settled recipe.
//!
//! The machine is measured for a few seconds; model and steps are chosen; the crates that `cargo-registry` stands for are
//! named. The plan is an artifact, so it is made once: the same recipe in the same folder keeps it, whatever the
//! machine does later.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use llamero_artifact::{Outcome, fsutil, recipe as files};
use llamero_model::Config;
use llamero_train::{Measurement, estimate_memory, measure, plan};
use serde::{Deserialize, Serialize};

use super::{RECIPE_FILE, Run, write_json};
use crate::recipe::{Recipe, RunSection};
use crate::report::format::{bytes, count, duration};

/// File of the plan in its artifact.
const PLAN_FILE: &str = "plan.json";

/// Sizes that a budget may choose from.
const SIZES: [&str; 5] = ["300k", "1m", "3m", "8m", "25m"];

/// The largest size is taken that still sees this many tokens per active parameter. Small models on small budgets do
/// best with far fewer than Chinchilla's 20; LOG.md has the measurements.
const TOKENS_PER_PARAM: f64 = 2.0;

/// Seconds of the stages that only handle text, on anything like a laptop.
const TEXT_SECONDS: f64 = 8.0;

/// Share of the budget left for what goes slower than measured.
const RESERVE: f64 = 0.04;

/// Share of the training time that goes to fine-tuning.
const SFT_SHARE: f64 = 0.10;

/// Tokens of a multiple-choice question's choice, about.
const CHOICE_TOKENS: usize = 60;

/// A settled recipe and what it is expected to cost.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PlanFile {
    pub(crate) recipe: Recipe,
    pub(crate) measured_on: String,
    pub(crate) measurements: Vec<Measurement>,
    pub(crate) expected: BTreeMap<String, f64>,
    pub(crate) expected_seconds: f64,
    pub(crate) expected_tensor_bytes: u64,
}

impl Run {
    /// Settles the recipe (from the plan where there is a budget), prints the plan, and writes the settled recipe into the
    /// run folder.
    pub(super) fn settle(&mut self) -> Result<PlanFile> {
        let plan = match self.recipe.budget_seconds()? {
            Some(budget) => self.planned(budget)?,
            None => self.estimated()?,
        };
        let run_section = self.recipe.run.clone();
        self.recipe = Recipe { run: run_section.clone(), ..plan.recipe.clone() };
        self.print(&plan);
        let settled = files::to_toml(&self.recipe)?;
        fsutil::write_atomic(&self.dir.path().join(RECIPE_FILE), settled.as_bytes())?;
        self.check_memory(&plan)?;
        Ok(plan)
    }

    fn planned(&mut self, budget: f64) -> Result<PlanFile> {
        let open = Recipe { run: RunSection::default(), ..self.recipe.clone() };
        let artifact = self.stage("plan", open, vec![], |run, draft| {
            let plan = run.make_plan(budget)?;
            write_json(&draft.path().join(PLAN_FILE), &plan)?;
            Ok(Outcome::default())
        })?;
        read_plan(&artifact.file(PLAN_FILE)?)
    }

    fn make_plan(&self, budget: f64) -> Result<PlanFile> {
        let mut recipe = Recipe { budget: None, run: RunSection::default(), ..self.recipe.clone() };
        if recipe.curate.sources.iter().any(|s| s == llamero_curate::REGISTRY)
            && recipe.curate.crates.is_none()
        {
            recipe.curate.crates = Some(llamero_curate::registry_crates()?);
        }
        let sizes: Vec<&str> = recipe.model.preset.as_deref().map_or(SIZES.to_vec(), |p| vec![p]);
        let (mut measurements, mut last) = (Vec::new(), None);
        for size in sizes {
            // A size that cannot see enough tokens makes all larger ones pointless, and they take longest to measure.
            let measured = self.measure(size)?;
            let tokens = budget / measured.seconds_per_token;
            let too_large = tokens < TOKENS_PER_PARAM * measured.active_params as f64;
            last = Some(measured.clone());
            measurements.push(measured);
            if too_large {
                break;
            }
        }
        let Some(_) = last else { bail!("no model size to choose from") };
        let evaluation = |m: &Measurement| evaluation_seconds(&recipe, m);
        let overhead = TEXT_SECONDS + measurements.iter().map(evaluation).fold(0.0, f64::max);
        let training = budget * (1.0 - RESERVE) - overhead;
        if training <= 0.0 {
            bail!(
                "`budget` leaves no time for training: text stages and evaluation take about {}\n\
                 hint: raise `budget`, or lower `instruct.max_questions` and `data.max_held_out_tokens`",
                duration(overhead)
            );
        }
        let pretrain = plan(
            &measurements,
            training * (1.0 - SFT_SHARE),
            recipe.pretrain.step_tokens(),
            TOKENS_PER_PARAM,
        )?;
        let chosen = pretrain.chosen.clone();
        let tune_step = chosen.step_seconds(recipe.sft.step_tokens());
        recipe.model.preset = Some(chosen.preset.clone());
        recipe.pretrain.steps.get_or_insert(pretrain.steps);
        recipe.sft.steps.get_or_insert(((training * SFT_SHARE / tune_step) as u64).max(1));
        self.file(recipe, chosen, measurements)
    }

    fn estimated(&self) -> Result<PlanFile> {
        let recipe = self.recipe.clone();
        let preset = recipe.model.preset.clone().context("`model.preset` is missing")?;
        let chosen = self.measure(&preset)?;
        self.file(recipe, chosen.clone(), vec![chosen])
    }

    fn measure(&self, size: &str) -> Result<Measurement> {
        let config = self.planned_model(&self.recipe, size)?;
        let mut measured = measure(&*self.backend, &[(size, config)], &self.recipe.pretrain)?;
        measured.pop().context("nothing was measured")
    }

    /// The model's sizes if the tokenizer reaches the vocabulary that is asked for.
    fn planned_model(&self, recipe: &Recipe, preset: &str) -> Result<Config> {
        recipe.model_config(preset, recipe.tokenizer.vocab_size)
    }

    fn file(&self, recipe: Recipe, chosen: Measurement, measurements: Vec<Measurement>) -> Result<PlanFile> {
        let seconds =
            |t: &llamero_train::TrainConfig| t.num_steps() as f64 * chosen.step_seconds(t.step_tokens());
        let expected: BTreeMap<String, f64> = [
            ("text".to_string(), TEXT_SECONDS),
            ("pretrain".to_string(), seconds(&recipe.pretrain)),
            ("sft".to_string(), seconds(&recipe.sft)),
            ("evaluate".to_string(), evaluation_seconds(&recipe, &chosen)),
        ]
        .into();
        let model = self.planned_model(&recipe, &chosen.preset)?;
        let tokens = recipe.pretrain.micro_batch * recipe.pretrain.sequence;
        Ok(PlanFile {
            expected_tensor_bytes: estimate_memory(&model, &recipe.pretrain, tokens, recipe.dtype()?),
            expected_seconds: expected.values().sum(),
            expected,
            measured_on: self.backend.name(),
            measurements,
            recipe,
        })
    }

    fn print(&self, plan: &PlanFile) {
        let r = &plan.recipe;
        let preset = r.model.preset.as_deref().unwrap_or_default();
        eprintln!("      plan on {}", self.backend.name());
        if let Ok(model) = self.planned_model(r, preset) {
            let (d, l, h, g) = (model.dim, model.layers, model.heads, model.kv_heads);
            let parameters = count(model.num_params());
            eprintln!(
                "           model `{preset}`: {parameters} parameters (width {d}, {l} layers, {h} heads, {g} key/value heads, vocabulary {})",
                model.vocab
            );
        }
        for (name, t) in [("pretrain", &r.pretrain), ("sft", &r.sft)] {
            let (steps, tokens) = (t.num_steps(), t.num_steps() * t.step_tokens() as u64);
            let time = duration(plan.expected[name]);
            eprintln!("           {name}: {steps} steps, {} tokens, about {time}", count(tokens));
        }
        let (time, memory) = (duration(plan.expected_seconds), bytes(plan.expected_tensor_bytes));
        eprintln!("           in all about {time}; tensors of about {memory} at the peak");
    }

    fn check_memory(&self, plan: &PlanFile) -> Result<()> {
        match crate::machine::available_memory() {
            Some(available) if available < plan.expected_tensor_bytes => bail!(
                "training needs about {}, but only {} of memory are free\n\
                 hint: lower `pretrain.micro_batch` or `pretrain.sequence`, set `pretrain.recompute = true`, or take a smaller `model.preset`",
                bytes(plan.expected_tensor_bytes),
                bytes(available)
            ),
            _ => Ok(()),
        }
    }
}

/// Scoring is about a third of training; both models read the held-out text and every choice.
fn evaluation_seconds(recipe: &Recipe, chosen: &Measurement) -> f64 {
    let choices = recipe.instruct.max_questions.min(200) * recipe.instruct.choices * CHOICE_TOKENS;
    let tokens = 2 * (recipe.data.max_held_out_tokens as usize + choices);
    tokens as f64 * chosen.seconds_per_token / 3.0
}

/// Reads the plan of a run.
pub(super) fn read_plan(path: &Path) -> Result<PlanFile> {
    let text = std::fs::read(path).with_context(|| format!("`{}`", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("`{}`", path.display()))
}
