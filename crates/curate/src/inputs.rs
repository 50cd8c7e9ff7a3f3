//! The inputs of `curate.read` as a plan's source: documents out of WARC, WET, HTML, JSON Lines, Parquet and text.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::dedup::VERSION;
use crate::files::splits;
use crate::item::{Item, Value};
use crate::plan::{self, Emit, Source};
use crate::read::{Broken, Listed, OnError, ReadConfig, Record, id_at, id_of};
use crate::{CurateError, Document, date};

/// The key of [`Document::meta`](crate::Document::meta) for the id that a document came with.
pub const OWN_ID: &str = "id";

/// Reads the inputs. A document's id is where it lies, the name of its file and the position in it, so that no two are equal;
/// an id that it came with goes to its `meta`.
pub(crate) struct ReadSource {
    inputs: Inputs,
    splits: Vec<Range<usize>>,
}

/// A [`ReadSource`] as data.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Inputs {
    pub(crate) inputs: Vec<Listed>,
    pub(crate) read: ReadConfig,
    /// Bytes that are left of the text of a dropped document.
    pub(crate) excerpt_bytes: u32,
    /// What tells this input from another.
    pub(crate) fingerprint: String,
}

/// The document of a record of the input `name` with the id that it has in a corpus: that of its place. An id that it came with
/// goes to its metadata, as [`OWN_ID`].
pub fn in_corpus(record: Record, name: &str, is_whole: bool) -> Document {
    let Record { mut document, place } = record;
    let id = if is_whole { id_of(name) } else { id_at(name, place.position) };
    let own = std::mem::replace(&mut document.id, id);
    if own != document.id && !own.is_empty() {
        document.meta.insert(OWN_ID.to_owned(), own);
    }
    document
}

impl ReadSource {
    pub(crate) fn new(inputs: Inputs) -> Self {
        let splits = splits(inputs.inputs.iter().map(|input| input.bytes));
        Self { inputs, splits }
    }

    fn read_one(
        &self,
        listed: &Listed,
        emit: &mut Emit,
        broken: &mut plan::Broken,
        tick: &dyn Fn(u64),
    ) -> Result<(), CurateError> {
        let (mut told, mut unread) = (0, 0);
        let mut records = listed.input()?.records(&self.inputs.read);
        // The first broken part waits: where nothing else is in the input, it is the reason why all of it is lost.
        let (mut first, mut parts, mut documents) = (None, 0_u64, 0_u64);
        for record in records.by_ref() {
            let record = match record {
                Ok(record) => record,
                Err(part) => {
                    parts += 1;
                    if parts == 1 && self.inputs.read.on_error == OnError::Skip {
                        first = Some(part);
                    } else {
                        broken(broken_part(part))?;
                    }
                    continue;
                }
            };
            documents += 1;
            let at = record.place.offset.min(listed.bytes);
            tick(at.saturating_sub(told));
            told = told.max(at);
            let is_whole = self.inputs.read.is_whole(&listed.name);
            let mut document = in_corpus(record, &listed.name, is_whole);
            tidy(&mut document, &mut unread);
            let id = document.id.clone();
            let bytes = document.text.len() as u64;
            let item = Item::new(document, bytes).with_excerpt(self.inputs.excerpt_bytes);
            emit(id.as_bytes(), &Value::Item(Box::new(item)).encode()?)?;
        }
        if let Some(first) = first {
            let is_lost = documents == 0 && records.passed().is_empty();
            broken(if is_lost { lost(first, parts) } else { broken_part(first) })?;
        }
        let passed = records.passed().iter().map(|(kind, count)| ((*kind).to_owned(), *count));
        let unread = (unread > 0).then(|| (UNREAD_DATES.to_owned(), unread));
        let passed: BTreeMap<_, _> = passed.chain(unread).collect();
        if !passed.is_empty() {
            emit(listed.name.as_bytes(), &Value::Passed(passed).encode()?)?;
        }
        tick(listed.bytes.saturating_sub(told));
        Ok(())
    }
}

fn broken_part(part: Broken) -> CurateError {
    let input = format!("{}, byte {}", part.file, part.place.offset);
    CurateError::BrokenInput { input, problem: part.reason }
}

/// What is said of an input of which nothing but `parts` broken parts was found.
fn lost(first: Broken, parts: u64) -> CurateError {
    let problem = match parts {
        1 => first.reason,
        _ => format!(
            "none of its {parts} parts can be read, that at byte {} because it {}",
            first.place.offset, first.reason
        ),
    };
    CurateError::LostInput { input: first.file, problem }
}

/// What is counted, beside the records that are no documents, of those that are: the document stays, without a date.
const UNREAD_DATES: &str = "dates that cannot be read (their documents have none)";

/// Gives a document what all have in common, however it was read.
fn tidy(document: &mut Document, unread: &mut u64) {
    // The version of a crate is known of files of the registry alone.
    document.meta.remove(VERSION);
    if !document.date.is_empty() {
        let date = date::normalise(&document.date);
        *unread += u64::from(date.is_none());
        document.date = date.unwrap_or_default();
    }
}

impl Source for ReadSource {
    fn fingerprint(&self) -> String {
        self.inputs.fingerprint.clone()
    }

    fn splits(&self) -> usize {
        self.splits.len()
    }

    fn bytes(&self, split: usize) -> u64 {
        self.inputs.inputs[self.splits[split].clone()].iter().map(|input| input.bytes).sum()
    }

    fn read(
        &self,
        split: usize,
        emit: &mut Emit,
        broken: &mut plan::Broken,
        tick: &dyn Fn(u64),
    ) -> Result<(), CurateError> {
        let inputs = &self.inputs.inputs[self.splits[split].clone()];
        inputs.iter().try_for_each(|listed| self.read_one(listed, emit, broken, tick))
    }
}
