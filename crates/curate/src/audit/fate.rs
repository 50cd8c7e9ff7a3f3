//! What became of a document.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{Corpus, Row};
use crate::plan::BrokenPart;
use crate::read::id_of;
use crate::{CurateError, DroppedRecord, OWN_ID};

/// A document, and what became of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fate {
    /// Its id.
    pub id: String,
    /// Its URL or path; empty where it has none.
    pub url: String,
    /// The source it belongs to.
    pub source: String,
    /// What became of it.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What became of a document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// It is in the corpus.
    Kept {
        /// Where.
        places: Vec<Place>,
    },
    /// It is not.
    Dropped {
        /// The step that dropped it.
        step: String,
        /// Why, in one word.
        reason: String,
        /// What was found and what was allowed.
        detail: String,
        /// The id of the document that was kept in its place.
        #[serde(skip_serializing_if = "Option::is_none")]
        survivor: Option<String>,
        /// The beginning of its text.
        #[serde(skip_serializing_if = "String::is_empty", default)]
        excerpt: String,
    },
}

/// A file that has a document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Its name in the folder of the corpus.
    pub file: String,
    /// How often the document is in it: the mix repeats documents.
    pub times: u64,
}

/// What was found for a name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// The name.
    pub wanted: String,
    /// The documents that it may mean, by id; several only where they have the same URL.
    pub documents: Vec<Fate>,
    /// The documents that were kept in place of those, and in place of these in turn.
    pub survivors: Vec<Fate>,
    /// Parts of inputs that it may mean and that could not be read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub broken: Vec<BrokenPart>,
}

/// Documents that a name may mean before it is too vague.
pub const MAX_MATCHES: usize = 20;

/// How well a name fits a document; the least fits best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    Id,
    OwnId,
    Url,
    /// The document's path ends the name, which is a longer path; the longest fits best.
    Path(Reverse<usize>),
    Prefix,
}

impl Fit {
    fn of(wanted: &str, id: &str, own_id: Option<&str>, url: &str) -> Option<Fit> {
        let is_end = || wanted.strip_suffix(url).is_some_and(|front| front.ends_with('/'));
        if wanted == id {
            Some(Fit::Id)
        } else if own_id == Some(wanted) {
            Some(Fit::OwnId)
        } else if wanted == url {
            Some(Fit::Url)
        } else if !url.is_empty() && is_end() {
            Some(Fit::Path(Reverse(url.len())))
        } else if id.starts_with(wanted) {
            Some(Fit::Prefix)
        } else {
            None
        }
    }
}

/// The best matches of a name so far.
#[derive(Default)]
struct Matches {
    fit: Option<Fit>,
    fates: BTreeMap<String, Fate>,
    /// There were more.
    more: bool,
}

impl Matches {
    fn offer(&mut self, fit: Fit, id: &str, fate: impl FnOnce() -> Fate, place: Option<&str>) {
        if self.fit.is_some_and(|best| best < fit) {
            return;
        }
        if self.fit != Some(fit) {
            *self = Matches { fit: Some(fit), ..Matches::default() };
        }
        if !self.fates.contains_key(id) {
            if self.fates.len() > MAX_MATCHES {
                self.more = true;
                return;
            }
            self.fates.insert(id.to_owned(), fate());
        }
        if let (Some(Fate { outcome: Outcome::Kept { places }, .. }), Some(file)) =
            (self.fates.get_mut(id), place)
        {
            match places.iter_mut().find(|place| place.file == file) {
                Some(place) => place.times += 1,
                None => places.push(Place { file: file.to_owned(), times: 1 }),
            }
        }
    }
}

impl Corpus {
    /// Finds documents by id, by the id they came with, by URL, by path, or by the beginning of their id, and the survivors of
    /// duplicates; and parts of inputs that are broken by the name of the file, or by that and the place: `texts.jsonl#81732`. A name
    /// that fits nothing has neither.
    ///
    /// # Errors
    /// [`CurateError::Ambiguous`] where the beginning of an id is that of several, or more than [`MAX_MATCHES`] documents have
    /// the URL; a damaged file.
    pub fn find(&self, wanted: &[String]) -> Result<Vec<Found>, CurateError> {
        let mut found: Vec<Found> =
            wanted.iter().map(|name| Found { wanted: name.clone(), ..Found::default() }).collect();
        self.broken(|part| {
            for own in found.iter_mut().filter(|own| means(&own.wanted, &part)) {
                own.broken.push(part.clone());
            }
        })?;
        for (own, matches) in found.iter_mut().zip(self.matches(wanted, false)?) {
            let vague = matches.more || matches.fates.len() > MAX_MATCHES;
            if vague || (matches.fit == Some(Fit::Prefix) && matches.fates.len() > 1) {
                // The ids of all documents in a file begin with its name.
                if matches.fit == Some(Fit::Prefix) && !own.broken.is_empty() {
                    continue;
                }
                let some = matches.fates.into_values().take(MAX_MATCHES);
                let some = some.map(|fate| {
                    if fate.url.is_empty() || fate.url == fate.id {
                        format!("\n  {}", fate.id)
                    } else {
                        format!("\n  {}  {}", fate.id, fate.url)
                    }
                });
                return Err(CurateError::Ambiguous { name: own.wanted.clone(), documents: some.collect() });
            }
            own.documents = matches.fates.into_values().collect();
        }
        self.follow(&mut found)?;
        Ok(found)
    }

    /// The documents of these ids.
    ///
    /// # Errors
    /// A damaged file.
    pub fn by_id(&self, ids: &BTreeSet<String>) -> Result<BTreeMap<String, Fate>, CurateError> {
        let ids: Vec<String> = ids.iter().cloned().collect();
        let found = if ids.is_empty() { Vec::new() } else { self.matches(&ids, true)? };
        Ok(found.into_iter().flat_map(|matches| matches.fates).collect())
    }

    fn matches(&self, wanted: &[String], ids_only: bool) -> Result<Vec<Matches>, CurateError> {
        let mut matches: Vec<Matches> = wanted.iter().map(|_| Matches::default()).collect();
        let places: BTreeMap<&str, usize> =
            wanted.iter().enumerate().map(|(at, name)| (name.as_str(), at)).collect();
        let mut offer =
            |id: &str, own: Option<&str>, url: &str, fate: &dyn Fn() -> Fate, file: Option<&str>| {
                if ids_only {
                    if let Some(&at) = places.get(id) {
                        matches[at].offer(Fit::Id, id, fate, file);
                    }
                    return;
                }
                for (name, own_matches) in wanted.iter().zip(&mut matches) {
                    if let Some(fit) = Fit::of(name, id, own, url) {
                        own_matches.offer(fit, id, fate, file);
                    }
                }
            };
        let columns = ["id", "url", "source", "metadata"];
        self.rows(&columns[..if ids_only { 3 } else { 4 }], |row| {
            let (id, url) = (row.get("id"), row.get("url"));
            offer(id, own_id(row.get("metadata")).as_deref(), url, &|| kept(row), Some(row.file));
            Ok(())
        })?;
        self.dropped(|record| {
            offer(&record.id, record.own_id.as_deref(), &record.url, &|| dropped(&record), None);
            Ok(())
        })?;
        Ok(matches)
    }

    /// Looks survivors up, and theirs, until one is kept or went for another reason.
    fn follow(&self, found: &mut [Found]) -> Result<(), CurateError> {
        loop {
            let next = |found: &Found| -> BTreeSet<String> {
                let all = found.documents.iter().chain(&found.survivors);
                let known: BTreeSet<&str> = all.clone().map(|fate| fate.id.as_str()).collect();
                let survivors = all.filter_map(Fate::survivor).filter(|id| !known.contains(id));
                survivors.map(str::to_owned).collect()
            };
            let ids: BTreeSet<String> = found.iter().flat_map(next).collect();
            let fates = self.by_id(&ids)?;
            for own in found.iter_mut() {
                own.survivors.extend(next(own).iter().filter_map(|id| fates.get(id).cloned()));
            }
            if let Some(missing) = ids.iter().find(|id| !fates.contains_key(*id)) {
                let path = self.folder().to_path_buf();
                let problem = format!("a document was dropped for `{missing}`, which is nowhere in it");
                return Err(CurateError::DamagedOutput { path, problem });
            }
            if ids.is_empty() {
                return Ok(());
            }
        }
    }
}

impl Fate {
    /// The id of the document that was kept in place of this one.
    pub fn survivor(&self) -> Option<&str> {
        match &self.outcome {
            Outcome::Dropped { survivor, .. } => survivor.as_deref(),
            Outcome::Kept { .. } => None,
        }
    }
}

fn kept(row: Row) -> Fate {
    let [id, url, source] = ["id", "url", "source"].map(|name| row.get(name).to_owned());
    Fate { id, url, source, outcome: Outcome::Kept { places: Vec::new() } }
}

/// The id that a document came with, by its metadata.
fn own_id(metadata: &str) -> Option<String> {
    // Most documents have none, and need not be parsed for that.
    let key = format!("\"{OWN_ID}\":");
    let found =
        metadata.contains(&key).then(|| serde_json::from_str::<BTreeMap<String, String>>(metadata).ok());
    found.flatten()?.remove(OWN_ID)
}

/// Whether a name is that of a part's file, with or without the folders before it, or that and the place behind a `#`.
fn means(wanted: &str, part: &BrokenPart) -> bool {
    let (file, place) = (part.input.as_str(), part.byte.map(|byte| byte.to_string()));
    let ends = |long: &str, short: &str| {
        long.strip_suffix(short).is_some_and(|front| front.is_empty() || front.ends_with('/'))
    };
    let of_file = |wanted: &str| {
        [file, &id_of(file)].iter().any(|file| ends(wanted, file) || !wanted.is_empty() && ends(file, wanted))
    };
    of_file(wanted)
        || wanted.rsplit_once('#').is_some_and(|(wanted, at)| place.as_deref() == Some(at) && of_file(wanted))
}

fn dropped(record: &DroppedRecord) -> Fate {
    let DroppedRecord { id, url, source, step, reason, detail, survivor, excerpt, .. } = record.clone();
    Fate { id, url, source, outcome: Outcome::Dropped { step, reason, detail, survivor, excerpt } }
}
