//! Documents whose words are not those of the corpus: Kullback–Leibler divergence of their distributions (Llama 3, section 3.1.1).

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::analysis::Analysis;
use super::check_share;
use crate::{CurateError, Document, Dropped, Filter};

/// How often words come in a corpus, in hashed buckets. A first pass counts; parts that were counted apart are added.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Unigrams {
    counts: Vec<u64>,
}

/// Words that fall into one bucket are taken for one; a quarter of a million buckets take 2 MiB.
const BUCKETS: usize = 1 << 18;

/// Begins a file.
const MAGIC: &[u8; 8] = b"unigram1";

impl Default for Unigrams {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS] }
    }
}

impl Unigrams {
    /// Counts the words of a text.
    pub fn add(&mut self, text: &str) {
        for word in &Analysis::new(text).words {
            self.counts[bucket(word.hash)] += 1;
        }
    }

    /// The buckets of a text's words, in order, and how many words fall into each.
    #[must_use]
    pub fn buckets(text: &str) -> Vec<(u32, u64)> {
        let mut buckets: Vec<u32> =
            Analysis::new(text).words.iter().map(|word| bucket(word.hash) as u32).collect();
        buckets.sort_unstable();
        buckets.chunk_by(|a, b| a == b).map(|run| (run[0], run.len() as u64)).collect()
    }

    /// Adds to the count of a bucket.
    ///
    /// # Errors
    /// [`CurateError::Record`]: there is no such bucket.
    pub fn add_bucket(&mut self, bucket: u32, count: u64) -> Result<(), CurateError> {
        let problem = || CurateError::Record { what: "word counts", problem: format!("no bucket {bucket}") };
        *self.counts.get_mut(bucket as usize).ok_or_else(problem)? += count;
        Ok(())
    }

    /// Adds what was counted elsewhere. The order of additions does not matter.
    pub fn merge(&mut self, other: &Unigrams) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(sum, count)| *sum += count);
    }

    /// Words counted.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Writes the table, complete or not at all: mark, 2^18 counts of 8 bytes, blake3 of both.
    ///
    /// # Errors
    /// [`CurateError::Write`].
    pub fn save(&self, path: &Path) -> Result<(), CurateError> {
        let mut bytes = MAGIC.to_vec();
        self.counts.iter().for_each(|count| bytes.extend(count.to_le_bytes()));
        let sum = blake3::hash(&bytes);
        bytes.extend(sum.as_bytes());
        llamero_artifact::fsutil::write_atomic(path, &bytes).map_err(|error| CurateError::write(path, error))
    }

    /// Reads what [`Unigrams::save`] wrote.
    ///
    /// # Errors
    /// [`CurateError::Read`]: no such file, another kind of file, a checksum that does not match.
    pub fn load(path: &Path) -> Result<Unigrams, CurateError> {
        let bytes = std::fs::read(path).map_err(|error| CurateError::read(path, error))?;
        if bytes.len() != MAGIC.len() + BUCKETS * 8 + blake3::OUT_LEN || !bytes.starts_with(MAGIC) {
            return Err(CurateError::read(
                path,
                format!("{} bytes that are no table of word counts", bytes.len()),
            ));
        }
        let (body, sum) = bytes.split_at(bytes.len() - blake3::OUT_LEN);
        if blake3::hash(body).as_bytes() != sum {
            return Err(CurateError::read(path, "a checksum that does not match: the file is damaged"));
        }
        let count = |eight: &[u8]| eight.iter().rev().fold(0, |count, &byte| count << 8 | u64::from(byte));
        Ok(Unigrams { counts: body[MAGIC.len()..].chunks_exact(8).map(count).collect() })
    }

    /// Divergence of a text's words from the corpus, in nats: Σ p ln(p / q), where q counts each bucket once more than it was seen.
    /// Summed in the order of the buckets. 0 for a text without words.
    #[must_use]
    pub fn divergence(&self, text: &str) -> f64 {
        divergence(&Analysis::new(text), self.total(), |bucket| self.counts[bucket])
    }
}

fn divergence(analysis: &Analysis, total: u64, count: impl Fn(usize) -> u64) -> f64 {
    let mut buckets: Vec<usize> = analysis.words.iter().map(|word| bucket(word.hash)).collect();
    buckets.sort_unstable();
    let words = buckets.len() as f64;
    let all = total as f64 + BUCKETS as f64;
    let run = |run: &[usize]| {
        let p = run.len() as f64 / words;
        p * libm::log(p * all / (count(run[0]) as f64 + 1.0))
    };
    buckets.chunk_by(|a, b| a == b).map(run).sum()
}

/// [`Unigrams`] of which only buckets that were seen take memory, 12 bytes each: for many languages of few words.
#[derive(Default)]
pub(super) struct SparseUnigrams {
    /// Sorted.
    buckets: Vec<u32>,
    counts: Vec<u64>,
    total: u64,
}

impl SparseUnigrams {
    /// The sums of counts in any order.
    ///
    /// # Errors
    /// [`CurateError::Record`]: there is no such bucket.
    pub(super) fn new(mut found: Vec<(u32, u64)>) -> Result<SparseUnigrams, CurateError> {
        found.sort_unstable();
        let mut sums = SparseUnigrams::default();
        for (bucket, count) in found {
            if bucket as usize >= BUCKETS {
                let problem = format!("no bucket {bucket}");
                return Err(CurateError::Record { what: "word counts", problem });
            }
            sums.total = sums.total.saturating_add(count);
            match sums.counts.last_mut().filter(|_| sums.buckets.last() == Some(&bucket)) {
                Some(sum) => *sum = sum.saturating_add(count),
                None => {
                    sums.buckets.push(bucket);
                    sums.counts.push(count);
                }
            }
        }
        sums.buckets.shrink_to_fit();
        sums.counts.shrink_to_fit();
        Ok(sums)
    }

    /// Words counted.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    fn count(&self, bucket: usize) -> u64 {
        self.buckets.binary_search(&(bucket as u32)).map_or(0, |at| self.counts[at])
    }

    /// What [`Divergence`] says of a document.
    pub(super) fn judge(&self, document: &mut Document, max_nats: f64, min_words: usize) -> Option<Dropped> {
        judge(document, max_nats, min_words, |analysis| divergence(analysis, self.total, |at| self.count(at)))
    }
}

fn bucket(hash: u64) -> usize {
    (hash >> (64 - BUCKETS.trailing_zeros())) as usize
}

/// Which documents are outliers.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct DivergenceConfig {
    /// The table of the corpus.
    pub unigrams: PathBuf,
    /// More nats than this: `unigram_divergence`. The paper gives no value: look at the distribution of the tag first.
    pub max_nats: f64,
    /// A shorter document is not judged, in words: few words cannot have the distribution of many.
    #[serde(default = "min_words")]
    pub min_words: usize,
}

fn min_words() -> usize {
    100
}

/// Drops outliers; tags every document it judges with its divergence, `unigram_divergence`.
pub struct Divergence {
    config: DivergenceConfig,
    unigrams: Unigrams,
    total: u64,
}

impl Divergence {
    /// Reads the table.
    ///
    /// # Errors
    /// Those of [`Unigrams::load`], a limit out of range.
    pub fn new(config: &DivergenceConfig) -> Result<Divergence, CurateError> {
        Divergence::with(config, Unigrams::load(&config.unigrams)?)
    }

    /// With a table that is in memory.
    ///
    /// # Errors
    /// A limit out of range.
    pub fn with(config: &DivergenceConfig, unigrams: Unigrams) -> Result<Divergence, CurateError> {
        check_share("unigram_divergence.max_nats", Some(config.max_nats), f64::MAX)?;
        let total = unigrams.total();
        Ok(Divergence { config: config.clone(), unigrams, total })
    }
}

impl Filter for Divergence {
    fn name(&self) -> &'static str {
        "unigram_divergence"
    }

    fn apply(&self, document: &mut Document) -> Option<Dropped> {
        let DivergenceConfig { max_nats, min_words, .. } = self.config;
        judge(document, max_nats, min_words, |analysis| {
            divergence(analysis, self.total, |bucket| self.unigrams.counts[bucket])
        })
    }
}

fn judge(
    document: &mut Document,
    limit: f64,
    min_words: usize,
    divergence: impl Fn(&Analysis) -> f64,
) -> Option<Dropped> {
    let analysis = Analysis::new(&document.text);
    if analysis.words.len() < min_words {
        return None;
    }
    let found = divergence(&analysis);
    if found > limit {
        return Some(Dropped::new(
            "unigram_divergence",
            format!("{found:.3} nats from the corpus, limit {limit}"),
        ));
    }
    document.tags.insert("unigram_divergence".to_owned(), found);
    None
}
