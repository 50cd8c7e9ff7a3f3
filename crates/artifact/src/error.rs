//! What can go wrong, said with the path, key or file and what was found there.

use std::io;
use std::path::{Path, PathBuf};

/// The crate's result.
pub type Result<T, E = ArtifactError> = std::result::Result<T, E>;

/// Every way in which opening, building or publishing an artifact fails.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArtifactError {
    /// A file operation failed.
    #[error("cannot {doing} `{path}`: {source}")]
    Io {
        /// The operation, as a verb: `read`, `write`, `rename` …
        doing: &'static str,
        /// The file or folder it was for.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The disk, or the user's quota of it, is full.
    #[error("disk full: cannot {doing} `{path}` ({source}); nothing unfinished is taken as done")]
    DiskFull {
        /// The operation, as a verb.
        doing: &'static str,
        /// The file or folder it was for.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The artifact was begun and never finished.
    #[error("artifact `{path}` is unfinished: {found}. hint: run the same recipe again, it resumes")]
    Unfinished {
        /// The artifact's folder.
        path: PathBuf,
        /// How far it got.
        found: String,
    },
    /// A folder without a manifest or a draft beside it.
    #[error(
        "`{path}` is no finished artifact: it holds {files} files or folders but no {}. \
         hint: an artifact is the folder of a run's stage, such as `RUN/sft`; a stage that was damaged is made anew by its recipe",
        crate::MANIFEST
    )]
    NoManifest {
        /// The folder.
        path: PathBuf,
        /// How many entries it has.
        files: usize,
    },
    /// There is no artifact at this path.
    #[error("no artifact at `{path}`: {found}")]
    NotAnArtifact {
        /// The path that was asked for.
        path: PathBuf,
        /// What is there.
        found: String,
    },
    /// The artifact is of another kind than the one asked for.
    #[error("artifact `{path}` is of kind `{found}`, expected `{expected}`")]
    WrongKind {
        /// The artifact's folder.
        path: PathBuf,
        /// The kind asked for.
        expected: String,
        /// The kind in its manifest.
        found: String,
    },
    /// A file's bytes are not those that were written.
    #[error("`{path}` is damaged: its blake3 is `{found}`, expected `{expected}`. {REBUILD}")]
    HashMismatch {
        /// The damaged file.
        path: PathBuf,
        /// The hash in the manifest.
        expected: String,
        /// The hash of the bytes on disk.
        found: String,
    },
    /// A file of the artifact is gone.
    #[error("`{path}` is missing: its manifest lists it with {expected} bytes. {REBUILD}")]
    MissingFile {
        /// The file.
        path: PathBuf,
        /// Its size in the manifest, in bytes.
        expected: u64,
    },
    /// A file of the artifact has another size than when it was finished.
    #[error("`{path}` has {found} bytes, expected {expected}. {REBUILD}")]
    WrongSize {
        /// The file.
        path: PathBuf,
        /// Its size in the manifest, in bytes.
        expected: u64,
        /// Its size on disk, in bytes.
        found: u64,
    },
    /// A file was asked for that the manifest does not list.
    #[error("artifact `{path}` has no file `{file}`; it has {has}")]
    NotListed {
        /// The artifact's folder.
        path: PathBuf,
        /// The name asked for.
        file: String,
        /// The names it has.
        has: String,
    },
    /// The manifest cannot be understood.
    #[error("`{path}` is not a valid manifest: {found}. {REBUILD}")]
    BadManifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong with it.
        found: String,
    },
    /// A draft cannot be finished as it stands.
    #[error("cannot finish `{path}`: {found}")]
    BadDraft {
        /// The draft's folder, or the offending path in it.
        path: PathBuf,
        /// What is wrong with it.
        found: String,
    },
    /// Something that is not an artifact lies where a stage wants to write.
    #[error("`{path}` is in the way: {found}. hint: move it, or choose another run folder")]
    InTheWay {
        /// The path.
        path: PathBuf,
        /// What is there.
        found: String,
    },
    /// Another process works in the run folder.
    #[error("run folder `{path}` is in use by {holder}. hint: wait for it, or choose another run folder")]
    Locked {
        /// The run folder.
        path: PathBuf,
        /// Who holds it.
        holder: String,
    },
    /// A stage was begun in a run folder that was opened for reading.
    #[error("run folder `{path}` is open for reading only: cannot begin stage `{stage}`")]
    ReadOnly {
        /// The run folder.
        path: PathBuf,
        /// The stage.
        stage: String,
    },
    /// A stage name that cannot be a folder name of its own.
    #[error("stage name `{name}` must be letters, digits, `-` and `_`")]
    BadStageName {
        /// The name.
        name: String,
    },
    /// The recipe is at fault.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
}

const REBUILD: &str = "hint: run the recipe that made it again, it rebuilds what is damaged";

impl ArtifactError {
    /// Wraps an I/O error with what was being done (a verb) and to which path; a full disk becomes [`Self::DiskFull`].
    pub fn io(doing: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::DiskFull { doing, path, source }
            }
            _ => Self::Io { doing, path, source },
        }
    }

    /// Whether a finished artifact's bytes are not what was written: its stage can make it anew. False for what no
    /// rebuilding heals, such as a file that the system will not read.
    pub fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::HashMismatch { .. }
                | Self::MissingFile { .. }
                | Self::WrongSize { .. }
                | Self::BadManifest { .. }
        )
    }
}

/// Every way in which a recipe, or a `--set`, is wrong.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RecipeError {
    /// The file is not TOML, or not a recipe.
    #[error("`{file}` line {line}, column {column}{}: {message}", in_key(key))]
    Parse {
        /// The recipe file.
        file: String,
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
        /// The full dotted key, empty at the top of the file.
        key: String,
        /// What was found, and for an unknown key the ones allowed.
        message: String,
    },
    /// A `--set` that is not `key=value`.
    #[error("`--set {set}`: {message}")]
    SetSyntax {
        /// The argument as given.
        set: String,
        /// What is wrong with it.
        message: String,
    },
    /// A `--set` with a key or a value that the recipe does not allow.
    #[error("`--set {set}`{}: {message}", in_key(key))]
    Set {
        /// The argument as given.
        set: String,
        /// The full dotted key.
        key: String,
        /// What was found, and for an unknown key the ones allowed.
        message: String,
    },
    /// A value outside what its key allows.
    #[error("recipe key `{key}` is `{found}`, allowed is {allowed}")]
    OutOfRange {
        /// The full dotted key.
        key: String,
        /// The value found.
        found: String,
        /// The values allowed, in words.
        allowed: String,
    },
    /// A recipe that cannot be written as TOML.
    #[error("recipe cannot be written as TOML: {message}")]
    Write {
        /// What the writer said.
        message: String,
    },
}

impl RecipeError {
    /// The error of a value outside what its key allows: dotted key, value found, what is allowed in words.
    pub fn out_of_range(
        key: impl Into<String>,
        found: impl std::fmt::Display,
        allowed: impl Into<String>,
    ) -> Self {
        Self::OutOfRange { key: key.into(), found: found.to_string(), allowed: allowed.into() }
    }
}

fn in_key(key: &str) -> String {
    if key.is_empty() { String::new() } else { format!(", key `{key}`") }
}
