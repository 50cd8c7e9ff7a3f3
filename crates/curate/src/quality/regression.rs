//! Softmax regression: minimises the mean log-loss plus `l2 / 2` times the sum of squared weights over standardised vectors, by L-BFGS
//! (Nocedal 1980; Liu & Nocedal 1989). The function is strictly convex in the weights, so there is one result; sums have one order, whatever the threads.

use rayon::prelude::*;

use super::auc::folds;
use super::head::Head;
use crate::CurateError;
use crate::encoder::Encoder;

/// Examples of one task. Partial sums are added in the order of the tasks.
const TASK: usize = 256;

/// Steps that L-BFGS remembers, steps at most, and the largest entry of the gradient at which it ends.
const MEMORY: usize = 10;
const STEPS: usize = 500;
const TOLERANCE: f64 = 1e-7;

/// Penalties that are tried where none is given, strongest first, and parts of the cross-validation that chooses.
const PENALTIES: [f64; 5] = [10.0, 1.0, 0.1, 0.01, 0.001];
const PARTS: usize = 5;

/// Vectors of texts with the number of their label.
pub struct Labelled {
    /// One row per example, all of one length.
    pub vectors: Vec<Vec<f32>>,
    /// Each example's place in `labels`.
    pub classes: Vec<usize>,
    /// The labels, sorted.
    pub labels: Vec<String>,
}

impl Labelled {
    /// Checks vectors and labels.
    ///
    /// # Errors
    /// No examples, one label only, vectors of different lengths.
    pub fn new(vectors: Vec<Vec<f32>>, labels: &[String]) -> Result<Labelled, CurateError> {
        let bad = |found: String| Err(CurateError::BadTraining { found });
        let known: Vec<String> = std::collections::BTreeSet::from_iter(labels).into_iter().cloned().collect();
        if known.len() < 2 {
            return bad(format!(
                "{} examples of {} labels; two labels at least are needed",
                labels.len(),
                known.len()
            ));
        }
        if let Some(at) =
            vectors.iter().position(|vector| vector.len() != vectors[0].len() || vector.is_empty())
        {
            let (found, first) = (vectors[at].len(), vectors[0].len());
            return bad(format!("example {at} has a vector of {found} numbers, the first one of {first}"));
        }
        let classes =
            labels.iter().filter_map(|label| known.iter().position(|other| other == label)).collect();
        Ok(Labelled { vectors, classes, labels: known })
    }

    fn all(&self) -> Vec<usize> {
        (0..self.classes.len()).collect()
    }
}

/// Trains a head on all examples. Without a penalty, that of the least log-loss in a cross-validation of five parts is taken, the
/// stronger one of equals.
///
/// # Errors
/// A penalty that is not above 0.
pub fn train_head(encoder: &Encoder, examples: &Labelled, l2: Option<f64>) -> Result<Head, CurateError> {
    let all = examples.all();
    let (weights, l2) = fit(examples, &all, l2)?;
    Ok(Head::of(encoder, examples.labels.clone(), weights, l2, all.len()))
}

/// Scores of every example for `label`, each by a head that did not see it, whose penalty was chosen without it: as [`super::cross_validate`].
///
/// # Errors
/// Those of [`train_head`]; fewer than two folds; a label that no example has, or that a part of the examples lacks.
pub fn cross_validate_head(
    examples: &Labelled,
    label: &str,
    parts: usize,
    l2: Option<f64>,
) -> Result<Vec<(f64, bool)>, CurateError> {
    let bad = |found: String| Err(CurateError::BadTraining { found });
    if parts < 2 {
        return bad(format!("{parts} folds; two at least are needed"));
    }
    let Some(class) = examples.labels.iter().position(|known| known == label) else {
        return bad(format!("no example has the label `{label}`; there are {}", examples.labels.join(", ")));
    };
    let fold = folds(&examples.classes, parts);
    let mut scores = vec![(0.0, false); fold.len()];
    for part in 0..parts {
        let (held_out, rest): (Vec<usize>, Vec<usize>) =
            examples.all().into_iter().partition(|&at| fold[at] == part);
        let (weights, _) = fit(examples, &rest, l2)?;
        for at in held_out {
            scores[at] =
                (probabilities(&weights, &examples.vectors[at])[class], examples.classes[at] == class);
        }
    }
    Ok(scores)
}

/// Rows of weights from some of the examples, and the penalty.
fn fit(examples: &Labelled, chosen: &[usize], l2: Option<f64>) -> Result<(Vec<Vec<f64>>, f64), CurateError> {
    if let Some(l2) = l2 {
        if !(l2 > 0.0 && l2.is_finite()) {
            return Err(CurateError::BadTraining { found: format!("a penalty of {l2}; it must be above 0") });
        }
        return Ok((Problem::new(examples, chosen, l2).solve(), l2));
    }
    let classes: Vec<usize> = chosen.iter().map(|&at| examples.classes[at]).collect();
    let fold = folds(&classes, PARTS);
    let loss = |l2: f64| -> f64 {
        let of_part = |part: usize| -> f64 {
            let side = |held_out: bool| -> Vec<usize> {
                let chosen = chosen.iter().zip(&fold).filter(|(_, fold)| (**fold == part) == held_out);
                chosen.map(|(&at, _)| at).collect()
            };
            let weights = Problem::new(examples, &side(false), l2).solve();
            let losses = side(true).into_iter().map(|at| {
                let probability = probabilities(&weights, &examples.vectors[at])[examples.classes[at]];
                -libm::log(probability.max(f64::MIN_POSITIVE))
            });
            losses.sum()
        };
        (0..PARTS).map(of_part).sum()
    };
    let losses: Vec<f64> = PENALTIES.iter().map(|&l2| loss(l2)).collect();
    let mut best = 0;
    for (at, loss) in losses.iter().enumerate() {
        if *loss < losses[best] {
            best = at;
        }
    }
    Ok((Problem::new(examples, chosen, PENALTIES[best]).solve(), PENALTIES[best]))
}

/// Probabilities of the rows' labels for a vector.
pub(super) fn probabilities(weights: &[Vec<f64>], vector: &[f32]) -> Vec<f64> {
    let score = |row: &Vec<f64>| dot(row, vector) + row[vector.len()];
    softmax(weights.iter().map(score).collect())
}

fn softmax(mut scores: Vec<f64>) -> Vec<f64> {
    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    scores.iter_mut().for_each(|score| *score = libm::exp(*score - most));
    let sum: f64 = scores.iter().sum();
    scores.iter_mut().for_each(|score| *score /= sum);
    scores
}

/// Sums in eight lanes and then over them, always in this order.
fn dot(row: &[f64], vector: &[f32]) -> f64 {
    let mut lanes = [0.0_f64; 8];
    for (a, b) in row.chunks(8).zip(vector.chunks(8)) {
        for (lane, (x, &y)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane += x * f64::from(y);
        }
    }
    lanes.iter().sum()
}

/// One fit: standardised vectors of some examples.
struct Problem {
    /// Mean and length of a standard deviation of every number.
    moments: Vec<(f64, f64)>,
    vectors: Vec<Vec<f32>>,
    classes: Vec<usize>,
    labels: usize,
    l2: f64,
}

impl Problem {
    fn new(examples: &Labelled, chosen: &[usize], l2: f64) -> Problem {
        let width = examples.vectors.first().map_or(0, Vec::len);
        let count = chosen.len().max(1) as f64;
        let moments: Vec<(f64, f64)> = (0..width)
            .into_par_iter()
            .map(|column| {
                let values = || chosen.iter().map(|&at| f64::from(examples.vectors[at][column]));
                let mean = values().sum::<f64>() / count;
                let variance = values().map(|value| (value - mean) * (value - mean)).sum::<f64>() / count;
                // A number that is the same everywhere says nothing.
                (mean, if variance > 0.0 { variance.sqrt() } else { f64::INFINITY })
            })
            .collect();
        let standard = |&at: &usize| -> Vec<f32> {
            let values = examples.vectors[at].iter().zip(&moments);
            values.map(|(&value, (mean, deviation))| ((f64::from(value) - mean) / deviation) as f32).collect()
        };
        let vectors = chosen.par_iter().map(standard).collect();
        let classes = chosen.iter().map(|&at| examples.classes[at]).collect();
        Problem { moments, vectors, classes, labels: examples.labels.len(), l2 }
    }

    /// Numbers of a row: weights and the constant.
    fn row(&self) -> usize {
        self.moments.len() + 1
    }

    /// The loss at `weights`, and its gradient.
    fn loss(&self, weights: &[f64]) -> (f64, Vec<f64>) {
        let row = self.row();
        let task = |(vectors, classes): (&[Vec<f32>], &[usize])| {
            let (mut loss, mut gradient) = (0.0, vec![0.0; weights.len()]);
            for (vector, &class) in vectors.iter().zip(classes) {
                let scores = weights.chunks(row).map(|weights| dot(weights, vector) + weights[row - 1]);
                let probabilities = softmax(scores.collect());
                loss -= libm::log(probabilities[class].max(f64::MIN_POSITIVE));
                for (label, probability) in probabilities.into_iter().enumerate() {
                    let error = probability - f64::from(u8::from(label == class));
                    let part = &mut gradient[label * row..(label + 1) * row];
                    part.iter_mut().zip(vector).for_each(|(sum, &x)| *sum += error * f64::from(x));
                    part[row - 1] += error;
                }
            }
            (loss, gradient)
        };
        let tasks = self.vectors.par_chunks(TASK).zip(self.classes.par_chunks(TASK));
        let parts: Vec<(f64, Vec<f64>)> = tasks.map(task).collect();
        let (mut loss, mut gradient) = (0.0, vec![0.0; weights.len()]);
        for (part, its) in parts {
            loss += part;
            gradient.iter_mut().zip(its).for_each(|(sum, value)| *sum += value);
        }
        let count = self.vectors.len().max(1) as f64;
        loss /= count;
        for (at, (gradient, weight)) in gradient.iter_mut().zip(weights).enumerate() {
            *gradient /= count;
            // Constants are free.
            if at % row + 1 < row {
                *gradient += self.l2 * weight;
                loss += self.l2 / 2.0 * weight * weight;
            }
        }
        (loss, gradient)
    }

    /// The best weights, for vectors as they are.
    fn solve(&self) -> Vec<Vec<f64>> {
        let row = self.row();
        let weights = minimise(vec![0.0; row * self.labels], |weights| self.loss(weights));
        let plain = |standard: &[f64]| {
            let mut weights: Vec<f64> = standard
                .iter()
                .zip(&self.moments)
                .map(|(weight, (_, deviation))| weight / deviation)
                .collect();
            let shift: f64 = weights.iter().zip(&self.moments).map(|(weight, (mean, _))| weight * mean).sum();
            weights.push(standard[row - 1] - shift);
            weights
        };
        weights.chunks(row).map(plain).collect()
    }
}

/// The minimum of a smooth convex function that gives its value and gradient, from `at` on.
fn minimise(mut at: Vec<f64>, function: impl Fn(&[f64]) -> (f64, Vec<f64>)) -> Vec<f64> {
    let product = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(x, y)| x * y).sum() };
    let (mut value, mut gradient) = function(&at);
    let mut memory: Vec<(Vec<f64>, Vec<f64>, f64)> = Vec::new();
    for _ in 0..STEPS {
        if gradient.iter().all(|x| x.abs() <= TOLERANCE) {
            break;
        }
        let mut direction = gradient.clone();
        let mut factors = Vec::with_capacity(memory.len());
        for (step, change, curvature) in memory.iter().rev() {
            let factor = product(step, &direction) / curvature;
            direction.iter_mut().zip(change).for_each(|(d, c)| *d -= factor * c);
            factors.push(factor);
        }
        if let Some((_, change, curvature)) = memory.last() {
            let scale = curvature / product(change, change);
            direction.iter_mut().for_each(|d| *d *= scale);
        }
        for ((step, change, curvature), factor) in memory.iter().zip(factors.into_iter().rev()) {
            let back = product(change, &direction) / curvature;
            direction.iter_mut().zip(step).for_each(|(d, s)| *d += (factor - back) * s);
        }
        let slope = -product(&direction, &gradient);
        let mut length =
            if memory.is_empty() { 1.0 / product(&gradient, &gradient).sqrt().max(1.0) } else { 1.0 };
        let next = loop {
            let there: Vec<f64> = at.iter().zip(&direction).map(|(x, d)| x - length * d).collect();
            let (found, its) = function(&there);
            if found <= value + 1e-4 * length * slope {
                break Some((there, found, its));
            }
            length /= 2.0;
            if length < 1e-12 {
                break None;
            }
        };
        // What no step makes better is as good as numbers of 64 bits can say.
        let Some((there, found, its)) = next else { break };
        let step: Vec<f64> = there.iter().zip(&at).map(|(a, b)| a - b).collect();
        let change: Vec<f64> = its.iter().zip(&gradient).map(|(a, b)| a - b).collect();
        let curvature = product(&step, &change);
        if curvature > 1e-14 * product(&change, &change) {
            if memory.len() == MEMORY {
                memory.remove(0);
            }
            memory.push((step, change, curvature));
        }
        (at, value, gradient) = (there, found, its);
    }
    at
}
