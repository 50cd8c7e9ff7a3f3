//! `llamero curate train-classifier`.

use std::path::PathBuf;

use anyhow::{Result, anyhow};
use clap::Args;
use llamero_curate::quality::{Example, TrainConfig, cross_validate, read_examples, roc_auc, train};

use super::head::HeadArgs;
use crate::commands::{print, print_json};

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    llamero curate train-classifier labels.jsonl --out quality.bin\n  \
    llamero curate train-classifier labels.jsonl --out quality.bin --positive good --folds 5 --test judged.jsonl --json\n  \
    llamero curate train-classifier labels.jsonl --model SmolLM2-135M-Instruct --out quality-head --positive good --folds 10\n\n\
    With `--model` the classifier is a linear layer over that model's hidden states, which are not trained: softmax regression over \
    their mean (or last one), with a penalty on squared weights that cross-validation chooses. OUT is then a folder. \
    Either is used by `[[curate.quality]]` of a recipe:\n\n  \
    [[curate.quality]]\n  \
    model = \"quality-head\"\n  \
    label = \"good\"\n  \
    min_probability = 0.3\n  \
    domains = [\"prose\"]")]
pub(crate) struct ClassifierArgs {
    /// Files with a JSON object a line: its `text`, and its `label`, a word.
    #[arg(required = true)]
    pub(super) examples: Vec<PathBuf>,
    /// What to write: a model in fastText's format `.bin`, or with `--model` a folder.
    #[arg(long)]
    pub(super) out: PathBuf,
    #[command(flatten)]
    pub(super) head: HeadArgs,
    /// Passes over the examples.
    #[arg(long, default_value_t = TrainConfig::default().epochs, conflicts_with = "model", allow_negative_numbers = true)]
    epochs: u32,
    /// Learning rate of the first step; it falls to 0.
    #[arg(long, default_value_t = TrainConfig::default().learning_rate, conflicts_with = "model", allow_negative_numbers = true)]
    learning_rate: f32,
    /// Numbers of the hidden state.
    #[arg(long, default_value_t = TrainConfig::default().dim, conflicts_with = "model", allow_negative_numbers = true)]
    dim: u32,
    /// Longest n-gram of words.
    #[arg(long, default_value_t = TrainConfig::default().word_ngrams, conflicts_with = "model", allow_negative_numbers = true)]
    word_ngrams: u32,
    /// Rows that n-grams are hashed into.
    #[arg(long, default_value_t = TrainConfig::default().buckets, conflicts_with = "model", allow_negative_numbers = true)]
    buckets: u32,
    /// Words that are seen less often have no row of their own.
    #[arg(long, default_value_t = TrainConfig::default().min_count, conflicts_with = "model", allow_negative_numbers = true)]
    min_count: u32,
    /// Of the initial values and of the order of the examples.
    #[arg(long, default_value_t = TrainConfig::default().seed, conflicts_with = "model", allow_negative_numbers = true)]
    seed: u64,
    /// The label whose probability is tested.
    #[arg(long)]
    pub(super) positive: Option<String>,
    /// Print the ROC-AUC of cross-validation with so many parts.
    #[arg(long, requires = "positive", allow_negative_numbers = true)]
    pub(super) folds: Option<usize>,
    /// Print the ROC-AUC on these examples, which are not trained on.
    #[arg(long, requires = "positive")]
    pub(super) test: Option<PathBuf>,
    /// Print the results as JSON.
    #[arg(long)]
    pub(super) json: bool,
}

/// A classifier has learnt something if its loss is below this share of that of guessing.
const LEARNT: f64 = 0.95;

pub(crate) fn train_classifier(args: &ClassifierArgs) -> Result<()> {
    let config = TrainConfig {
        dim: args.dim,
        epochs: args.epochs,
        learning_rate: args.learning_rate,
        word_ngrams: args.word_ngrams,
        buckets: args.buckets,
        min_count: args.min_count,
        seed: args.seed,
    };
    config.validate()?;
    let mut examples: Vec<Example> = Vec::new();
    for path in &args.examples {
        examples.extend(read_examples(path)?);
    }
    let tests = args.test.as_deref().map(read_examples).transpose()?;
    if let Some(model) = &args.head.model {
        return super::head::train(args, model, &examples, tests);
    }
    let mut last = 0.0;
    let model = train(&examples, &config, |epoch, loss| {
        say!("epoch {epoch}: {loss:.4} nats");
        last = loss;
    })?;
    model.save(&args.out)?;
    let labels: Vec<&str> = model.labels().collect();
    let guessing = (labels.len() as f64).ln();
    if last > LEARNT * guessing {
        say!(
            "warning: that is hardly less than guessing has, {guessing:.4}: all probabilities will be about {:.2}\n\
             hint: for {} examples give more `--epochs` (now {}) or a higher `--learning-rate` (now {})",
            1.0 / labels.len() as f64,
            examples.len(),
            args.epochs,
            args.learning_rate
        );
    }
    let mut result = serde_json::json!({ "examples": examples.len(), "labels": labels });
    if let Some(positive) = &args.positive {
        known(positive, &labels)?;
        if let Some(folds) = args.folds {
            result["cross_validation"] = area(&cross_validate(&examples, positive, folds, &config)?)?;
        }
        if let Some(tests) = tests {
            let score = |example: &Example| {
                let score = model.probability(&example.text, positive).unwrap_or(0.0);
                (f64::from(score), example.label == *positive)
            };
            result["test"] = area(&tests.iter().map(score).collect::<Vec<_>>())?;
        }
    }
    say_results(args, &result, &labels)
}

/// Prints what came out.
pub(super) fn say_results(args: &ClassifierArgs, result: &serde_json::Value, labels: &[&str]) -> Result<()> {
    if args.json {
        return print_json(result);
    }
    print(format!(
        "{} examples of {}: wrote `{}`",
        result["examples"],
        labels.join(", "),
        args.out.display()
    ))?;
    for (key, what) in [("cross_validation", "cross-validation"), ("test", "test")] {
        if let Some(area) = result.get(key) {
            let number = |key: &str| area[key].as_f64().unwrap_or_default();
            print(format!(
                "{what}: ROC-AUC {:.4} (95 %: {:.4} to {:.4})",
                number("auc"),
                number("low"),
                number("high")
            ))?;
        }
    }
    Ok(())
}

/// Refuses a label that no example has.
pub(super) fn known(positive: &str, labels: &[&str]) -> Result<()> {
    if labels.contains(&positive) {
        return Ok(());
    }
    Err(anyhow!("no example has the label `{positive}`; there are {}", labels.join(", ")))
}

pub(super) fn area(scores: &[(f64, bool)]) -> Result<serde_json::Value> {
    let area =
        roc_auc(scores).ok_or_else(|| anyhow!("no ROC-AUC: positives and negatives are both needed"))?;
    Ok(serde_json::to_value(area)?)
}
