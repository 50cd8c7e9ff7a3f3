//! Curated documents → a training store and a held-out store.

use std::collections::BTreeMap;
use std::path::Path;

use llamero_tokenizer::Tokenizer;
use serde::{Deserialize, Serialize};

use crate::{DataError, Document, TokenWriter, documents, hash_fraction};

/// Section `[data]` of a recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataConfig {
    /// Share of the text kept from training for measuring.
    pub held_out: f64,
    /// At most this many held-out tokens are kept; the rest is left out of both.
    pub max_held_out_tokens: u64,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self { held_out: 0.05, max_held_out_tokens: 200_000 }
    }
}

impl DataConfig {
    /// Checks the ranges.
    pub fn validate(&self) -> Result<(), DataError> {
        if !(self.held_out > 0.0 && self.held_out <= 0.5) {
            let found = self.held_out.to_string();
            return Err(DataError::OutOfRange {
                key: "data.held_out",
                found,
                allowed: "above 0, at most 0.5".into(),
            });
        }
        if self.max_held_out_tokens == 0 {
            let (found, allowed) = ("0".into(), "at least 1".into());
            return Err(DataError::OutOfRange { key: "data.max_held_out_tokens", found, allowed });
        }
        Ok(())
    }
}

/// What became of the documents.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TokenizeReport {
    /// Documents and tokens to train on.
    pub train_documents: u64,
    /// Tokens to train on.
    pub train_tokens: u64,
    /// Bytes of the text to train on.
    pub train_bytes: u64,
    /// Documents kept from training.
    pub held_out_documents: u64,
    /// Tokens kept from training.
    pub held_out_tokens: u64,
    /// Documents in neither, because of `max_held_out_tokens`.
    pub left_out_documents: u64,
    /// Whether whole sources (rather than single documents) are held out.
    pub by_source: bool,
    /// Training bytes per domain.
    pub bytes_by_domain: BTreeMap<String, u64>,
}

/// Below this many sources, single documents are held out instead of whole sources.
const MIN_SOURCES: usize = 40;
const BATCH_BYTES: usize = 4 << 20;

/// Writes `train.*` and `held_out.*` into `out`. Every document is `begin_of_text`, its tokens, `end_of_text`.
///
/// Which documents are held out depends on a hash of their source (or, with few sources, of the document), so parts of
/// one crate never lie on both sides. `progress` is told the bytes of text done.
pub fn tokenize(
    curated: &Path,
    tokenizer: &Tokenizer,
    config: &DataConfig,
    out: &Path,
    progress: &dyn Fn(u64),
) -> Result<TokenizeReport, DataError> {
    config.validate()?;
    let split = Split::plan(curated, config.held_out)?;
    let create = |name| TokenWriter::create(out, name, tokenizer.vocab_size(), &tokenizer.fingerprint());
    let mut writers =
        Writers { train: create("train")?, held_out: create("held_out")?, config, held_out_tokens: [0; 2] };
    let mut report = TokenizeReport { by_source: split.by_source, ..Default::default() };
    let mut batch: Vec<(Document, bool)> = Vec::new();
    let (mut pending, mut done) = (0, 0);
    for document in documents::read(curated)? {
        let document = document?;
        pending += document.text.len();
        let held_out = split.is_held_out(&document);
        batch.push((document, held_out));
        if pending >= BATCH_BYTES {
            writers.write(tokenizer, &batch, &mut report)?;
            done += pending as u64;
            pending = 0;
            progress(done);
            batch.clear();
        }
    }
    writers.write(tokenizer, &batch, &mut report)?;
    progress(done + pending as u64);
    (report.train_documents, report.train_tokens) = writers.train.finish()?;
    (report.held_out_documents, report.held_out_tokens) = writers.held_out.finish()?;
    if report.train_documents == 0 || report.held_out_documents == 0 {
        return Err(DataError::TooLittle {
            found: format!(
                "{} documents to train on and {} held out: a model cannot be trained and measured on that",
                report.train_documents, report.held_out_documents
            ),
            hint: "give more documents in `curate.sources` (some dozens at least), or raise `data.held_out`"
                .into(),
        });
    }
    Ok(report)
}

struct Split {
    by_source: bool,
    threshold: f64,
    /// A corpus too small for the hash to hold anything out gives up the document with the lowest hash.
    forced: Option<String>,
}

impl Split {
    fn plan(curated: &Path, fraction: f64) -> Result<Self, DataError> {
        let mut sources = BTreeMap::new();
        let (mut lowest, mut by_document): (Option<(f64, String)>, usize) = (None, 0);
        for document in documents::read(curated)? {
            let document = document?;
            let hash = hash_fraction(&document.id);
            by_document += usize::from(hash < fraction);
            if lowest.as_ref().is_none_or(|(low, _)| hash < *low) {
                lowest = Some((hash, document.id));
            }
            *sources.entry(document.source).or_insert(0u64) += 1;
        }
        let held_sources = sources.keys().filter(|s| hash_fraction(s) < fraction).count();
        let by_source = sources.len() >= MIN_SOURCES && held_sources > 0;
        let forced = lowest.filter(|_| !by_source && by_document == 0).map(|(_, id)| id);
        Ok(Self { by_source, threshold: fraction, forced })
    }

    fn is_held_out(&self, document: &Document) -> bool {
        if self.by_source {
            return hash_fraction(&document.source) < self.threshold;
        }
        match &self.forced {
            Some(id) => *id == document.id,
            None => hash_fraction(&document.id) < self.threshold,
        }
    }
}

struct Writers<'c> {
    train: TokenWriter,
    held_out: TokenWriter,
    config: &'c DataConfig,
    /// Tokens held out so far, per domain; each domain may take half of the limit.
    held_out_tokens: [u64; 2],
}

impl Writers<'_> {
    fn write(
        &mut self,
        tokenizer: &Tokenizer,
        batch: &[(Document, bool)],
        report: &mut TokenizeReport,
    ) -> Result<(), DataError> {
        let texts: Vec<&str> = batch.iter().map(|(d, _)| d.text.as_str()).collect();
        let special = tokenizer.special();
        for ((document, held_out), body) in batch.iter().zip(tokenizer.encode_batch(&texts)) {
            let mut ids = Vec::with_capacity(body.len() + 2);
            ids.extend(special.begin_of_text);
            ids.extend(body);
            ids.push(special.end_of_text);
            let bytes = document.text.len();
            if !held_out {
                report.train_bytes += bytes as u64;
                *report.bytes_by_domain.entry(document.domain.name().into()).or_default() += bytes as u64;
                self.train.push(&ids, bytes, document.domain)?;
                continue;
            }
            let used = &mut self.held_out_tokens[document.domain as usize];
            if *used > 0 && *used + ids.len() as u64 > self.config.max_held_out_tokens / 2 {
                report.left_out_documents += 1;
                continue;
            }
            *used += ids.len() as u64;
            self.held_out.push(&ids, bytes, document.domain)?;
        }
        Ok(())
    }
}
