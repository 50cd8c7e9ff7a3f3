//! Reading curated documents: Parquet with the columns `id, url, source, date, lang, domain, text`.

use std::fs::File;
use std::path::{Path, PathBuf};

use arrow_array::cast::AsArray;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use serde::{Deserialize, Serialize};

use crate::DataError;

/// What kind of text a document is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Domain {
    /// Natural language.
    Prose,
    /// Programs, configuration, data.
    Code,
    /// Text with formulas and reasoning about them.
    Maths,
    /// Natural language other than the main one.
    Multilingual,
}

impl Domain {
    /// Every domain. Token stores hold a domain's place in this list.
    pub const ALL: [Domain; 4] = [Domain::Prose, Domain::Code, Domain::Maths, Domain::Multilingual];

    /// The name in the `domain` column.
    pub fn name(self) -> &'static str {
        match self {
            Domain::Prose => "prose",
            Domain::Code => "code",
            Domain::Maths => "maths",
            Domain::Multilingual => "multilingual",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|d| d.name() == name)
    }
}

/// A curated document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// 32 hex digits.
    pub id: String,
    /// Where it came from, relative to its source.
    pub url: String,
    /// What it is part of, e.g. a crate.
    pub source: String,
    /// What kind of text it is.
    pub domain: Domain,
    /// The text.
    pub text: String,
}

const COLUMNS: [&str; 5] = ["id", "url", "source", "domain", "text"];

/// The documents of a curated folder, in file order then row order, read in batches.
pub struct Documents {
    files: std::vec::IntoIter<PathBuf>,
    current: Option<(PathBuf, ParquetRecordBatchReader)>,
    batch: std::vec::IntoIter<Document>,
}

/// Opens the documents of a curated folder (`documents*.parquet`).
pub fn read(dir: &Path) -> Result<Documents, DataError> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(DataError::io(dir))? {
        let path = entry.map_err(DataError::io(dir))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("documents") && name.ends_with(".parquet") {
            files.push(path);
        }
    }
    if files.is_empty() {
        return Err(DataError::Documents {
            path: dir.into(),
            reason: "no `documents*.parquet` inside".into(),
        });
    }
    files.sort();
    Ok(Documents { files: files.into_iter(), current: None, batch: Vec::new().into_iter() })
}

impl Iterator for Documents {
    type Item = Result<Document, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(document) = self.batch.next() {
                return Some(Ok(document));
            }
            match self.next_batch() {
                Ok(Some(batch)) => self.batch = batch.into_iter(),
                Ok(None) => return None,
                Err(error) => {
                    self.files = Vec::new().into_iter();
                    self.current = None;
                    return Some(Err(error));
                }
            }
        }
    }
}

impl Documents {
    fn next_batch(&mut self) -> Result<Option<Vec<Document>>, DataError> {
        loop {
            if let Some((path, reader)) = &mut self.current {
                match reader.next() {
                    Some(Ok(batch)) => return rows(path, &batch).map(Some),
                    Some(Err(e)) => return Err(damaged(path, e)),
                    None => self.current = None,
                }
            }
            let Some(path) = self.files.next() else { return Ok(None) };
            let reader = open(&path)?;
            self.current = Some((path, reader));
        }
    }
}

fn damaged(path: &Path, reason: impl ToString) -> DataError {
    DataError::Documents { path: path.into(), reason: reason.to_string() }
}

fn open(path: &Path) -> Result<ParquetRecordBatchReader, DataError> {
    let file = File::open(path).map_err(DataError::io(path))?;
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| damaged(path, e))?;
    let names: Vec<_> = builder.schema().fields().iter().map(|f| f.name().clone()).collect();
    let mut projection = Vec::new();
    for column in COLUMNS {
        let at = names.iter().position(|n| n == column);
        projection.push(at.ok_or_else(|| damaged(path, format!("no column `{column}` among {names:?}")))?);
    }
    let mask = ProjectionMask::roots(builder.parquet_schema(), projection);
    builder.with_projection(mask).with_batch_size(256).build().map_err(|e| damaged(path, e))
}

fn rows(path: &Path, batch: &arrow_array::RecordBatch) -> Result<Vec<Document>, DataError> {
    let column = |name: &str| {
        let array = batch.column_by_name(name).and_then(|c| c.as_string_opt::<i32>());
        array.ok_or_else(|| damaged(path, format!("column `{name}` is not utf8")))
    };
    let (id, url, source) = (column("id")?, column("url")?, column("source")?);
    let (domain, text) = (column("domain")?, column("text")?);
    (0..batch.num_rows())
        .map(|i| {
            let name = domain.value(i);
            let domain =
                Domain::parse(name).ok_or_else(|| damaged(path, format!("unknown domain `{name}`")))?;
            Ok(Document {
                id: id.value(i).into(),
                url: url.value(i).into(),
                source: source.value(i).into(),
                domain,
                text: text.value(i).into(),
            })
        })
        .collect()
}
