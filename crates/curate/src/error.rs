//! The errors of this crate.

use std::path::PathBuf;

use crate::plan::BrokenPart;

/// Broken parts of inputs told in an error.
const MAX_TOLD: usize = 8;

/// The number of broken parts, and the first of them, whole inputs before others.
pub(crate) fn told(broken: &[BrokenPart]) -> String {
    let mut listed: Vec<_> = broken.iter().collect();
    listed.sort_by_key(|part| (!part.lost, *part));
    let listed: String = listed.iter().take(MAX_TOLD).map(|part| format!("\n  {part}")).collect();
    let count: u64 = broken.iter().map(|part| part.parts).sum();
    format!("{count} parts that cannot be read:{listed}")
}

/// What can go wrong in curation. Each message names the key or path, what was found, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CurateError {
    /// A recipe value is outside its range.
    #[error("`curate.{key}` is `{found}`, but must be {allowed}")]
    OutOfRange {
        /// Key inside the `[curate]` section.
        key: &'static str,
        /// The value found.
        found: String,
        /// The values allowed, in words.
        allowed: String,
    },
    /// A source names nothing that can be read as a folder, file or glob.
    #[error("source `{entry}` {problem}\nhint: {hint}")]
    BadSource {
        /// The entry of `curate.sources`.
        entry: String,
        /// What is wrong with it.
        problem: String,
        /// What to do.
        hint: String,
    },
    /// A source exists but holds no candidate file.
    #[error("source `{entry}` matches no file: {found}\nhint: {hint}")]
    NoMatch {
        /// The entry of `curate.sources`.
        entry: String,
        /// What was found instead.
        found: String,
        /// What to do.
        hint: String,
    },
    /// Every document was dropped.
    #[error(
        "all {count} {what} were dropped: {reasons}\nhint: point `curate.sources` at text or source code, or loosen the \
         rule of `[curate]` that drops what you want to keep"
    )]
    NothingKept {
        /// Number of files or documents read.
        count: u64,
        /// What they are called.
        what: &'static str,
        /// Count and name of each reason, most frequent first.
        reasons: String,
    },
    /// Nothing in the sources is a document.
    #[error(
        "the sources hold no documents, only {passed}\nhint: point `curate.sources` at inputs with text; `curate.read` reads \
         HTML and plain text out of WARC files"
    )]
    NoDocuments {
        /// Count and kind of what there is.
        passed: String,
    },
    /// Nothing is left for a draw of the mix.
    #[error(
        "the draw `{draw}` of the mix came out empty: {found}\nhint: look at its `require` and `proportions` in `[curate.mix]`; \
         tags are what the classifiers of the recipe give"
    )]
    EmptyDraw {
        /// Its name.
        draw: String,
        /// What falls short, in words.
        found: String,
    },
    /// There is no corpus to look at.
    #[error("`{}` {problem}\nhint: {hint}", path.display())]
    NoCorpus {
        /// The folder.
        path: PathBuf,
        /// What was found.
        problem: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// A file of a corpus is not as it was written.
    #[error("`{}` is damaged: {problem}\nhint: make the corpus again, with `llamero curate run`", path.display())]
    DamagedOutput {
        /// The file, or the folder where several do not agree.
        path: PathBuf,
        /// What was found, and in which line.
        problem: String,
    },
    /// A name fits several documents.
    #[error("`{name}` fits several documents, among them{documents}\nhint: give a whole id")]
    Ambiguous {
        /// The name.
        name: String,
        /// Some of the documents, one a line.
        documents: String,
    },
    /// No document was dropped for what is asked for.
    #[error("no document was dropped {wanted}\nhint: {there_is}")]
    NothingDropped {
        /// What is asked for, in words.
        wanted: String,
        /// Reasons with their counts, most frequent first, and steps with theirs, in order.
        there_is: String,
    },
    /// A file is not what it was when the inventory was taken.
    #[error("`{}` changed while it was being curated: {found}\nhint: run again once nothing writes to the source", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// What is different.
        found: String,
    },
    /// A plan does not hang together.
    #[error("the plan's `{name}` {problem}")]
    Plan {
        /// The task.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A function of a plan is not known, or its parameters do not fit.
    #[error("function `{name}`: {problem}")]
    Function {
        /// Its name.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// An input is broken. A runner counts it and goes on, unless it is told to stop.
    #[error("{0}")]
    BrokenInput(BrokenPart),
    /// A stage had no records where there must be some.
    #[error("`{stage}` came out empty{broken}\nhint: look at what the steps before it dropped")]
    EmptyOutput {
        /// The stage.
        stage: String,
        /// The broken parts of the inputs, with a separator before them; empty where there are none.
        broken: String,
    },
    /// The work folder belongs to something else.
    #[error("the work folder `{}` {problem}\nhint: {hint}", path.display())]
    Work {
        /// The folder.
        path: PathBuf,
        /// What was found.
        problem: String,
        /// What to do.
        hint: String,
    },
    /// A partition in the work folder cannot be used.
    #[error("the partition `{}` is damaged: {problem}\nhint: remove the work folder and run again", path.display())]
    Damaged {
        /// The partition's file.
        path: PathBuf,
        /// What was found.
        problem: String,
    },
    /// A cluster cannot be used.
    #[error("`{address}` {problem}\nhint: {hint}")]
    Cluster {
        /// The scheduler's address.
        address: String,
        /// What was found.
        problem: String,
        /// What to do.
        hint: String,
    },
    /// An error of an executor of a cluster, in its own words.
    #[error("{message}")]
    Remote {
        /// The words.
        message: String,
    },
    /// A record is not what a function expects.
    #[error("a record of `{what}` cannot be read: {problem}")]
    Record {
        /// What it should be.
        what: &'static str,
        /// What was found.
        problem: String,
    },
    /// A file of a filter or classifier cannot be read.
    #[error("cannot read `{}`: {cause}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause, with the line where there is one.
        cause: String,
    },
    /// A file is not the model it should be.
    #[error("`{}` cannot be used as a model: {found}\nhint: {hint}", path.display())]
    BadModel {
        /// The file.
        path: PathBuf,
        /// What was found.
        found: String,
        /// What to do.
        hint: String,
    },
    /// A setting of a filter.
    #[error("`{key}` is `{found}`, but must be {allowed}")]
    BadFilter {
        /// Filter and key.
        key: String,
        /// The value found.
        found: String,
        /// The values allowed, in words.
        allowed: String,
    },
    /// A classifier cannot be trained, or labels cannot be made.
    #[error("cannot train or label: {found}")]
    BadTraining {
        /// What was found and what is needed.
        found: String,
    },
    /// An output file cannot be written.
    #[error("cannot write `{}`: {cause}", path.display())]
    Write {
        /// The output file or folder.
        path: PathBuf,
        /// The cause, from the system or the Parquet writer.
        cause: String,
    },
}

impl CurateError {
    /// Wraps any failure to read `path`.
    pub(crate) fn read(path: &std::path::Path, cause: impl std::fmt::Display) -> Self {
        Self::Read { path: path.to_path_buf(), cause: cause.to_string() }
    }

    /// Wraps any failure to write `path`.
    pub(crate) fn write(path: &std::path::Path, cause: impl std::fmt::Display) -> Self {
        Self::Write { path: path.to_path_buf(), cause: cause.to_string() }
    }
}
