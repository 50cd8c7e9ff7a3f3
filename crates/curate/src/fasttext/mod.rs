//! Text classifiers of the fastText kind: read, applied, trained, written.
//!
//! A text is the mean of the rows of its words, of the hashed pieces of its words and of its hashed word n-grams; a linear layer
//! over that mean gives the labels (Joulin et al. 2016, *Bag of Tricks for Efficient Text Classification*; quantised models:
//! *FastText.zip*, 2016). Files are fastText's own, `.bin` and `.ftz`, so a model trained here opens there and the other way
//! round. One implementation serves language identification and quality.
//!
//! It is ours and not a library because the bits must not depend on the platform: sums have one order and `exp` is that of
//! `libm`, in training too.

mod dictionary;
mod file;
mod matrix;
mod train;
mod tree;

use std::path::Path;

use crate::CurateError;
use dictionary::Dictionary;
use matrix::Matrix;
use tree::Tree;

pub use train::{Example, TrainConfig, train};

/// How the labels share the probability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    /// A binary tree over the labels, the frequent ones near its root.
    HierarchicalSoftmax,
    /// Probabilities that add up to one.
    Softmax,
    /// Each label by itself.
    OneVsAll,
}

/// A trained classifier.
#[derive(Debug)]
pub struct FastText {
    dictionary: Dictionary,
    loss: Loss,
    /// One row per word, then per bucket of n-grams; `dim` columns.
    input: Matrix,
    /// One row per label, or per inner node of the tree.
    output: Matrix,
    /// Of hierarchical softmax.
    tree: Option<Tree>,
    /// As its file says: how it was trained.
    settings: Settings,
}

/// The training settings that a file keeps.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Settings {
    dim: u32,
    epochs: i32,
    min_count: i32,
    learning_rate_update: i32,
}

/// A label and how sure the model is of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction<'a> {
    /// Without fastText's `__label__`.
    pub label: &'a str,
    /// From 0 to 1. As in fastText, up to 1e-5 more than the probability itself.
    pub probability: f32,
}

impl FastText {
    /// Opens a `.bin` or `.ftz` file. Every count in it is checked against its size before memory is taken.
    ///
    /// # Errors
    /// [`CurateError::Read`], or [`CurateError::BadModel`] with what was found.
    pub fn open(path: &Path) -> Result<FastText, CurateError> {
        let bytes = std::fs::read(path).map_err(|error| CurateError::read(path, error))?;
        FastText::from_bytes(&bytes).map_err(|found| CurateError::BadModel {
            path: path.to_path_buf(),
            found,
            hint: "give a supervised fastText model, `.bin` or `.ftz`, such as lid.176.ftz".to_owned(),
        })
    }

    /// The model in the bytes of a file; what is wrong with them otherwise.
    ///
    /// # Errors
    /// In words, without the file's name.
    pub fn from_bytes(bytes: &[u8]) -> Result<FastText, String> {
        file::read(bytes)
    }

    /// Writes fastText's `.bin`, and after its end, where fastText does not look, a checksum that [`FastText::open`] verifies.
    /// The file is complete or absent.
    ///
    /// # Errors
    /// [`CurateError::Write`].
    pub fn save(&self, path: &Path) -> Result<(), CurateError> {
        llamero_artifact::fsutil::write_atomic(path, &self.to_bytes())
            .map_err(|error| CurateError::write(path, error))
    }

    /// What [`FastText::save`] writes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        file::write(self)
    }

    /// Its labels, the most frequent in training first.
    pub fn labels(&self) -> impl Iterator<Item = &str> {
        (0..self.dictionary.labels()).map(|label| self.dictionary.label(label))
    }

    /// The `top` most probable labels, best first. Line ends count as spaces. Empty where no part of the text is known.
    #[must_use]
    pub fn predict(&self, text: &str, top: usize) -> Vec<Prediction<'_>> {
        let scores = self.log_probabilities(text);
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
        let prediction = |label: usize| Prediction {
            label: self.dictionary.label(label),
            probability: libm::expf(scores[label]),
        };
        order.into_iter().take(top).map(prediction).collect()
    }

    /// The probability of one label; `None` where the model has no such label. A text of which no part is known has 0.
    #[must_use]
    pub fn probability(&self, text: &str, label: &str) -> Option<f32> {
        let at = self.labels().position(|known| known == label)?;
        Some(self.log_probabilities(text).get(at).map_or(0.0, |&score| libm::expf(score)))
    }

    /// Natural logarithm of each label's probability; empty where no part of the text is known.
    fn log_probabilities(&self, text: &str) -> Vec<f32> {
        let mut rows = Vec::new();
        self.dictionary.rows(text, &mut rows);
        if rows.is_empty() {
            return Vec::new();
        }
        let hidden = self.hidden(&rows);
        let labels = self.dictionary.labels();
        if let Some(tree) = &self.tree {
            return tree.log_probabilities(labels, |node| self.output.dot(node, &hidden));
        }
        let mut scores: Vec<f32> = (0..labels).map(|label| self.output.dot(label, &hidden)).collect();
        match self.loss {
            Loss::OneVsAll => scores.iter_mut().for_each(|score| *score = sigmoid(*score)),
            _ => softmax(&mut scores),
        }
        scores.iter_mut().for_each(|score| *score = log(*score));
        scores
    }

    /// The mean of some rows of the input.
    fn hidden(&self, rows: &[u32]) -> Vec<f32> {
        let mut hidden = vec![0.0; self.settings.dim as usize];
        for &row in rows {
            self.input.add_row(row as usize, &mut hidden);
        }
        let share = 1.0 / rows.len() as f32;
        hidden.iter_mut().for_each(|value| *value *= share);
        hidden
    }
}

/// fastText's logarithm, finite at 0.
fn log(x: f32) -> f32 {
    libm::logf(x + 1e-5)
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + libm::expf(-x))
}

fn softmax(values: &mut [f32]) {
    let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut total = 0.0;
    for value in values.iter_mut() {
        *value = libm::expf(*value - largest);
        total += *value;
    }
    values.iter_mut().for_each(|value| *value /= total);
}

#[cfg(test)]
mod tests;
