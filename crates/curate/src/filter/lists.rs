//! Lists in text files: one entry a line, `#` begins a comment line, blank lines do not count.

use std::path::Path;

use crate::CurateError;

/// The entries of a list, without white space at their ends. A folder with a file `domains` or `urls` is what the UT1 lists are; name the
/// files in it.
pub(crate) fn read_list(path: &Path) -> Result<Vec<String>, CurateError> {
    let bytes = std::fs::read(path).map_err(|error| CurateError::read(path, error))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        CurateError::read(
            path,
            format!("an invalid byte at {}: a list must be UTF-8", error.utf8_error().valid_up_to()),
        )
    })?;
    let entries: Vec<String> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect();
    if entries.is_empty() {
        return Err(CurateError::read(path, "a list without entries"));
    }
    Ok(entries)
}
