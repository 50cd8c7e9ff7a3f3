//! `llamero curate`: the curation of a recipe, what came of it, and its steps one by one on files given by hand.

mod classifier;
mod cluster;
mod extract;
mod hash_eval;
mod head;
mod label;
mod lang;
mod report;
mod run;
mod sample;
mod why_dropped;
mod words;

use anyhow::Result;
use clap::Subcommand;

#[derive(Subcommand)]
pub(crate) enum CurateCommand {
    /// Make the corpus of a recipe.
    Run(run::RunArgs),
    /// Start the scheduler of a cluster that curates.
    Scheduler(cluster::SchedulerArgs),
    /// Start an executor of a cluster that curates.
    Executor(cluster::ExecutorArgs),
    /// Write a page of what a curation kept and dropped.
    Report(report::ReportArgs),
    /// What became of a document, and why.
    WhyDropped(why_dropped::WhyDroppedArgs),
    /// Draw dropped or kept documents at random.
    Sample(sample::SampleArgs),
    /// The text of web pages, as curation sees it.
    Extract(extract::ExtractArgs),
    /// The language of a text, or of each of its lines.
    Lang(lang::LangArgs),
    /// Train a classifier of quality, topic or kind from labelled examples.
    TrainClassifier(classifier::ClassifierArgs),
    /// Label documents by a model's judgement, to train a classifier from.
    Label(label::LabelArgs),
    /// Hash an evaluation set, so that it can be kept out of a corpus without being shown.
    HashEval(hash_eval::HashEvalArgs),
}

pub(crate) fn curate(command: &CurateCommand) -> Result<()> {
    match command {
        CurateCommand::Run(args) => run::run(args),
        CurateCommand::Scheduler(args) => cluster::scheduler(args),
        CurateCommand::Executor(args) => cluster::executor(args),
        CurateCommand::Report(args) => report::report(args),
        CurateCommand::WhyDropped(args) => why_dropped::why_dropped(args),
        CurateCommand::Sample(args) => sample::sample(args),
        CurateCommand::Extract(args) => extract::extract(args),
        CurateCommand::Lang(args) => lang::lang(args),
        CurateCommand::TrainClassifier(args) => classifier::train_classifier(args),
        CurateCommand::Label(args) => label::label_documents(args),
        CurateCommand::HashEval(args) => hash_eval::hash_eval(args),
    }
}
