//! Records on their way from maps to reduces: batches of Arrow.
//!
//! A row is a record, or a note where its key is null. Ballista sends the rows of a slot to one task, by a hash of the slot
//! that it does not tell, and a task does not learn its own number. So a slot is chosen for each partition so that no two
//! meet in one task, and the first map task sends each partition a note with its number, so that also one without records
//! is told. Should the hash ever be another than the one that slots are chosen by, [`Arrivals`] refuses the rows: a wrong
//! corpus cannot come of it.

use std::sync::Arc;

use arrow_array::builder::{LargeBinaryBuilder, UInt64Builder};
use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use arrow_array::{Array, ArrayRef, RecordBatch, UInt64Array};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use datafusion::common::hash_utils::create_hashes;
use datafusion::physical_plan::repartition::REPARTITION_RANDOM_STATE;
use serde::{Deserialize, Serialize};

use crate::CurateError;
use crate::item::{decode, encode};
use crate::plan::{BrokenPart, Emit};

/// Rows and bytes of a batch, about.
const BATCH_ROWS: usize = 8192;
const BATCH_BYTES: usize = 1 << 20;

/// The column that rows are parted by.
pub(super) const SLOT: &str = "slot";

/// What is not a record.
#[derive(Debug, Serialize, Deserialize)]
enum Note {
    /// The number of the partition that the slot stands for.
    Partition(u32),
    /// A part of an input is broken.
    Broken(BrokenPart),
}

/// The columns of rows on their way.
pub(super) fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new(SLOT, DataType::UInt64, false),
        Field::new("key", DataType::LargeBinary, true),
        Field::new("value", DataType::LargeBinary, false),
    ]))
}

/// A slot for each partition, so that Ballista sends each to a task of its own.
pub(super) fn slots(partitions: u32) -> Result<Vec<u64>, CurateError> {
    let mut slots = vec![None; partitions as usize];
    let mut left = slots.len();
    let mut next = 0;
    while left > 0 {
        let candidates = UInt64Array::from_iter_values(next..next + 1024);
        next += 1024;
        let mut hashes = vec![0; candidates.len()];
        create_hashes([&candidates as &dyn Array], REPARTITION_RANDOM_STATE.random_state(), &mut hashes)
            .map_err(|error| wrong(error.to_string()))?;
        for (candidate, hash) in candidates.values().iter().zip(hashes) {
            let slot = &mut slots[(hash % u64::from(partitions)) as usize];
            if slot.is_none() {
                *slot = Some(*candidate);
                left -= 1;
            }
        }
    }
    Ok(slots.into_iter().flatten().collect())
}

fn wrong(problem: String) -> CurateError {
    CurateError::Record { what: "a shuffle", problem }
}

/// Makes batches of rows.
pub(super) struct Batches<'a> {
    schema: SchemaRef,
    slots: UInt64Builder,
    keys: LargeBinaryBuilder,
    values: LargeBinaryBuilder,
    rows: usize,
    bytes: usize,
    send: &'a mut dyn FnMut(RecordBatch) -> Result<(), CurateError>,
}

impl<'a> Batches<'a> {
    pub(super) fn new(send: &'a mut dyn FnMut(RecordBatch) -> Result<(), CurateError>) -> Self {
        Batches {
            schema: schema(),
            slots: UInt64Builder::new(),
            keys: LargeBinaryBuilder::new(),
            values: LargeBinaryBuilder::new(),
            rows: 0,
            bytes: 0,
            send,
        }
    }

    pub(super) fn record(&mut self, slot: u64, key: &[u8], value: &[u8]) -> Result<(), CurateError> {
        self.row(slot, Some(key), value)
    }

    pub(super) fn partition(&mut self, slot: u64, partition: u32) -> Result<(), CurateError> {
        self.row(slot, None, &encode("a note", &Note::Partition(partition))?)
    }

    pub(super) fn broken(&mut self, slot: u64, what: BrokenPart) -> Result<(), CurateError> {
        self.row(slot, None, &encode("a note", &Note::Broken(what))?)
    }

    fn row(&mut self, slot: u64, key: Option<&[u8]>, value: &[u8]) -> Result<(), CurateError> {
        let bytes = key.map_or(0, <[u8]>::len) + value.len();
        if self.rows == BATCH_ROWS || (self.rows > 0 && self.bytes + bytes > BATCH_BYTES) {
            self.flush()?;
        }
        self.slots.append_value(slot);
        self.keys.append_option(key);
        self.values.append_value(value);
        self.rows += 1;
        self.bytes += bytes;
        Ok(())
    }

    /// Sends what is left.
    pub(super) fn flush(&mut self) -> Result<(), CurateError> {
        if self.rows == 0 {
            return Ok(());
        }
        let columns: Vec<ArrayRef> =
            vec![Arc::new(self.slots.finish()), Arc::new(self.keys.finish()), Arc::new(self.values.finish())];
        (self.rows, self.bytes) = (0, 0);
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), columns)
            .map_err(|error| wrong(error.to_string()))?;
        (self.send)(batch)
    }
}

/// The rows that a reduce task gets.
#[derive(Default)]
pub(super) struct Arrivals {
    slot: Option<u64>,
    partition: Option<u32>,
    /// What of inputs was broken.
    pub(super) broken: Vec<BrokenPart>,
}

impl Arrivals {
    /// Calls `each` with key and value of every record of a batch.
    pub(super) fn read(&mut self, batch: &RecordBatch, each: &mut Emit) -> Result<(), CurateError> {
        if batch.schema_ref().fields() != schema().fields() {
            return Err(wrong(format!("its columns are {}", batch.schema_ref())));
        }
        let slots = batch.column(0).as_primitive::<UInt64Type>();
        let keys = batch.column(1).as_binary::<i64>();
        let values = batch.column(2).as_binary::<i64>();
        for row in 0..batch.num_rows() {
            let slot = slots.value(row);
            if *self.slot.get_or_insert(slot) != slot {
                return Err(wrong("rows of two partitions came to one task".to_owned()));
            }
            if keys.is_valid(row) {
                each(keys.value(row), values.value(row))?;
                continue;
            }
            match decode::<Note>("a note", values.value(row))? {
                Note::Broken(what) => self.broken.push(what),
                Note::Partition(partition) => {
                    if self.partition.replace(partition).is_some() {
                        return Err(wrong("a partition was told its number twice".to_owned()));
                    }
                }
            }
        }
        Ok(())
    }

    /// The number of the partition, once all rows are here.
    pub(super) fn partition(&self, slots: &[u64]) -> Result<u32, CurateError> {
        let partition =
            self.partition.ok_or_else(|| wrong("a partition was not told its number".to_owned()))?;
        if slots.get(partition as usize).copied() != self.slot {
            return Err(wrong(format!("the rows of partition {partition} have the slot of another")));
        }
        Ok(partition)
    }
}
