//! Plans: curation as data.
//!
//! A [`Plan`] is a list of stages. A stage reads the records of other stages, sends each through named maps, and, where it
//! has a reduce, shuffles them by key and hands each key's values to it in sorted order. That order is why the result
//! depends neither on partitions nor on threads: a reduce sees the same values in the same order whatever the machine.
//! A [`Repeat`] runs its stages until they change nothing.
//!
//! Nothing here knows where a plan runs. The names in it are looked up in a [`Registry`], so that every process of a run
//! builds the same functions from the same JSON parameters.

mod function;
mod registry;
mod source;
mod stage;

pub use function::{Emit, Map, Record, Reduce, Values, collect};
pub use registry::{Registry, parameters};
pub(crate) use source::BrokenParts;
pub use source::{Broken, BrokenPart, Source};
pub use stage::{Input, Plan, Repeat, Stage, Step, Task};
