//! The files a curated corpus consists of.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;
use serde::{Deserialize, Serialize};

use crate::{CurateError, Document};

/// Columns of [`DOCUMENTS_FILE`], in order, all UTF-8 and never null.
///
/// Of plain files `id` is 32 hex digits of blake3 of `url`, `url` the path below the source, and `source` the crate or the first
/// component of the path. Of what `curate.read` reads, `id` is the file's name and the position in it, and `source` is the
/// file's name unless the document says another. `date` and `lang` are empty where unknown; `domain` is one of
/// [`DOMAINS`](crate::DOMAINS). `tags` and `metadata` are objects in JSON: what steps measured, and what the source said.
pub const COLUMNS: [&str; 9] = ["id", "url", "source", "date", "lang", "domain", "text", "tags", "metadata"];

/// The kept documents, sorted by id; what the mix drew, in the order in which it is trained on, where there is one. When they
/// are many, there are `documents-00000.parquet` and so on instead.
pub const DOCUMENTS_FILE: &str = "documents.parquet";
/// The [`crate::MixReport`]s by name in JSON, where there is a mix.
pub const MIX_FILE: &str = "mix.json";
/// Parts of inputs that could not be read, one a line, sorted; absent where there are none.
pub const BROKEN_FILE: &str = "broken.jsonl";
/// The dropped documents, one [`DroppedRecord`] in JSON per line, sorted by id.
pub const DROPPED_FILE: &str = "dropped.jsonl";
/// The [`crate::CurateReport`] in JSON.
pub const REPORT_FILE: &str = "report.json";

/// One line of [`DROPPED_FILE`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DroppedRecord {
    /// Id the document would have.
    pub id: String,
    /// The id that it came with, where that is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own_id: Option<String>,
    /// Its URL, or its path below its source.
    pub url: String,
    /// Source it belongs to.
    pub source: String,
    /// Size as it was read, in bytes.
    pub bytes: u64,
    /// The step that dropped it, as [`crate::CurateReport::steps`] and recipes call it.
    #[serde(default)]
    pub step: String,
    /// Why: what reports count by.
    pub reason: String,
    /// What the rule found.
    pub detail: String,
    /// For duplicates: id of the document that was kept in its place by that step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub survivor: Option<String>,
    /// The beginning of its text as it was then, up to [`crate::CurateConfig::excerpt_bytes`]; empty where no text was read.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub excerpt: String,
}

/// Writes documents as Parquet, one row group at a time; equal rows give equal bytes.
pub(crate) struct DocumentWriter {
    path: PathBuf,
    schema: Arc<Schema>,
    writer: ArrowWriter<File>,
}

impl DocumentWriter {
    pub(crate) fn create(path: &Path) -> Result<Self, CurateError> {
        let path = path.to_path_buf();
        let fields: Vec<_> = COLUMNS.iter().map(|name| Field::new(*name, DataType::Utf8, false)).collect();
        let schema = Arc::new(Schema::new(fields));
        let level = ZstdLevel::try_new(3).map_err(|error| CurateError::write(&path, error))?;
        let mut properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(level))
            // Fixed, so that a newer writer library with the same encoding gives the same file.
            .set_created_by("llamero".to_owned())
            .set_dictionary_enabled(false)
            .set_column_statistics_enabled(ColumnPath::from("text"), EnabledStatistics::None)
            .set_column_statistics_enabled(ColumnPath::from("tags"), EnabledStatistics::None)
            .set_column_statistics_enabled(ColumnPath::from("metadata"), EnabledStatistics::None);
        for column in ["source", "date", "lang", "domain"] {
            properties = properties.set_column_dictionary_enabled(ColumnPath::from(column), true);
        }
        let options =
            ArrowWriterOptions::new().with_properties(properties.build()).with_skip_arrow_metadata(true);
        let file = File::create(&path).map_err(|error| CurateError::write(&path, error))?;
        let writer = ArrowWriter::try_new_with_options(file, Arc::clone(&schema), options)
            .map_err(|error| CurateError::write(&path, error))?;
        Ok(Self { path, schema, writer })
    }

    /// Writes the rows as one row group.
    pub(crate) fn write(&mut self, rows: &[Document]) -> Result<(), CurateError> {
        let column = |cell: fn(&Document) -> &str| -> ArrayRef {
            Arc::new(StringArray::from_iter_values(rows.iter().map(cell)))
        };
        let failed = |error: serde_json::Error| CurateError::write(&self.path, error);
        let objects = |cell: fn(&Document) -> serde_json::Result<String>| -> Result<ArrayRef, CurateError> {
            let cells = rows.iter().map(cell).collect::<Result<Vec<_>, _>>().map_err(failed)?;
            Ok(Arc::new(StringArray::from_iter_values(cells)))
        };
        let columns = vec![
            column(|row| &row.id),
            column(|row| &row.url),
            column(|row| &row.source),
            column(|row| &row.date),
            column(|row| &row.lang),
            column(|row| &row.domain),
            column(|row| &row.text),
            objects(|row| serde_json::to_string(&row.tags))?,
            objects(|row| serde_json::to_string(&row.meta))?,
        ];
        RecordBatch::try_new(Arc::clone(&self.schema), columns)
            .map_err(|error| CurateError::write(&self.path, error))
            .and_then(|batch| self.written(|writer| writer.write(&batch)))?;
        self.written(ArrowWriter::flush)
    }

    pub(crate) fn finish(mut self) -> Result<(), CurateError> {
        self.written(|writer| writer.finish().map(|_| ()))
    }

    fn written(
        &mut self,
        action: impl FnOnce(&mut ArrowWriter<File>) -> parquet::errors::Result<()>,
    ) -> Result<(), CurateError> {
        action(&mut self.writer).map_err(|error| CurateError::write(&self.path, error))
    }
}

/// Writes [`DROPPED_FILE`], one JSON value a line.
pub(crate) struct LineWriter {
    path: PathBuf,
    file: BufWriter<File>,
}

impl LineWriter {
    pub(crate) fn create(path: PathBuf) -> Result<Self, CurateError> {
        let file = File::create(&path).map_err(|error| CurateError::write(&path, error))?;
        Ok(Self { path, file: BufWriter::new(file) })
    }

    pub(crate) fn write(&mut self, value: &impl Serialize) -> Result<(), CurateError> {
        let write = |file: &mut BufWriter<File>| -> std::io::Result<()> {
            serde_json::to_writer(&mut *file, value)?;
            file.write_all(b"\n")
        };
        write(&mut self.file).map_err(|error| CurateError::write(&self.path, error))
    }

    pub(crate) fn finish(mut self) -> Result<(), CurateError> {
        self.file.flush().map_err(|error| CurateError::write(&self.path, error))
    }
}

/// Writes one JSON value, indented.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), CurateError> {
    let write = || -> std::io::Result<()> {
        let mut text = serde_json::to_vec_pretty(value)?;
        text.push(b'\n');
        std::fs::write(path, text)
    };
    write().map_err(|error| CurateError::write(path, error))
}
