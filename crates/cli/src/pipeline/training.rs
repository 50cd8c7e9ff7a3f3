//! The two training stages.

use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, bail};
use llamero_align::SftSource;
use llamero_artifact::{Artifact, Draft, Outcome, WORK_STATE, recipe as files};
use llamero_data::{Loader, TokenStore};
use llamero_model::{Llama, ParamSpec, Weights, hf, initial_values};
use llamero_tokenizer::Tokenizer;
use llamero_train::{Event, Failures, Ledger, StepRecord, TrainConfig, TrainReport, Trainer};
use serde::{Deserialize, Serialize};

use super::follow::Lesson;
use super::job::{How, Job, Notes, Trained};
use super::{Run, write_json};
use crate::recipe::Recipe;

/// File with every step of a training stage; holds no times, so it is the same in every run.
const HISTORY_FILE: &str = "history.json";

/// What a training stage notes beside its weights.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct TrainMetrics {
    pub(super) parameters: u64,
    pub(super) tokens: u64,
    pub(super) first_loss: f64,
    pub(super) last_loss: f64,
    pub(super) tokens_per_second: f64,
    pub(super) peak_tensor_bytes: u64,
    pub(super) seconds_per_step: Vec<f64>,
    pub(super) remarks: Vec<String>,
}

impl Run {
    /// Tokens → base model.
    pub(super) fn pretrain(&mut self, tokenizer: &Artifact, tokens: &Artifact) -> Result<Artifact> {
        let section = self.recipe.model.clone();
        let config = self.recipe.pretrain.clone();
        let inputs = vec![tokenizer.as_input("tokenizer"), tokens.as_input("tokens")];
        // The sizes are part of the id, so a preset that changes its meaning makes another artifact.
        let preset = section.preset.clone().context("the plan settles `model.preset`")?;
        let sizes = self.recipe.model_config(&preset, self.recipe.tokenizer.vocab_size)?;
        self.stage("pretrain", (&section, &sizes, &config), inputs, |run, draft| {
            let coder = Tokenizer::load(tokenizer.path())?;
            if TokenStore::open(tokens.path(), "train")?.tokenizer() != coder.fingerprint() {
                bail!("the tokens in `{}` were made by another tokenizer", tokens.path().display());
            }
            let lesson = Lesson {
                recipe: files::to_toml(&run.recipe)?,
                tokens: tokens.path().into(),
                checkpoints: (draft.path().join(WORK_STATE), format!("pretrain-{}", draft.id())),
                flight: run.dir.path().join("pretrain.flight"),
                orders: run.orders.clone(),
                ledger: run.dir.path().join(super::ledger_file("pretrain")),
            };
            let recipe = run.recipe.clone();
            pretraining(&recipe, tokens.path(), |job, loader| {
                let mix = mix_remark(&job.config, loader)?;
                let outcome = run.train_stage("pretrain", (draft, Some(lesson)), tokenizer, job)?;
                run.remarks.extend(mix);
                Ok(outcome)
            })
        })
    }

    /// Dialogs → fine-tuned model.
    pub(super) fn sft(
        &mut self,
        tokenizer: &Artifact,
        instruct: &Artifact,
        base: &Artifact,
    ) -> Result<Artifact> {
        let config = self.recipe.sft.clone();
        let inputs =
            vec![tokenizer.as_input("tokenizer"), instruct.as_input("dialogs"), base.as_input("base")];
        self.stage("sft", &config, inputs, |run, draft| {
            let coder = Tokenizer::load(tokenizer.path())?;
            let dialogs = llamero_align::read_dialogs(&instruct.file(llamero_align::DIALOGS_FILE)?)?;
            let source = SftSource::new(&dialogs, &coder, config.sequence, config.seed)?;
            if source.num_left_out() > 0 {
                let text = format!(
                    "sft: {} dialogs do not fit in {} tokens",
                    source.num_left_out(),
                    config.sequence
                );
                run.remarks.push(text);
            }
            let folder = hf::ModelFolder::open(base.path())?;
            let values = |spec: &ParamSpec, rows: Range<usize>| Ok(folder.values(spec, rows)?);
            let (config, dtype) = (config.clone(), run.recipe.dtype()?);
            let job = Job { sizes: folder.config(), config, dtype, values: &values, source: &source };
            run.train_stage("sft", (draft, None), tokenizer, job)
        })
    }

    /// `lesson` is for ranks that are processes.
    fn train_stage(
        &mut self,
        name: &'static str,
        (draft, lesson): (&Draft, Option<Lesson>),
        tokenizer: &Artifact,
        mut job: Job<'_>,
    ) -> Result<Outcome> {
        let how = How::new(&self.recipe.run, self.orders.as_ref())?;
        let seed = Some(job.config.seed);
        job.config.pipeline = self.recipe.run.pipeline()?;
        job.config.sharding = self.recipe.run.sharding()?;
        let ledger = Ledger::new(self.dir.path().join(super::ledger_file(name)));
        let before = Failures::of(&ledger.read().unwrap_or_default());
        let (folder, what) = (draft.path().join(WORK_STATE), format!("{name}-{}", draft.id()));
        let checkpoints = self.recipe.run.checkpoints(folder, &what)?.failures(before);
        let checkpoints = checkpoints.until(self.termination.hold());
        let flight = self.dir.path().join(format!("{name}.flight"));
        let notes = Notes { name, draft, ledger: &ledger, flight };
        self.backend.reset_peak();
        let processes = self.processes.as_deref().zip(lesson);
        let trained = job.run((&how, processes), &*self.backend, &checkpoints, &notes);
        self.termination.release();
        let Trained { trainer, report, peak_bytes } = trained?;
        let mut metrics = metrics(&trainer, &report, peak_bytes);
        metrics.remarks.extend(report.resumed_at.map(|step| format!("resumed at step {step}")));
        save_model(draft.path(), trainer.model(), tokenizer, &*self.backend)?;
        write_json(&draft.path().join(HISTORY_FILE), &report.history)?;
        ledger.note(Event::Done { step: report.history.len() as u64 }).context("the ledger")?;
        let wall_seconds = report.seconds.iter().sum();
        let rows = [(HISTORY_FILE.to_string(), report.history.len() as u64)].into();
        Ok(Outcome { metrics: serde_json::to_value(metrics)?, rows, seed, wall_seconds })
    }
}

/// What every rank needs to pre-train, from the settled recipe and the folder of the tokens.
pub(super) fn pretraining<T>(
    recipe: &Recipe,
    tokens: &Path,
    work: impl FnOnce(Job<'_>, &Loader) -> Result<T>,
) -> Result<T> {
    let preset = recipe.model.preset.as_deref().context("the plan settles `model.preset`")?;
    let store = TokenStore::open(tokens, "train")?;
    let sizes = &recipe.model_config(preset, store.vocab())?;
    let (pipeline, sharding) = (recipe.run.pipeline()?, recipe.run.sharding()?);
    let config = TrainConfig { pipeline, sharding, ..recipe.pretrain.clone() };
    let source = &Loader::new(store, config.longest_sequence(), config.seed)?;
    let seed = recipe.model.seed;
    let values = &|spec: &ParamSpec, rows: Range<usize>| Ok(initial_values(spec, rows, seed));
    work(Job { sizes, config, dtype: recipe.dtype()?, values, source }, source)
}

fn metrics(trainer: &Trainer<'_>, report: &TrainReport, peak_bytes: usize) -> TrainMetrics {
    let loss = |r: Option<&StepRecord>| r.map_or(0.0, |r| r.loss);
    TrainMetrics {
        parameters: trainer.model().config.num_params(),
        tokens: report.tokens(),
        first_loss: loss(report.history.first()),
        last_loss: loss(report.history.last()),
        tokens_per_second: report.tokens_per_second(),
        peak_tensor_bytes: peak_bytes as u64,
        seconds_per_step: report.seconds.clone(),
        remarks: report.remarks.clone(),
    }
}

/// What each domain gives in a run with a mix. An error when one of them has too little text for a sequence.
fn mix_remark(config: &TrainConfig, loader: &Loader) -> Result<Option<String>> {
    let seen = config.seen(config.num_steps());
    let all: u64 = seen.values().sum();
    let mut parts = Vec::new();
    for domain in config.domains() {
        let (per_epoch, tokens) = (loader.tokens_per_epoch(domain)?, seen.get(&domain).copied().unwrap_or(0));
        let share = 100.0 * tokens as f64 / all.max(1) as f64;
        let epochs = tokens as f64 / per_epoch as f64;
        parts.push(format!("{share:.1} % {} ({tokens} tokens, {epochs:.2} epochs)", domain.name()));
    }
    Ok((!parts.is_empty()).then(|| format!("pretrain: the tokens were {}", parts.join(", "))))
}

/// A whole model folder in Hugging Face's layout, tokenizer included.
pub(crate) fn save_model(
    dir: &Path,
    model: &Llama,
    tokenizer: &Artifact,
    backend: &dyn llamero_tensor::Backend,
) -> Result<()> {
    let coder = Tokenizer::load(tokenizer.path())?;
    let special = coder.special();
    let stop = hf::StopTokens {
        begin_of_text: special.begin_of_text.or(Some(special.end_of_text)),
        stop: vec![special.end_of_text, special.eot],
    };
    hf::save(dir, model, backend, &stop)?;
    coder.save_model(dir.join("tokenizer.model"))?;
    coder.save_hf(dir)?;
    Ok(())
}

/// What is worth telling about finished training stages: skipped steps, resumes, damaged checkpoints.
pub(super) fn remarks(artifacts: [&Artifact; 2]) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for artifact in artifacts {
        let (_, metrics) = history(artifact)?;
        all.extend(metrics.remarks.iter().map(|r| format!("{}: {r}", artifact.manifest().stage)));
    }
    Ok(all)
}

/// The steps of a finished training stage.
pub(super) fn history(artifact: &Artifact) -> Result<(Vec<StepRecord>, TrainMetrics)> {
    let path = artifact.file(HISTORY_FILE)?;
    let text = std::fs::read(&path).with_context(|| format!("`{}`", path.display()))?;
    let history = serde_json::from_slice(&text).with_context(|| format!("`{}`", path.display()))?;
    let metrics = serde_json::from_value(artifact.manifest().metrics.clone())
        .with_context(|| format!("metrics of `{}`", artifact.path().display()))?;
    Ok((history, metrics))
}
