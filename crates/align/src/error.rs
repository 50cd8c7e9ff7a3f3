//! What can go wrong in post-training.

use std::path::PathBuf;

use llamero_data::DataError;
use llamero_infer::InferError;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AlignError {
    /// The documents could not be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The model could not score.
    #[error(transparent)]
    Infer(#[from] InferError),
    /// The tokenizer has no chat format that can be learned.
    #[error(transparent)]
    Tokenizer(#[from] llamero_tokenizer::Error),
    /// A file could not be read or written.
    #[error("`{}`: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A line of a JSON Lines file is not what it should be.
    #[error("`{}` line {line}: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What was found.
        reason: String,
    },
    /// Too few documents to make instructions or questions from.
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
