//! How well scores tell two classes apart.

use serde::{Deserialize, Serialize};

use crate::CurateError;
use crate::fasttext::{Example, TrainConfig, train};

/// The area under the ROC curve: the probability that a positive has a higher score than a negative, ties counting half.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Auc {
    /// The area.
    pub auc: f64,
    /// Ends of its 95 % interval, by DeLong's variance (DeLong, DeLong & Clarke-Pearson 1988).
    pub low: f64,
    /// The upper end.
    pub high: f64,
    /// Number of positives.
    pub positives: usize,
    /// Number of negatives.
    pub negatives: usize,
}

/// The area under the ROC curve of scores with their truth; `None` where a class is missing.
#[must_use]
pub fn roc_auc(scores: &[(f64, bool)]) -> Option<Auc> {
    let class = |wanted: bool| -> Vec<f64> {
        scores.iter().filter(|(_, truth)| *truth == wanted).map(|&(score, _)| score).collect()
    };
    let (positives, negatives) = (class(true), class(false));
    if positives.is_empty() || negatives.is_empty() {
        return None;
    }
    let sorted = |values: &[f64]| {
        let mut values = values.to_vec();
        values.sort_by(f64::total_cmp);
        values
    };
    // Of each score, the share of the other class that is below it.
    let placements = |scores: &[f64], others: &[f64]| -> Vec<f64> {
        let others = sorted(others);
        let place = |score: &f64| {
            let below = others.partition_point(|other| other < score);
            let upto = others.partition_point(|other| other <= score);
            (below + upto) as f64 / 2.0 / others.len() as f64
        };
        scores.iter().map(place).collect()
    };
    let over = placements(&positives, &negatives);
    let under: Vec<f64> = placements(&negatives, &positives).iter().map(|share| 1.0 - share).collect();
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let auc = mean(&over);
    let variance = |values: &[f64]| {
        let sum: f64 = values.iter().map(|value| (value - auc) * (value - auc)).sum();
        sum / (values.len().max(2) - 1) as f64 / values.len() as f64
    };
    let half = 1.959_963_984_540_054 * libm::sqrt(variance(&over) + variance(&under));
    let (low, high) = ((auc - half).max(0.0), (auc + half).min(1.0));
    Some(Auc { auc, low, high, positives: positives.len(), negatives: negatives.len() })
}

/// Scores of every example for `label`, each by a classifier that did not see it: examples are dealt to `folds` parts in their order, each
/// class by itself, and every part is scored by what was trained on the others.
///
/// # Errors
/// Those of [`train`]; fewer than two folds.
pub fn cross_validate(
    examples: &[Example],
    label: &str,
    folds: usize,
    config: &TrainConfig,
) -> Result<Vec<(f64, bool)>, CurateError> {
    if folds < 2 {
        return Err(CurateError::BadTraining { found: format!("{folds} folds; two at least are needed") });
    }
    let labels: Vec<&str> = examples.iter().map(|example| example.label.as_str()).collect();
    let fold = self::folds(&labels, folds);
    let mut scores = vec![(0.0, false); examples.len()];
    for held_out in 0..folds {
        let rest: Vec<Example> = examples
            .iter()
            .zip(&fold)
            .filter(|(_, fold)| **fold != held_out)
            .map(|(example, _)| example.clone())
            .collect();
        let model = train(&rest, config, |_, _| ())?;
        for at in (0..examples.len()).filter(|&at| fold[at] == held_out) {
            let example = &examples[at];
            let score = f64::from(model.probability(&example.text, label).unwrap_or(0.0));
            scores[at] = (score, example.label == label);
        }
    }
    Ok(scores)
}

/// The part of each example: they are dealt to `parts` parts in their order, each class by itself.
pub(super) fn folds<T: Ord + Copy>(classes: &[T], parts: usize) -> Vec<usize> {
    let mut seen = std::collections::BTreeMap::<T, usize>::new();
    let deal = |&class: &T| {
        let count = seen.entry(class).or_default();
        *count += 1;
        (*count - 1) % parts
    };
    classes.iter().map(deal).collect()
}
