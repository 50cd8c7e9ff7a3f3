//! What can be wrong with the files of a model.

use std::path::{Path, PathBuf};

use llamero_artifact::ArtifactError;

use crate::ConfigError;

/// What can be wrong with the files of a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightError {
    /// A file could not be read or written.
    #[error("`{}`: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// There is nothing that could be opened as a model.
    #[error("`{}`: {found}. hint: {hint}", path.display())]
    NotAModel {
        /// The path that was asked for.
        path: PathBuf,
        /// What is there.
        found: String,
        /// What to do.
        hint: String,
    },
    /// The file that describes the model is not what this reader understands.
    #[error("`{}`: {reason}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// The sizes do not fit together.
    #[error("`{}`: {source}", path.display())]
    Sizes {
        /// The file.
        path: PathBuf,
        /// Which, and why.
        source: ConfigError,
    },
    /// The model is none of the Llama family.
    #[error("`{}`: {found}; only models of the Llama family can be opened", path.display())]
    Architecture {
        /// The file.
        path: PathBuf,
        /// What says so, with its name.
        found: String,
    },
    /// The container of the weights is damaged or of another format.
    #[error("`{}`: not a readable {format} file: {reason}", path.display())]
    Container {
        /// The file.
        path: PathBuf,
        /// Name of the format.
        format: &'static str,
        /// What was found.
        reason: String,
    },
    /// A tensor is missing or not as the configuration says.
    #[error("`{}`: tensor `{tensor}` {reason}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// Name in the file.
        tensor: String,
        /// What was found and what was expected.
        reason: String,
    },
    /// A file could not be written.
    #[error(transparent)]
    Written(#[from] ArtifactError),
}

impl WeightError {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }

    pub(crate) fn config(path: &Path, reason: impl Into<String>) -> Self {
        Self::Config { path: path.into(), reason: reason.into() }
    }

    pub(crate) fn container(path: &Path, format: &'static str, reason: impl Into<String>) -> Self {
        Self::Container { path: path.into(), format, reason: reason.into() }
    }

    pub(crate) fn tensor(path: &Path, tensor: &str, reason: impl Into<String>) -> Self {
        Self::Tensor { path: path.into(), tensor: tensor.into(), reason: reason.into() }
    }
}
