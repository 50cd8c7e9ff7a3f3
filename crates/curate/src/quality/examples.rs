//! Training examples in files.

use std::io::BufRead;
use std::path::Path;

use serde_json::Value;

use crate::CurateError;
use crate::fasttext::Example;
use crate::read::unpacked;

/// Reads the lines `{"text": …, "label": …}` of a file, which may be compressed by gzip or zstd; a label may be a word, a whole number or a truth value. Other keys do not count.
///
/// # Errors
/// [`CurateError::Read`] with the line that is not such an object.
pub fn read_examples(path: &Path) -> Result<Vec<Example>, CurateError> {
    let bytes = std::fs::read(path).and_then(unpacked).map_err(|error| CurateError::read(path, error))?;
    let mut examples = Vec::new();
    for (number, line) in bytes.lines().enumerate() {
        let bad = |what: String| CurateError::read(path, format!("line {}: {what}", number + 1));
        let line = line.map_err(|error| bad(error.to_string()))?;
        if line.trim().is_empty() {
            continue;
        }
        let mut value: Value = serde_json::from_str(&line).map_err(|error| bad(error.to_string()))?;
        let Value::String(text) = value.get_mut("text").map_or(Value::Null, Value::take) else {
            return Err(bad("no `text`, or it is no string".to_owned()));
        };
        let label = match value.get_mut("label").map_or(Value::Null, Value::take) {
            Value::String(label) => label,
            Value::Number(number) if number.is_i64() || number.is_u64() => number.to_string(),
            Value::Bool(truth) => truth.to_string(),
            other => {
                return Err(bad(format!(
                    "`label` is `{other}`, but must be a word, a whole number or a truth value"
                )));
            }
        };
        examples.push(Example { text, label });
    }
    Ok(examples)
}
