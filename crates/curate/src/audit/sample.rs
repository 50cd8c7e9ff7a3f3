//! Random documents to look at.

use std::collections::{BTreeMap, BinaryHeap};

use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;

use super::Corpus;
use crate::{COLUMNS, CurateError, DroppedRecord};

/// Which documents to draw.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pick {
    /// Dropped for this reason.
    pub reason: Option<String>,
    /// Dropped by this step.
    pub step: Option<String>,
    /// How many.
    pub count: usize,
    /// Another seed draws others.
    pub seed: u64,
}

/// What was drawn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sampled<T> {
    /// How many documents there are to draw from.
    pub of: u64,
    /// Those that were drawn, by id.
    pub documents: Vec<T>,
}

/// A document of the corpus.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Its id.
    pub id: String,
    /// Its URL or path; empty where it has none.
    pub url: String,
    /// The source it belongs to.
    pub source: String,
    /// Its language; empty where unknown.
    pub lang: String,
    /// Its domain.
    pub domain: String,
    /// The file that has it.
    pub file: String,
    /// Its text.
    pub text: String,
}

/// The least of what is offered, by the hash of an id: so what is drawn depends on the ids and the seed alone.
struct Lowest<T> {
    seed: u64,
    count: usize,
    held: BinaryHeap<(u64, String)>,
    values: BTreeMap<String, T>,
}

impl<T> Lowest<T> {
    fn new(seed: u64, count: usize) -> Lowest<T> {
        Lowest { seed, count, held: BinaryHeap::new(), values: BTreeMap::new() }
    }

    fn offer(&mut self, id: &str, value: impl FnOnce() -> T) {
        let place = (XxHash3_64::oneshot_with_seed(self.seed, id.as_bytes()), id.to_owned());
        let is_in = self.held.len() < self.count || self.held.peek().is_some_and(|worst| place < *worst);
        // A document that the mix repeats is offered again.
        if !is_in || self.values.contains_key(id) {
            return;
        }
        self.values.insert(id.to_owned(), value());
        self.held.push(place);
        if self.held.len() > self.count
            && let Some((_, worst)) = self.held.pop()
        {
            self.values.remove(&worst);
        }
    }
}

impl Corpus {
    /// Draws from the dropped documents.
    ///
    /// # Errors
    /// [`CurateError::NothingDropped`] where no document was dropped for the reason, by the step, or both; a damaged file.
    pub fn sample_dropped(&self, pick: &Pick) -> Result<Sampled<DroppedRecord>, CurateError> {
        let (mut lowest, mut of) = (Lowest::new(pick.seed, pick.count), 0);
        self.dropped(|record| {
            let is =
                |wanted: &Option<String>, found: &str| wanted.as_deref().is_none_or(|wanted| wanted == found);
            if is(&pick.reason, &record.reason) && is(&pick.step, &record.step) {
                of += 1;
                lowest.offer(&record.id.clone(), || record);
            }
            Ok(())
        })?;
        if of == 0 {
            return Err(self.nothing_dropped(pick));
        }
        Ok(Sampled { of, documents: lowest.values.into_values().collect() })
    }

    /// Draws dropped documents of every reason, so many each.
    ///
    /// # Errors
    /// A damaged file.
    pub fn sample_reasons(
        &self,
        count: usize,
        seed: u64,
    ) -> Result<BTreeMap<String, Vec<DroppedRecord>>, CurateError> {
        let mut reasons: BTreeMap<String, Lowest<DroppedRecord>> = BTreeMap::new();
        self.dropped(|record| {
            let lowest = reasons.entry(record.reason.clone()).or_insert_with(|| Lowest::new(seed, count));
            lowest.offer(&record.id.clone(), || record);
            Ok(())
        })?;
        Ok(reasons
            .into_iter()
            .map(|(reason, lowest)| (reason, lowest.values.into_values().collect()))
            .collect())
    }

    /// Draws from the documents of the corpus. Each is drawn once, however often the mix repeats it.
    ///
    /// # Errors
    /// A damaged file.
    pub fn sample_kept(&self, count: usize, seed: u64) -> Result<Sampled<Kept>, CurateError> {
        let mut lowest = Lowest::new(seed, count);
        self.rows(&["id"], |row| {
            lowest.offer(row.get("id"), || (row.file.to_owned(), row.number));
            Ok(())
        })?;
        let mut places: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for (file, number) in lowest.values.into_values() {
            places.entry(file).or_default().push(number);
        }
        let mut documents = Vec::new();
        for (file, mut numbers) in places {
            numbers.sort_unstable();
            self.rows_of(&file, &COLUMNS, Some(&numbers), &mut |row| {
                let value = |name| row.get(name).to_owned();
                documents.push(Kept {
                    id: value("id"),
                    url: value("url"),
                    source: value("source"),
                    lang: value("lang"),
                    domain: value("domain"),
                    file: row.file.to_owned(),
                    text: value("text"),
                });
                Ok(())
            })?;
        }
        documents.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(Sampled { of: self.report().documents_kept, documents })
    }

    fn nothing_dropped(&self, pick: &Pick) -> CurateError {
        let steps = &self.report().steps;
        let by = |name: &String| match steps.iter().any(|step| step.step == *name) {
            true => format!("by `{name}`"),
            false => format!("by `{name}`, which is no step of this run"),
        };
        let reason = pick.reason.as_ref().map(|name| format!("for `{name}`"));
        let wanted: Vec<_> = [reason, pick.step.as_ref().map(by)].into_iter().flatten().collect();
        let by_step: Vec<_> =
            steps.iter().map(|step| format!("{} by `{}`", step.dropped(), step.step)).collect();
        let there_is = match self.report().reasons() {
            reasons if reasons.is_empty() => "nothing was dropped at all".to_owned(),
            reasons => format!("there are {reasons}; {}", by_step.join(", ")),
        };
        CurateError::NothingDropped { wanted: wanted.join(" "), there_is }
    }
}
