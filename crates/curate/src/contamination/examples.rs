//! The examples of an evaluation set, from its file.

use std::path::Path;

use serde_json::Value;

use crate::CurateError;
use crate::read::unpacked;

/// How a file holds examples.
#[derive(Clone, Copy, PartialEq)]
enum Format {
    /// Objects: an array of them, or one a line.
    Json,
    /// Parts between blank lines.
    Text,
}

/// Endings of files that would be read as one long text, and would match nothing.
const REFUSED: [&str; 17] = [
    "parquet", "arrow", "feather", "csv", "tsv", "xml", "html", "yaml", "yml", "pkl", "npy", "zip", "tar",
    "tgz", "bz2", "xz", "pdf",
];

/// The examples of the file at `path`, which may be compressed by gzip or zstd. Of JSON objects, `fields` are joined by a line feed.
pub(super) fn read(path: &Path, fields: &[String]) -> Result<Vec<String>, CurateError> {
    let bad = |what: String| CurateError::read(path, what);
    let format = format(path).map_err(bad)?;
    let bytes = std::fs::read(path).and_then(unpacked).map_err(|error| CurateError::read(path, error))?;
    let text = std::str::from_utf8(&bytes)
        .map_err(|error| bad(format!("is no UTF-8 from byte {} on", error.valid_up_to())))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    match format {
        Format::Text => Ok(parts(text)),
        Format::Json if text.trim_start().starts_with('[') => {
            let values: Vec<Value> =
                serde_json::from_str(text).map_err(|error| bad(format!("is no array of JSON: {error}")))?;
            let example = |(at, value)| {
                example(value, fields).map_err(|what| bad(format!("element {}: {what}", at + 1)))
            };
            values.iter().enumerate().map(example).collect()
        }
        Format::Json => {
            let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
            let example = |(at, line)| {
                serde_json::from_str(line)
                    .map_err(|error| {
                        format!("is no JSON: {error}\nhint: one object a line, or one array of objects")
                    })
                    .and_then(|value| example(&value, fields))
                    .map_err(|what| bad(format!("line {}: {what}", at + 1)))
            };
            lines.map(example).collect()
        }
    }
}

/// By the name, without the ending of a compressed file.
fn format(path: &Path) -> Result<Format, String> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let name = [".gz", ".zst"].iter().find_map(|ending| name.strip_suffix(ending)).unwrap_or(&name);
    match name.rsplit_once('.').map_or("", |(_, ending)| ending) {
        "json" | "jsonl" | "ndjson" => Ok(Format::Json),
        ending if REFUSED.contains(&ending) => Err(format!(
            "is `.{ending}`, which is not read as examples\nhint: write it as `.jsonl`, or as `.txt` with a blank line between examples"
        )),
        _ => Ok(Format::Text),
    }
}

/// Parts between blank lines, whatever ends the lines.
fn parts(text: &str) -> Vec<String> {
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let lines: Vec<&str> = text.lines().collect();
    let parts = lines.split(|line| line.trim().is_empty()).filter(|part| !part.is_empty());
    parts.map(|part| part.join("\n")).collect()
}

/// The text of an object; fields that it does not have are left out, but one must be there.
fn example(value: &Value, fields: &[String]) -> Result<String, String> {
    let Value::Object(object) = value else { return Err("is JSON, but no object".to_owned()) };
    let parts: Vec<&str> = fields.iter().filter_map(|field| object.get(field)?.as_str()).collect();
    if parts.is_empty() {
        let wanted = fields.join("`, `");
        let there: Vec<_> = object.keys().take(8).map(String::as_str).collect();
        return Err(format!(
            "no text in `{wanted}`; its fields are `{}`\nhint: name the fields that hold it",
            there.join("`, `")
        ));
    }
    Ok(parts.join("\n"))
}
