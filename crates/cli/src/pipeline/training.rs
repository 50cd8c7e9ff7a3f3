//! The two training stages.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use llamero_align::SftSource;
use llamero_artifact::{Artifact, Draft, Outcome, WORK_STATE};
use llamero_comm::{Comm, Solo};
use llamero_data::{Loader, TokenStore};
use llamero_model::{Llama, ParamSpec, Placement, hf, initial_values};
use llamero_tokenizer::Tokenizer;
use llamero_train::{Checkpoints, SequenceSource, StepRecord, TrainConfig, TrainReport, Trainer, train};
use serde::{Deserialize, Serialize};

use super::{Run, write_json};
use crate::progress::Progress;

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
            let store = TokenStore::open(tokens.path(), "train")?;
            let coder = Tokenizer::load(tokenizer.path())?;
            if store.tokenizer() != coder.fingerprint() {
                bail!("the tokens in `{}` were made by another tokenizer", tokens.path().display());
            }
            let model_config = run.recipe.model_config(&preset, store.vocab())?;
            let loader = Loader::new(store, config.longest_sequence(), config.seed)?;
            let mix = mix_remark(&config, &loader)?;
            let seed = section.seed;
            let values = |spec: &ParamSpec, rows| Ok::<_, anyhow::Error>(initial_values(spec, rows, seed));
            let model = run.build(&model_config, values)?;
            let outcome = run.train_stage("pretrain", draft, tokenizer, (model, config.clone(), &loader))?;
            run.remarks.extend(mix);
            Ok(outcome)
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
            let model = run.build(&folder.config, |spec, rows| Ok(folder.values(spec, rows)?))?;
            run.train_stage("sft", draft, tokenizer, (model, config.clone(), &source))
        })
    }

    fn build(
        &self,
        config: &llamero_model::Config,
        values: impl FnMut(&ParamSpec, Range<usize>) -> Result<Vec<f32>>,
    ) -> Result<Llama> {
        let ranks: Arc<dyn Comm> = Arc::new(Solo);
        let device = (&*self.backend, self.recipe.dtype()?);
        Llama::build(config, &Placement::whole(config), device, &ranks, values)
    }

    fn train_stage(
        &mut self,
        name: &str,
        draft: &Draft,
        tokenizer: &Artifact,
        (model, config, source): (Llama, TrainConfig, &dyn SequenceSource),
    ) -> Result<Outcome> {
        let seed = Some(config.seed);
        let steps = config.num_steps();
        self.backend.reset_peak();
        let mut trainer = Trainer::new(model, &*self.backend, config);
        let mut checkpoints = Checkpoints::new(draft.path().join(WORK_STATE));
        if let Some(interval) = self.recipe.run.checkpoint_interval()? {
            checkpoints = checkpoints.every(interval);
        }
        let bar = Progress::new(name, steps, "steps").from(checkpoints.newest_step());
        let report = train(&mut trainer, source, &checkpoints, &mut |record: &StepRecord, rate| {
            if record.step % 100 == 99 {
                // For whoever opens the unfinished folder; losing a note is no reason to stop.
                drop(draft.progress(&format!("step {} of {steps}", record.step + 1)));
            }
            bar.at(record.step + 1, &format!("loss {:.3} {rate:.0} tokens/s", record.loss));
            if let Some(reason) = &record.skipped {
                say!("{name:>10} step {} skipped: {reason}", record.step);
            }
        });
        bar.finish();
        let report = report?;
        let mut metrics = self.metrics(&trainer, &report);
        metrics.remarks.extend(report.resumed_at.map(|step| format!("resumed at step {step}")));
        save_model(draft.path(), trainer.model(), tokenizer, &*self.backend)?;
        write_json(&draft.path().join(HISTORY_FILE), &report.history)?;
        let wall_seconds = report.seconds.iter().sum();
        let rows = [(HISTORY_FILE.to_string(), report.history.len() as u64)].into();
        Ok(Outcome { metrics: serde_json::to_value(metrics)?, rows, seed, wall_seconds })
    }

    fn metrics(&self, trainer: &Trainer<'_>, report: &TrainReport) -> TrainMetrics {
        let loss = |r: Option<&StepRecord>| r.map_or(0.0, |r| r.loss);
        TrainMetrics {
            parameters: trainer.model().config.num_params(),
            tokens: report.tokens(),
            first_loss: loss(report.history.first()),
            last_loss: loss(report.history.last()),
            tokens_per_second: report.tokens_per_second(),
            peak_tensor_bytes: self.backend.memory().peak_bytes as u64,
            seconds_per_step: report.seconds.clone(),
            remarks: report.remarks.clone(),
        }
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
    let stop =
        hf::StopTokens { begin_of_text: special.begin_of_text, stop: vec![special.end_of_text, special.eot] };
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
