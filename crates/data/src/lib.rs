//! Tokens on disk and the order in which training reads them.
//!
//! [`documents`] reads curated Parquet, [`tokenize`] turns it into a [`TokenStore`] (flat token files with a document
//! index, memory-mapped), and [`Loader`] maps a global sequence number to a packed training sequence. The loader is a
//! pure function of (store, seed, sequence number): resuming is remembering one number, and how many ranks share the
//! work cannot change what is learned. [`NgramBaseline`] tells how much of a score counting alone would reach.

mod baseline;
pub mod documents;
mod error;
mod loader;
mod order;
mod store;
mod tokenize;

pub use baseline::NgramBaseline;
pub use documents::{Document, Domain};
pub use error::DataError;
pub use loader::{Batch, Loader, Place, Sequence};
pub use order::{hash_fraction, shuffled};
pub use store::{DocumentEntry, TokenStore, TokenWriter};
pub use tokenize::{DataConfig, TokenizeReport, tokenize};
