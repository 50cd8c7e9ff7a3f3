//! Documents whose words are not those of the corpus that is being curated: counted in one pass, judged in the next.
//!
//! Each language has counts of its own, so that a rare one is not an outlier as such. Of more than [`MAX_LANGUAGES`] those with the
//! fewest words are counted together: a source can say anything of the language of its documents.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::check_share;
use super::unigrams::{SparseUnigrams, Unigrams};
use crate::item::{Item, Value};
use crate::plan::{Emit, Input, Map, Plan, Record, Reduce, Registry, Step, Values};
use crate::rules::CODE;
use crate::{CurateError, Document, Dropped, Filter};

pub(super) fn register(registry: &mut Registry) {
    registry.map_of::<CountWords>("count-words");
    registry.reduce_of::<AddCounts>("add-counts");
    registry.filter(NAME, |found, side| {
        Ok(Box::new(OutOfLine::new(&crate::plan::parameters(NAME, found)?, side)?))
    });
}

const NAME: &str = "kl_outliers";

/// Languages with counts of their own; lid.176 knows fewer.
const MAX_LANGUAGES: usize = 256;

/// Which documents are outliers.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct KlOutliers {
    /// A document of a greater Kullback–Leibler divergence from the corpus, in nats, is dropped as `unigram_divergence`. The
    /// paper gives no value, so there is no default.
    pub max_nats: f64,
    /// A shorter document is not judged, in words.
    #[serde(default = "min_words")]
    pub min_words: usize,
}

fn min_words() -> usize {
    100
}

impl KlOutliers {
    /// Appends the stage `words`, which counts the words of the task `documents`; gives the filter, whose stage must have
    /// `words` as its side input.
    pub(crate) fn append(&self, plan: &mut Plan, documents: &str) -> Result<Step, CurateError> {
        let counts = Input::through(documents, vec![Step::new("count-words")]);
        plan.stage("words", vec![counts], Some(Step::new("add-counts")));
        Step::with(NAME, self)
    }
}

/// Key: bucket and language. Value: a count.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CountWords {}

impl Map for CountWords {
    fn map(&self, _: &[u8], value: &[u8], emit: &mut Emit) -> Result<(), CurateError> {
        let wanted = |item: &Item| item.dropped.is_none() && item.document.domain != CODE;
        let Some(item) = Value::document(value)?.filter(wanted) else { return Ok(()) };
        for (bucket, count) in Unigrams::buckets(&item.document.text) {
            let key = [&bucket.to_be_bytes(), item.document.lang.as_bytes()].concat();
            emit(&key, &count.to_be_bytes())?;
        }
        Ok(())
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AddCounts {}

impl Reduce for AddCounts {
    fn reduce(&self, key: &[u8], values: &mut dyn Values, emit: &mut Emit) -> Result<(), CurateError> {
        let mut sum = 0_u64;
        while let Some(value) = values.next()? {
            sum = sum.saturating_add(count(value)?);
        }
        emit(key, &sum.to_be_bytes())
    }
}

fn count(value: &[u8]) -> Result<u64, CurateError> {
    let problem = |_| CurateError::Record { what: "word counts", problem: "no count".to_owned() };
    Ok(u64::from_be_bytes(value.try_into().map_err(problem)?))
}

/// The filter, with the counts of each language.
struct OutOfLine {
    config: KlOutliers,
    languages: BTreeMap<String, SparseUnigrams>,
    /// Those of all other languages together.
    others: SparseUnigrams,
}

impl OutOfLine {
    fn new(config: &KlOutliers, side: &[Record]) -> Result<OutOfLine, CurateError> {
        check_share("kl_outliers.max_nats", Some(config.max_nats), f64::MAX)?;
        let mut counts: BTreeMap<&[u8], Vec<(u32, u64)>> = BTreeMap::new();
        for record in side {
            let problem =
                || CurateError::Record { what: "word counts", problem: "too short a key".to_owned() };
            let (bucket, lang) = record.key.split_first_chunk().ok_or_else(problem)?;
            counts.entry(lang).or_default().push((u32::from_be_bytes(*bucket), count(&record.value)?));
        }
        let words =
            |counts: &[(u32, u64)]| counts.iter().fold(0_u64, |sum, (_, count)| sum.saturating_add(*count));
        let mut counts: Vec<_> = counts.into_iter().collect();
        // Stable, so of equally many words the first name counts.
        counts.sort_by_key(|(_, counts)| Reverse(words(counts)));
        let others = counts.split_off(counts.len().min(MAX_LANGUAGES));
        let of_one = |(lang, counts): (&[u8], _)| {
            Ok((String::from_utf8_lossy(lang).into_owned(), SparseUnigrams::new(counts)?))
        };
        Ok(OutOfLine {
            config: config.clone(),
            languages: counts.into_iter().map(of_one).collect::<Result<_, CurateError>>()?,
            others: SparseUnigrams::new(others.into_iter().flat_map(|(_, counts)| counts).collect())?,
        })
    }
}

impl Filter for OutOfLine {
    fn name(&self) -> &'static str {
        NAME
    }

    fn apply(&self, document: &mut Document) -> Option<Dropped> {
        if document.domain == CODE {
            return None;
        }
        let counts = self.languages.get(&document.lang).unwrap_or(&self.others);
        if counts.total() == 0 {
            return None;
        }
        counts.judge(document, self.config.max_nats, self.config.min_words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(lang: &str, bucket: u32, count: u64) -> Record {
        let key = [&bucket.to_be_bytes(), lang.as_bytes()].concat();
        Record { key, value: count.to_be_bytes().to_vec() }
    }

    #[test]
    fn languages_of_few_words_are_counted_together() {
        let text = "the shepherd and the herd went up to the river ".repeat(3);
        let buckets = Unigrams::buckets(&text);
        // One large language, and thousands that sources made up: those of the fewest words are one.
        let mut side: Vec<Record> =
            buckets.iter().map(|&(bucket, count)| record("en", bucket, count * 100)).collect();
        side.extend((0..3000).map(|lang| record(&format!("x{lang:04}"), lang, 2 + u64::from(lang < 300))));
        let rules = OutOfLine::new(&KlOutliers { max_nats: 6.0, min_words: 10 }, &side).unwrap();
        assert_eq!((rules.languages.len(), rules.others.total()), (MAX_LANGUAGES, 45 * 3 + 2700 * 2));
        let judged = |lang: &str| {
            let mut document = Document { text: text.clone(), lang: lang.to_owned(), ..Document::default() };
            let dropped = rules.apply(&mut document).is_some();
            (dropped, document.tags.get("unigram_divergence").copied())
        };
        // The same figures as those of a whole table.
        let mut whole = Unigrams::default();
        buckets.iter().for_each(|&(bucket, count)| whole.add_bucket(bucket, count * 100).unwrap());
        assert_eq!(judged("en"), (false, Some(whole.divergence(&text))));
        assert_eq!(judged("x0000"), judged("x0001"));
        assert!(judged("x2999").0);
        let error = OutOfLine::new(&KlOutliers { max_nats: 6.0, min_words: 10 }, &[record("en", 1 << 18, 1)]);
        assert!(error.err().unwrap().to_string().contains("no bucket"));
    }
}
