//! Where documents come from: the hosts and sources that brought most.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::report::BeforeAfter;
use crate::Document;

/// Documents by origin: the host of their URL, or their source where that has none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origins {
    /// Those that brought the most documents, most first.
    pub listed: Vec<Origin>,
    /// All others together.
    pub others: BeforeAfter,
    /// How many there are; where `missing_at_most` is not 0, at least so many.
    pub number: u64,
    /// Documents that a listed one may have more than is said. It is 0 unless there are very many origins.
    pub missing_at_most: u64,
}

/// One host or source.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Its name.
    pub name: String,
    /// Its documents, before and after curation.
    #[serde(flatten)]
    pub documents: BeforeAfter,
}

/// Origins that are listed.
const LISTED: usize = 50;

/// Origins that are counted at a time, about 10 MiB.
const COUNTED: usize = 1 << 16;

/// Counts documents by origin in bounded memory. When there are too many, the smaller half is let go (a form of the counting of
/// Manku and Motwani, 2002). Documents come in the order of their ids, so the result is the same however a plan was run.
#[derive(Default)]
pub(super) struct Counting {
    counts: BTreeMap<String, BeforeAfter>,
    all: BeforeAfter,
    missing: u64,
}

impl Counting {
    /// Counts a document with the bytes that it had, and those that it has where it is kept.
    pub(super) fn count(&mut self, document: &Document, before: u64, after: Option<u64>) {
        let name = origin(document);
        if !self.counts.contains_key(name.as_ref()) {
            if self.counts.len() == COUNTED {
                self.let_go();
            }
            self.counts.insert(name.clone().into_owned(), BeforeAfter::default());
        }
        for own in self.counts.get_mut(name.as_ref()).into_iter().chain([&mut self.all]) {
            own.before.add(before);
            if let Some(after) = after {
                own.after.add(after);
            }
        }
    }

    fn let_go(&mut self) {
        let mut sizes: Vec<u64> = self.counts.values().map(|own| own.before.documents).collect();
        sizes.sort_unstable();
        let limit = sizes[sizes.len() / 2];
        self.counts.retain(|_, own| own.before.documents > limit);
        self.missing += limit;
    }

    pub(super) fn finish(self) -> Origins {
        let number = self.counts.len() as u64;
        let mut listed: Vec<Origin> =
            self.counts.into_iter().map(|(name, documents)| Origin { name, documents }).collect();
        listed.sort_by_key(|origin| Reverse(origin.documents.before.documents));
        listed.truncate(LISTED);
        let mut others = self.all;
        for Origin { documents, .. } in &listed {
            others.before.take(&documents.before);
            others.after.take(&documents.after);
        }
        Origins { listed, others, number, missing_at_most: self.missing }
    }
}

/// The host of a document's URL, without its port and in lower case, or the document's source.
fn origin(document: &Document) -> std::borrow::Cow<'_, str> {
    match document.url.split_once("://") {
        Some(_) => crate::filter::host(&document.url).to_ascii_lowercase().into(),
        None => document.source.as_str().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(url: &str, source: &str) -> Document {
        Document { url: url.to_owned(), source: source.to_owned(), ..Document::default() }
    }

    #[test]
    fn hosts_are_told_from_paths() {
        assert_eq!(origin(&document("https://user@A.example:80/x?y", "dump")), "a.example");
        assert_eq!(origin(&document("serde-1.0/README.md", "serde")), "serde");
        assert_eq!(origin(&document("", "texts.jsonl")), "texts.jsonl");
    }

    #[test]
    fn what_is_not_listed_is_still_counted() {
        let mut counting = Counting::default();
        for n in 0..200_u64 {
            for _ in 0..=n {
                counting.count(&document("", &format!("s{n:03}")), 10, (n % 2 == 0).then_some(7));
            }
        }
        let found = counting.finish();
        assert_eq!((found.number, found.missing_at_most, found.listed.len()), (200, 0, LISTED));
        assert_eq!(found.listed[0].name, "s199");
        assert_eq!(found.listed[0].documents.before.documents, 200);
        assert_eq!(found.listed[0].documents.after.documents, 0);
        assert_eq!(found.others.before.documents, (1..=150).sum::<u64>());
        assert_eq!(found.others.after.bytes, 7 * (0..150).step_by(2).map(|n| n + 1).sum::<u64>());
    }

    #[test]
    fn too_many_origins_cost_no_more_than_is_said() {
        let mut counting = Counting::default();
        for n in 0..3 * COUNTED {
            counting.count(&document("", &format!("single{n}")), 1, None);
            if n % 3 == 0 {
                counting.count(&document("", "often"), 1, Some(1));
            }
        }
        assert!(counting.counts.len() <= COUNTED);
        let found = counting.finish();
        let often = &found.listed[0];
        assert_eq!(often.name, "often");
        assert!(found.missing_at_most > 0 && found.missing_at_most < 10, "{}", found.missing_at_most);
        let said = often.documents.before.documents;
        assert!(said <= COUNTED as u64 && said + found.missing_at_most >= COUNTED as u64, "{said}");
        let all = found.others.before.documents
            + found.listed.iter().map(|o| o.documents.before.documents).sum::<u64>();
        assert_eq!(all, 4 * COUNTED as u64);
    }
}
