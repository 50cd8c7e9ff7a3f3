//! What a run will take, from a run over a sample.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{RunOptions, compose, local, plan};
use crate::item::Value;
use crate::local::{discard, folder_bytes};
use crate::plan::{Broken, Emit, Registry, Source};
use crate::{CurateConfig, CurateError, Inventory, Progress};

/// What a run will take, about. Sorting more than fits into memory takes some passes more, which a sample does not show.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct Estimate {
    /// Bytes of the inputs, as they are stored.
    pub input_bytes: u64,
    /// Bytes of the sample, as they are stored.
    pub sample_bytes: u64,
    /// Documents in the inputs.
    pub documents: u64,
    /// Wall time with the threads given.
    pub seconds: f64,
    /// Most memory: of buffers, which hold no more than they may and no more than there is, and of what the sample needed besides:
    /// models, and documents in hand.
    pub memory_bytes: u64,
    /// Most bytes in the work folder at one time.
    pub disk_bytes: u64,
}

/// Splits that a sample is taken from, at the least.
const MIN_PIECES: usize = 8;

/// Runs the plan of a recipe over about `sample_bytes` of its inputs, from places all over them, in the folder `scratch`, which
/// is removed at the end. `memory` tells the resident memory of this process.
///
/// # Errors
/// Those of running the plan; a sample without documents.
pub fn estimate(
    config: &CurateConfig,
    inventory: &Inventory,
    registry: &Registry,
    options: &RunOptions,
    (sample_bytes, scratch): (u64, &Path),
    memory: &dyn Fn() -> Option<u64>,
) -> Result<Estimate, CurateError> {
    let config = &config.pinned(inventory)?;
    let plan = plan(config)?;
    let before = memory().unwrap_or(0);
    let started = Instant::now();
    registry.check(&plan)?;
    let fixed = started.elapsed().as_secs_f64();
    let whole = compose::local_source(config, inventory);
    let sample = Sample::of(&*whole, sample_bytes, options.threads);
    let mut local = local(config, inventory, scratch, options);
    local.work = scratch.to_path_buf();
    local.stop_at_broken = false;
    local.partitions = local.partitions.min(u32::try_from(options.threads).unwrap_or(u32::MAX).max(2));
    let watch = Watch { work: scratch.to_path_buf(), most: AtomicU64::new(0) };
    let sources: BTreeMap<&str, &dyn Source> =
        plan.sources.iter().map(|name| (name.as_str(), &sample as &dyn Source)).collect();
    let started = Instant::now();
    let result = local.run(&plan, registry, &sources, &watch);
    watch.look();
    let seconds = started.elapsed().as_secs_f64();
    let done = result.inspect_err(|_| discard(scratch))?;
    // No buffer holds more than all records of a stage.
    let records = done.stages.values().map(|stage| stage.bytes).max().unwrap_or(0);
    done.remove()?;
    let read = sample.read.load(Ordering::Relaxed).clamp(1, inventory.bytes.max(1));
    let scale = inventory.bytes as f64 / read as f64;
    let scaled = |of: &AtomicU64| (of.load(Ordering::Relaxed) as f64 * scale) as u64;
    Ok(Estimate {
        input_bytes: inventory.bytes,
        sample_bytes: read,
        documents: scaled(&sample.documents),
        // What is built for every stage is built once more, whatever the size of the input.
        seconds: fixed + seconds.min(fixed) + (seconds - fixed).max(0.0) * scale,
        memory_bytes: local.memory_bytes.min((records as f64 * scale) as u64)
            + memory().unwrap_or(0).saturating_sub(before),
        disk_bytes: scaled(&watch.most),
    })
}

/// Parts of a source: of some splits, evenly spread, the first bytes.
struct Sample<'a> {
    whole: &'a dyn Source,
    splits: Vec<usize>,
    /// Bytes of each split, as they are stored.
    each: u64,
    read: AtomicU64,
    documents: AtomicU64,
}

impl<'a> Sample<'a> {
    fn of(whole: &'a dyn Source, bytes: u64, threads: usize) -> Sample<'a> {
        let all = whole.splits();
        let count = all.min(MIN_PIECES.max(2 * threads));
        let splits = (0..count).map(|at| at * all / count.max(1)).collect();
        let each = (bytes / count.max(1) as u64).max(1);
        Sample { whole, splits, each, read: AtomicU64::new(0), documents: AtomicU64::new(0) }
    }
}

/// The name by which the end of a sample is known among errors.
const ENOUGH: &str = "the sample is full";

impl Source for Sample<'_> {
    fn fingerprint(&self) -> String {
        format!("sample of {} of {}", self.each, self.whole.fingerprint())
    }

    fn splits(&self) -> usize {
        self.splits.len()
    }

    fn bytes(&self, split: usize) -> u64 {
        self.whole.bytes(self.splits[split]).min(self.each)
    }

    fn read(
        &self,
        split: usize,
        emit: &mut Emit,
        broken: &mut Broken,
        tick: &dyn Fn(u64),
    ) -> Result<(), CurateError> {
        let read = AtomicU64::new(0);
        let mut some = |key: &[u8], value: &[u8]| {
            if read.load(Ordering::Relaxed) >= self.each {
                return Err(CurateError::EmptyOutput { stage: ENOUGH.to_owned(), broken: String::new() });
            }
            let is_document = Value::document(value)?.is_some();
            self.documents.fetch_add(is_document.into(), Ordering::Relaxed);
            emit(key, value)
        };
        let count = |bytes| {
            read.fetch_add(bytes, Ordering::Relaxed);
            tick(bytes);
        };
        let result = self.whole.read(self.splits[split], &mut some, broken, &count);
        self.read.fetch_add(read.into_inner(), Ordering::Relaxed);
        match result {
            Err(CurateError::EmptyOutput { stage, .. }) if stage == ENOUGH => Ok(()),
            other => other,
        }
    }
}

/// Looks at the work folder whenever something new begins, and when a task is done: a stage needs most at its end, before what
/// it has read and sorted goes.
struct Watch {
    work: PathBuf,
    most: AtomicU64,
}

impl Watch {
    fn look(&self) {
        self.most.fetch_max(folder_bytes(&self.work), Ordering::Relaxed);
    }
}

impl Progress for Watch {
    fn phase(&self, _: &str, _: u64) {
        self.look();
    }

    fn advance(&self, _: u64) {}

    fn partition(&self, _: u64, _: u64) {
        self.look();
    }
}
