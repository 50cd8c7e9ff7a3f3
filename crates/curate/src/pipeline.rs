//! The pipeline: the plan of a recipe, run here, and its result as files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::dedup::{SketchOf, Verdicts, exact};
use crate::files::FileSource;
use crate::item::{FILTERS, Item, Value};
use crate::local::{Done, Local, MIN_MEMORY_BYTES};
use crate::output::{DocumentWriter, LineWriter, write_json};
use crate::plan::{Input, Plan, Registry, Source, Step};
use crate::rules::text_rules;
use crate::{
    CurateConfig, CurateError, DOCUMENTS_FILE, DROPPED_FILE, Document, DroppedRecord, Inventory, Progress,
    REPORT_FILE,
};

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
const ROW_GROUP_BYTES: usize = 8 << 20;

/// All functions of this crate by name. Add to it what a plan names besides, such as an embedder.
pub fn registry() -> Registry {
    let mut registry = Registry::default();
    crate::rules::register(&mut registry);
    crate::dedup::register(&mut registry);
    registry
}

/// Name of the source in the plans of [`plan`].
pub const SOURCE: &str = "files";

/// The plan of a recipe: filters, duplicates, the cut at the size limit, common lines. Its last task has all documents, kept
/// and dropped, by id.
///
/// # Errors
/// A value out of range.
pub fn plan(config: &CurateConfig) -> Result<Plan, CurateError> {
    config.validate()?;
    let mut plan = Plan { sources: vec![SOURCE.to_owned()], tasks: Vec::new() };
    let filters = Step::with(FILTERS, &text_rules(config)?)?;
    plan.stage("documents", vec![Input::through(SOURCE, vec![filters])], None);
    let sketches = SketchOf { url: false, text: true, minhash: config.near_duplicates.clone() };
    plan.stage("sketches", vec![Input::through("documents", vec![sketches.step()?])], None);
    let mut verdicts = Verdicts::of(&mut plan, "sketches");
    exact::append(&mut verdicts)?;
    if let Some(minhash) = &config.near_duplicates {
        minhash.append(&mut verdicts)?;
    }
    verdicts.cut(config.max_corpus_bytes)?;
    verdicts.judge("documents", "corpus");
    if let Some(lines) = &config.common_lines {
        lines.append(&mut plan, "corpus")?;
    }
    Ok(plan)
}

/// How curation is run. Nothing of it changes the result.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Folder for work, which a killed run leaves to the next. Absent: a folder beside the output, removed at the end.
    pub work: Option<PathBuf>,
    /// Bytes that buffers may hold.
    pub memory_bytes: u64,
    /// Tasks at a time.
    pub threads: usize,
    /// Partitions of a shuffle; absent: by the size of the input.
    pub partitions: Option<u32>,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self { work: None, memory_bytes: 1 << 30, threads: rayon::current_num_threads(), partitions: None }
    }
}

/// Bytes of input to a partition, about.
const PARTITION_BYTES: u64 = 64 << 20;

/// Curates the files of `inventory` and writes the corpus into the folder `out`, which is made if it is missing.
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
    curate_with(config, inventory, out, &RunOptions::default(), progress)
}

/// [`curate`] with the folder, memory and threads given.
///
/// # Errors
/// Those of [`curate`].
pub fn curate_with(
    config: &CurateConfig,
    inventory: &Inventory,
    out: &Path,
    options: &RunOptions,
    progress: &dyn Progress,
) -> Result<CurateReport, CurateError> {
    let plan = plan(config)?;
    let beside = || {
        let mut name = out.as_os_str().to_owned();
        name.push(".work");
        PathBuf::from(name)
    };
    let threads = options.threads.max(1);
    let partitions =
        options.partitions.unwrap_or((inventory.bytes / PARTITION_BYTES).clamp(1, 1 << 12) as u32);
    let local = Local {
        work: options.work.clone().unwrap_or_else(beside),
        memory_bytes: options.memory_bytes.max(MIN_MEMORY_BYTES * threads as u64),
        threads,
        partitions,
        stop_at_broken: false,
        // The folder beside the output is ours: what another recipe left there is of no use.
        restart: true,
    };
    let files = FileSource::new(config, inventory);
    let sources: BTreeMap<&str, &dyn Source> = [(SOURCE, &files as &dyn Source)].into();
    let result = local
        .run(&plan, &registry(), &sources, progress)
        .and_then(|done| write(&done, inventory, &local.work, out, progress).map(|report| (done, report)));
    match result {
        Ok((done, report)) => {
            done.remove()?;
            Ok(report)
        }
        Err(error) => {
            if options.work.is_none() {
                // The error that is known says more than one of tidying up.
                let _ = std::fs::remove_dir_all(&local.work);
            }
            Err(error)
        }
    }
}

/// Writes the documents of a finished plan as files: in the work folder first, so that `out` gets whole files or none.
fn write(
    done: &Done,
    inventory: &Inventory,
    work: &Path,
    out: &Path,
    progress: &dyn Progress,
) -> Result<CurateReport, CurateError> {
    let stage = work.join("result");
    std::fs::create_dir_all(&stage).map_err(|error| CurateError::write(&stage, error))?;
    progress.phase("write", done.last_bytes());
    let mut report = CurateReport {
        inventory: inventory.id.clone(),
        bytes_in: inventory.bytes,
        ..CurateReport::default()
    };
    let mut documents = DocumentWriter::create(&stage)?;
    let mut dropped = LineWriter::create(stage.join(DROPPED_FILE))?;
    let (mut rows, mut filled) = (Vec::new(), 0);
    done.in_order(|key, value| {
        progress.advance((key.len() + value.len()) as u64);
        let item = Value::item(value)?;
        report.count(&item);
        match item.dropped {
            Some(_) => dropped.write(&dropped_record(item)),
            None => {
                let size = item.document.text.len();
                // A single document above the row group's size gets one of its own.
                if !rows.is_empty() && filled + size > ROW_GROUP_BYTES {
                    documents.write(&rows)?;
                    rows.clear();
                    filled = 0;
                }
                filled += size;
                rows.push(item.document);
                Ok(())
            }
        }
    })?;
    if report.documents_kept == 0 {
        return Err(nothing_kept(&report));
    }
    documents.write(&rows)?;
    documents.finish()?;
    dropped.finish()?;
    write_json(&stage.join(REPORT_FILE), &report)?;
    std::fs::create_dir_all(out).map_err(|error| CurateError::write(out, error))?;
    for name in [DOCUMENTS_FILE, DROPPED_FILE, REPORT_FILE] {
        let (from, to) = (stage.join(name), out.join(name));
        // The work folder may be on another disk.
        std::fs::rename(&from, &to)
            .or_else(|_| std::fs::copy(&from, &to).map(|_| ()))
            .map_err(|error| CurateError::write(&to, error))?;
    }
    Ok(report)
}

impl CurateReport {
    /// Counts a document; documents come in the order of their ids.
    fn count(&mut self, item: &Item) {
        self.documents_in += 1;
        match &item.dropped {
            None => {
                let bytes = item.document.text.len() as u64;
                self.documents_kept += 1;
                self.bytes_kept += bytes;
                let tally = self.domains.entry(item.document.domain.clone()).or_default();
                tally.documents += 1;
                tally.bytes += bytes;
            }
            Some(dropped) => {
                let tally = self.dropped.entry(dropped.reason.clone()).or_default();
                tally.count += 1;
                tally.bytes += item.bytes;
                if tally.examples.len() < MAX_EXAMPLES {
                    tally.examples.push(item.document.url.clone());
                }
            }
        }
    }
}

fn nothing_kept(report: &CurateReport) -> CurateError {
    let mut reasons: Vec<_> = report.dropped.iter().collect();
    reasons.sort_by_key(|(_, tally)| std::cmp::Reverse(tally.count));
    let reasons: Vec<_> =
        reasons.iter().map(|(reason, tally)| format!("{} `{reason}`", tally.count)).collect();
    CurateError::NothingKept { files: report.documents_in, reasons: reasons.join(", ") }
}

fn dropped_record(item: Item) -> DroppedRecord {
    let Document { id, url, source, .. } = item.document;
    let dropped = item.dropped.unwrap_or_else(|| crate::Dropped::new("", ""));
    DroppedRecord {
        id,
        url,
        source,
        bytes: item.bytes,
        reason: dropped.reason,
        detail: dropped.detail,
        survivor: dropped.survivor,
    }
}
