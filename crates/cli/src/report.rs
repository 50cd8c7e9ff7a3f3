//! Reports: HTML files that load nothing, with their plots as inline SVG. [`render`] makes that of a run, [`curation::render`] that
//! of a corpus.
//!
//! Both are pure functions of their data, so the same run gives the same bytes.

mod bars;
pub(crate) mod curation;
mod curves;
pub(crate) mod format;
mod page;
mod plot;
mod sections;
#[cfg(test)]
mod tests;

use llamero_curate::CurateReport;
use serde::Serialize;

/// Why a report could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ReportError {
    /// The plotting library refused a plot.
    #[error("plot `{plot}` of the report could not be drawn: {message}")]
    Plot {
        /// Title of the plot.
        plot: &'static str,
        /// What the library said.
        message: String,
    },
}

/// Everything a report shows. An empty or absent part leaves its section out.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct ReportData {
    /// Heading of the page.
    pub(crate) title: String,
    /// Folder of the run.
    pub(crate) run_dir: String,
    /// When the run was finished, in words.
    pub(crate) created: String,
    /// Names and values for the top of the page, in the order to show them.
    pub(crate) summary: Vec<(String, String)>,
    /// What did not go as planned: skipped steps, resumes, damaged checkpoints.
    pub(crate) remarks: Vec<String>,
    /// Stages in the order they ran.
    pub(crate) stages: Vec<StageRow>,
    /// What came of the raw text.
    pub(crate) curation: Option<CurateReport>,
    /// The trained tokenizer.
    pub(crate) tokenizer: Option<Tokenizer>,
    /// Where the time of the training stages went.
    pub(crate) time: Vec<TimeRow>,
    /// Steps of pre-training.
    pub(crate) pretrain: Vec<CurvePoint>,
    /// Losses to draw across the pre-training curve, such as those of the baselines.
    pub(crate) references: Vec<Reference>,
    /// Steps of supervised fine-tuning.
    pub(crate) sft: Vec<CurvePoint>,
    /// Held-out bits per byte.
    pub(crate) bits_per_byte: Vec<BpbRow>,
    /// Multiple-choice results.
    pub(crate) multiple_choice: Vec<ChoiceRow>,
    /// What the models wrote; those with the same prompt are shown together.
    pub(crate) samples: Vec<Sample>,
}

/// One stage of the run.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct StageRow {
    /// Name in the recipe.
    pub(crate) name: String,
    /// Id of the artifact it made.
    pub(crate) id: String,
    /// Wall time in seconds, of the run that made the artifact.
    pub(crate) seconds: f64,
    /// Whether the artifact was there already.
    pub(crate) reused: bool,
}

/// Where the time of a training stage went.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct TimeRow {
    /// Name of the stage.
    pub(crate) stage: String,
    /// Seconds from the first launch to the last entry of the ledger.
    pub(crate) seconds: f64,
    /// Names of what it went to and the share of each; the first is what was useful.
    pub(crate) shares: Vec<(String, f64)>,
    /// Jobs that failed.
    pub(crate) failures: u64,
    /// Times that something silently wrong was undone.
    pub(crate) rollbacks: u64,
}

/// Facts about the tokenizer.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Tokenizer {
    /// Number of tokens, special ones included.
    pub(crate) vocab: u64,
    /// Mean bytes of text per token.
    pub(crate) bytes_per_token: f64,
}

/// One training step. A value that is not finite is not drawn.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct CurvePoint {
    /// Number of the step.
    pub(crate) step: u64,
    /// Tokens read up to and including this step.
    pub(crate) tokens: u64,
    /// Mean loss in nats per target token.
    pub(crate) loss: f64,
    /// Learning rate.
    pub(crate) lr: f64,
    /// Global gradient norm before clipping.
    pub(crate) grad_norm: f64,
    /// Throughput; not finite where the time is not known.
    pub(crate) tokens_per_second: f64,
    /// Whether the step made no update.
    pub(crate) skipped: bool,
}

/// A loss to compare a curve with.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Reference {
    /// Such as `held-out`, `unigram` or `bigram`.
    pub(crate) label: String,
    /// Nats per token.
    pub(crate) loss: f64,
}

/// Held-out bits per byte of one domain.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct BpbRow {
    /// The domain.
    pub(crate) domain: String,
    /// Baseline that knows token frequencies.
    pub(crate) unigram: f64,
    /// Baseline that knows the token before.
    pub(crate) bigram: f64,
    /// The model after pre-training.
    pub(crate) pretrained: Option<f64>,
    /// The model after fine-tuning.
    pub(crate) fine_tuned: Option<f64>,
}

/// Multiple-choice result of one model; shares are of 1.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct ChoiceRow {
    /// Name of the model.
    pub(crate) model: String,
    /// Questions asked.
    pub(crate) questions: u64,
    /// Questions answered correctly.
    pub(crate) correct: u64,
    /// Share answered correctly.
    pub(crate) accuracy: f64,
    /// Lower end of the 95 % interval.
    pub(crate) low95: f64,
    /// Upper end of the 95 % interval.
    pub(crate) high95: f64,
    /// Share that guessing gets.
    pub(crate) chance: f64,
}

/// Something a model wrote.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Sample {
    /// Name of the model.
    pub(crate) model: String,
    /// What it was given.
    pub(crate) prompt: String,
    /// What it wrote.
    pub(crate) output: String,
}

/// The page as one string.
///
/// # Errors
/// [`ReportError::Plot`] when the plotting library fails; no data that is merely odd (empty, not finite, hostile
/// text) is an error.
pub(crate) fn render(data: &ReportData) -> Result<String, ReportError> {
    let mut page = page::Page::new(&data.title, &plot::theme());
    sections::header(&mut page, data);
    sections::summary(&mut page, data);
    sections::stages(&mut page, &data.stages);
    if let Some(curation) = &data.curation {
        curation::summary(&mut page, curation);
    }
    if let Some(tokenizer) = &data.tokenizer {
        sections::tokenizer(&mut page, tokenizer);
    }
    sections::time(&mut page, &data.time);
    curves::section(&mut page, "Pre-training", &data.pretrain, &data.references)?;
    curves::section(&mut page, "Supervised fine-tuning", &data.sft, &[])?;
    sections::bits_per_byte(&mut page, &data.bits_per_byte);
    sections::multiple_choice(&mut page, &data.multiple_choice);
    sections::samples(&mut page, &data.samples);
    Ok(page.finish())
}
