//! Vectors that somebody brings, in a Parquet file.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Float64Type};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::DataType;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::{CurateError, Document, OWN_ID};

/// Vectors by the id or the URL of their document: the columns `id` or `url`, which hold strings, and `vector`, which holds lists of
/// numbers. An id is the one that a document came with, or where it had none, that of `documents.parquet`. They are held in memory, 4
/// bytes a number.
pub struct Given {
    path: PathBuf,
    by_id: bool,
    rows: HashMap<String, usize>,
    numbers: Vec<f32>,
    width: usize,
}

impl Given {
    /// Reads the file.
    ///
    /// # Errors
    /// A file that cannot be read or lacks a column, a row without a name or of another length, a name that comes twice, a value
    /// that is no number.
    pub fn open(path: &Path) -> Result<Given, CurateError> {
        let failed = |error: String| CurateError::read(path, error);
        let file = File::open(path).map_err(|error| CurateError::read(path, error))?;
        let builder =
            ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| failed(error.to_string()))?;
        let names: Vec<String> = builder.schema().fields().iter().map(|field| field.name().clone()).collect();
        let has = |name: &str| names.iter().any(|known| known == name);
        if !has("vector") || !(has("id") || has("url")) {
            return Err(failed(format!(
                "columns `id` or `url`, and `vector`, are needed; there are {}\nhint: `id` is what a document came with",
                names.join(", ")
            )));
        }
        let by_id = has("id");
        let mut given =
            Given { path: path.to_path_buf(), by_id, rows: HashMap::new(), numbers: Vec::new(), width: 0 };
        for batch in builder.build().map_err(|error| failed(error.to_string()))? {
            given.take(&batch.map_err(|error| failed(error.to_string()))?).map_err(failed)?;
        }
        Ok(given)
    }

    fn take(&mut self, batch: &RecordBatch) -> Result<(), String> {
        let column = |name: &str| batch.column_by_name(name).ok_or_else(|| format!("no column `{name}`"));
        let key = if self.by_id { "id" } else { "url" };
        let (keys, vectors) = (strings(column(key)?, key)?, column("vector")?);
        for (row, name) in keys.into_iter().enumerate() {
            let at = self.rows.len();
            let bad = |what: String| format!("row {at} (`{name}`): {what}");
            let vector = numbers(vectors, row).map_err(bad)?;
            if at == 0 {
                self.width = vector.len();
            }
            if vector.is_empty() || vector.len() != self.width {
                return Err(bad(format!(
                    "a vector of {} numbers, the first one has {}",
                    vector.len(),
                    self.width
                )));
            }
            if let Some(value) = vector.iter().find(|value| !value.is_finite()) {
                return Err(bad(format!("`{value}` is no number")));
            }
            self.numbers.extend(vector);
            if self.rows.insert(name.clone(), at).is_some() {
                return Err(bad(format!("this {key} comes twice")));
            }
        }
        Ok(())
    }

    /// The vector of a document.
    ///
    /// # Errors
    /// There is none.
    pub fn of(&self, document: &Document, id: &str) -> Result<Vec<f32>, CurateError> {
        let own = || document.meta.get(OWN_ID).map_or(id, String::as_str);
        let (key, name) = if self.by_id { ("id", own()) } else { ("url", document.url.as_str()) };
        let row = self.rows.get(name).ok_or_else(|| CurateError::BadModel {
            path: self.path.clone(),
            found: format!("it has no vector for the document of {key} `{name}`"),
            hint: "give one for every document that comes so far, or let `curate.semantic.model` make them"
                .to_owned(),
        })?;
        Ok(self.numbers[row * self.width..(row + 1) * self.width].to_vec())
    }
}

fn strings(column: &ArrayRef, key: &str) -> Result<Vec<String>, String> {
    let value = |value: Option<&str>| value.map(str::to_owned).ok_or_else(|| format!("a row has no `{key}`"));
    match column.data_type() {
        DataType::Utf8 => column.as_string::<i32>().iter().map(value).collect(),
        DataType::LargeUtf8 => column.as_string::<i64>().iter().map(value).collect(),
        DataType::Utf8View => column.as_string_view().iter().map(value).collect(),
        other => Err(format!("`{key}` must hold strings, but holds {other}")),
    }
}

fn numbers(column: &ArrayRef, row: usize) -> Result<Vec<f32>, String> {
    if column.is_null(row) {
        return Err("it has no vector".to_owned());
    }
    let values = match column.data_type() {
        DataType::List(_) => column.as_list::<i32>().value(row),
        DataType::LargeList(_) => column.as_list::<i64>().value(row),
        DataType::FixedSizeList(..) => column.as_fixed_size_list().value(row),
        other => return Err(format!("`vector` must hold lists of numbers, but holds {other}")),
    };
    if values.null_count() > 0 {
        return Err("a number of the vector is missing".to_owned());
    }
    match values.data_type() {
        DataType::Float32 => Ok(values.as_primitive::<Float32Type>().values().to_vec()),
        DataType::Float64 => {
            Ok(values.as_primitive::<Float64Type>().values().iter().map(|&value| value as f32).collect())
        }
        other => Err(format!("`vector` must hold lists of f32 or f64, but holds lists of {other}")),
    }
}
