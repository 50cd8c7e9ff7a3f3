//! Model-based quality: classifiers trained here, on labels that people or a model gave.
//!
//! Llama 3 (section 3.1.1) uses a fastText classifier that tells whether Wikipedia would cite a page, and classifiers of labels that Llama 2 gave.
//! Both are trained here on examples: `{"text": …, "label": …}` lines, which [`label()`] makes from a model's answers. [`train()`] makes a fastText
//! model, [`train_head`] a linear layer on top of a language model's hidden states. Classifiers of code and of reasoning differ in their examples only.

mod auc;
mod examples;
mod head;
#[cfg(test)]
mod head_tests;
mod label;
mod regression;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::encoder::{CLASSIFIER_FILE, OpenEncoder};
use crate::fasttext::FastText;
use crate::filter::{check_share, parse};
use crate::plan::Registry;
use crate::{CurateError, Document, Dropped, Filter};

pub use crate::fasttext::{Example, TrainConfig, train};
pub use auc::{Auc, cross_validate, roc_auc};
pub use examples::read_examples;
pub use head::{Head, HeadClassifier};
pub use label::{Judge, LabelReport, LabelTask, label};
pub use regression::{Labelled, cross_validate_head, train_head};

/// Tells how likely labels are.
pub trait Classifier: Send + Sync {
    /// What it knows.
    fn labels(&self) -> Vec<&str>;

    /// The probability of a label, from 0 to 1; 0 for a text that holds nothing it knows.
    ///
    /// # Errors
    /// Whatever keeps it from being worked out.
    fn probability(&self, text: &str, label: &str) -> Result<f64, CurateError>;
}

impl Classifier for FastText {
    fn labels(&self) -> Vec<&str> {
        FastText::labels(self).collect()
    }

    fn probability(&self, text: &str, label: &str) -> Result<f64, CurateError> {
        Ok(f64::from(FastText::probability(self, text, label).unwrap_or(0.0).min(1.0)))
    }
}

/// Registers the filter `quality`, the language models of whose classifiers `open` opens.
pub(crate) fn register(registry: &mut Registry, open: Arc<OpenEncoder>) {
    registry.filter("quality", move |settings, _| {
        Ok(Box::new(Quality::open(&parse::<QualityConfig>("quality", settings)?, &*open)?))
    });
}

/// A classifier in a recipe.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct QualityConfig {
    /// A fastText model, `.bin` or `.ftz`, trained here or elsewhere; or the folder of a classifier on top of a language model.
    pub model: PathBuf,
    /// Where that language model is; where the classifier says, when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoder: Option<PathBuf>,
    /// The label whose probability counts.
    pub label: String,
    /// A document with less is dropped as `quality`; none is when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_probability: Option<f64>,
    /// The tag that holds the probability.
    #[serde(default = "default_tag")]
    pub tag: String,
    /// Domains whose documents are judged; all when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub domains: Vec<String>,
}

fn default_tag() -> String {
    "quality".to_owned()
}

/// Tags documents with the probability of a label, and drops those with too little.
pub struct Quality {
    config: QualityConfig,
    model: Box<dyn Classifier>,
}

impl Quality {
    /// Opens a model that needs no other.
    ///
    /// # Errors
    /// A model that cannot be read or has no such label, a probability out of range.
    pub fn new(config: &QualityConfig) -> Result<Quality, CurateError> {
        Quality::open(config, &*crate::encoder::none())
    }

    /// Opens the model, and by `open` the language model below it.
    ///
    /// # Errors
    /// As [`Quality::new`], and those of [`HeadClassifier::open`].
    pub fn open(config: &QualityConfig, open: &OpenEncoder) -> Result<Quality, CurateError> {
        check_share("quality.min_probability", config.min_probability, 1.0)?;
        if config.model.join(CLASSIFIER_FILE).exists() {
            let head = HeadClassifier::open(&config.model, config.encoder.as_ref(), open)?;
            return Quality::of(config, Box::new(head));
        }
        if let Some(encoder) = &config.encoder {
            return Err(CurateError::BadFilter {
                key: "quality.encoder".to_owned(),
                found: encoder.display().to_string(),
                allowed: format!(
                    "absent, as `{}` is no classifier on top of a language model",
                    config.model.display()
                ),
            });
        }
        Quality::with(config, FastText::open(&config.model)?)
    }

    /// With a model that is in memory.
    ///
    /// # Errors
    /// The model has no such label.
    pub fn with(config: &QualityConfig, model: FastText) -> Result<Quality, CurateError> {
        Quality::of(config, Box::new(model))
    }

    fn of(config: &QualityConfig, model: Box<dyn Classifier>) -> Result<Quality, CurateError> {
        let labels = model.labels();
        if !labels.contains(&config.label.as_str()) {
            let allowed = format!("one of {}", labels.into_iter().take(20).collect::<Vec<_>>().join(", "));
            return Err(CurateError::BadFilter {
                key: "quality.label".to_owned(),
                found: config.label.clone(),
                allowed,
            });
        }
        Ok(Quality { config: config.clone(), model })
    }
}

impl Filter for Quality {
    fn name(&self) -> &'static str {
        "quality"
    }

    /// A document that cannot be judged is dropped as `quality_failed`; [`Filter::try_apply`] says why instead.
    fn apply(&self, document: &mut Document) -> Option<Dropped> {
        self.try_apply(document)
            .unwrap_or_else(|error| Some(Dropped::new("quality_failed", error.to_string())))
    }

    fn try_apply(&self, document: &mut Document) -> Result<Option<Dropped>, CurateError> {
        if !self.config.domains.is_empty() && !self.config.domains.contains(&document.domain) {
            return Ok(None);
        }
        let found = self.model.probability(&document.text, &self.config.label)?;
        document.tags.insert(self.config.tag.clone(), found);
        let limit = self.config.min_probability.filter(|&limit| found < limit);
        Ok(limit.map(|limit| {
            let detail = format!("`{}` with {found:.3}, at least {limit} wanted", self.config.label);
            Dropped::new("quality", detail)
        }))
    }
}
