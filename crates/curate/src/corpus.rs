//! The pipeline: judge every file, choose the survivors, write them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::inventory::SourceFile;
use crate::output::{DocumentWriter, Row, write_json, write_lines};
use crate::rules::{Subject, domain, fingerprint, judge, normalise};
use crate::version::Version;
use crate::{CurateConfig, CurateError, DROPPED_FILE, DroppedRecord, Inventory, Progress, REPORT_FILE};

/// Number and size of some documents.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Number of documents.
    pub documents: u64,
    /// Bytes of their text.
    pub bytes: u64,
}

/// Documents dropped for one reason.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DroppedTally {
    /// Number of documents.
    pub count: u64,
    /// Bytes of their files.
    pub bytes: u64,
    /// Urls of up to five of them, those with the lowest ids.
    pub examples: Vec<String>,
}

/// What came in, what was kept, and why the rest was not.
///
/// `documents_in` is `documents_kept` plus the counts of all `dropped`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CurateReport {
    /// Id of the inventory.
    pub inventory: String,
    /// Candidate files.
    pub documents_in: u64,
    /// Documents written.
    pub documents_kept: u64,
    /// Bytes of the candidate files.
    pub bytes_in: u64,
    /// Bytes of the text written.
    pub bytes_kept: u64,
    /// Kept documents per domain, `prose` and `code`.
    pub domains: BTreeMap<String, Tally>,
    /// Dropped documents per reason.
    pub dropped: BTreeMap<String, DroppedTally>,
}

/// Examples listed per reason.
const MAX_EXAMPLES: usize = 5;

/// Bytes of text in one row group, which is also about what the writer holds in memory.
const ROW_GROUP_BYTES: u64 = 8 << 20;

/// A document that passed the rules.
#[derive(Clone)]
struct Passed {
    /// Bytes of the normalised text.
    bytes: u64,
    fingerprint: [u8; 32],
    domain: &'static str,
}

/// What is known of one file.
enum Verdict {
    Kept(Passed),
    Dropped { reason: &'static str, detail: String, survivor: Option<usize> },
}

impl Verdict {
    fn dropped(reason: &'static str, detail: String) -> Self {
        Self::Dropped { reason, detail, survivor: None }
    }
}

/// One file on its way through the pipeline.
struct Candidate<'a> {
    file: &'a SourceFile,
    id: String,
    verdict: Verdict,
}

/// Curates the files of `inventory` and writes the corpus into the folder `out`, which is made if it is missing.
///
/// Memory is bounded by a few documents per thread and one row group, besides some hundred bytes per file.
///
/// # Errors
/// A value out of range, no document kept, a file that changed since the inventory, a failure to write. What is in
/// `out` after an error is not to be used.
pub fn curate(
    config: &CurateConfig,
    inventory: &Inventory,
    out: &Path,
    progress: &dyn Progress,
) -> Result<CurateReport, CurateError> {
    config.validate()?;
    progress.phase("judge", inventory.bytes);
    let newest = newest_versions(&inventory.files);
    let mut candidates = inventory
        .files
        .par_iter()
        .map(|file| {
            let verdict = examine(file, &newest, config)?;
            progress.advance(file.bytes);
            Ok(Candidate { file, id: file.id(), verdict })
        })
        .collect::<Result<Vec<_>, CurateError>>()?;
    candidates.sort_by(|a, b| a.id.cmp(&b.id));
    drop_duplicates(&mut candidates);
    drop_over_cap(&mut candidates, config.max_corpus_bytes);

    let report = summarise(inventory, &candidates);
    if report.documents_kept == 0 {
        return Err(nothing_kept(&report));
    }
    std::fs::create_dir_all(out).map_err(|error| CurateError::write(out, error))?;
    progress.phase("write", report.bytes_kept);
    write_documents(&candidates, out, progress)?;
    write_lines(&out.join(DROPPED_FILE), &dropped_records(&candidates))?;
    write_json(&out.join(REPORT_FILE), &report)?;
    Ok(report)
}

/// The newest version of each crate in the registry.
fn newest_versions(files: &[SourceFile]) -> BTreeMap<&str, &Version> {
    let mut newest = BTreeMap::new();
    for file in files {
        if let Some(version) = &file.registry_version {
            let best = newest.entry(file.source.as_str()).or_insert(version);
            *best = version.max(*best);
        }
    }
    newest
}

/// Reads one file and asks the rules.
fn examine(
    file: &SourceFile,
    newest: &BTreeMap<&str, &Version>,
    config: &CurateConfig,
) -> Result<Verdict, CurateError> {
    if let Some(version) = &file.registry_version
        && let Some(newer) = newest.get(file.source.as_str()).filter(|&&newest| newest > version)
    {
        return Ok(Verdict::dropped("older_version", format!("`{newer}` is present")));
    }
    let readable = file.problem.is_none() && file.bytes <= config.max_document_bytes;
    let bytes = if readable { read_unchanged(file)? } else { Vec::new() };
    let text = normalise(std::str::from_utf8(&bytes).unwrap_or_default());
    let name = file.path.file_name().unwrap_or_default().to_string_lossy();
    let domain = domain(&name, &text);
    let subject =
        Subject { problem: file.problem.as_deref(), size: file.bytes, bytes: &bytes, text: &text, domain };
    Ok(match judge(&subject, config) {
        Some((reason, detail)) => Verdict::dropped(reason, detail),
        None => Verdict::Kept(Passed { bytes: text.len() as u64, fingerprint: fingerprint(&text), domain }),
    })
}

/// Reads a file and makes sure that it is the one of the inventory.
fn read_unchanged(file: &SourceFile) -> Result<Vec<u8>, CurateError> {
    let changed = |found: String| CurateError::Changed { path: file.path.clone(), found };
    let mut bytes = Vec::new();
    File::open(&file.path)
        // One byte more than expected shows that it grew, without reading on for ever.
        .and_then(|opened| opened.take(file.bytes.saturating_add(1)).read_to_end(&mut bytes))
        .map_err(|error| changed(error.to_string()))?;
    if bytes.len() as u64 != file.bytes {
        return Err(changed(format!("it had {} bytes and no longer has", file.bytes)));
    }
    if *blake3::hash(&bytes).as_bytes() != file.hash {
        return Err(changed("its content is different".to_owned()));
    }
    Ok(bytes)
}

/// Keeps one of each group of equal texts: the newest version, then the lowest id. `candidates` are sorted by id.
fn drop_duplicates(candidates: &mut [Candidate]) {
    let mut survivors: BTreeMap<[u8; 32], usize> = BTreeMap::new();
    for (at, candidate) in candidates.iter().enumerate() {
        if let Verdict::Kept(passed) = &candidate.verdict {
            let best = survivors.entry(passed.fingerprint).or_insert(at);
            // Strictly newer, so that among equals the first, with the lowest id, stays.
            if candidate.file.registry_version > candidates[*best].file.registry_version {
                *best = at;
            }
        }
    }
    for (at, candidate) in candidates.iter_mut().enumerate() {
        if let Verdict::Kept(passed) = &candidate.verdict {
            let survivor = survivors[&passed.fingerprint];
            if survivor != at {
                let (reason, detail) = ("exact_duplicate", "the same text is kept once".to_owned());
                candidate.verdict = Verdict::Dropped { reason, detail, survivor: Some(survivor) };
            }
        }
    }
}

/// Keeps documents up to `limit` bytes: sources in the order of their hash, documents in the order of their id, and
/// nothing after the first that does not fit. So whole sources are kept, but for the one that the limit cuts.
fn drop_over_cap(candidates: &mut [Candidate], limit: u64) {
    let mut order: Vec<_> = (0..candidates.len())
        .filter(|&at| matches!(candidates[at].verdict, Verdict::Kept(_)))
        .map(|at| (*blake3::hash(candidates[at].file.source.as_bytes()).as_bytes(), at))
        .collect();
    order.sort_unstable();
    let mut total = 0_u64;
    for (_, at) in order {
        if let Verdict::Kept(passed) = &candidates[at].verdict {
            total = total.saturating_add(passed.bytes);
            if total > limit {
                let detail = format!("the corpus already holds its {limit} bytes");
                candidates[at].verdict = Verdict::dropped("over_corpus_cap", detail);
            }
        }
    }
}

fn summarise(inventory: &Inventory, candidates: &[Candidate]) -> CurateReport {
    let mut report = CurateReport {
        inventory: inventory.id.clone(),
        documents_in: candidates.len() as u64,
        bytes_in: inventory.bytes,
        ..CurateReport::default()
    };
    for candidate in candidates {
        match &candidate.verdict {
            Verdict::Kept(passed) => {
                report.documents_kept += 1;
                report.bytes_kept += passed.bytes;
                let tally = report.domains.entry(passed.domain.to_owned()).or_default();
                tally.documents += 1;
                tally.bytes += passed.bytes;
            }
            Verdict::Dropped { reason, .. } => {
                let tally = report.dropped.entry((*reason).to_owned()).or_default();
                tally.count += 1;
                tally.bytes += candidate.file.bytes;
                if tally.examples.len() < MAX_EXAMPLES {
                    tally.examples.push(candidate.file.url.clone());
                }
            }
        }
    }
    report
}

fn nothing_kept(report: &CurateReport) -> CurateError {
    let mut reasons: Vec<_> = report.dropped.iter().collect();
    reasons.sort_by_key(|(_, tally)| std::cmp::Reverse(tally.count));
    let reasons: Vec<_> =
        reasons.iter().map(|(reason, tally)| format!("{} `{reason}`", tally.count)).collect();
    CurateError::NothingKept { files: report.documents_in, reasons: reasons.join(", ") }
}

/// Reads the kept documents again, a row group at a time and in parallel, and writes them in order.
fn write_documents(candidates: &[Candidate], out: &Path, progress: &dyn Progress) -> Result<(), CurateError> {
    let kept: Vec<_> = candidates
        .iter()
        .filter_map(|candidate| match &candidate.verdict {
            Verdict::Kept(passed) => Some((candidate, passed)),
            Verdict::Dropped { .. } => None,
        })
        .collect();
    let mut writer = DocumentWriter::create(out)?;
    let mut rest = kept.as_slice();
    while !rest.is_empty() {
        let mut bytes = 0;
        let fitting = rest.iter().take_while(|(_, passed)| {
            bytes += passed.bytes;
            bytes <= ROW_GROUP_BYTES
        });
        // A single document above the row group's size gets one of its own.
        let (group, later) = rest.split_at(fitting.count().max(1));
        let rows = group
            .par_iter()
            .map(|(candidate, passed)| row(candidate, passed))
            .collect::<Result<Vec<_>, CurateError>>()?;
        writer.write(&rows)?;
        progress.advance(group.iter().map(|(_, passed)| passed.bytes).sum());
        rest = later;
    }
    writer.finish()
}

fn row<'a>(candidate: &'a Candidate, passed: &'a Passed) -> Result<Row<'a>, CurateError> {
    let file = candidate.file;
    let bytes = read_unchanged(file)?;
    // The same bytes were text when they were judged.
    let text = std::str::from_utf8(&bytes)
        .map_err(|error| CurateError::Changed { path: file.path.clone(), found: error.to_string() })?;
    let text = normalise(text).into_owned();
    Ok(Row { id: &candidate.id, url: &file.url, source: &file.source, domain: passed.domain, text })
}

fn dropped_records(candidates: &[Candidate]) -> Vec<DroppedRecord> {
    candidates
        .iter()
        .filter_map(|candidate| match &candidate.verdict {
            Verdict::Kept(_) => None,
            Verdict::Dropped { reason, detail, survivor } => Some(DroppedRecord {
                id: candidate.id.clone(),
                url: candidate.file.url.clone(),
                source: candidate.file.source.clone(),
                bytes: candidate.file.bytes,
                reason: (*reason).to_owned(),
                detail: detail.clone(),
                survivor: survivor.map(|at| candidates[at].file.url.clone()),
            }),
        })
        .collect()
}
