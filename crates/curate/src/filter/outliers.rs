//! Documents whose words are not those of the corpus that is being curated: counted in one pass, judged in the next.
//!
//! Each language has counts of its own, so that a rare one is not an outlier as such.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::unigrams::{Divergence, DivergenceConfig, Unigrams};
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
struct OutOfLine(BTreeMap<String, Divergence>);

impl OutOfLine {
    fn new(config: &KlOutliers, side: &[Record]) -> Result<OutOfLine, CurateError> {
        let mut counts: BTreeMap<String, Unigrams> = BTreeMap::new();
        for record in side {
            let problem =
                || CurateError::Record { what: "word counts", problem: "too short a key".to_owned() };
            let (bucket, lang) = record.key.split_first_chunk().ok_or_else(problem)?;
            let lang = String::from_utf8_lossy(lang).into_owned();
            counts.entry(lang).or_default().add_bucket(u32::from_be_bytes(*bucket), count(&record.value)?)?;
        }
        let KlOutliers { max_nats, min_words } = *config;
        let config = DivergenceConfig { unigrams: PathBuf::new(), max_nats, min_words };
        // Checked even where nothing was counted.
        Divergence::with(&config, Unigrams::default())?;
        let with = |(lang, counts)| Ok((lang, Divergence::with(&config, counts)?));
        Ok(OutOfLine(counts.into_iter().map(with).collect::<Result<_, CurateError>>()?))
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
        self.0.get(&document.lang)?.apply(document)
    }
}
