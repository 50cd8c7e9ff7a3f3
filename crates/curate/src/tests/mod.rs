//! Tests of the whole crate, and what they share.

mod determinism;
mod failures;
mod foreign;
mod pipeline;
mod rules;
mod vectors;
mod whole;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use arrow_array::cast::AsArray;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use tempfile::TempDir;

use crate::inventory::inventory_at;
use crate::*;

/// Prose that passes every rule and differs by `seed`.
pub(crate) fn prose(seed: usize) -> String {
    let mut text = format!("Herd number {seed} grazes on the high plain.\n");
    for line in 0..8 {
        text += &format!(
            "Line {line} of herd {seed} tells how llama {} met llama {}.\n",
            seed * 7 + line,
            seed + line
        );
    }
    text
}

/// Writes files, given as relative path and content, below a folder.
pub(crate) fn write_all(root: &Path, files: &[(&str, &[u8])]) {
    for (relative, content) in files {
        let path = root.join(relative);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

pub(crate) fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let root = TempDir::new().unwrap();
    write_all(root.path(), files);
    root
}

pub(crate) fn config_for(sources: &[&Path]) -> CurateConfig {
    let sources = sources.iter().map(|path| path.to_str().unwrap().to_owned()).collect();
    CurateConfig { sources, ..CurateConfig::default() }
}

/// One finished run, read back from its files.
pub(crate) struct Outcome {
    pub(crate) inventory: Inventory,
    pub(crate) report: CurateReport,
    /// Kept rows in file order, each in the order of [`COLUMNS`].
    pub(crate) rows: Vec<[String; COLUMNS.len()]>,
    pub(crate) dropped: Vec<DroppedRecord>,
    pub(crate) bytes: Vec<Vec<u8>>,
    pub(crate) row_groups: usize,
    _out: TempDir,
}

impl Outcome {
    /// Url to reason of the dropped documents.
    pub(crate) fn reasons(&self) -> BTreeMap<&str, &str> {
        self.dropped.iter().map(|record| (record.url.as_str(), record.reason.as_str())).collect()
    }

    pub(crate) fn kept_urls(&self) -> Vec<&str> {
        let mut urls: Vec<_> = self.rows.iter().map(|row| row[1].as_str()).collect();
        urls.sort_unstable();
        urls
    }
}

pub(crate) fn run(config: &CurateConfig) -> Result<Outcome, CurateError> {
    run_at(config, None)
}

/// Runs both steps and checks what must hold for every corpus.
pub(crate) fn run_at(config: &CurateConfig, cargo_home: Option<PathBuf>) -> Result<Outcome, CurateError> {
    let inventory = inventory_at(config, cargo_home, &())?;
    let out = TempDir::new().unwrap();
    let report = curate(config, &inventory, out.path(), &())?;
    let (rows, row_groups) = read_rows(&out.path().join(DOCUMENTS_FILE));
    let dropped: Vec<DroppedRecord> = fs::read_to_string(out.path().join(DROPPED_FILE))
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let bytes =
        [DOCUMENTS_FILE, DROPPED_FILE, REPORT_FILE].map(|name| fs::read(out.path().join(name)).unwrap());
    let outcome = Outcome { inventory, report, rows, dropped, bytes: bytes.to_vec(), row_groups, _out: out };
    check(&outcome, config);
    Ok(outcome)
}

pub(crate) fn read_rows(path: &Path) -> (Vec<[String; COLUMNS.len()]>, usize) {
    let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap();
    let names: Vec<_> = builder.schema().fields().iter().map(|field| field.name().clone()).collect();
    assert_eq!(names, COLUMNS);
    let row_groups = builder.metadata().num_row_groups();
    let mut rows = Vec::new();
    for batch in builder.build().unwrap() {
        let batch = batch.unwrap();
        for row in 0..batch.num_rows() {
            rows.push(std::array::from_fn(|at| batch.column(at).as_string::<i32>().value(row).to_owned()));
        }
    }
    (rows, row_groups)
}

/// Every document is kept or dropped exactly once, the counts add up, and both files are sorted by id.
fn check(outcome: &Outcome, config: &CurateConfig) {
    let Outcome { inventory, report, rows, dropped, .. } = outcome;
    assert_eq!(serde_json::from_slice::<CurateReport>(&outcome.bytes[2]).unwrap(), *report);
    assert_eq!(report.inventory, inventory.id);
    assert_eq!(report.documents_kept, rows.len() as u64);
    assert_eq!(report.documents_in, inventory.files.len() as u64);
    assert_eq!(report.documents_in, report.documents_kept + dropped.len() as u64);
    assert_eq!(report.bytes_in, inventory.bytes);
    assert_eq!(report.bytes_kept, rows.iter().map(|row| row[6].len() as u64).sum::<u64>());
    assert!(report.bytes_kept <= config.corpus_limit().unwrap());
    assert!(rows.is_sorted_by(|a, b| a[0] < b[0]), "rows are not sorted by id");
    assert!(dropped.is_sorted_by(|a, b| a.id < b.id), "dropped records are not sorted by id");

    let mut listed: Vec<_> = rows.iter().map(|row| row[1].as_str()).collect();
    listed.extend(dropped.iter().map(|record| record.url.as_str()));
    listed.sort_unstable();
    let expected: Vec<_> = inventory.files.iter().map(|file| file.url.as_str()).collect();
    assert_eq!(listed, expected, "each document is listed exactly once");

    for (reason, tally) in &report.dropped {
        let of_reason: Vec<_> = dropped.iter().filter(|record| record.reason == *reason).collect();
        assert_eq!(tally.count, of_reason.len() as u64);
        assert_eq!(tally.bytes, of_reason.iter().map(|record| record.bytes).sum::<u64>());
        assert_eq!(tally.examples.len(), of_reason.len().min(5));
        assert!(of_reason.iter().zip(&tally.examples).all(|(record, example)| record.url == *example));
    }
    for (domain, tally) in &report.domains {
        let of_domain: Vec<_> = rows.iter().filter(|row| row[5] == *domain).collect();
        assert_eq!(tally.documents, of_domain.len() as u64);
        assert_eq!(tally.bytes, of_domain.iter().map(|row| row[6].len() as u64).sum::<u64>());
    }
    for record in dropped {
        assert!(!record.detail.is_empty(), "{record:?}");
        assert_eq!(record.survivor.is_some(), record.reason.ends_with("_duplicate"));
        assert!(
            record.survivor.as_ref().is_none_or(|id| inventory.files.iter().any(|file| file.id() == *id))
        );
    }
    for row in rows {
        let id = blake3::hash(row[1].as_bytes()).to_hex();
        assert_eq!(row[0], id[..32]);
        assert_eq!((row[3].as_str(), row[4].as_str()), ("", ""));
    }
}
