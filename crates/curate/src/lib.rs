//! Curation: from folders of files to a clean corpus of documents.
//!
//! Two steps. [`inventory`] finds and hashes every candidate file and gives the input an id that depends on content
//! and on paths below the source, never on where the source lies on this machine. [`curate`] reads the files, drops
//! what the rules reject, keeps one of each group of equal documents, and writes three files:
//!
//! - `documents.parquet`: the kept documents, sorted by id ([`COLUMNS`]);
//! - `dropped.jsonl`: every dropped document with its reason ([`DroppedRecord`]), sorted by id;
//! - `report.json`: the counts ([`CurateReport`]).
//!
//! The three files depend on the recipe and the inventory alone: not on threads, file order, time or machine paths.

mod config;
pub mod contamination;
mod corpus;
mod document;
mod error;
pub mod fasttext;
pub mod filter;
mod inventory;
pub mod language;
mod output;
pub mod quality;
mod rules;
mod source;
#[cfg(test)]
mod tests;
mod version;

pub use config::CurateConfig;
pub use corpus::{CurateReport, DroppedTally, Tally, curate};
pub use document::{Document, Dropped, Filter};
pub use error::CurateError;
pub use inventory::{Inventory, SourceFile, inventory};
pub use output::{COLUMNS, DOCUMENTS_FILE, DROPPED_FILE, DroppedRecord, REPORT_FILE};
pub use source::{REGISTRY, registry_crates};

/// Told how far a stage has come. `()` listens to nothing.
///
/// It is called from many threads at once and must not block.
pub trait Progress: Sync {
    /// A new phase begins; it will handle about `total_bytes` bytes.
    fn phase(&self, name: &str, total_bytes: u64);
    /// `bytes` more bytes of the current phase are done.
    fn advance(&self, bytes: u64);
}

impl Progress for () {
    fn phase(&self, _name: &str, _total_bytes: u64) {}
    fn advance(&self, _bytes: u64) {}
}
