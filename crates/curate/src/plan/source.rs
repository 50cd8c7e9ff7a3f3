//! Where a plan's first records come from.

use super::Emit;
use crate::CurateError;

/// Told of an input that is broken; the error it gives back ends the run.
pub type Broken<'a> = dyn FnMut(CurateError) -> Result<(), CurateError> + 'a;

/// Records from outside, in splits that can be read at the same time.
pub trait Source: Send + Sync {
    /// What it holds, so that work on another input is not taken up again.
    fn fingerprint(&self) -> String;

    /// Number of splits. It may depend on the machine: nothing of a result may depend on it.
    fn splits(&self) -> usize;

    /// Size of a split, about, in bytes.
    fn bytes(&self, split: usize) -> u64;

    /// Reads a split. What cannot be read is given to `broken`, and the rest is read all the same. `tick` is told of
    /// bytes as they are read.
    ///
    /// # Errors
    /// What `emit` and `broken` say, and whatever must end the run.
    fn read(
        &self,
        split: usize,
        emit: &mut Emit,
        broken: &mut Broken,
        tick: &dyn Fn(u64),
    ) -> Result<(), CurateError>;
}
