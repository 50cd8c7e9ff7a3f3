//! What stages do: maps and reduces over records.

use crate::CurateError;

/// A key and a value, both bytes. What they mean is between the functions of a plan.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Record {
    /// What records are grouped and sorted by.
    pub key: Vec<u8>,
    /// What a group is sorted by, and all else.
    pub value: Vec<u8>,
}

/// Takes the records that a function produces, as key and value.
pub type Emit<'a> = dyn FnMut(&[u8], &[u8]) -> Result<(), CurateError> + 'a;

/// Turns one record into any number of records. It must not remember what it saw.
pub trait Map: Send + Sync {
    /// Maps one record.
    ///
    /// # Errors
    /// A record that it cannot read, or what `emit` says.
    fn map(&self, key: &[u8], value: &[u8], emit: &mut Emit) -> Result<(), CurateError>;
}

/// The values of one key, in ascending order of their bytes.
pub trait Values {
    /// The next value, or none at the end.
    ///
    /// # Errors
    /// A partition that cannot be read.
    fn next(&mut self) -> Result<Option<&[u8]>, CurateError>;
}

/// Turns all values of one key into any number of records.
pub trait Reduce: Send + Sync {
    /// Reduces one key; values it leaves are skipped.
    ///
    /// # Errors
    /// A record that it cannot read, or what `values` and `emit` say.
    fn reduce(&self, key: &[u8], values: &mut dyn Values, emit: &mut Emit) -> Result<(), CurateError>;
}

/// What a map emits for one record.
///
/// # Errors
/// Those of the map.
pub fn collect(map: &dyn Map, key: &[u8], value: &[u8]) -> Result<Vec<Record>, CurateError> {
    let mut records = Vec::new();
    map.map(key, value, &mut |key, value| {
        records.push(Record { key: key.to_vec(), value: value.to_vec() });
        Ok(())
    })?;
    Ok(records)
}
