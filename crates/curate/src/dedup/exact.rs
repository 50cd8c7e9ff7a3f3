//! Exact duplicates: one of all documents with the same normalised text.

use serde::{Deserialize, Serialize};

use super::Verdicts;
use super::verdict::First;
use crate::CurateError;
use crate::item::Value;
use crate::plan::{Emit, Input, Map, Registry, Step};

pub(super) fn register(registry: &mut Registry) {
    registry.map_of::<TextKey>("text-key");
}

/// Appends the stage `exact`; sketches must have their text hash.
///
/// # Errors
/// None in practice.
pub fn append(verdicts: &mut Verdicts) -> Result<(), CurateError> {
    let left = verdicts.left("exact");
    let first =
        First { reason: "exact_duplicate".to_owned(), detail: "the same text is kept once".to_owned() };
    let input = Input::through(&left, vec![Step::new("text-key")]);
    verdicts.plan().stage("exact", vec![input], Some(Step::with("first", &first)?));
    verdicts.give("exact");
    Ok(())
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TextKey {}

impl Map for TextKey {
    fn map(&self, _: &[u8], value: &[u8], emit: &mut Emit) -> Result<(), CurateError> {
        let sketch = Value::sketch(value)?;
        if sketch.text.is_empty() { Ok(()) } else { emit(&sketch.text, &sketch.label) }
    }
}

/// 128 bits of blake3 of a text without white space at the ends of lines and of the text: equal for documents that differ
/// in nothing a reader can see. A hash made to resist, since whoever finds two texts of one hash could have a document
/// dropped.
pub fn fingerprint(text: &str) -> Vec<u8> {
    let mut tidy = String::with_capacity(text.len() + 1);
    for line in text.trim_end().lines() {
        tidy.push_str(line.trim_end());
        tidy.push('\n');
    }
    blake3::hash(tidy.as_bytes()).as_bytes()[..16].to_vec()
}
