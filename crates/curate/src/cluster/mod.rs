//! The runner on a cluster: a plan on the processes of a Ballista cluster.
//!
//! The driver, which is the process that the user starts, walks through the plan as [`crate::local`] does and gives each
//! stage to Ballista's scheduler as one job. The job's first tasks read a split of the source or a part of another stage
//! and send its records through the maps. Where the stage has a reduce, Ballista takes the records from the disks of these
//! executors to those of the second tasks, one a partition, which sort and reduce them. The order is that of the local
//! runner, by its code: a reduce sees the same values in the same order, so the corpus has the same bytes.
//!
//! ```text
//! scan (a row a task) -> MapExec -> shuffle by slot -> ReduceExec -> part-00000.run …
//! ```
//!
//! What is assumed: the driver and all executors see the work folder and the inputs under the same paths. The last tasks
//! write their parts there as the local runner does, whole or not at all, and what a part holds does not depend on who
//! writes it, so a task may be done twice. Records never go through the driver, until it writes the corpus. The jobs of
//! Ballista hold names of files alone; `stage.json` in a stage's folder says what is to be done.

mod address;
mod codec;
mod driver;
mod exec;
mod functions;
mod process;
mod said;
mod shuffle;
mod task;
#[cfg(test)]
mod tests;

pub(crate) use driver::run;
pub use process::{Executor, Scheduler};

/// Largest message between processes. A job names each of its tasks, so it grows with the input: about 400 bytes a task.
const MESSAGE_BYTES: u32 = 256 << 20;
