//! Deduplication as maps and reduces.
//!
//! Duplicates are found on [`Sketch`]es: hashes, and a label that says which of two documents survives. Every kind of
//! duplicate is one group after a shuffle, the first label of a group survives, and the others get a verdict that names it.
//! Kinds follow one another: what one has dropped no later one sees, so nothing is dropped for a document that is gone.
//! At the end the verdicts meet the documents.
//!
//! | kind | group | stages |
//! |---|---|---|
//! | URL | normalised URL | [`url`] |
//! | exact | hash of the normalised text | [`exact`] |
//! | near | bands of a MinHash signature, joined to connected components | [`minhash`], [`components`] |
//! | lines | equal lines in a bucket of documents; the lines are dropped | [`lines`] |
//! | semantic | embeddings near one another in a cluster | [`semantic`] |

pub mod components;
pub mod exact;
mod given;
mod label;
pub mod lines;
pub mod minhash;
pub mod semantic;
#[cfg(test)]
mod tests;
pub mod url;
mod verdict;

pub(crate) use label::VERSION;
pub use label::{id_of, label, newness};
pub use minhash::MinHash;
pub(crate) use minhash::is_word_alone;
pub use verdict::Verdicts;

use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_128;

use crate::CurateError;
use crate::item::{Sketch, Value};
use crate::plan::{Emit, Map, Registry, Step};

/// Registers everything that dedup plans name.
pub(crate) fn register(registry: &mut Registry) {
    registry.map("sketch", |found, _| {
        let wanted: SketchOf = crate::plan::parameters("sketch", found)?;
        if let Some(minhash) = &wanted.minhash {
            minhash.validate()?;
        }
        let signer = wanted.minhash.as_ref().map(minhash::Signer::new);
        Ok(Box::new(Sketcher { wanted, signer }))
    });
    verdict::register(registry);
    url::register(registry);
    exact::register(registry);
    minhash::register(registry);
    components::register(registry);
    lines::register(registry);
    semantic::register(registry);
}

/// What the map `sketch` works out.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct SketchOf {
    /// Hashes the URL.
    pub url: bool,
    /// Hashes the text.
    pub text: bool,
    /// Signs the text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minhash: Option<MinHash>,
}

impl SketchOf {
    /// The step that turns items into sketches of the kept ones.
    ///
    /// # Errors
    /// None in practice.
    pub fn step(&self) -> Result<Step, CurateError> {
        Step::with("sketch", self)
    }
}

struct Sketcher {
    wanted: SketchOf,
    signer: Option<minhash::Signer>,
}

impl Map for Sketcher {
    fn map(&self, key: &[u8], value: &[u8], emit: &mut Emit) -> Result<(), CurateError> {
        let Some(item) = Value::document(value)?.filter(|item| item.dropped.is_none()) else {
            return Ok(());
        };
        let document = &item.document;
        let url = if self.wanted.url { url::normalise(&document.url) } else { None };
        let sketch = Sketch {
            label: label(&newness(document), key),
            url: url.map(|url| hash(url.as_bytes())).unwrap_or_default(),
            text: if self.wanted.text { exact::fingerprint(&document.text) } else { Vec::new() },
            bands: self.signer.as_ref().map(|signer| signer.bands(&document.text)).unwrap_or_default(),
            source: blake3::hash(document.source.as_bytes()).as_bytes().to_vec(),
            bytes: document.text.len() as u64,
        };
        emit(key, &Value::Sketch(sketch).encode()?)
    }
}

/// 128 bits of a text, as a key.
fn hash(bytes: &[u8]) -> Vec<u8> {
    XxHash3_128::oneshot(bytes).to_be_bytes().to_vec()
}
