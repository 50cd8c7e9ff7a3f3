//! Looking back at a curation: its folder read again.
//!
//! [`Corpus`] is the folder that [`curate`](crate::curate) filled. Everything here goes through its files from front to back in
//! bounded memory, and notices when a file has less in it than the report says.

mod fate;
mod rows;
mod sample;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

pub use fate::{Fate, Found, MAX_MATCHES, Outcome, Place};
pub use rows::Row;
pub use sample::{Kept, Pick, Sampled};

use crate::plan::BrokenPart;
use crate::{
    BROKEN_FILE, CurateError, CurateReport, DROPPED_FILE, DroppedRecord, MIX_FILE, MixReport, REPORT_FILE,
};

/// A finished curation.
#[derive(Debug, Clone)]
pub struct Corpus {
    folder: PathBuf,
    report: CurateReport,
}

/// The folder of the stage in the folder of a run.
const STAGE: &str = "curate";

impl Corpus {
    /// Opens the folder of a corpus, or of a run that has one.
    ///
    /// # Errors
    /// [`CurateError::NoCorpus`] where there is none, [`CurateError::DamagedOutput`] where its report cannot be read.
    pub fn open(path: &Path) -> Result<Corpus, CurateError> {
        let folder = [path.to_path_buf(), path.join(STAGE)];
        let Some(folder) = folder.into_iter().find(|folder| folder.join(REPORT_FILE).is_file()) else {
            return Err(no_corpus(path));
        };
        let report: CurateReport = json(&folder.join(REPORT_FILE))?;
        // Other stages have a file of this name, too.
        if report.files.is_empty() || !folder.join(DROPPED_FILE).is_file() {
            return Err(no_corpus(path));
        }
        Ok(Corpus { folder, report })
    }

    /// The folder of the corpus itself.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What came in, what was kept, and why the rest was not.
    pub fn report(&self) -> &CurateReport {
        &self.report
    }

    /// What the mix came to, by the names of the draws; empty where there is none.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn mix(&self) -> Result<BTreeMap<String, MixReport>, CurateError> {
        let path = self.folder.join(MIX_FILE);
        if path.exists() { json(&path) } else { Ok(BTreeMap::new()) }
    }

    /// Calls `each` with every part of an input that could not be read.
    ///
    /// # Errors
    /// [`CurateError::DamagedOutput`] where there are not as many as the report says.
    pub fn broken(&self, mut each: impl FnMut(BrokenPart)) -> Result<(), CurateError> {
        let expected = self.report.broken.count;
        if expected == 0 {
            return Ok(());
        }
        let path = self.folder.join(BROKEN_FILE);
        let mut count = 0_u64;
        let file = File::open(&path).map_err(|error| CurateError::read(&path, error))?;
        for (at, line) in BufReader::new(file).lines().enumerate() {
            let line = line.map_err(|error| CurateError::read(&path, error))?;
            let part: BrokenPart = serde_json::from_str(&line).map_err(|error| {
                let problem = format!("line {} is no broken part: {error}", at + 1);
                CurateError::DamagedOutput { path: path.clone(), problem }
            })?;
            count += part.parts;
            each(part);
        }
        if count == expected {
            return Ok(());
        }
        let problem = format!("it has {count} broken parts, but `{REPORT_FILE}` counts {expected}");
        Err(CurateError::DamagedOutput { path, problem })
    }

    /// Calls `each` with every dropped document, by id.
    ///
    /// # Errors
    /// [`CurateError::DamagedOutput`] with the line, lines that are missing, and what `each` says.
    pub fn dropped(
        &self,
        mut each: impl FnMut(DroppedRecord) -> Result<(), CurateError>,
    ) -> Result<(), CurateError> {
        let path = self.folder.join(DROPPED_FILE);
        let mut file = BufReader::new(File::open(&path).map_err(|error| CurateError::read(&path, error))?);
        let (mut line, mut number) = (Vec::new(), 0_u64);
        loop {
            line.clear();
            if file.read_until(b'\n', &mut line).map_err(|error| CurateError::read(&path, error))? == 0 {
                break;
            }
            number += 1;
            let record = serde_json::from_slice(&line).map_err(|error| {
                let problem = format!("line {number} is no dropped document: {error}");
                CurateError::DamagedOutput { path: path.clone(), problem }
            })?;
            each(record)?;
        }
        let expected: u64 = self.report.dropped.values().map(|tally| tally.count).sum();
        if number == expected {
            return Ok(());
        }
        let problem =
            format!("it has {number} lines, but `{REPORT_FILE}` counts {expected} dropped documents");
        Err(CurateError::DamagedOutput { path, problem })
    }
}

fn json<T: DeserializeOwned>(path: &Path) -> Result<T, CurateError> {
    let text = std::fs::read(path).map_err(|error| CurateError::read(path, error))?;
    serde_json::from_slice(&text).map_err(|error| CurateError::DamagedOutput {
        path: path.to_path_buf(),
        problem: format!("it is not what curation writes: {error}"),
    })
}

fn no_corpus(path: &Path) -> CurateError {
    let partial = path.join(format!("{STAGE}.partial"));
    let (problem, hint) = if !path.exists() {
        ("does not exist", "name the folder that `llamero curate run` printed, or that of a run")
    } else if path.is_file() {
        ("is a file", "name the folder that `llamero curate run` printed, or that of a run")
    } else if partial.exists() {
        ("holds a curation that is not finished", "run the same `llamero curate run` again; it goes on")
    } else {
        (
            "has no `report.json` and `dropped.jsonl` of a curation in it",
            "name the folder that `llamero curate run` printed, or that of a run",
        )
    };
    CurateError::NoCorpus { path: path.to_path_buf(), problem, hint }
}
