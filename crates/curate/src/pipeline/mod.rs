//! The pipeline: the plan of a recipe, run here, and its result as files.

mod clusters;
mod compose;
mod estimate;
mod origins;
mod report;
mod write;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::contamination::Contamination;
use crate::local::{Done, Local, MIN_MEMORY_BYTES};
use crate::plan::{Plan, Registry, Source};
use crate::read::OnError;
use crate::{CurateConfig, CurateError, Inventory, Progress};

pub use clusters::{Cluster, Duplicates, Example};
#[cfg(test)]
pub(crate) use compose::steps;
pub use compose::{READ_SOURCE, SOURCE, build_source, plan, registry, source};
pub use estimate::{Estimate, estimate};
pub use origins::{Origin, Origins};
pub use report::{BeforeAfter, BrokenParts, CurateReport, DroppedTally, Passage, Tally};

/// How curation is run. Nothing of it changes the result.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Folder for work, which a killed run leaves to the next. Absent: a folder beside the output, removed at the end.
    pub work: Option<PathBuf>,
    /// Bytes that buffers may hold.
    pub memory_bytes: u64,
    /// Tasks at a time.
    pub threads: usize,
    /// Partitions of a shuffle; absent: by the size of the input.
    pub partitions: Option<u32>,
    /// Address of a cluster's scheduler, `df://HOST:PORT`, which needs the feature `ballista`; absent: this machine.
    /// Memory and threads are then those of the cluster's executors.
    pub cluster: Option<String>,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self {
            work: None,
            memory_bytes: 1 << 30,
            threads: rayon::current_num_threads(),
            partitions: None,
            cluster: None,
        }
    }
}

/// Bytes of input to a partition, about.
const PARTITION_BYTES: u64 = 64 << 20;

/// Curates the files of `inventory` and writes the corpus into the folder `out`, which is made if it is missing.
///
/// # Errors
/// A value out of range, no document kept, a file that changed since the inventory, a failure to write. What is in
/// `out` after an error is not to be used.
pub fn curate(
    config: &CurateConfig,
    inventory: &Inventory,
    out: &Path,
    progress: &dyn Progress,
) -> Result<CurateReport, CurateError> {
    curate_with(config, inventory, out, &RunOptions::default(), progress)
}

/// [`curate`] with the folder, memory and threads given.
///
/// # Errors
/// Those of [`curate`].
pub fn curate_with(
    config: &CurateConfig,
    inventory: &Inventory,
    out: &Path,
    options: &RunOptions,
    progress: &dyn Progress,
) -> Result<CurateReport, CurateError> {
    curate_by(config, inventory, &registry(), out, options, progress)
}

/// [`curate_with`] with functions besides those of [`registry`], such as an embedder.
///
/// # Errors
/// Those of [`curate`].
pub fn curate_by(
    config: &CurateConfig,
    inventory: &Inventory,
    registry: &Registry,
    out: &Path,
    options: &RunOptions,
    progress: &dyn Progress,
) -> Result<CurateReport, CurateError> {
    let config = &config.pinned(inventory)?;
    let plan = plan(config)?;
    // Models and thresholds are looked at now rather than hours later, when it is their turn.
    registry.check(&plan)?;
    // Afterwards the sets may have been moved.
    let sets = config.decontaminate.as_ref().map(|sets| Contamination::new(sets).map(|sets| sets.tallies()));
    let sets = sets.transpose()?.unwrap_or_default();
    let local = local(config, inventory, out, options);
    let source = compose::local_source(config, inventory);
    let sources: BTreeMap<&str, &dyn Source> =
        plan.sources.iter().map(|name| (name.as_str(), &*source)).collect();
    let done = match &options.cluster {
        None => local.run(&plan, registry, &sources, progress),
        Some(address) => on_cluster(address, &local, &plan, &sources, (config, inventory), progress),
    };
    let result = done.and_then(|done| {
        let steps = compose::steps(&plan);
        let report = write::write(&done, (config, inventory), (steps, sets), &local.work, out, progress)?;
        Ok((done, report))
    });
    match result {
        Ok((done, report)) => {
            done.remove()?;
            Ok(report)
        }
        Err(error) => {
            // What is refused holds what somebody may want to keep.
            if options.work.is_none() && !matches!(error, CurateError::Work { .. }) {
                crate::local::discard(&local.work);
            }
            Err(error)
        }
    }
}

/// Runs a plan on a cluster.
#[cfg(feature = "ballista")]
fn on_cluster(
    address: &str,
    local: &Local,
    plan: &Plan,
    sources: &BTreeMap<&str, &dyn Source>,
    (config, inventory): (&CurateConfig, &Inventory),
    progress: &dyn Progress,
) -> Result<Done, CurateError> {
    let step = source(config, inventory)?;
    let described = plan.sources.iter().map(|name| (name.as_str(), step.clone())).collect();
    crate::cluster::run(address, local, plan, sources, &described, progress)
}

/// Says that there is nothing to run a plan on a cluster with.
#[cfg(not(feature = "ballista"))]
fn on_cluster(
    address: &str,
    _local: &Local,
    _plan: &Plan,
    _sources: &BTreeMap<&str, &dyn Source>,
    _described: (&CurateConfig, &Inventory),
    _progress: &dyn Progress,
) -> Result<Done, CurateError> {
    Err(CurateError::Cluster {
        address: address.to_owned(),
        problem: "cannot be reached: this build has no Ballista".to_owned(),
        hint: "build with `--features ballista`, or run without a cluster".to_owned(),
    })
}

/// The runner of a recipe.
fn local(config: &CurateConfig, inventory: &Inventory, out: &Path, options: &RunOptions) -> Local {
    let beside = || {
        let mut name = out.as_os_str().to_owned();
        name.push(".work");
        PathBuf::from(name)
    };
    let threads = options.threads.max(1);
    let partitions =
        options.partitions.unwrap_or((inventory.bytes / PARTITION_BYTES).clamp(1, 1 << 12) as u32);
    Local {
        work: options.work.clone().unwrap_or_else(beside),
        memory_bytes: options.memory_bytes.max(MIN_MEMORY_BYTES * threads as u64),
        threads,
        partitions,
        stop_at_broken: config.read.as_ref().is_some_and(|read| read.on_error == OnError::Stop),
        // What another recipe left there is of no use; only what curation wrote is removed.
        restart: true,
    }
}
