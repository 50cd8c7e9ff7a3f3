//! Parquet.

use std::io::{self, Read};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Date32Type, Date64Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
    TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType,
    UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{Array, RecordBatch};
use arrow_schema::{DataType, Field, TimeUnit};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::reader::{ChunkReader, Length};

use super::stream::ReadAt;
use super::warc::Flaw;
use super::{Fields, Found, Input, Place, ReadConfig, Reader, Record, Room, id_at};
use crate::{Document, date};

/// Rows that are decoded at once, at most.
const BATCH: usize = 64;

/// Bytes that are decoded at once, unless one row has more.
const BATCH_BYTES: u64 = 64 << 20;

/// The documents of the rows of the groups that begin in a range of a file. Columns that hold neither text, numbers, dates nor truth values are not read.
pub(super) fn open(input: &Input, range: Range<u64>, config: &ReadConfig) -> Result<Reader, String> {
    let file = input.open().map_err(|error| format!("cannot be opened: {error}"))?;
    let chunks = Chunks::new(file);
    // Types as Parquet has them: Arrow's would also be dictionaries and views.
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    let metadata = ArrowReaderMetadata::load(&chunks, options)
        .map_err(|error| format!("cannot be read as Parquet: {error}"))?;
    let schema = Arc::clone(metadata.schema());
    let columns: Vec<usize> =
        (0..schema.fields().len()).filter(|&at| is_read(schema.field(at), &config.fields)).collect();
    let text = &config.fields.text;
    let is_text = |&at: &usize| schema.field(at).name() == text && is_string(schema.field(at).data_type());
    if !columns.iter().any(is_text) {
        let names: Vec<_> =
            schema.fields().iter().take(16).map(|field| format!("`{}`", field.name())).collect();
        return Err(format!(
            "has no column of strings `{text}` (`read.fields.text`); its columns are {}",
            names.join(", ")
        ));
    }
    let mask = ProjectionMask::roots(metadata.parquet_schema(), columns);
    let (name, fields, limit) = (input.name().to_owned(), config.fields.clone(), config.max_record_bytes);
    let groups = Groups { chunks, metadata, mask, range, next: 0, first: 0, position: 0 };
    Ok(Box::new(Rows { groups, batches: None, batch: None, row: 0, position: 0, name, fields, limit }))
}

/// The row groups of a file that are still to be read.
struct Groups {
    chunks: Chunks,
    metadata: ArrowReaderMetadata,
    mask: ProjectionMask,
    range: Range<u64>,
    next: usize,
    /// Rows before the one that was opened last.
    first: u64,
    /// Rows before the next one.
    position: u64,
}

impl Groups {
    /// The batches of the next group; nothing behind the last.
    fn open(&mut self) -> Option<Result<ParquetRecordBatchReader, ParquetError>> {
        let groups = self.metadata.metadata().row_groups();
        let group = loop {
            let group = groups.get(self.next)?;
            if self.range.contains(&start_of(group)) {
                break group;
            }
            self.position = self.position.saturating_add(rows_of(group));
            self.next += 1;
        };
        let batch = batch_size(group, &self.mask);
        self.first = self.position;
        self.position = self.position.saturating_add(rows_of(group));
        let builder =
            ParquetRecordBatchReaderBuilder::new_with_metadata(self.chunks.clone(), self.metadata.clone())
                .with_projection(self.mask.clone())
                .with_row_groups(vec![self.next])
                .with_batch_size(batch);
        self.next += 1;
        Some(builder.build())
    }
}

/// The byte of the file at which a group begins. What says nothing sensible belongs to the first range.
fn start_of(group: &RowGroupMetaData) -> u64 {
    let starts = group.columns().iter().map(|column| {
        let data = column.data_page_offset();
        column.dictionary_page_offset().map_or(data, |dictionary| dictionary.min(data))
    });
    starts.min().and_then(|start| u64::try_from(start).ok()).unwrap_or_default()
}

fn rows_of(group: &RowGroupMetaData) -> u64 {
    u64::try_from(group.num_rows()).unwrap_or_default()
}

/// How many rows of a group may be decoded at once. Rows of a plain column have no more bytes than the column; those of a
/// column with a dictionary may all be its largest value, which has no more bytes than the column either.
fn batch_size(group: &RowGroupMetaData, mask: &ProjectionMask) -> usize {
    let columns = group.columns().iter().enumerate().filter(|(at, _)| mask.leaf_included(*at));
    let (mut plain, mut repeated) = (0_u64, 0_u64);
    for (_, column) in columns {
        let bytes = u64::try_from(column.uncompressed_size()).unwrap_or_default();
        let has_values = column.dictionary_page_offset().is_some();
        *(if has_values { &mut repeated } else { &mut plain }) += bytes;
    }
    if plain + repeated * BATCH as u64 <= BATCH_BYTES {
        return BATCH;
    }
    // Rows of very different sizes may stand together, so the mean says nothing where the group is large.
    if plain > BATCH_BYTES / 2 {
        1
    } else {
        (BATCH_BYTES / 2 / repeated.max(1)).clamp(1, BATCH as u64) as usize
    }
}

struct Rows {
    groups: Groups,
    /// The current group.
    batches: Option<ParquetRecordBatchReader>,
    batch: Option<RecordBatch>,
    /// The next row of the batch.
    row: usize,
    /// Rows before it in the file.
    position: u64,
    name: String,
    fields: Fields,
    limit: u64,
}

impl Rows {
    fn document(&self, batch: &RecordBatch) -> Result<Document, String> {
        let length =
            batch.columns().iter().map(|column| cell_bytes(column.as_ref(), self.row) as u64).sum::<u64>();
        if length > self.limit {
            let row = self.position;
            return Err(format!("row {row} has {length} bytes, more than the {} allowed", self.limit));
        }
        let mut document = Document { source: self.name.clone(), ..Document::default() };
        let (mut has_text, mut room) = (false, Room::new());
        for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
            if let Some(entries) = column.as_struct_opt().filter(|entries| entries.is_valid(self.row)) {
                for (field, column) in entries.fields().iter().zip(entries.columns()) {
                    if let Some(value) = cell(column.as_ref(), self.row) {
                        room.keep(&mut document, field.name(), value);
                    }
                }
            } else if let Some(value) = cell(column.as_ref(), self.row) {
                has_text |= *field.name() == self.fields.text;
                let is_metadata = *field.name() == self.fields.metadata;
                match is_metadata.then(|| room.entries(&value)).flatten() {
                    Some(entries) => room.keep_all(&mut document, entries),
                    None => self.fields.put(&mut document, &mut room, field.name(), value),
                }
            }
        }
        if !has_text {
            return Err(format!("row {} has no `{}`", self.position, self.fields.text));
        }
        if document.id.is_empty() {
            document.id = id_at(&self.name, self.position);
        }
        Ok(document)
    }

    /// Gives up what is left of a row group; the next ones can be read.
    fn broken(&mut self, error: &dyn std::fmt::Display) -> Flaw {
        let place = Place { offset: 0, position: self.position, length: 0 };
        let (first, end) = (self.position, self.groups.position);
        (self.batches, self.batch, self.position) = (None, None, end);
        Flaw { place, reason: format!("rows {first} to {} cannot be read: {error}", end.saturating_sub(1)) }
    }
}

impl Iterator for Rows {
    type Item = Result<Found, Flaw>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = loop {
            if let Some(batch) = self.batch.take().filter(|batch| self.row < batch.num_rows()) {
                // The next group has the positions behind it, and may be read elsewhere.
                if self.position >= self.groups.position {
                    let place = Place { offset: 0, position: self.position, length: 0 };
                    self.batches = None;
                    let reason =
                        format!("a row group has more rows than it says, from row {} on", self.position);
                    return Some(Err(Flaw { place, reason }));
                }
                break batch;
            }
            match self.batches.as_mut().and_then(Iterator::next) {
                Some(Ok(batch)) => (self.batch, self.row) = (Some(batch), 0),
                Some(Err(error)) => return Some(Err(self.broken(&error))),
                None => {
                    let opened = self.groups.open()?;
                    self.position = self.groups.first;
                    match opened {
                        Ok(batches) => self.batches = Some(batches),
                        Err(error) => return Some(Err(self.broken(&error))),
                    }
                }
            }
        };
        let place = Place { offset: 0, position: self.position, length: 0 };
        let document = self.document(&batch);
        self.batch = Some(batch);
        self.row += 1;
        self.position += 1;
        Some(match document {
            Ok(document) => {
                let place = Place { length: document.text.len() as u64, ..place };
                Ok(Found::Document(Box::new(Record { document, place })))
            }
            Err(reason) => Err(Flaw { place, reason }),
        })
    }
}

fn is_string(kind: &DataType) -> bool {
    matches!(kind, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

fn is_scalar(kind: &DataType) -> bool {
    use DataType::{Boolean, Date32, Date64, Float32, Float64, Timestamp};
    is_string(kind)
        || kind.is_integer()
        || matches!(kind, Boolean | Float32 | Float64 | Date32 | Date64 | Timestamp(..))
}

/// Whether a column is read: text, numbers, dates and truth values, and the metadata if it is a structure of such.
fn is_read(column: &Field, fields: &Fields) -> bool {
    is_scalar(column.data_type())
        || *column.name() == fields.metadata && matches!(column.data_type(), DataType::Struct(_))
}

/// Bytes of a cell of strings.
fn cell_bytes(column: &dyn Array, row: usize) -> usize {
    if column.is_null(row) {
        return 0;
    }
    match column.data_type() {
        DataType::Utf8 => column.as_string::<i32>().value(row).len(),
        DataType::LargeUtf8 => column.as_string::<i64>().value(row).len(),
        DataType::Utf8View => column.as_string_view().value(row).len(),
        DataType::Struct(_) => {
            column.as_struct().columns().iter().map(|column| cell_bytes(column.as_ref(), row)).sum()
        }
        _ => 0,
    }
}

/// A cell as text; none where it is null.
fn cell(column: &dyn Array, row: usize) -> Option<String> {
    if column.is_null(row) {
        return None;
    }
    Some(match column.data_type() {
        DataType::Utf8 => column.as_string::<i32>().value(row).to_owned(),
        DataType::LargeUtf8 => column.as_string::<i64>().value(row).to_owned(),
        DataType::Utf8View => column.as_string_view().value(row).to_owned(),
        DataType::Boolean => column.as_boolean().value(row).to_string(),
        DataType::Int8 => column.as_primitive::<Int8Type>().value(row).to_string(),
        DataType::Int16 => column.as_primitive::<Int16Type>().value(row).to_string(),
        DataType::UInt8 => column.as_primitive::<UInt8Type>().value(row).to_string(),
        DataType::UInt16 => column.as_primitive::<UInt16Type>().value(row).to_string(),
        DataType::Int32 => column.as_primitive::<Int32Type>().value(row).to_string(),
        DataType::Int64 => column.as_primitive::<Int64Type>().value(row).to_string(),
        DataType::UInt32 => column.as_primitive::<UInt32Type>().value(row).to_string(),
        DataType::UInt64 => column.as_primitive::<UInt64Type>().value(row).to_string(),
        DataType::Float32 => column.as_primitive::<Float32Type>().value(row).to_string(),
        DataType::Float64 => column.as_primitive::<Float64Type>().value(row).to_string(),
        DataType::Date32 => date::of_days(column.as_primitive::<Date32Type>().value(row).into())?,
        DataType::Date64 => {
            date::of_days(column.as_primitive::<Date64Type>().value(row).div_euclid(86_400_000))?
        }
        // Without a zone they are taken for UTC, which all others are by definition.
        DataType::Timestamp(unit, _) => match unit {
            TimeUnit::Second => date::of_units(column.as_primitive::<TimestampSecondType>().value(row), 1)?,
            TimeUnit::Millisecond => {
                date::of_units(column.as_primitive::<TimestampMillisecondType>().value(row), 1_000)?
            }
            TimeUnit::Microsecond => {
                date::of_units(column.as_primitive::<TimestampMicrosecondType>().value(row), 1_000_000)?
            }
            TimeUnit::Nanosecond => {
                date::of_units(column.as_primitive::<TimestampNanosecondType>().value(row), 1_000_000_000)?
            }
        },
        _ => return None,
    })
}

/// A file as the Parquet reader takes it.
#[derive(Clone)]
struct Chunks {
    size: u64,
    file: Arc<Mutex<Box<dyn ReadAt>>>,
}

impl Chunks {
    fn new(file: Box<dyn ReadAt>) -> Chunks {
        Chunks { size: file.size(), file: Arc::new(Mutex::new(file)) }
    }
}

impl Length for Chunks {
    fn len(&self) -> u64 {
        self.size
    }
}

impl ChunkReader for Chunks {
    type T = io::BufReader<From>;

    fn get_read(&self, start: u64) -> ParquetResult<Self::T> {
        Ok(io::BufReader::new(From { file: Arc::clone(&self.file), at: start }))
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<bytes::Bytes> {
        let mut read = Vec::new();
        self.get_read(start)?.take(length as u64).read_to_end(&mut read)?;
        if read.len() != length {
            return Err(ParquetError::EOF(format!("{length} bytes wanted at {start}, {} there", read.len())));
        }
        Ok(read.into())
    }
}

/// The file from a place on.
struct From {
    file: Arc<Mutex<Box<dyn ReadAt>>>,
    at: u64,
}

impl Read for From {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.file.lock().unwrap_or_else(PoisonError::into_inner).read_at(self.at, into)?;
        self.at += read as u64;
        Ok(read)
    }
}
