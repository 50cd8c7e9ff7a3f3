//! The `[curate]` section of a recipe.

use serde::{Deserialize, Serialize};

use crate::CurateError;
use crate::dedup::MinHash;
use crate::dedup::lines::CommonLines;
use crate::source::REGISTRY;

/// Where the documents come from and which of them are kept. Every field changes the result.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct CurateConfig {
    /// Folders, files, globs, or the word `cargo-registry` for the sources of the crates that cargo has unpacked.
    pub sources: Vec<String>,
    /// Crate folders (`name-1.2.3`) that `cargo-registry` stands for; all that are there when absent. Naming them makes
    /// the corpus independent of what else is fetched later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crates: Option<Vec<String>>,
    /// A file above this size is dropped as `huge`, in bytes.
    pub max_document_bytes: u64,
    /// Kept text stops here, in bytes; whole sources are kept together.
    pub max_corpus_bytes: u64,
    /// A document with fewer characters is dropped as `too_short`.
    pub min_characters: u64,
    /// Above this share of control characters a file is `binary`.
    pub max_control_share: f64,
    /// Code with a longer line, in characters, is dropped as `long_lines`.
    pub max_code_line: u64,
    /// Code whose lines are longer on average, in characters, is dropped as `long_lines`.
    pub max_code_mean_line: u64,
    /// A longer run of ASCII without white space (base64, minified code) is `long_lines` in any domain, in characters.
    pub max_unbroken_run: u64,
    /// Below this share of letters among the characters that are not white space, a document is `low_letters`.
    pub min_letter_share: f64,
    /// Above this share of characters in lines seen before, a document is `repeated_lines`.
    pub max_repeated_share: f64,
    /// Drop code that says it was generated, as `generated`.
    pub drop_generated: bool,
    /// Keep one of documents that are nearly the same, by MinHash; the others are dropped as `near_duplicate`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub near_duplicates: Option<MinHash>,
    /// Take lines out that many documents share; a document with no other lines is dropped as `common_lines`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub common_lines: Option<CommonLines>,
}

impl Default for CurateConfig {
    fn default() -> Self {
        Self {
            sources: vec![REGISTRY.to_owned()],
            crates: None,
            max_document_bytes: 1 << 20,
            max_corpus_bytes: 64 << 20,
            min_characters: 64,
            max_control_share: 0.01,
            max_code_line: 5_000,
            max_code_mean_line: 160,
            max_unbroken_run: 2_000,
            min_letter_share: 0.3,
            max_repeated_share: 0.6,
            drop_generated: true,
            near_duplicates: None,
            common_lines: None,
        }
    }
}

/// Largest document allowed. A batch of text must stay below the 2 GiB that one Arrow string column can index.
const MAX_DOCUMENT_LIMIT: u64 = 256 << 20;

impl CurateConfig {
    /// Checks every value.
    ///
    /// # Errors
    /// [`CurateError::OutOfRange`] with the key, the value found and the allowed range.
    pub fn validate(&self) -> Result<(), CurateError> {
        if self.sources.is_empty() || self.sources.iter().any(|source| source.trim().is_empty()) {
            return Err(CurateError::OutOfRange {
                key: "sources",
                found: format!("{:?}", self.sources),
                allowed: format!(
                    "a list of one or more folders, files, globs or `{REGISTRY}`, none of them blank"
                ),
            });
        }
        integer("max_document_bytes", self.max_document_bytes, 1, MAX_DOCUMENT_LIMIT)?;
        // A corpus always has room for one document, so the cap alone can never empty it.
        integer("max_corpus_bytes", self.max_corpus_bytes, self.max_document_bytes, u64::MAX)?;
        integer("min_characters", self.min_characters, 0, self.max_document_bytes)?;
        integer("max_code_line", self.max_code_line, 1, u64::MAX)?;
        integer("max_code_mean_line", self.max_code_mean_line, 1, u64::MAX)?;
        integer("max_unbroken_run", self.max_unbroken_run, 1, u64::MAX)?;
        share("max_control_share", self.max_control_share)?;
        share("min_letter_share", self.min_letter_share)?;
        share("max_repeated_share", self.max_repeated_share)?;
        self.near_duplicates.as_ref().map_or(Ok(()), MinHash::validate)?;
        self.common_lines.as_ref().map_or(Ok(()), CommonLines::validate)
    }
}

fn integer(key: &'static str, found: u64, low: u64, high: u64) -> Result<(), CurateError> {
    if (low..=high).contains(&found) {
        return Ok(());
    }
    let allowed = if high == u64::MAX { format!("{low} or more") } else { format!("from {low} to {high}") };
    Err(CurateError::OutOfRange { key, found: found.to_string(), allowed })
}

fn share(key: &'static str, found: f64) -> Result<(), CurateError> {
    // NaN is in no range, so it is refused too.
    if (0.0..=1.0).contains(&found) {
        return Ok(());
    }
    Err(CurateError::OutOfRange { key, found: found.to_string(), allowed: "from 0 to 1".to_owned() })
}
