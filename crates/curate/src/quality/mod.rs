//! Model-based quality: classifiers trained here, on labels that people or a model gave.
//!
//! Llama 3 (section 3.1.1) uses a fastText classifier that tells whether Wikipedia would cite a page, and classifiers of labels that Llama 2 gave.
//! Both are [`train`] on other examples: `{"text": …, "label": …}` lines, which [`label()`] makes from a model's answers. Classifiers of code and
//! of reasoning differ in their examples only.

mod auc;
mod examples;
mod label;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::fasttext::FastText;
use crate::filter::check_share;
use crate::{CurateError, Document, Dropped, Filter};

pub use crate::fasttext::{Example, TrainConfig, train};
pub use auc::{Auc, cross_validate, roc_auc};
pub use examples::read_examples;
pub use label::{Judge, LabelReport, LabelTask, label};

/// A classifier in a recipe.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct QualityConfig {
    /// A fastText model: `.bin` or `.ftz`, trained here or elsewhere.
    pub model: PathBuf,
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
    model: FastText,
}

impl Quality {
    /// Opens the model.
    ///
    /// # Errors
    /// A model that cannot be read or has no such label, a probability out of range.
    pub fn new(config: &QualityConfig) -> Result<Quality, CurateError> {
        check_share("quality.min_probability", config.min_probability, 1.0)?;
        Quality::with(config, FastText::open(&config.model)?)
    }

    /// With a model that is in memory.
    ///
    /// # Errors
    /// The model has no such label.
    pub fn with(config: &QualityConfig, model: FastText) -> Result<Quality, CurateError> {
        if !model.labels().any(|label| label == config.label) {
            let allowed = format!("one of {}", model.labels().take(20).collect::<Vec<_>>().join(", "));
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

    fn apply(&self, document: &mut Document) -> Option<Dropped> {
        if !self.config.domains.is_empty() && !self.config.domains.contains(&document.domain) {
            return None;
        }
        let found =
            f64::from(self.model.probability(&document.text, &self.config.label).unwrap_or(0.0).min(1.0));
        document.tags.insert(self.config.tag.clone(), found);
        let limit = self.config.min_probability.filter(|&limit| found < limit)?;
        Some(Dropped::new(
            "quality",
            format!("`{}` with {found:.3}, at least {limit} wanted", self.config.label),
        ))
    }
}
