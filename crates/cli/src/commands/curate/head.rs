//! `llamero curate train-classifier --model`: a classifier on top of one of our own models.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use llamero_artifact::fsutil;
use llamero_curate::encoder::{CLASSIFIER_FILE, Pooling, Precision};
use llamero_curate::quality::{Example, Labelled, cross_validate_head, roc_auc, train_head};
use llamero_curate::{Embed, Encoder, model_hash};
use llamero_infer::resolve_model;

use super::classifier::{ClassifierArgs, area, known, say_results};
use crate::commands::folder::{may_write, new_folder};
use crate::progress::Progress;
use crate::{DtypeArg, encoders};

#[derive(Args)]
pub(super) struct HeadArgs {
    /// The language model to train on top of: what `llamero generate` opens.
    #[arg(long)]
    pub(super) model: Option<PathBuf>,
    /// How the hidden states of a text become one vector: their mean over its tokens, or the last one.
    #[arg(long, value_enum, default_value_t = PoolingArg::Mean, requires = "model")]
    pooling: PoolingArg,
    /// Most tokens that the model reads together; longer texts are read in windows of like length, and their vector is the mean
    /// over them.
    #[arg(long, default_value_t = Encoder::WINDOW, requires = "model", value_parser = clap::value_parser!(u32).range(1..), allow_negative_numbers = true)]
    window: u32,
    /// Tokens of a text that count, from its first on; all when absent.
    #[arg(long, requires = "model", value_parser = clap::value_parser!(u32).range(1..), allow_negative_numbers = true)]
    max_tokens: Option<u32>,
    /// The penalty on squared weights, of standardised vectors; by cross-validation when absent.
    #[arg(long, requires = "model", value_parser = penalty, allow_negative_numbers = true)]
    l2: Option<f64>,
    /// What the model computes in; f32 gives the same vectors on every processor.
    #[arg(long, value_enum, default_value_t = DtypeArg::F32, requires = "model")]
    dtype: DtypeArg,
    /// Threads that the model computes with; all cores when absent.
    #[arg(long, requires = "model", value_parser = crate::machine::parse_threads, allow_negative_numbers = true)]
    threads: Option<usize>,
    /// Replace the folder at OUT.
    #[arg(long, requires = "model")]
    force: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum PoolingArg {
    Mean,
    Last,
}

fn penalty(text: &str) -> Result<f64, String> {
    let found = text.parse().ok().filter(|l2: &f64| *l2 > 0.0 && l2.is_finite());
    found.ok_or_else(|| "it is not a number above 0".to_owned())
}

/// Trains a head on the hidden states of `model`, and writes its folder.
pub(super) fn train(
    args: &ClassifierArgs,
    model: &Path,
    examples: &[Example],
    tests: Option<Vec<Example>>,
) -> Result<()> {
    may_write(&args.out, args.head.force, "classifier", |name| name == CLASSIFIER_FILE)?;
    let encoder = encoder(&args.head, model)?;
    let embed = encoders::open(&encoder, args.head.threads)?;
    let started = Instant::now();
    let labels: Vec<String> = examples.iter().map(|example| example.label.clone()).collect();
    let labelled = Labelled::new(vectors(&*embed, examples, "example")?, &labels)?;
    let embed_seconds = started.elapsed().as_secs_f64();
    let names: Vec<&str> = labelled.labels.iter().map(String::as_str).collect();
    if let Some(positive) = &args.positive {
        known(positive, &names)?;
    }
    let mut head = train_head(&encoder, &labelled, args.head.l2)?;
    let mut result = serde_json::json!({
        "examples": examples.len(), "labels": names, "l2": head.l2, "embed_seconds": embed_seconds,
        "model_hash": encoder.hash,
    });
    if let Some(positive) = &args.positive {
        if let Some(folds) = args.folds {
            let scores = cross_validate_head(&labelled, positive, folds, args.head.l2)?;
            result["cross_validation"] = area(&scores)?;
            head.cross_validation = roc_auc(&scores);
        }
        if let Some(tests) = tests {
            let class = names.iter().position(|name| name == positive).unwrap_or_default();
            let vectors = vectors(&*embed, &tests, "test example")?;
            let scores = tests
                .iter()
                .zip(vectors)
                .map(|(example, vector)| (head.probabilities(&vector)[class], example.label == *positive));
            result["test"] = area(&scores.collect::<Vec<_>>())?;
        }
    }
    new_folder(&args.out, "name a new folder", |folder| {
        Ok(fsutil::write_atomic(&folder.join(CLASSIFIER_FILE), &head.to_json()?)?)
    })?;
    say_results(args, &result, &names)
}

/// The model as the head will know it: where it is and what it is.
fn encoder(args: &HeadArgs, model: &Path) -> Result<Encoder> {
    crate::commands::no_preset(model)?;
    let folder = resolve_model(model)?;
    let folder = std::path::absolute(&folder).with_context(|| format!("`{}`", folder.display()))?;
    Ok(Encoder {
        hash: Some(model_hash(&folder)?),
        pooling: match args.pooling {
            PoolingArg::Mean => Pooling::Mean,
            PoolingArg::Last => Pooling::Last,
        },
        window: args.window,
        max_tokens: args.max_tokens,
        precision: match args.dtype {
            DtypeArg::Auto => Precision::Auto,
            DtypeArg::F32 => Precision::F32,
            DtypeArg::Bf16 => Precision::Bf16,
        },
        model: folder,
    })
}

/// The vector of every example.
fn vectors(embed: &dyn Embed, examples: &[Example], what: &str) -> Result<Vec<Vec<f32>>> {
    let progress = Progress::new("embed", examples.len() as u64, "examples");
    let vector = |(at, example): (usize, &Example)| {
        progress.at(at as u64, "");
        embed.embed(&example.text)?.with_context(|| {
            format!(
                "{what} {} has no text that the model has tokens for: `{}`\nhint: take it out",
                at + 1,
                example.text.chars().take(40).collect::<String>()
            )
        })
    };
    let vectors = examples.iter().enumerate().map(vector).collect();
    progress.finish();
    vectors
}
