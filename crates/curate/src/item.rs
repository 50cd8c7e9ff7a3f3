//! The records of curation plans: documents, what dedup knows of them, and verdicts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::inputs::OWN_ID;
use crate::plan::{Emit, Map};
use crate::{CurateError, Document, Dropped, Filter};

/// The map that sends documents through filters, in order, until one drops it. Its parameter is a list of steps.
pub const FILTERS: &str = "filters";

/// A document in a plan, kept so far or dropped. The key of its record is its id.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct Item {
    /// The document. Of the text of a dropped one the beginning is left.
    pub document: Document,
    /// Size as it was read, in bytes.
    pub bytes: u64,
    /// Bytes of its text; of a dropped one, those that it had then.
    pub text_bytes: u64,
    /// Bytes of its text that are left of it when it is dropped, at most.
    pub excerpt_bytes: u32,
    /// The steps that changed its text, in order, and the bytes that each left.
    pub edits: Vec<(String, u64)>,
    /// The step that dropped it; empty where it is kept.
    pub step: String,
    /// Why it is not kept.
    pub dropped: Option<Dropped>,
}

impl Item {
    /// A document to be judged. When it is dropped, nothing of its text is left.
    pub fn new(document: Document, bytes: u64) -> Item {
        let text_bytes = document.text.len() as u64;
        Item { document, bytes, text_bytes, ..Item::default() }
    }

    /// Sets how much of its text is left when it is dropped.
    #[must_use]
    pub fn with_excerpt(self, excerpt_bytes: u32) -> Item {
        Item { excerpt_bytes, ..self }
    }

    /// Notes that `step`, which makes texts longer or shorter or leaves them as they are, has been over the text.
    pub fn edited(&mut self, step: &str) {
        if self.document.text.len() as u64 != self.text_bytes {
            self.changed(step);
        }
    }

    /// Notes that `step` has changed the text, perhaps to one that is as long.
    pub fn changed(&mut self, step: &str) {
        self.text_bytes = self.document.text.len() as u64;
        self.edits.push((step.to_owned(), self.text_bytes));
    }

    /// Drops it in `step`, if it is not dropped yet.
    pub fn drop_for(&mut self, step: &str, dropped: Dropped) {
        if self.dropped.is_none() {
            let text = &mut self.document.text;
            text.truncate(text.floor_char_boundary(self.excerpt_bytes as usize));
            text.shrink_to_fit();
            // Nobody reads them any more, but for the id.
            self.document.meta.retain(|key, _| key == OWN_ID);
            step.clone_into(&mut self.step);
            self.dropped = Some(dropped);
        }
    }
}

/// What dedup knows of a kept document; texts are not shuffled.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct Sketch {
    /// Its place among its duplicates ([`crate::dedup::label`]): the least survives.
    pub label: Vec<u8>,
    /// Hash of the normalised URL; empty where it has none.
    pub url: Vec<u8>,
    /// Hash of the normalised text.
    pub text: Vec<u8>,
    /// MinHash: one hash a band, empty where the text has no words.
    pub bands: Vec<u64>,
    /// Where it stands when the corpus is cut: hash of its source.
    pub source: Vec<u8>,
    /// Bytes of its text.
    pub bytes: u64,
}

/// The value of a record whose key is a document's id. Sorted by their bytes, verdicts come before what they judge.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub enum Value {
    /// The document is not kept.
    Verdict(Dropped),
    /// Lines, by number from 0, that are taken from the document's text.
    Lines(Vec<u32>),
    /// The sketch of a document.
    Sketch(Sketch),
    /// A document.
    Item(Box<Item>),
    /// How many records of an input are meant to be no documents, by what they are. The key is the input's name.
    Passed(BTreeMap<String, u64>),
}

/// Reads what [`encode`] wrote.
///
/// # Errors
/// Bytes that are something else.
pub fn decode<'a, T: Deserialize<'a>>(what: &'static str, bytes: &'a [u8]) -> Result<T, CurateError> {
    postcard::from_bytes(bytes).map_err(|error| CurateError::Record { what, problem: error.to_string() })
}

/// The bytes of a value, in a fixed compact form.
///
/// # Errors
/// A value that has no such form.
pub fn encode<T: Serialize>(what: &'static str, value: &T) -> Result<Vec<u8>, CurateError> {
    postcard::to_allocvec(value).map_err(|error| CurateError::Record { what, problem: error.to_string() })
}

impl Value {
    /// Reads a value.
    ///
    /// # Errors
    /// Bytes that are no value.
    pub fn decode(bytes: &[u8]) -> Result<Value, CurateError> {
        decode("a document", bytes)
    }

    /// The bytes of a value.
    ///
    /// # Errors
    /// None in practice.
    pub fn encode(&self) -> Result<Vec<u8>, CurateError> {
        encode("a document", self)
    }

    /// The item; another value is an error.
    ///
    /// # Errors
    /// Bytes that are no item.
    pub fn item(bytes: &[u8]) -> Result<Item, CurateError> {
        match Value::decode(bytes)? {
            Value::Item(item) => Ok(*item),
            other => Err(unexpected("a document", &other)),
        }
    }

    /// The item, or nothing where the value counts records that are no documents; another value is an error.
    ///
    /// # Errors
    /// Bytes that are neither.
    pub fn document(bytes: &[u8]) -> Result<Option<Item>, CurateError> {
        match Value::decode(bytes)? {
            Value::Item(item) => Ok(Some(*item)),
            Value::Passed(_) => Ok(None),
            other => Err(unexpected("a document", &other)),
        }
    }

    /// The sketch; another value is an error.
    ///
    /// # Errors
    /// Bytes that are no sketch.
    pub fn sketch(bytes: &[u8]) -> Result<Sketch, CurateError> {
        match Value::decode(bytes)? {
            Value::Sketch(sketch) => Ok(sketch),
            other => Err(unexpected("a sketch", &other)),
        }
    }
}

fn unexpected(what: &'static str, found: &Value) -> CurateError {
    let found = match found {
        Value::Verdict(_) => "a verdict",
        Value::Lines(_) => "a list of lines",
        Value::Sketch(_) => "a sketch",
        Value::Item(_) => "a document",
        Value::Passed(_) => "a count of records",
    };
    CurateError::Record { what, problem: format!("it is {found}") }
}

/// Applies filters to kept documents.
pub(crate) struct Filters(pub(crate) Vec<Box<dyn Filter>>);

impl Map for Filters {
    fn map(&self, key: &[u8], value: &[u8], emit: &mut Emit) -> Result<(), CurateError> {
        let Some(mut item) = Value::document(value)?.filter(|item| item.dropped.is_none()) else {
            return emit(key, value);
        };
        for filter in &self.0 {
            filter.pass(&mut item)?;
            if item.dropped.is_some() {
                break;
            }
        }
        emit(key, &Value::Item(Box::new(item)).encode()?)
    }
}
