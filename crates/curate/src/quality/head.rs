//! Classifiers on top of a language model: a linear layer over pooled hidden states, which stay as they are.
//!
//! Llama 3 (section 3.1.1) trains DistilRoberta and Llama classifiers on judgements of Llama 2; here the layers below are not trained.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Classifier;
use super::auc::Auc;
use crate::CurateError;
use crate::encoder::{CLASSIFIER_FILE, Embed, Encoder, OpenEncoder};

/// Version of [`CLASSIFIER_FILE`].
const FORMAT: u32 = 1;

/// What [`CLASSIFIER_FILE`] holds.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// Version of the file.
    pub format: u32,
    /// The model below, with its hash: no other gives these vectors.
    pub encoder: Encoder,
    /// The labels, sorted.
    pub labels: Vec<String>,
    /// A row per label: a weight per number of the vector, and the constant.
    pub weights: Vec<Vec<f64>>,
    /// The penalty on squared weights that it was trained with, on standardised vectors.
    pub l2: f64,
    /// Examples it was trained on.
    pub examples: u64,
    /// Its test by cross-validation, where it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cross_validation: Option<Auc>,
}

impl Head {
    /// Reads the classifier of a folder.
    ///
    /// # Errors
    /// A file that cannot be read, is damaged, or of another version.
    pub fn open(folder: &Path) -> Result<Head, CurateError> {
        let path = folder.join(CLASSIFIER_FILE);
        let bytes = std::fs::read(&path).map_err(|error| CurateError::read(&path, error))?;
        let bad = |found: String| CurateError::BadModel {
            path: path.clone(),
            found,
            hint: "train it again with `llamero curate train-classifier --model`".to_owned(),
        };
        let head: Head = serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
        if head.format != FORMAT {
            return Err(bad(format!("it has format {}, but only {FORMAT} is known", head.format)));
        }
        let width = head.weights.first().map_or(0, Vec::len);
        let whole = head.labels.len() >= 2
            && head.labels.len() == head.weights.len()
            && width >= 2
            && head.weights.iter().all(|row| row.len() == width && row.iter().all(|x| x.is_finite()));
        if !whole || head.encoder.hash.is_none() {
            let (labels, rows) = (head.labels.len(), head.weights.len());
            return Err(bad(format!(
                "{labels} labels, {rows} rows of up to {width} numbers, or no hash of its model"
            )));
        }
        Ok(head)
    }

    /// A head of these rows.
    pub(super) fn of(
        encoder: &Encoder,
        labels: Vec<String>,
        weights: Vec<Vec<f64>>,
        l2: f64,
        examples: usize,
    ) -> Head {
        let (encoder, examples) = (encoder.clone(), examples as u64);
        Head { format: FORMAT, encoder, labels, weights, l2, examples, cross_validation: None }
    }

    /// The file's bytes.
    ///
    /// # Errors
    /// None in practice.
    pub fn to_json(&self) -> Result<Vec<u8>, CurateError> {
        serde_json::to_vec_pretty(self).map_err(|error| CurateError::BadTraining { found: error.to_string() })
    }

    /// The probability of each label for a vector of its model.
    #[must_use]
    pub fn probabilities(&self, vector: &[f32]) -> Vec<f64> {
        super::regression::probabilities(&self.weights, vector)
    }
}

/// A head with its model.
pub struct HeadClassifier {
    head: Head,
    embed: Arc<dyn Embed>,
}

impl HeadClassifier {
    /// Opens the classifier of a folder and its model: at `encoder`, or where the classifier says.
    ///
    /// # Errors
    /// Those of [`Head::open`] and of opening the model; another model than the one it was trained on.
    pub fn open(
        folder: &Path,
        encoder: Option<&PathBuf>,
        open: &OpenEncoder,
    ) -> Result<HeadClassifier, CurateError> {
        let head = Head::open(folder)?;
        let mut wanted = head.encoder.clone();
        wanted.model = encoder.cloned().unwrap_or(wanted.model);
        let hint =
            "name the model it was trained on as `encoder` of this `curate.quality`, or train it again";
        let bad = |found: String| CurateError::BadModel {
            path: folder.to_path_buf(),
            found,
            hint: hint.to_owned(),
        };
        if !wanted.model.exists() {
            return Err(bad(format!("its model `{}` is not there", wanted.model.display())));
        }
        let embed = open(&wanted).map_err(|error| match error {
            CurateError::BadModel { path, found, .. } if path == wanted.model => {
                bad(format!("its model `{}` cannot be used: {found}", path.display()))
            }
            other => other,
        })?;
        Ok(HeadClassifier { head, embed })
    }
}

impl Classifier for HeadClassifier {
    fn labels(&self) -> Vec<&str> {
        self.head.labels.iter().map(String::as_str).collect()
    }

    fn probability(&self, text: &str, label: &str) -> Result<f64, CurateError> {
        let Some(vector) = self.embed.embed(text)? else { return Ok(0.0) };
        let (found, width) = (vector.len(), self.head.weights[0].len() - 1);
        if found != width {
            let problem =
                format!("the model gives {found} numbers, but the classifier was trained on {width}");
            return Err(CurateError::Record { what: "a vector", problem });
        }
        let at = self.head.labels.iter().position(|known| known == label);
        Ok(at.map_or(0.0, |at| self.head.probabilities(&vector)[at]))
    }
}
