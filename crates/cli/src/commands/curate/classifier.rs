//! `llamero curate train-classifier`.

use std::path::PathBuf;

use anyhow::{Result, anyhow};
use clap::Args;
use llamero_curate::quality::{Example, TrainConfig, cross_validate, read_examples, roc_auc, train};

use crate::commands::{print, print_json};

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    llamero curate train-classifier labels.jsonl --out quality.bin\n  \
    llamero curate train-classifier labels.jsonl --out quality.bin --positive good --folds 5 --test judged.jsonl --json")]
pub(crate) struct ClassifierArgs {
    /// Files with a JSON object a line: its `text`, and its `label`, a word.
    #[arg(required = true)]
    examples: Vec<PathBuf>,
    /// The model to write, in fastText's format `.bin`.
    #[arg(long)]
    out: PathBuf,
    /// Passes over the examples.
    #[arg(long, default_value_t = TrainConfig::default().epochs)]
    epochs: u32,
    /// Learning rate of the first step; it falls to 0.
    #[arg(long, default_value_t = TrainConfig::default().learning_rate)]
    learning_rate: f32,
    /// Numbers of the hidden state.
    #[arg(long, default_value_t = TrainConfig::default().dim)]
    dim: u32,
    /// Longest n-gram of words.
    #[arg(long, default_value_t = TrainConfig::default().word_ngrams)]
    word_ngrams: u32,
    /// Rows that n-grams are hashed into.
    #[arg(long, default_value_t = TrainConfig::default().buckets)]
    buckets: u32,
    /// Words that are seen less often have no row of their own.
    #[arg(long, default_value_t = TrainConfig::default().min_count)]
    min_count: u32,
    /// Of the initial values and of the order of the examples.
    #[arg(long, default_value_t = TrainConfig::default().seed)]
    seed: u64,
    /// The label whose probability is tested.
    #[arg(long)]
    positive: Option<String>,
    /// Print the ROC-AUC of cross-validation with so many parts.
    #[arg(long, requires = "positive")]
    folds: Option<usize>,
    /// Print the ROC-AUC on these examples, which are not trained on.
    #[arg(long, requires = "positive")]
    test: Option<PathBuf>,
    /// Print the results as JSON.
    #[arg(long)]
    json: bool,
}

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
    let model = train(&examples, &config, |epoch, loss| say!("epoch {epoch}: {loss:.4} nats"))?;
    model.save(&args.out)?;
    let labels: Vec<&str> = model.labels().collect();
    let mut result = serde_json::json!({ "examples": examples.len(), "labels": labels });
    if let Some(positive) = &args.positive {
        if !labels.contains(&positive.as_str()) {
            return Err(anyhow!("no example has the label `{positive}`; there are {}", labels.join(", ")));
        }
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
    if args.json {
        return print_json(&result);
    }
    print(format!("{} examples of {}: wrote `{}`", examples.len(), labels.join(", "), args.out.display()))?;
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

fn area(scores: &[(f64, bool)]) -> Result<serde_json::Value> {
    let area =
        roc_auc(scores).ok_or_else(|| anyhow!("no ROC-AUC: positives and negatives are both needed"))?;
    Ok(serde_json::to_value(area)?)
}
