//! Stage folders that are finished or absent, and the recipes that make them.
//!
//! A stage is a function of a recipe section and its input artifacts to one folder. The folder is built as
//! `NAME.partial/`; [`Draft::finish`] hashes every file, writes `manifest.json` last and renames the folder to
//! `NAME/`. A folder that can be opened is therefore whole, whatever was killed and whenever.
//!
//! The identity of an artifact ([`StageKey::id`]) is a hash of what determines its bytes: kind, schema, recipe and
//! the ids of its inputs. [`RunDir::begin`] skips a stage whose id is already there, resumes a draft of the same id,
//! and rebuilds otherwise, keeping the older artifact until the new one is complete.
//!
//! ```
//! use llamero_artifact::{Begin, Outcome, RunDir, StageKey};
//!
//! # fn main() -> llamero_artifact::Result<()> {
//! # let tmp = tempfile::tempdir().unwrap();
//! # let path = tmp.path().join("run");
//! let run = RunDir::create(&path)?;
//! let key = StageKey { kind: "words".into(), schema: 1, recipe: serde_json::json!({"n": 2}), inputs: vec![] };
//! let words = match run.begin("words", &key)? {
//!     Begin::Done(artifact) => artifact,
//!     Begin::Work(draft) => {
//!         llamero_artifact::fsutil::write_atomic(&draft.path().join("words.txt"), b"two words")?;
//!         draft.finish(Outcome::default())?
//!     }
//! };
//! words.verify()?;
//! assert!(matches!(run.begin("words", &key)?, Begin::Done(_)));
//! # Ok(())
//! # }
//! ```

mod artifact;
mod error;
mod failpoint;
pub mod fsutil;
mod key;
mod lineage;
mod manifest;
mod mapped;
pub mod recipe;
mod run;
#[cfg(test)]
mod tests;

pub use artifact::Artifact;
pub use error::{ArtifactError, RecipeError, Result};
pub use key::{InputRef, StageKey, canonical_json, fingerprint};
pub use lineage::{Lineage, why};
pub use manifest::{FileEntry, MANIFEST, Manifest, Provenance};
pub use mapped::MappedFile;
pub use run::{Begin, Draft, Outcome, Reason, RunDir, WORK_STATE};
