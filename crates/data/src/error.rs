//! What can go wrong between curated text and training sequences.

use std::path::{Path, PathBuf};

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A file could not be read or written.
    #[error("`{}`: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A Parquet file is damaged or has other columns.
    #[error("`{}`: not a readable document table: {reason}", path.display())]
    Documents {
        /// The file.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// A token file or its index is damaged.
    #[error("`{}`: {reason}", path.display())]
    Store {
        /// The file.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// There is too little text to learn from.
    #[error("{found}\nhint: {hint}")]
    TooLittle {
        /// What was found.
        found: String,
        /// What to do.
        hint: String,
    },
    /// A value of the recipe is out of range.
    #[error("`{key}` is {found}, but must be {allowed}")]
    OutOfRange {
        /// Key in the recipe.
        key: &'static str,
        /// Its value.
        found: String,
        /// What would be valid.
        allowed: String,
    },
}

impl DataError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.into(), source }
    }

    pub(crate) fn store(path: &Path, reason: impl Into<String>) -> Self {
        Self::Store { path: path.into(), reason: reason.into() }
    }
}
