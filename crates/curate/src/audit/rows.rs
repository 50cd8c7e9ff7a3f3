//! The rows of a corpus.

use std::fs::File;
use std::path::PathBuf;

use arrow_array::cast::AsArray;
use arrow_array::{RecordBatch, StringArray};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReaderBuilder, RowSelection, RowSelector};

use super::Corpus;
use crate::{COLUMNS, CurateError};

/// Rows in memory at a time.
const BATCH: usize = 1024;

/// A row of a file; columns that were not asked for are empty.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Row<'a> {
    /// The file's name in the folder of the corpus.
    pub file: &'a str,
    /// Its number in the file, from 0.
    pub number: u64,
    values: [&'a str; COLUMNS.len()],
}

impl<'a> Row<'a> {
    /// A value by the name of its column.
    pub fn get(&self, column: &str) -> &'a str {
        COLUMNS.iter().position(|name| *name == column).map_or("", |at| self.values[at])
    }
}

impl Corpus {
    /// Calls `each` with every row of every file, with these columns of [`COLUMNS`].
    ///
    /// # Errors
    /// A file that is damaged or has not as many rows as the report says, and what `each` says.
    pub fn rows(
        &self,
        columns: &[&str],
        mut each: impl FnMut(Row<'_>) -> Result<(), CurateError>,
    ) -> Result<(), CurateError> {
        for (name, tally) in &self.report().files {
            let read = self.rows_of(name, columns, None, &mut each)?;
            if read != tally.documents {
                let problem = format!("it has {read} rows, but the report counts {}", tally.documents);
                return Err(CurateError::DamagedOutput { path: self.folder().join(name), problem });
            }
        }
        Ok(())
    }

    /// The same for a file; where `wanted` is given, for the rows of these numbers alone, which must be sorted. Gives how many
    /// there were.
    pub(super) fn rows_of(
        &self,
        name: &str,
        columns: &[&str],
        wanted: Option<&[u64]>,
        each: &mut dyn FnMut(Row<'_>) -> Result<(), CurateError>,
    ) -> Result<u64, CurateError> {
        let path: PathBuf = self.folder().join(name);
        let damaged = |error: &dyn std::fmt::Display| CurateError::DamagedOutput {
            path: path.clone(),
            problem: format!("it cannot be read as Parquet: {error}"),
        };
        let file = File::open(&path).map_err(|error| CurateError::read(&path, error))?;
        let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| damaged(&error))?;
        let mask = ProjectionMask::columns(builder.parquet_schema(), columns.iter().copied());
        let mut builder = builder.with_projection(mask).with_batch_size(BATCH);
        if let Some(wanted) = wanted {
            builder = builder.with_row_selection(selection(wanted));
        }
        let mut seen = 0_usize;
        for batch in builder.build().map_err(|error| damaged(&error))? {
            let batch = batch.map_err(|error| damaged(&error))?;
            let found =
                strings(&batch, columns).ok_or_else(|| damaged(&"its columns are not those of a corpus"))?;
            for at in 0..batch.num_rows() {
                let mut row = Row { file: name, ..Row::default() };
                row.number = wanted.map_or(seen as u64, |wanted| wanted[seen]);
                for (column, values) in &found {
                    row.values[*column] = values.value(at);
                }
                each(row)?;
                seen += 1;
            }
        }
        Ok(seen as u64)
    }
}

/// The columns of a batch, with their places in [`COLUMNS`].
fn strings<'a>(batch: &'a RecordBatch, columns: &[&str]) -> Option<Vec<(usize, &'a StringArray)>> {
    let column = |name: &&str| {
        let at = COLUMNS.iter().position(|column| column == name)?;
        Some((at, batch.column_by_name(name)?.as_string_opt::<i32>()?))
    };
    columns.iter().map(column).collect()
}

fn selection(wanted: &[u64]) -> RowSelection {
    let mut next = 0;
    let mut selectors = Vec::new();
    for &row in wanted {
        selectors.push(RowSelector::skip((row - next) as usize));
        selectors.push(RowSelector::select(1));
        next = row + 1;
    }
    selectors.into()
}
