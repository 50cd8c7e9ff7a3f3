//! A document on its way through curation.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{CurateError, Item};

/// A text and what is known of it.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct Document {
    /// Unique in a corpus, and the same in every run.
    pub id: String,
    /// Where it was found.
    pub url: String,
    /// What it came with: a crate, a dump, a file.
    pub source: String,
    /// When it was fetched or written, as ISO 8601 in UTC; empty where unknown.
    pub date: String,
    /// Its language, an ISO 639 code; empty where unknown.
    pub lang: String,
    /// What kind of text it is, such as `prose` or `code`; empty where unknown.
    pub domain: String,
    /// The text.
    pub text: String,
    /// What steps measured, such as `lang.score` or `quality`.
    pub tags: BTreeMap<String, f64>,
    /// What its source said of it, as text.
    pub meta: BTreeMap<String, String>,
}

impl Document {
    /// Bytes of everything in it, about what it takes in memory.
    pub(crate) fn held_bytes(&self) -> usize {
        let own = [&self.id, &self.url, &self.source, &self.date, &self.lang, &self.domain, &self.text];
        let meta = self.meta.iter().map(|(key, value)| key.len() + value.len());
        let tags = self.tags.keys().map(|key| key.len() + size_of::<f64>());
        own.map(String::len).into_iter().chain(meta).chain(tags).sum()
    }
}

/// Why a document is not kept.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// The rule, in snake case: what reports count by.
    pub reason: String,
    /// What was found and what was allowed.
    pub detail: String,
    /// The id of the document that is kept in its place, where it is a duplicate.
    pub survivor: Option<String>,
}

impl Dropped {
    /// Dropped for `reason`.
    pub fn new(reason: &str, detail: impl Into<String>) -> Dropped {
        Dropped { reason: reason.to_owned(), detail: detail.into(), survivor: None }
    }
}

/// A step that looks at one document at a time.
pub trait Filter: Send + Sync {
    /// Its name in recipes and reports.
    fn name(&self) -> &'static str;

    /// Judges, tags or edits a document; what it returns is why the document is not kept. Nothing but the document and the
    /// filter's settings may decide.
    fn apply(&self, document: &mut Document) -> Option<Dropped>;

    /// [`Filter::apply`] of a filter that can fail; plans call this one.
    ///
    /// # Errors
    /// Whatever keeps the filter from judging.
    fn try_apply(&self, document: &mut Document) -> Result<Option<Dropped>, CurateError> {
        Ok(self.apply(document))
    }

    /// Sends a document through, and notes in it what changed or dropped it. A filter that is several steps in one does so for
    /// each of them.
    ///
    /// # Errors
    /// Those of [`Filter::try_apply`].
    fn pass(&self, item: &mut Item) -> Result<(), CurateError> {
        let dropped = self.try_apply(&mut item.document)?;
        item.edited(self.name());
        if let Some(dropped) = dropped {
            item.drop_for(self.name(), dropped);
        }
        Ok(())
    }
}
