//! Lines that many documents share, such as menus and notices (after CCNet, Wenzek et al. 2020; Llama 3 drops lines seen more
//! than 6 times in each bucket of 30 million documents).

use serde::{Deserialize, Serialize};
use twox_hash::{XxHash3_64, XxHash3_128};

use super::label::{id_of, label, newness};
use crate::item::{Item, Value};
use crate::plan::{Emit, Input, Map, Plan, Reduce, Registry, Step, Values};
use crate::rules::CODE;
use crate::{CurateError, Document, Dropped};

pub(super) fn register(registry: &mut Registry) {
    registry.map_of::<CommonLines>("line-keys");
    registry.reduce_of::<CommonLines>("common-lines");
}

/// Which lines are taken away. Each language is counted for itself, and code is left alone.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct CommonLines {
    /// A line seen more often than this in its bucket is taken away.
    pub max_seen: u32,
    /// Leave its first occurrence, which is in the newest document, then in that of the lowest id.
    pub keep_first: bool,
    /// Buckets that the documents are spread over by a hash of their id: about one for each 30 million documents.
    pub buckets: u32,
    /// Compare lines in lower case, without punctuation, with 0 for every digit.
    pub normalise: bool,
}

impl Default for CommonLines {
    fn default() -> Self {
        Self { max_seen: 6, keep_first: false, buckets: 1, normalise: true }
    }
}

impl CommonLines {
    /// Checks every value.
    ///
    /// # Errors
    /// [`CurateError::OutOfRange`] with the key, the value found and the allowed range.
    pub fn validate(&self) -> Result<(), CurateError> {
        for (key, found) in [("common_lines.max_seen", self.max_seen), ("common_lines.buckets", self.buckets)]
        {
            if found == 0 {
                return Err(CurateError::OutOfRange {
                    key,
                    found: "0".to_owned(),
                    allowed: "1 or more".to_owned(),
                });
            }
        }
        Ok(())
    }

    /// Appends the stages `lines-common` and `lines`, which has the documents of the task `documents` without those lines.
    ///
    /// # Errors
    /// None in practice.
    pub fn append(&self, plan: &mut Plan, documents: &str) -> Result<(), CurateError> {
        let keys = Input::through(documents, vec![Step::with("line-keys", self)?]);
        plan.stage("lines-common", vec![keys], Some(Step::with("common-lines", self)?));
        let inputs = vec![Input::all(documents), Input::all("lines-common")];
        plan.stage("lines", inputs, Some(Step::new("judge")));
        Ok(())
    }
}

impl Map for CommonLines {
    fn map(&self, key: &[u8], value: &[u8], emit: &mut Emit) -> Result<(), CurateError> {
        // Lines that all programs have are no ballast of theirs.
        let wanted = |item: &Item| item.dropped.is_none() && item.document.domain != CODE;
        let Some(item) = Value::document(value)?.filter(wanted) else { return Ok(()) };
        let bucket = (XxHash3_64::oneshot(key) % u64::from(self.buckets.max(1))) as u32;
        let language = XxHash3_64::oneshot(item.document.lang.as_bytes());
        let mut place = label(&newness(&item.document), key);
        let front = place.len();
        for (number, line) in item.document.text.split_inclusive('\n').enumerate() {
            let line = if self.normalise { normalise(line) } else { line.trim_end_matches('\n').to_owned() };
            if line.is_empty() {
                continue;
            }
            let mut own = [0; 20];
            own[..4].copy_from_slice(&bucket.to_be_bytes());
            let hash = XxHash3_128::oneshot_with_seed(language, line.as_bytes());
            own[4..].copy_from_slice(&hash.to_be_bytes());
            place.truncate(front);
            place.extend_from_slice(&(number as u32).to_be_bytes());
            emit(&own, &place)?;
        }
        Ok(())
    }
}

impl Reduce for CommonLines {
    fn reduce(&self, _: &[u8], values: &mut dyn Values, emit: &mut Emit) -> Result<(), CurateError> {
        // So many are held back until it is known that the line is common.
        let mut held = Vec::new();
        let mut seen = 0;
        while let Some(place) = values.next()? {
            seen += 1;
            if seen <= self.max_seen {
                held.push(place.to_vec());
                continue;
            }
            for place in held.drain(..).skip(usize::from(self.keep_first)) {
                take(&place, emit)?;
            }
            take(place, emit)?;
        }
        Ok(())
    }
}

fn take(place: &[u8], emit: &mut Emit) -> Result<(), CurateError> {
    let problem = || CurateError::Record { what: "a line", problem: "it is too short".to_owned() };
    let (label, number) = place.split_last_chunk().ok_or_else(problem)?;
    emit(id_of(label)?, &Value::Lines(vec![u32::from_be_bytes(*number)]).encode()?)
}

/// A line as it is compared.
fn normalise(line: &str) -> String {
    let mut text = String::with_capacity(line.len());
    let mut space = false;
    for c in line.chars() {
        if c.is_whitespace() {
            space = !text.is_empty();
        } else if c.is_alphanumeric() {
            if std::mem::take(&mut space) {
                text.push(' ');
            }
            if c.is_numeric() { text.push('0') } else { text.extend(c.to_lowercase()) }
        }
    }
    text
}

/// Takes lines, by number, out of a text. Where nothing is left, the document is dropped.
pub(super) fn take_away(document: &mut Document, mut lines: Vec<u32>) -> Option<Dropped> {
    if lines.is_empty() {
        return None;
    }
    lines.sort_unstable();
    let mut number = 0;
    let mut is_kept = |_: &&str| {
        number += 1;
        lines.binary_search(&(number - 1)).is_err()
    };
    let text: String = document.text.split_inclusive('\n').filter(|line| is_kept(line)).collect();
    document.text = text;
    document.tags.insert("lines.taken_away".to_owned(), lines.len() as f64);
    document.text.trim().is_empty().then(|| {
        Dropped::new("common_lines", format!("all {} lines are common to many documents", lines.len()))
    })
}
