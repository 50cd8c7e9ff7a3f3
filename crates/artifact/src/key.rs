//! Identity: what determines an artifact's bytes, and its hash.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Number of hex characters of an id: 128 bits.
const ID_CHARS: usize = 32;

/// An input of a stage: another artifact, or the fingerprint of something outside the run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputRef {
    /// The part it plays for the stage, for example `tokenizer`. Not hashed.
    pub name: String,
    /// Its kind.
    pub kind: String,
    /// Its id, 32 hex characters; see [`fingerprint`] for inputs that are not artifacts.
    pub id: String,
}

/// Everything that determines the bytes of a stage's artifact.
#[derive(Debug, Clone, PartialEq)]
pub struct StageKey {
    /// What the artifact is, for example `tokenizer`.
    pub kind: String,
    /// Version of the files' layout and of the code's meaning; raise it when the same recipe makes other bytes.
    pub schema: u32,
    /// The resolved recipe values that change the result.
    pub recipe: Value,
    /// What the stage reads, in a fixed order.
    pub inputs: Vec<InputRef>,
}

impl StageKey {
    /// The artifact's id: the first 32 hex characters of the blake3 of kind, schema, recipe and inputs.
    ///
    /// The order of keys in the recipe does not matter, nor do the names of inputs; the order of inputs does.
    pub fn id(&self) -> String {
        let inputs: Vec<[&str; 2]> = self.inputs.iter().map(|i| [i.kind.as_str(), i.id.as_str()]).collect();
        fingerprint(
            canonical_json(&serde_json::json!([self.kind, self.schema, self.recipe, inputs])).as_bytes(),
        )
    }
}

/// The id of some bytes: the first 32 hex characters of their blake3.
pub fn fingerprint(bytes: &[u8]) -> String {
    let mut hex = blake3::hash(bytes).to_hex().to_string();
    hex.truncate(ID_CHARS);
    hex
}

/// JSON on one line with the keys of every object sorted, whatever order the value keeps them in.
pub fn canonical_json(value: &Value) -> String {
    match value {
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(canonical_json).collect();
            format!("[{}]", items.join(","))
        }
        Value::Object(map) => {
            let mut entries: Vec<(&String, &Value)> = map.iter().collect();
            entries.sort_by_key(|(key, _)| *key);
            let entries: Vec<String> = entries
                .into_iter()
                .map(|(key, value)| format!("{}:{}", Value::from(key.as_str()), canonical_json(value)))
                .collect();
            format!("{{{}}}", entries.join(","))
        }
        scalar => scalar.to_string(),
    }
}
