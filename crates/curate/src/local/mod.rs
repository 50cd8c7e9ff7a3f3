//! The local runner: a plan on one machine, with its partitions on disk.
//!
//! Each stage has a folder in the work folder. Its map tasks, one a partition of its inputs, write sorted runs; its reduce
//! tasks, one a partition, merge them. A finished task is a file with its name, a finished stage has a `done.json`: after a
//! kill, what is there is not done again. Files that nobody reads any more are removed on the way.

pub(crate) mod file;
pub(crate) mod sort;
mod sorted;
pub(crate) mod stage;
#[cfg(test)]
mod tests;
pub(crate) mod work;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::told;
use crate::plan::{BrokenPart, Plan, Registry, Repeat, Source, Stage, Task};
use crate::{CurateError, Progress};
use file::Totals;
use sort::Merge;
pub(crate) use sorted::Sorted;
use stage::{Data, Finished, Runner};
use work::WorkFolder;
pub(crate) use work::{RESULT, discard};

/// How a plan is run here. Nothing of it changes the result.
#[derive(Clone, Debug)]
pub struct Local {
    /// Folder for partitions. It holds work of one plan and one input, and is taken up again after a kill.
    pub work: PathBuf,
    /// Bytes that buffers for sorting and merging may hold, over all threads. The records in hand come on top.
    pub memory_bytes: u64,
    /// Tasks at a time.
    pub threads: usize,
    /// Partitions of a shuffle.
    pub partitions: u32,
    /// End the run at the first broken input instead of counting it.
    pub stop_at_broken: bool,
    /// Start anew where the work folder holds another plan, instead of refusing.
    pub restart: bool,
}

/// Bytes that each thread needs at the least.
pub const MIN_MEMORY_BYTES: u64 = 1 << 20;

/// Rounds after which a repeat is given up. Connected components need about the logarithm of the longest chain.
const MAX_ROUNDS: usize = 200;

impl Local {
    /// One partition and one thread with 256 MiB, in `work`.
    pub fn new(work: &Path) -> Local {
        Local {
            work: work.to_path_buf(),
            memory_bytes: 256 << 20,
            threads: 1,
            partitions: 1,
            stop_at_broken: false,
            restart: false,
        }
    }

    /// Runs a plan to its end, or takes it up where an earlier run was killed.
    ///
    /// # Errors
    /// A plan that does not hang together, a function that fails, a last task without records, a work folder in use or of
    /// another plan, a disk that cannot be written.
    pub fn run(
        &self,
        plan: &Plan,
        registry: &Registry,
        sources: &BTreeMap<&str, &dyn Source>,
        progress: &dyn Progress,
    ) -> Result<Done, CurateError> {
        plan.validate()?;
        let least = MIN_MEMORY_BYTES * self.threads.max(1) as u64;
        if self.memory_bytes < least {
            return Err(CurateError::OutOfRange {
                key: "memory_bytes",
                found: self.memory_bytes.to_string(),
                allowed: format!("{least} or more for {} threads", self.threads.max(1)),
            });
        }
        let data = given(plan, sources)?;
        let work = WorkFolder::open(self, "local", plan, sources)?;
        walk(self, plan, data, work, &Runner { local: self, registry, progress })
    }

    /// Bytes of buffers for one thread.
    fn budget(&self) -> usize {
        usize::try_from(self.memory_bytes / self.threads.max(1) as u64).unwrap_or(usize::MAX)
    }
}

/// Runs a stage in its folder, or finds it done. What it leaves does not depend on who runs it.
pub(crate) trait Stages {
    fn stage(
        &self,
        stage: &Stage,
        folder: &Path,
        data: &BTreeMap<String, Data>,
    ) -> Result<Finished, CurateError>;
}

/// The sources of a plan by name.
pub(crate) fn given<'a>(
    plan: &Plan,
    sources: &BTreeMap<&str, &'a dyn Source>,
) -> Result<BTreeMap<String, Data<'a>>, CurateError> {
    let source = |name: &String| match sources.get(name.as_str()) {
        Some(source) => Ok((name.clone(), Data::Source(*source))),
        None => {
            let problem = "is a source that is not given".to_owned();
            Err(CurateError::Plan { name: name.clone(), problem })
        }
    };
    plan.sources.iter().map(source).collect()
}

/// Has the tasks of a plan done, one after another.
pub(crate) fn walk(
    local: &Local,
    plan: &Plan,
    mut data: BTreeMap<String, Data>,
    work: WorkFolder,
    stages: &dyn Stages,
) -> Result<Done, CurateError> {
    // Whoever reads the result in order has something in hand, too.
    let memory_bytes = usize::try_from(local.memory_bytes / 2).unwrap_or(usize::MAX);
    let mut done = Done { work, stages: BTreeMap::new(), last: Vec::new(), last_bytes: 0, memory_bytes };
    for (at, task) in plan.tasks.iter().enumerate() {
        let folder = done.work.run().join(task.name());
        let finished = match task {
            Task::Stage(stage) => stages.stage(stage, &folder, &data)?,
            Task::Repeat(repeat) => repeat_until_settled(repeat, &folder, &data, stages)?,
        };
        done.stages.insert(
            task.name().to_owned(),
            StageReport {
                records: finished.totals.records,
                bytes: finished.totals.bytes,
                broken: finished.broken.clone(),
            },
        );
        if at + 1 == plan.tasks.len() {
            done.last.clone_from(&finished.files);
            done.last_bytes = finished.totals.bytes;
            if finished.totals.records == 0 {
                let broken: Vec<_> = done.stages.values().flat_map(|stage| stage.broken.clone()).collect();
                let broken = if broken.is_empty() { String::new() } else { format!(": {}", told(&broken)) };
                return Err(CurateError::EmptyOutput { stage: task.name().to_owned(), broken });
            }
        }
        data.insert(task.name().to_owned(), Data::Files(finished));
        remove_unread(plan, at, &data);
    }
    Ok(done)
}

fn repeat_until_settled(
    repeat: &Repeat,
    folder: &Path,
    data: &BTreeMap<String, Data>,
    stages: &dyn Stages,
) -> Result<Finished, CurateError> {
    let mut inside = data.clone();
    let mut state = data[&repeat.start].clone();
    for round in 0..MAX_ROUNDS {
        inside.insert(repeat.name.clone(), state.clone());
        let mut next = state.clone();
        for stage in &repeat.stages {
            let folder = folder.join(round.to_string()).join(&stage.name);
            next = Data::Files(stages.stage(stage, &folder, &inside)?);
            inside.insert(stage.name.clone(), next.clone());
        }
        for stage in &repeat.stages[..repeat.stages.len() - 1] {
            inside[&stage.name].remove_files();
        }
        let settled = next.totals() == state.totals();
        if round > 0 {
            state.remove_files();
        }
        state = next;
        if settled {
            return match state {
                Data::Files(finished) => Ok(finished),
                Data::Source(_) => {
                    let problem = "repeats a source".to_owned();
                    Err(CurateError::Plan { name: repeat.name.clone(), problem })
                }
            };
        }
    }
    let problem = format!("has not settled after {MAX_ROUNDS} rounds");
    Err(CurateError::Plan { name: repeat.name.clone(), problem })
}

/// Removes the files of tasks that no task after `at` reads.
fn remove_unread(plan: &Plan, at: usize, data: &BTreeMap<String, Data>) {
    let later = &plan.tasks[at + 1..];
    for task in &plan.tasks[..at] {
        if !later.iter().any(|reader| reader.reads().contains(&task.name())) {
            data[task.name()].remove_files();
        }
    }
}

/// What a task gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StageReport {
    /// Number of records.
    pub records: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
    /// What of inputs was broken.
    pub broken: Vec<BrokenPart>,
}

/// A plan that has run.
#[derive(Debug)]
pub struct Done {
    work: WorkFolder,
    /// What each task gave, by name.
    pub stages: BTreeMap<String, StageReport>,
    last: Vec<PathBuf>,
    last_bytes: u64,
    /// Bytes that buffers for merging may hold.
    memory_bytes: usize,
}

impl Done {
    /// Bytes of the last task's records.
    pub fn last_bytes(&self) -> u64 {
        self.last_bytes
    }

    /// Calls `each` with every record of the last task in the order of keys; the task must end in a reduce that emits
    /// the key it was given, so that its partitions are sorted.
    ///
    /// # Errors
    /// A partition that is damaged, and what `each` says.
    pub fn in_order(
        &self,
        mut each: impl FnMut(&[u8], &[u8]) -> Result<(), CurateError>,
    ) -> Result<(), CurateError> {
        let mut segments = Vec::new();
        for path in &self.last {
            let footer = file::read_footer(path)?;
            segments.extend(footer.segments.into_iter().map(|segment| (path.clone(), segment)));
        }
        let scratch = self.work.run().join("output");
        let mut merge = Merge::open(segments, self.memory_bytes, &scratch)?;
        while let Some((key, value)) = merge.peek() {
            each(key, value)?;
            merge.advance()?;
        }
        Ok(())
    }

    /// Removes the work folder.
    ///
    /// # Errors
    /// A folder that cannot be removed.
    pub fn remove(self) -> Result<(), CurateError> {
        self.work.remove()
    }
}

/// Bytes of the files below a folder; what cannot be looked at, or goes meanwhile, counts for nothing.
pub fn folder_bytes(folder: &Path) -> u64 {
    let files = walkdir::WalkDir::new(folder).into_iter().filter_map(Result::ok);
    let sizes = files.filter_map(|entry| entry.metadata().ok()).filter(std::fs::Metadata::is_file);
    sizes.map(|meta| meta.len()).sum()
}
