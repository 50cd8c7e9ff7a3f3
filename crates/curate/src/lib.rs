//! Curation: from folders of files to a clean corpus of documents.
//!
//! [`inventory`] finds and hashes every candidate file and gives the input an id that depends on content and on paths below
//! the source, never on where the source lies on this machine. [`plan()`] turns the recipe into a plan of maps, shuffles and
//! reduces ([`plan`](mod@plan)): filters judge documents one by one, dedups group small sketches of them ([`dedup`]), and at
//! the end all verdicts meet the documents. [`curate`] runs the plan on this machine ([`local`]), or on a cluster with the
//! feature `ballista` (`cluster`), and writes three files:
//!
//! - `documents.parquet`: the kept documents, sorted by id ([`COLUMNS`]);
//! - `dropped.jsonl`: every dropped document with its reason ([`DroppedRecord`]), sorted by id;
//! - `report.json`: the counts ([`CurateReport`]).
//!
//! The three files depend on the recipe and the inventory alone: not on threads, partitions, file order, time or machine
//! paths, nor on the machines that the plan is run on.

pub mod audit;
#[cfg(feature = "ballista")]
pub mod cluster;
mod config;
pub mod contamination;
mod date;
pub mod dedup;
mod document;
pub mod domain;
pub mod encoder;
mod error;
pub mod extract;
pub mod fasttext;
mod files;
pub mod filter;
mod inputs;
mod inventory;
mod item;
pub mod language;
pub mod local;
pub mod mix;
mod output;
mod pipeline;
pub mod plan;
pub mod quality;
pub mod read;
mod rules;
mod source;
#[cfg(test)]
mod tests;
mod version;

pub use config::{CurateConfig, UrlDuplicates};
pub use document::{Document, Dropped, Filter};
pub use domain::DOMAINS;
pub use encoder::{Embed, Encoder, model_hash};
pub use error::CurateError;
pub use extract::{Article, Extract, Extracted, Extraction};
pub use inputs::{OWN_ID, in_corpus};
pub use inventory::{Inventory, SourceFile, inventory};
pub use item::{FILTERS, Item, Sketch, Value, decode, encode};
pub use mix::{MixConfig, MixReport};
pub use output::{BROKEN_FILE, COLUMNS, DOCUMENTS_FILE, DROPPED_FILE, DroppedRecord, MIX_FILE, REPORT_FILE};
pub use pipeline::{
    BeforeAfter, BrokenParts, Cluster, CurateReport, DroppedTally, Duplicates, Estimate, Example, Origin,
    Origins, Passage, READ_SOURCE, RunOptions, SOURCE, Tally, build_source, curate, curate_by, curate_with,
    estimate, plan, registry, source,
};
pub use source::{REGISTRY, registry_crates};

/// Told how far a stage has come. `()` listens to nothing.
///
/// It is called from many threads at once and must not block.
pub trait Progress: Sync {
    /// A new phase begins; it will handle about `total_bytes` bytes.
    fn phase(&self, name: &str, total_bytes: u64);
    /// `bytes` more bytes of the current phase are done.
    fn advance(&self, bytes: u64);
    /// `done` of `total` partitions of the current phase are finished.
    fn partition(&self, done: u64, total: u64) {
        let _ = (done, total);
    }
}

impl Progress for () {
    fn phase(&self, _name: &str, _total_bytes: u64) {}
    fn advance(&self, _bytes: u64) {}
}
