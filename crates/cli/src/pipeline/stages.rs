//! The stages between the documents and the tokens.

use std::cell::RefCell;

use anyhow::{Context, Result};
use llamero_artifact::{Artifact, Outcome};
use llamero_curate::CurateReport;
use llamero_data::{documents, hash_fraction};
use llamero_tokenizer::{Tokenizer, Trainer};

use super::{Run, write_json};
use crate::progress::Progress;

impl Run {
    /// Documents → tokenizer.
    pub(super) fn tokenizer(&mut self, curated: &Artifact) -> Result<Artifact> {
        let section = self.recipe.tokenizer.clone();
        let threads = self.recipe.run.threads;
        self.stage("tokenizer", section.clone(), vec![curated.as_input("documents")], |_, draft| {
            let total = total_bytes(curated)?;
            let share = section.sample_bytes as f64 / total.max(1) as f64;
            let failure = RefCell::new(None);
            let texts = documents::read(curated.path())?.filter_map(|document| match document {
                // What `read` brings has an id that tells it from others, and perhaps no URL.
                Ok(d) => {
                    let name = if d.url.is_empty() { &d.id } else { &d.url };
                    (hash_fraction(name) < share).then_some(d.text)
                }
                Err(e) => {
                    failure.borrow_mut().get_or_insert(e);
                    None
                }
            });
            let mut trainer = Trainer::new(section.vocab_size);
            trainer.min_frequency = section.min_frequency;
            trainer.threads = threads;
            let bar = Progress::new("tokenizer", section.vocab_size as u64, "merges");
            let trained = trainer.train(texts, &mut |done, wanted| {
                if wanted > 0 {
                    bar.at(done, "merges");
                }
            });
            bar.finish();
            if let Some(error) = failure.into_inner() {
                return Err(error.into());
            }
            let (tokenizer, report) = trained?;
            tokenizer.save_model(draft.path().join("tokenizer.model"))?;
            tokenizer.save_hf(draft.path())?;
            Ok(Outcome { metrics: serde_json::to_value(&report)?, ..Default::default() })
        })
    }

    /// Documents → token stores.
    pub(super) fn tokens(&mut self, curated: &Artifact, tokenizer: &Artifact) -> Result<Artifact> {
        let config = self.recipe.data.clone();
        let inputs = vec![curated.as_input("documents"), tokenizer.as_input("tokenizer")];
        self.stage("tokens", config.clone(), inputs, |_, draft| {
            let coder = Tokenizer::load(tokenizer.path())?;
            let bar = Progress::new("tokens", total_bytes(curated)?, "bytes");
            let report =
                llamero_data::tokenize(curated.path(), &coder, &config, draft.path(), &|b| bar.at(b, ""));
            bar.finish();
            let report = report?;
            write_json(&draft.path().join("report.json"), &report)?;
            let rows = [
                ("train.index".to_string(), report.train_documents),
                ("held_out.index".to_string(), report.held_out_documents),
            ];
            Ok(Outcome { metrics: serde_json::to_value(&report)?, rows: rows.into(), ..Default::default() })
        })
    }

    /// Documents → dialogs and questions.
    pub(super) fn instruct(&mut self, curated: &Artifact) -> Result<Artifact> {
        let config = self.recipe.instruct.clone();
        self.stage("instruct", config.clone(), vec![curated.as_input("documents")], |_, draft| {
            let report = llamero_align::instruct(curated.path(), &config, draft.path())?;
            let rows = [
                (llamero_align::DIALOGS_FILE.to_string(), report.dialogs as u64),
                (llamero_align::QUESTIONS_FILE.to_string(), report.questions as u64),
            ];
            let metrics = serde_json::to_value(&report)?;
            Ok(Outcome { metrics, rows: rows.into(), seed: Some(config.seed), ..Default::default() })
        })
    }
}

/// Bytes of the curated text that is trained on, repetitions counted.
fn total_bytes(curated: &Artifact) -> Result<u64> {
    let report: CurateReport = serde_json::from_value(curated.manifest().metrics.clone())
        .with_context(|| format!("metrics of `{}`", curated.path().display()))?;
    // What lies in folders is for other stages of training.
    let own = report.files.iter().filter(|(name, _)| !name.contains('/'));
    Ok(own.map(|(_, tally)| tally.bytes).sum())
}
