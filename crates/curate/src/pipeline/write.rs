//! The documents of a finished plan as files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::clusters::Collecting;
use super::origins::Counting;
use super::report::{CurateReport, Tally};
use crate::contamination::EvalSetTally;
use crate::error::told;
use crate::inputs::OWN_ID;
use crate::item::{Item, Value};
use crate::local::Done;
use crate::mix::{Counts, Ledger, SHARD_BYTES};
use crate::output::{DocumentWriter, LineWriter, write_json};
use crate::plan::BrokenPart;
use crate::{
    BROKEN_FILE, CurateConfig, CurateError, DOCUMENTS_FILE, DROPPED_FILE, Document, DroppedRecord, Inventory,
    MIX_FILE, Progress, REPORT_FILE,
};

/// Bytes of documents in one row group, which is also about what the writer holds in memory.
const ROW_GROUP_BYTES: usize = 8 << 20;

/// Writes the files in the work folder first, so that `out` gets whole files or none.
pub(super) fn write(
    done: &Done,
    (config, inventory): (&CurateConfig, &Inventory),
    (steps, evaluation_sets): (Vec<String>, Vec<EvalSetTally>),
    work: &Path,
    out: &Path,
    progress: &dyn Progress,
) -> Result<CurateReport, CurateError> {
    let stage = work.join(crate::local::RESULT);
    if stage.exists() {
        std::fs::remove_dir_all(&stage).map_err(|error| CurateError::write(&stage, error))?;
    }
    std::fs::create_dir_all(&stage).map_err(|error| CurateError::write(&stage, error))?;
    progress.phase("write", done.last_bytes());
    let broken = broken(done, (config, inventory));
    let mut report = CurateReport::new(inventory, steps, &broken);
    report.evaluation_sets = evaluation_sets;
    let mut dropped = LineWriter::create(stage.join(DROPPED_FILE))?;
    let (mut origins, mut clusters) = (Counting::default(), Collecting::begin(&stage)?);
    let mut mix = config.mix.as_ref().map(Counts::new);
    let names: Vec<&str> = match &config.mix {
        Some(mix) => mix.draws().into_iter().map(|(name, _)| name).collect(),
        None => vec![crate::mix::MIX],
    };
    let shard_bytes = config.mix.as_ref().map_or(SHARD_BYTES, |mix| mix.shard_bytes);
    let mut shards: Vec<Shards> =
        (0..names.len()).map(|at| Shards::new(&stage, folder(at, names[at]), shard_bytes)).collect();
    done.in_order(|key, value| {
        progress.advance((key.len() + value.len()) as u64);
        let item = match Value::decode(value)? {
            Value::Passed(passed) => {
                for (kind, count) in passed {
                    *report.passed.entry(kind).or_default() += count;
                }
                return Ok(());
            }
            _ => Value::item(value)?,
        };
        let place = if mix.is_some() { Ledger::of(key) } else { Ledger::Entry };
        match (place, &mut mix) {
            (Ledger::Copy(draw), Some(mix)) => {
                mix.copy(draw, &item);
                return shards[draw as usize].push(item.document);
            }
            (_, Some(mix)) => mix.entry(&item),
            (_, None) => {}
        }
        report.count(&item)?;
        origins.count(&item.document, item.bytes, item.dropped.is_none().then_some(item.text_bytes));
        clusters.add(&item)?;
        if item.dropped.is_some() {
            dropped.write(&dropped_record(item))
        } else if mix.is_none() {
            shards[0].push(item.document)
        } else {
            Ok(())
        }
    })?;
    (report.origins, report.duplicates) = (origins.finish(), clusters.finish()?);
    if report.documents_kept == 0 {
        return Err(nothing(&report, config, &broken));
    }
    if let Some(at) = shards.iter().position(|shards| shards.files.is_empty()) {
        let short = mix.as_ref().and_then(|mix| mix.reports().remove(names[at]));
        let found = short.map_or_else(String::new, |report| report.short.join("; "));
        return Err(CurateError::EmptyDraw { draw: names[at].to_owned(), found });
    }
    let mut files = vec![DROPPED_FILE.to_owned(), REPORT_FILE.to_owned()];
    for shards in shards {
        report.files.extend(shards.finish()?);
    }
    files.extend(report.files.keys().cloned());
    dropped.finish()?;
    write_json(&stage.join(REPORT_FILE), &report)?;
    if let Some(mix) = mix {
        write_json(&stage.join(MIX_FILE), &mix.reports())?;
        files.push(MIX_FILE.to_owned());
    }
    if !broken.is_empty() {
        let mut lines = LineWriter::create(stage.join(BROKEN_FILE))?;
        broken.iter().try_for_each(|part| lines.write(part))?;
        lines.finish()?;
        files.push(BROKEN_FILE.to_owned());
    }
    for name in files {
        put(&stage.join(&name), &out.join(&name))?;
    }
    Ok(report)
}

/// What of the inputs was broken, sorted; first what all of an input was lost by.
fn broken(done: &Done, (config, inventory): (&CurateConfig, &Inventory)) -> Vec<BrokenPart> {
    let mut broken: Vec<BrokenPart> =
        done.stages.values().flat_map(|stage| stage.broken.iter().cloned()).collect();
    broken.sort();
    let mut ranges: BTreeMap<String, usize> = BTreeMap::new();
    for part in broken.iter().filter(|part| part.lost) {
        *ranges.entry(part.input.clone()).or_default() += 1;
    }
    if let Some(read) = &config.read {
        // A large input is lost if all of its ranges are.
        for listed in &inventory.inputs {
            if ranges.get(&listed.name).is_some_and(|&lost| lost < listed.ranges(read).len()) {
                ranges.remove(&listed.name);
            }
        }
    }
    for part in broken.iter_mut().filter(|part| part.lost) {
        part.lost = ranges.remove(&part.input).is_some();
    }
    // Stable.
    broken.sort_by_key(|part| !part.lost);
    broken
}

/// Why there is no corpus.
fn nothing(report: &CurateReport, config: &CurateConfig, broken: &[BrokenPart]) -> CurateError {
    if report.documents_in > 0 {
        let what = if config.read.is_some() { "documents" } else { "files" };
        return CurateError::NothingKept { count: report.documents_in, what, reasons: report.reasons() };
    }
    let passed = report.passed.iter().map(|(kind, count)| format!("{count} {kind}"));
    let broken = (!broken.is_empty()).then(|| told(broken));
    CurateError::NoDocuments { passed: passed.chain(broken).collect::<Vec<_>>().join(", ") }
}

/// The folder of a draw: the first is what training begins with.
fn folder(at: usize, name: &str) -> String {
    if at == 0 { String::new() } else { format!("{name}/") }
}

/// Moves a file, perhaps to another disk.
fn put(from: &Path, to: &Path) -> Result<(), CurateError> {
    let failed = |error: std::io::Error| CurateError::write(to, error);
    if let Some(folder) = to.parent() {
        std::fs::create_dir_all(folder).map_err(|error| CurateError::write(folder, error))?;
    }
    std::fs::rename(from, to).or_else(|_| std::fs::copy(from, to).map(|_| ())).map_err(failed)
}

/// Documents in files of about so many bytes of text. One file alone is called [`DOCUMENTS_FILE`].
struct Shards {
    stage: PathBuf,
    folder: String,
    shard_bytes: u64,
    files: Vec<(String, Tally)>,
    writer: Option<DocumentWriter>,
    rows: Vec<Document>,
    filled: usize,
}

impl Shards {
    fn new(stage: &Path, folder: String, shard_bytes: u64) -> Shards {
        let (stage, files, rows) = (stage.to_path_buf(), Vec::new(), Vec::new());
        Shards { stage, folder, shard_bytes, files, writer: None, rows, filled: 0 }
    }

    fn push(&mut self, document: Document) -> Result<(), CurateError> {
        let (size, held) = (document.text.len(), document.held_bytes());
        // A single document above the row group's size gets one of its own.
        if !self.rows.is_empty() && self.filled + held > ROW_GROUP_BYTES {
            self.flush()?;
        }
        if self.files.last().is_some_and(|(_, tally)| tally.bytes + size as u64 > self.shard_bytes) {
            self.close()?;
        }
        if self.writer.is_none() {
            let name = format!("{}documents-{:05}.parquet", self.folder, self.files.len());
            let path = self.stage.join(&name);
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder).map_err(|error| CurateError::write(folder, error))?;
            }
            self.writer = Some(DocumentWriter::create(&path)?);
            self.files.push((name, Tally::default()));
        }
        if let Some((_, tally)) = self.files.last_mut() {
            tally.add(size as u64);
        }
        self.filled += held;
        self.rows.push(document);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), CurateError> {
        if let Some(writer) = &mut self.writer
            && !self.rows.is_empty()
        {
            writer.write(&self.rows)?;
        }
        self.rows.clear();
        self.filled = 0;
        Ok(())
    }

    fn close(&mut self) -> Result<(), CurateError> {
        self.flush()?;
        self.writer.take().map_or(Ok(()), DocumentWriter::finish)
    }

    /// The files by name.
    fn finish(mut self) -> Result<BTreeMap<String, Tally>, CurateError> {
        self.close()?;
        if let [(name, _)] = &mut self.files[..] {
            let whole = format!("{}{DOCUMENTS_FILE}", self.folder);
            let (from, to) = (self.stage.join(&*name), self.stage.join(&whole));
            std::fs::rename(&from, &to).map_err(|error| CurateError::write(&to, error))?;
            *name = whole;
        }
        Ok(self.files.into_iter().collect())
    }
}

fn dropped_record(item: Item) -> DroppedRecord {
    let Document { id, url, source, mut meta, text, .. } = item.document;
    let dropped = item.dropped.unwrap_or_else(|| crate::Dropped::new("", ""));
    DroppedRecord {
        id,
        own_id: meta.remove(OWN_ID),
        url,
        source,
        bytes: item.bytes,
        step: item.step,
        reason: dropped.reason,
        detail: dropped.detail,
        survivor: dropped.survivor,
        excerpt: text,
    }
}
