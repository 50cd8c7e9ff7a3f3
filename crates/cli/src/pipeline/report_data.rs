//! Collects what the report shows from the artifacts of a run.

use anyhow::{Context, Result};
use llamero_artifact::Artifact;
use llamero_curate::CurateReport;
use llamero_train::{Goodput, Ledger, StepRecord};

use super::training::{TrainMetrics, history};
use super::{Run, Summary};
use crate::report::format::{bytes, count, duration, utc};
use crate::report::{
    BpbRow, ChoiceRow, CurvePoint, Reference, ReportData, Sample, StageRow, TimeRow, Tokenizer,
};

/// Everything that `report.html` shows.
pub(super) fn collect(
    run: &Run,
    summary: &Summary,
    curated: &Artifact,
    models: [&Artifact; 2],
) -> Result<ReportData> {
    let (pretrain, pretrain_metrics) = history(models[0])?;
    let (sft, sft_metrics) = history(models[1])?;
    let stages = summary.stages.iter();
    Ok(ReportData {
        title: format!("llamero run {}", run.dir.path().display()),
        run_dir: run.dir.path().display().to_string(),
        created: utc(models[1].manifest().provenance.finished_unix),
        summary: summary_rows(run, summary, &pretrain_metrics),
        remarks: summary.remarks.clone(),
        stages: stages
            .map(|s| StageRow {
                name: s.name.clone(),
                id: s.id.clone(),
                seconds: s.seconds,
                reused: s.reused,
            })
            .collect(),
        curation: Some(curation(curated)?),
        tokenizer: tokenizer(run)?,
        references: references(summary),
        time: ["pretrain", "sft"].iter().filter_map(|stage| time(run, stage)).collect(),
        pretrain: curve(&pretrain, &pretrain_metrics),
        sft: curve(&sft, &sft_metrics),
        bits_per_byte: bits_per_byte(summary),
        multiple_choice: multiple_choice(summary),
        samples: summary
            .evaluation
            .samples
            .iter()
            .map(|s| Sample { model: s.model.clone(), prompt: s.prompt.clone(), output: s.output.clone() })
            .collect(),
    })
}

fn summary_rows(run: &Run, summary: &Summary, pretrain: &TrainMetrics) -> Vec<(String, String)> {
    let mut rows = vec![
        ("model".to_string(), run.recipe.model.preset.clone().unwrap_or_default()),
        ("parameters".to_string(), count(pretrain.parameters)),
        ("training tokens".to_string(), count(pretrain.tokens)),
        ("tokens per second".to_string(), count(pretrain.tokens_per_second as u64)),
        ("machine".to_string(), run.backend.name()),
        ("expected time".to_string(), duration(summary.expected_seconds)),
        ("wall time of this process".to_string(), duration(summary.seconds)),
    ];
    if let Some(peak) = summary.peak_memory_bytes {
        rows.push(("peak memory".into(), bytes(peak)));
    }
    rows
}

fn curation(curated: &Artifact) -> Result<CurateReport> {
    serde_json::from_value(curated.manifest().metrics.clone())
        .with_context(|| format!("metrics of `{}`", curated.path().display()))
}

fn tokenizer(run: &Run) -> Result<Option<Tokenizer>> {
    let metrics = run.dir.artifact("tokenizer", "tokenizer")?.manifest().metrics.clone();
    let number = |key: &str| metrics.get(key).and_then(serde_json::Value::as_u64);
    let found = number("vocab_size").zip(number("bytes")).zip(number("tokens"));
    Ok(found.map(|((vocab, bytes), tokens)| Tokenizer {
        vocab,
        bytes_per_token: bytes as f64 / tokens.max(1) as f64,
    }))
}

/// From the ledger of a stage, where it can be read and training took place.
fn time(run: &Run, stage: &str) -> Option<TimeRow> {
    let entries = Ledger::new(run.dir.path().join(super::ledger_file(stage))).read().ok()?;
    let goodput = Goodput::of(&entries);
    let all = goodput.elapsed();
    (all > 0.0).then(|| TimeRow {
        stage: stage.into(),
        seconds: all,
        shares: goodput.parts().into_iter().map(|(name, seconds)| (name.into(), seconds / all)).collect(),
        failures: goodput.failures as u64,
        rollbacks: goodput.rollbacks as u64,
    })
}

fn references(summary: &Summary) -> Vec<Reference> {
    let loss = &summary.evaluation.loss;
    let named =
        [("unigram", "unigram, held-out"), ("bigram", "bigram, held-out"), ("pretrain", "model, held-out")];
    named
        .iter()
        .filter_map(|(key, label)| Some(Reference { label: (*label).into(), loss: *loss.get(*key)? }))
        .collect()
}

fn curve(history: &[StepRecord], metrics: &TrainMetrics) -> Vec<CurvePoint> {
    let mut before = 0;
    let mut points = Vec::with_capacity(history.len());
    for (record, seconds) in history.iter().zip(&metrics.seconds_per_step) {
        points.push(CurvePoint {
            step: record.step,
            tokens: record.tokens,
            loss: record.loss,
            lr: record.lr,
            grad_norm: record.grad_norm,
            tokens_per_second: (record.tokens - before) as f64 / seconds.max(1e-9),
            skipped: record.skipped.is_some(),
        });
        before = record.tokens;
    }
    points
}

fn bits_per_byte(summary: &Summary) -> Vec<BpbRow> {
    let rows = summary.evaluation.bits_per_byte.iter().map(|(domain, by_model)| BpbRow {
        domain: domain.clone(),
        unigram: by_model.get("unigram").copied().unwrap_or(f64::NAN),
        bigram: by_model.get("bigram").copied().unwrap_or(f64::NAN),
        pretrained: by_model.get("pretrain").copied(),
        fine_tuned: by_model.get("sft").copied(),
    });
    rows.collect()
}

fn multiple_choice(summary: &Summary) -> Vec<ChoiceRow> {
    let rows = summary.evaluation.multiple_choice.iter().map(|(model, c)| ChoiceRow {
        model: model.clone(),
        questions: c.score.questions as u64,
        correct: c.score.correct as u64,
        accuracy: c.accuracy,
        low95: (c.accuracy - c.half_width).max(0.0),
        high95: (c.accuracy + c.half_width).min(1.0),
        chance: c.score.chance,
    });
    rows.collect()
}
