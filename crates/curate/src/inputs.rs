//! The inputs of `curate.read` as a plan's source: documents out of WARC, WET, HTML, JSON Lines, Parquet and text.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::dedup::VERSION;
use crate::files::splits;
use crate::item::{Item, Value};
use crate::plan::{Broken, BrokenPart, Emit, Source};
use crate::read::{Listed, OnError, ReadConfig, Record, WHOLE, id_at, id_of};
use crate::{CurateError, Document, date};

/// The key of [`Document::meta`](crate::Document::meta) for the id that a document came with.
pub const OWN_ID: &str = "id";

/// Reads the inputs. A document's id is where it lies, the name of its file and the position in it, so that no two are equal;
/// an id that it came with goes to its `meta`.
pub(crate) struct ReadSource {
    inputs: Inputs,
    splits: Vec<Split>,
}

/// What is read at a time: some inputs, or one range of bytes of a large one.
struct Split {
    inputs: Range<usize>,
    range: Range<u64>,
    bytes: u64,
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
        let Inputs { inputs: all, read, .. } = &inputs;
        let ranges = |input: &Listed| input.ranges(read);
        let (mut cut, mut start) = (Vec::new(), 0);
        // Small inputs beside each other, and each large one.
        for run in all.chunk_by(|one, next| ranges(one).len() == 1 && ranges(next).len() == 1) {
            match &ranges(&run[0])[..] {
                [whole] => {
                    cut.extend(splits(run.iter().map(|input| input.bytes)).into_iter().map(|split| Split {
                        bytes: run[split.clone()].iter().map(|input| input.bytes).sum(),
                        inputs: start + split.start..start + split.end,
                        range: whole.clone(),
                    }))
                }
                pieces => cut.extend(pieces.iter().map(|piece| Split {
                    bytes: piece.end.min(run[0].bytes) - piece.start,
                    inputs: start..start + 1,
                    range: piece.clone(),
                })),
            }
            start += run.len();
        }
        Self { splits: cut, inputs }
    }

    fn read_one(
        &self,
        (listed, split): (&Listed, &Split),
        emit: &mut Emit,
        broken: &mut Broken,
        tick: &dyn Fn(u64),
    ) -> Result<(), CurateError> {
        let (mut told, mut unread) = (split.range.start, 0);
        let end = split.range.end.min(listed.bytes);
        let mut records = listed.input(&split.range)?.records_in(split.range.clone(), &self.inputs.read);
        // The first broken part waits: where nothing else is in the input, it is the reason why all of it is lost.
        let (mut first, mut documents) = (None, 0_u64);
        for record in records.by_ref() {
            let record = match record {
                Ok(record) => record,
                Err(part) => {
                    let part = BrokenPart::new(&listed.name, Some(part.place.offset), &part.reason);
                    if first.is_none() && self.inputs.read.on_error == OnError::Skip {
                        first = Some(part);
                    } else {
                        broken(part)?;
                    }
                    continue;
                }
            };
            documents += 1;
            let at = record.place.offset.clamp(told, end);
            tick(at - told);
            told = at;
            let is_whole = self.inputs.read.is_whole(&listed.name);
            let mut document = in_corpus(record, &listed.name, is_whole);
            tidy(&mut document, &mut unread);
            let id = document.id.clone();
            let bytes = document.text.len() as u64;
            let item = Item::new(document, bytes).with_excerpt(self.inputs.excerpt_bytes);
            emit(id.as_bytes(), &Value::Item(Box::new(item)).encode()?)?;
        }
        let is_empty = first.is_none() && documents == 0 && records.passed().is_empty();
        // That a file is empty is worth a word, but it is no reason to stop.
        if is_empty && split.range == WHOLE && self.inputs.read.on_error == OnError::Skip {
            let part =
                BrokenPart::new(&listed.name, None, &format!("no record is in its {} bytes", listed.bytes));
            broken(BrokenPart { lost: true, ..part })?;
        }
        if let Some(first) = first {
            let lost = documents == 0 && records.passed().is_empty();
            broken(BrokenPart { lost, ..first })?;
        }
        let passed = records.passed().iter().map(|(kind, count)| ((*kind).to_owned(), *count));
        let unread = (unread > 0).then(|| (UNREAD_DATES.to_owned(), unread));
        let passed: BTreeMap<_, _> = passed.chain(unread).collect();
        if !passed.is_empty() {
            emit(listed.name.as_bytes(), &Value::Passed(passed).encode()?)?;
        }
        tick(end.saturating_sub(told));
        Ok(())
    }
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
        self.splits[split].bytes
    }

    fn read(
        &self,
        split: usize,
        emit: &mut Emit,
        broken: &mut Broken,
        tick: &dyn Fn(u64),
    ) -> Result<(), CurateError> {
        let split = &self.splits[split];
        let mut inputs = self.inputs.inputs[split.inputs.clone()].iter();
        inputs.try_for_each(|listed| self.read_one((listed, split), emit, broken, tick))
    }
}
