//! Labels: which of two duplicates survives, as bytes that sort.

use crate::version::Version;
use crate::{CurateError, Document};

/// The key of `meta` that holds the version of a crate of the registry, such as `1.2.3`. Documents that are read elsewhere have
/// none: what a dump calls a version says nothing of age.
pub(crate) const VERSION: &str = "registry.version";

/// How new a document is, as bytes that sort oldest first: its version where it has one, else the instant of its date.
/// Documents without come before those with; a date that cannot be read is none.
pub fn newness(document: &Document) -> Vec<u8> {
    if let Some(version) = document.meta.get(VERSION).and_then(|text| Version::parse(text)) {
        return [&[2], &version.sortable()[..]].concat();
    }
    let instant = crate::date::instant(&document.date);
    instant.map(|instant| [&[1], &crate::date::sortable(instant)[..]].concat()).unwrap_or_default()
}

/// A document's place among its duplicates: of two labels the one with the lower bytes is newer, or as new and of the lower
/// id.
pub fn label(newness: &[u8], id: &[u8]) -> Vec<u8> {
    let mut label = Vec::with_capacity(newness.len() + id.len() + 2);
    for &byte in newness {
        label.push(!byte);
        // An inverted zero is followed by a zero, and two inverted zeros end the newness: so a newness sorts behind every
        // longer one that begins with it.
        if byte == 0 {
            label.push(0);
        }
    }
    label.extend_from_slice(&[0xFF, 0xFF]);
    label.extend_from_slice(id);
    label
}

/// The id in a label.
///
/// # Errors
/// Bytes that are no label.
pub fn id_of(label: &[u8]) -> Result<&[u8], CurateError> {
    let mut rest = label;
    loop {
        match rest {
            [0xFF, 0xFF, id @ ..] => return Ok(id),
            [0xFF, 0, later @ ..] | [_, later @ ..] => rest = later,
            [] => {
                let problem = "it has no end mark".to_owned();
                return Err(CurateError::Record { what: "a label", problem });
            }
        }
    }
}

/// An id as text.
pub(super) fn id_text(label: &[u8]) -> Result<String, CurateError> {
    Ok(String::from_utf8_lossy(id_of(label)?).into_owned())
}
