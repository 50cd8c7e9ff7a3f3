//! Training: stochastic gradient descent over the examples, one after another, so the bits never depend on threads.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::dictionary::{Dictionary, END, LABEL, Ngrams};
use super::matrix::Matrix;
use super::{FastText, Loss, Settings, softmax};
use crate::CurateError;

/// A text and its label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Example {
    /// The text.
    pub text: String,
    /// A word without white space.
    pub label: String,
}

/// How a classifier is trained. The defaults are fastText's, with fewer buckets and columns so that a model has some 26 MB.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Numbers of the hidden state.
    pub dim: u32,
    /// Passes over the examples.
    pub epochs: u32,
    /// Of the first step; it falls to 0 linearly.
    pub learning_rate: f32,
    /// Longest n-gram of words.
    pub word_ngrams: u32,
    /// Rows that n-grams are hashed into.
    pub buckets: u32,
    /// A word that is seen less often has no row of its own.
    pub min_count: u32,
    /// Of the initial values and of the order of the examples.
    pub seed: u64,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            dim: 32,
            epochs: 5,
            learning_rate: 0.1,
            word_ngrams: 2,
            buckets: 200_000,
            min_count: 1,
            seed: 0,
        }
    }
}

impl TrainConfig {
    /// Checks every value.
    ///
    /// # Errors
    /// [`CurateError::BadTraining`] with the key and what is allowed.
    pub fn validate(&self) -> Result<(), CurateError> {
        let wrong = |key: &str, found: &dyn std::fmt::Display, allowed: &str| {
            Err(CurateError::BadTraining { found: format!("`{key}` is `{found}`, but must be {allowed}") })
        };
        if !(1..=4096).contains(&self.dim) {
            return wrong("dim", &self.dim, "from 1 to 4096");
        }
        if !(1..=10_000).contains(&self.epochs) {
            return wrong("epochs", &self.epochs, "from 1 to 10000");
        }
        if !(self.learning_rate > 0.0 && self.learning_rate <= 10.0) {
            return wrong("learning_rate", &self.learning_rate, "above 0 and at most 10");
        }
        if !(1..=10).contains(&self.word_ngrams) {
            return wrong("word_ngrams", &self.word_ngrams, "from 1 to 10");
        }
        if self.buckets == 0 || self.buckets > i32::MAX as u32 {
            return wrong("buckets", &self.buckets, "from 1 to 2147483647");
        }
        if self.min_count == 0 {
            return wrong("min_count", &self.min_count, "1 or more");
        }
        Ok(())
    }
}

/// A number that looks random and depends on its two arguments alone (SplitMix64).
fn scramble(seed: u64, index: u64) -> u64 {
    let mut x = seed ^ index.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// Trains a classifier. `each_epoch` is told the number of the pass and its mean loss in nats.
///
/// # Errors
/// [`CurateError::BadTraining`]: a setting out of range, fewer than two labels, a label with white space.
pub fn train(
    examples: &[Example],
    config: &TrainConfig,
    mut each_epoch: impl FnMut(u32, f64),
) -> Result<FastText, CurateError> {
    config.validate()?;
    let dictionary = count(examples, config)?;
    let labels = dictionary.labels();
    let places: BTreeMap<&str, usize> = (0..labels).map(|label| (dictionary.label(label), label)).collect();
    let mut prepared = Vec::with_capacity(examples.len());
    for example in examples {
        let mut rows = Vec::new();
        dictionary.rows(&example.text, &mut rows);
        prepared.push((rows, places[example.label.as_str()]));
    }

    let dim = config.dim as usize;
    let rows = dictionary.words() + if config.word_ngrams > 1 { config.buckets as usize } else { 0 };
    let initial = |at: usize| {
        let unit = (scramble(config.seed, at as u64) >> 40) as f32 / (1 << 24) as f32;
        (2.0 * unit - 1.0) / dim as f32
    };
    let mut input: Vec<f32> = (0..rows * dim).map(initial).collect();
    let mut output = vec![0.0_f32; labels * dim];
    let steps = (examples.len() as u64 * u64::from(config.epochs)) as f64;
    let (mut hidden, mut gradient, mut scores) =
        (vec![0.0_f32; dim], vec![0.0_f32; dim], vec![0.0_f32; labels]);
    let mut step = 0_u64;
    for epoch in 0..config.epochs {
        let mut order: Vec<usize> = (0..prepared.len()).collect();
        let shuffle = config.seed ^ (u64::from(epoch) + 1).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        order.sort_by_key(|&at| (scramble(shuffle, at as u64), at));
        let mut loss = 0.0;
        for at in order {
            let (rows, label) = &prepared[at];
            let rate = config.learning_rate * (1.0 - step as f64 / steps) as f32;
            step += 1;
            if rows.is_empty() {
                continue;
            }
            let share = 1.0 / rows.len() as f32;
            hidden.fill(0.0);
            for &row in rows {
                let row = &input[row as usize * dim..][..dim];
                hidden.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
            }
            hidden.iter_mut().for_each(|value| *value *= share);
            for (score, row) in scores.iter_mut().zip(output.chunks_exact(dim)) {
                *score = row.iter().zip(&hidden).fold(0.0, |sum, (a, b)| sum + a * b);
            }
            softmax(&mut scores);
            loss -= f64::from(super::log(scores[*label]));
            gradient.fill(0.0);
            for (place, row) in output.chunks_exact_mut(dim).enumerate() {
                let push = rate * (f32::from(u8::from(place == *label)) - scores[place]);
                for column in 0..dim {
                    gradient[column] += push * row[column];
                    row[column] += push * hidden[column];
                }
            }
            gradient.iter_mut().for_each(|value| *value *= share);
            for &row in rows {
                let row = &mut input[row as usize * dim..][..dim];
                row.iter_mut().zip(&gradient).for_each(|(value, push)| *value += push);
            }
        }
        each_epoch(epoch + 1, loss / prepared.len() as f64);
    }
    Ok(FastText {
        dictionary,
        loss: Loss::Softmax,
        input: Matrix::Dense { columns: dim, values: input },
        output: Matrix::Dense { columns: dim, values: output },
        tree: None,
        settings: Settings {
            dim: config.dim,
            epochs: config.epochs as i32,
            min_count: config.min_count as i32,
            learning_rate_update: 100,
        },
    })
}

/// The words and labels of the examples, the most frequent first, equal counts by their bytes.
fn count(examples: &[Example], config: &TrainConfig) -> Result<Dictionary, CurateError> {
    let mut words: BTreeMap<&[u8], i64> = BTreeMap::new();
    let mut labels: BTreeMap<&str, i64> = BTreeMap::new();
    for example in examples {
        if example.label.is_empty() || example.label.contains(|c: char| c.is_whitespace() || c == '\0') {
            let found = format!("label `{}` is empty or has white space", example.label.escape_debug());
            return Err(CurateError::BadTraining { found });
        }
        *labels.entry(&example.label).or_default() += 1;
        let split = example.text.as_bytes().split(|&byte| matches!(byte, 0 | b' ' | b'\t'..=b'\r'));
        for word in split.filter(|word| !word.is_empty()) {
            *words.entry(word).or_default() += 1;
        }
        *words.entry(END).or_default() += 1;
    }
    if labels.len() < 2 {
        let found = format!(
            "{} examples with {} labels; two labels at least are needed",
            examples.len(),
            labels.len()
        );
        return Err(CurateError::BadTraining { found });
    }
    let tokens = words.values().sum();
    let by_count = |entries: &mut Vec<(Box<[u8]>, i64)>| {
        entries.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    };
    let mut entries: Vec<(Box<[u8]>, i64)> = words
        .into_iter()
        .filter(|&(word, count)| count >= i64::from(config.min_count) && !word.starts_with(LABEL.as_bytes()))
        .map(|(word, count)| (word.into(), count))
        .collect();
    by_count(&mut entries);
    let mut names: Vec<(Box<[u8]>, i64)> = labels
        .into_iter()
        .map(|(label, count)| (format!("{LABEL}{label}").into_bytes().into_boxed_slice(), count))
        .collect();
    by_count(&mut names);
    let known = entries.len();
    entries.extend(names);
    let shape = Ngrams { words: config.word_ngrams, min_piece: 0, max_piece: 0, buckets: config.buckets };
    Ok(Dictionary::new(entries, known, tokens, shape))
}
