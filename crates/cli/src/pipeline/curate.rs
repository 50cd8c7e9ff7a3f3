//! Sources → documents: a stage of every run, and `llamero curate run` alone.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, bail};
use llamero_artifact::{Artifact, InputRef, Outcome, StageKey, WORK_STATE};
use llamero_curate::local::MIN_MEMORY_BYTES;
use llamero_curate::{BROKEN_FILE, BrokenParts, CurateConfig, CurateReport, Estimate, Inventory, RunOptions};
use serde::Serialize;

use super::changes::changes;
use super::plan::settle_crates;
use super::{Run, open, stage_key};
use crate::progress::CurateProgress;
use crate::report::format::{bytes as size, duration, grouped};

/// Name and kind of the stage.
const STAGE: &str = "curate";

/// Fewer documents leave nothing to hold out or to ask about.
const MIN_DOCUMENTS: u64 = 8;

/// How curation is run here; nothing of it changes the result.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CurateOptions<'a> {
    /// Bytes that buffers may hold.
    pub(crate) memory_bytes: Option<u64>,
    /// Tasks at a time.
    pub(crate) threads: Option<usize>,
    /// Partitions of a shuffle.
    pub(crate) partitions: Option<u32>,
    /// Address of a cluster that does it instead of this machine.
    pub(crate) cluster: Option<&'a str>,
    /// Say first what it will take, where it takes long.
    pub(crate) announce: bool,
    /// Refuse to replace a finished corpus of another recipe or other inputs.
    pub(crate) keep: bool,
}

/// Partitions that even the smallest input may have.
const PARTITIONS: u64 = 256;

/// Bytes of input that a partition has at the least where there are more of them. Each stage writes a file for each, with notes of
/// each, so cost grows with the square of their number.
const PARTITION_BYTES: u64 = 64 << 10;

impl CurateOptions<'_> {
    /// Refuses more partitions than an input is worth.
    fn check_partitions(self, inventory: &Inventory) -> Result<()> {
        let most = (inventory.bytes / PARTITION_BYTES).max(PARTITIONS);
        match self.partitions {
            Some(partitions) if u64::from(partitions) > most => bail!(
                "`--partitions` is {partitions}, but must be at most {most} for inputs of {}: above {PARTITIONS}, each must have {} of them",
                size(inventory.bytes),
                size(PARTITION_BYTES)
            ),
            _ => Ok(()),
        }
    }

    fn run(self, work: PathBuf) -> RunOptions {
        let default = RunOptions::default();
        RunOptions {
            work: Some(work),
            memory_bytes: self.memory_bytes.unwrap_or(default.memory_bytes),
            threads: self.threads.unwrap_or(default.threads),
            partitions: self.partitions,
            cluster: self.cluster.map(str::to_owned),
        }
    }
}

/// Refuses memory in which nothing can be sorted.
pub(crate) fn check_memory(flag: &str, bytes: u64, threads: usize) -> Result<()> {
    let least = MIN_MEMORY_BYTES * threads as u64;
    if bytes < least {
        bail!(
            "`{flag}` is {}, but must be at least {}: {} for each of {threads} threads",
            size(bytes),
            size(least),
            size(MIN_MEMORY_BYTES)
        );
    }
    Ok(())
}

/// What `llamero curate run` made.
#[derive(Serialize)]
pub(crate) struct Curated {
    /// Folder of the artifact.
    pub(crate) folder: PathBuf,
    /// Its id.
    pub(crate) id: String,
    /// Seconds of work in it.
    pub(crate) seconds: f64,
    /// Whether it was there already.
    pub(crate) reused: bool,
    /// Largest resident memory of this process, where the system tells.
    pub(crate) peak_memory_bytes: Option<u64>,
    /// What came in and what was kept.
    pub(crate) report: CurateReport,
}

/// Bytes of input from which on a run is announced, and bytes that are looked at for that.
const ANNOUNCED: u64 = 256 << 20;
const GLANCE: u64 = 4 << 20;

/// Bytes that are looked at for an estimate that is asked for.
const SAMPLE: u64 = 64 << 20;

/// Opens a recipe of which only `[run]` and `[curate]` count.
fn open_sources(path: &Path, sets: &[String], options: CurateOptions) -> Result<Run> {
    if let Some(bytes) = options.memory_bytes {
        check_memory("--memory", bytes, options.threads.unwrap_or(RunOptions::default().threads))?;
    }
    let mut run = open(path, sets, None, |recipe| {
        // Nothing of the model is made, so nothing of it must be known.
        recipe.budget.get_or_insert_with(|| "1h".to_owned());
        recipe.run.threads = options.threads.or(recipe.run.threads);
    })?;
    run.absolute_sources()?;
    settle_crates(&mut run.recipe.curate)?;
    Ok(run)
}

/// What the curation of a recipe will take here.
pub(crate) fn estimate(path: &Path, sets: &[String], options: CurateOptions) -> Result<Estimate> {
    let run = open_sources(path, sets, options)?;
    let progress = CurateProgress::new();
    let inventory = llamero_curate::inventory(&run.recipe.curate, &progress);
    progress.finish();
    let inventory = inventory?;
    options.check_partitions(&inventory)?;
    let scratch = run.dir.path().join("curate.estimate");
    estimate_from(&run.recipe.curate, &inventory, options, SAMPLE, &scratch)
}

fn estimate_from(
    config: &CurateConfig,
    inventory: &Inventory,
    options: CurateOptions,
    bytes: u64,
    scratch: &Path,
) -> Result<Estimate> {
    let (registry, options) =
        (crate::encoders::registry(options.threads), options.run(scratch.to_path_buf()));
    let memory = crate::machine::peak_memory;
    Ok(llamero_curate::estimate(config, inventory, &registry, &options, (bytes, scratch), &memory)?)
}

/// Says what a long run will take.
fn announce(config: &CurateConfig, inventory: &Inventory, options: CurateOptions, scratch: &Path) {
    if inventory.bytes < ANNOUNCED {
        return;
    }
    match estimate_from(config, inventory, options, GLANCE, scratch) {
        Ok(found) => say!(
            "{:>10} about {} for {}, with {} of memory and {} of disk",
            "curate",
            duration(found.seconds),
            size(found.input_bytes),
            size(found.memory_bytes),
            size(found.disk_bytes)
        ),
        // A sample may hold nothing to keep, which says nothing of the whole.
        Err(error) => say!("{:>10} no estimate: {error}", "curate"),
    }
}

/// Runs the curation of a recipe and nothing behind it.
pub(crate) fn curate(path: &Path, sets: &[String], options: CurateOptions) -> Result<Curated> {
    let mut run = open_sources(path, sets, options)?;
    say!("{STAGE:>10} into `{}` (`run.dir`)", run.dir.path().join(STAGE).display());
    let started = Instant::now();
    let artifact = run.curated(options, 1)?;
    let reused = run.done.last().is_some_and(|stage| stage.reused);
    Ok(Curated {
        folder: artifact.path().into(),
        id: artifact.id().into(),
        seconds: if reused {
            artifact.manifest().provenance.wall_seconds
        } else {
            started.elapsed().as_secs_f64()
        },
        reused,
        peak_memory_bytes: crate::machine::peak_memory(),
        report: serde_json::from_value(artifact.manifest().metrics.clone())?,
    })
}

impl Run {
    /// Sources → documents that a model can be trained on.
    pub(super) fn curate(&mut self) -> Result<Artifact> {
        let artifact = self.curated(CurateOptions::default(), MIN_DOCUMENTS)?;
        let report: CurateReport = serde_json::from_value(artifact.manifest().metrics.clone())?;
        lost(&report.broken).iter().for_each(|line| say!("{line}"));
        Ok(artifact)
    }

    /// Refuses where there is a finished corpus that another one would take the place of.
    fn expect_no_other(&self, key: &StageKey) -> Result<()> {
        let there = match self.dir.artifact(STAGE, STAGE) {
            Ok(there) => there,
            Err(error) if error.is_damage() || !self.dir.path().join(STAGE).exists() => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        if there.id() == key.id() {
            return Ok(());
        }
        bail!(
            "`{}` holds a finished corpus of another recipe or other inputs:\n  {}\nhint: `--replace` makes it anew, and the old one stays \
             until the new one is whole; another `run.dir` keeps both",
            there.path().display(),
            changes("curate", there.manifest(), key).join("\n  ")
        )
    }

    /// Sources → documents. The id depends on the files' contents, not on where they lie.
    fn curated(&mut self, options: CurateOptions, min_documents: u64) -> Result<Artifact> {
        let config = self.recipe.curate.clone();
        let progress = CurateProgress::new();
        let inventory = llamero_curate::inventory(&config, &progress)?;
        options.check_partitions(&inventory)?;
        let (rules, inputs) = (rules(&config), inputs(&inventory));
        if options.keep {
            self.expect_no_other(&stage_key(STAGE, &rules, inputs.clone())?)?;
        }
        let artifact = self.stage(STAGE, rules, inputs, |_, draft| {
            if options.announce && !draft.resumed() {
                announce(&config, &inventory, options, &draft.path().join(WORK_STATE));
            }
            let registry = crate::encoders::registry(options.threads);
            let options = options.run(draft.path().join(WORK_STATE));
            let out = draft.path();
            let report =
                llamero_curate::curate_by(&config, &inventory, &registry, out, &options, &progress)?;
            if report.documents_kept < min_documents {
                bail!(
                    "{} of {} documents were kept; a model cannot be trained and measured on fewer than {min_documents}\n\
                     hint: give more text in `curate.sources`",
                    report.documents_kept,
                    report.documents_in
                );
            }
            let rows = report.files.iter().map(|(name, tally)| (name.clone(), tally.documents)).collect();
            Ok(Outcome { metrics: serde_json::to_value(&report)?, rows, ..Default::default() })
        });
        progress.finish();
        artifact
    }
}

/// Most inputs whose loss is told one by one.
const MAX_LOST: usize = 8;

/// Lines that name the inputs that gave nothing at all: their loss is seen in no figure.
pub(crate) fn lost(broken: &BrokenParts) -> Vec<String> {
    if broken.lost == 0 {
        return Vec::new();
    }
    let told = usize::try_from(broken.lost).unwrap_or(MAX_LOST).min(MAX_LOST);
    let mut lines = vec![format!("warning: {} of the inputs gave no document:", grouped(broken.lost))];
    lines.extend(broken.examples.iter().take(told).map(|part| format!("  {part}")));
    let more = broken.lost - told as u64;
    if more > 0 {
        lines.push(format!("  and {} more, in {BROKEN_FILE}", grouped(more)));
    }
    lines
}

/// What of the section is part of the id: not where anything lies.
fn rules(config: &CurateConfig) -> CurateConfig {
    let mut rules = CurateConfig { sources: Vec::new(), crates: None, ..config.clone() };
    for (_, path) in rules.side_files() {
        *path = PathBuf::new();
    }
    rules
}

/// The sources and the files of filters, by their content.
fn inputs(inventory: &Inventory) -> Vec<InputRef> {
    let sources = InputRef { name: "sources".into(), kind: "sources".into(), id: inventory.id.clone() };
    let side = inventory.side_files.iter();
    let files = side.map(|(key, hash)| InputRef { name: key.clone(), kind: "file".into(), id: hash.clone() });
    [sources].into_iter().chain(files).collect()
}
