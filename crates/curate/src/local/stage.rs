//! One stage: its map tasks, then its reduce tasks.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;

use super::file::{self, Footer, Reader, Segment, Writer};
use super::sort::{Merge, Sorter, reduce_all};
use super::work::write_whole;
use super::{Local, Stages, Totals};
use crate::plan::{BrokenPart, BrokenParts, Emit, Input, Map, Record, Registry, Source, Stage, Step};
use crate::{CurateError, Progress};

/// What a finished stage is known by.
const DONE: &str = "done.json";

/// The records of a name.
#[derive(Clone)]
pub(crate) enum Data<'a> {
    Source(&'a dyn Source),
    Files(Finished),
}

/// A finished stage: `done.json` in its folder.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Finished {
    #[serde(skip)]
    pub(crate) files: Vec<PathBuf>,
    pub(crate) partitions: usize,
    pub(crate) totals: Totals,
    pub(crate) broken: Vec<BrokenPart>,
}

impl Finished {
    /// A stage that an earlier run finished in `folder`. A file that is gone was read by all who read it; with one that is there
    /// and is not whole the stage is not finished.
    pub(crate) fn read(folder: &Path) -> Result<Option<Finished>, CurateError> {
        let path = folder.join(DONE);
        let Ok(text) = std::fs::read(&path) else { return Ok(None) };
        let mut finished: Finished = serde_json::from_slice(&text)
            .map_err(|error| CurateError::Damaged { path, problem: error.to_string() })?;
        finished.files = (0..finished.partitions).map(|at| part(folder, at)).collect();
        let whole = finished.files.iter().all(|path| !path.exists() || file::is_whole(path));
        Ok(whole.then_some(finished))
    }

    /// Says in `folder` that it is finished.
    pub(crate) fn write(&self, folder: &Path) -> Result<(), CurateError> {
        write_whole(&folder.join(DONE), self)
    }

    /// Sums up the files of a stage, and what was broken `before` in those that they were made from.
    pub(crate) fn gather(files: Vec<PathBuf>, before: &[Footer]) -> Result<Finished, CurateError> {
        let mut totals = Totals::default();
        let mut broken: Vec<BrokenPart> = before.iter().flat_map(|footer| footer.broken.clone()).collect();
        for path in &files {
            let footer = file::read_footer(path)?;
            totals.add(&footer.totals);
            broken.extend(footer.broken);
        }
        broken.sort();
        Ok(Finished { partitions: files.len(), files, totals, broken })
    }
}

impl Data<'_> {
    pub(crate) fn totals(&self) -> Option<Totals> {
        match self {
            Data::Source(_) => None,
            Data::Files(finished) => Some(finished.totals),
        }
    }

    pub(crate) fn remove_files(&self) {
        if let Data::Files(finished) = self {
            for path in &finished.files {
                // Room that cannot be freed is no reason to fail.
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

/// One map task's records.
pub(crate) enum Split<'a> {
    Source(&'a dyn Source, usize),
    File(&'a Path),
}

impl Split<'_> {
    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Split::Source(source, split) => source.bytes(*split),
            Split::File(path) => std::fs::metadata(path).map_or(0, |meta| meta.len()),
        }
    }
}

struct MapTask<'a> {
    split: Split<'a>,
    maps: &'a [Box<dyn Map>],
}

pub(crate) struct Runner<'a> {
    pub(crate) local: &'a Local,
    pub(crate) registry: &'a Registry,
    pub(crate) progress: &'a dyn Progress,
}

impl Stages for Runner<'_> {
    fn stage(
        &self,
        stage: &Stage,
        folder: &Path,
        data: &BTreeMap<String, Data>,
    ) -> Result<Finished, CurateError> {
        if let Some(finished) = Finished::read(folder)? {
            return Ok(finished);
        }
        std::fs::create_dir_all(folder).map_err(|error| CurateError::write(folder, error))?;
        let maps = stage
            .inputs
            .iter()
            .map(|input| self.maps(input, data))
            .collect::<Result<Vec<_>, CurateError>>()?;
        let mut tasks = Vec::new();
        for (input, maps) in stage.inputs.iter().zip(&maps) {
            match &data[&input.from] {
                Data::Source(source) => tasks.extend(
                    (0..source.splits()).map(|at| MapTask { split: Split::Source(*source, at), maps }),
                ),
                Data::Files(finished) => {
                    tasks.extend(finished.files.iter().map(|path| MapTask { split: Split::File(path), maps }))
                }
            }
        }
        let total = tasks.iter().map(|task| task.split.bytes()).sum();
        self.begin(&stage.name, total);
        let mut runs = Vec::new();
        let finished = match &stage.reduce {
            None => {
                let paths: Vec<_> = (0..tasks.len()).map(|at| part(folder, at)).collect();
                self.parallel(paths.len(), &|at| self.map_only(&tasks[at], &paths[at]))?;
                Finished::gather(paths, &[])?
            }
            Some(step) => {
                runs.extend((0..tasks.len()).map(|at| folder.join(format!("map-{at:05}.run"))));
                self.parallel(runs.len(), &|at| self.map_and_sort(&tasks[at], &runs[at]))?;
                self.reduce(stage, step, folder, &runs)?
            }
        };
        finished.write(folder)?;
        for path in runs {
            // What stays goes with the work folder.
            let _ = std::fs::remove_file(path);
        }
        Ok(finished)
    }
}

impl Runner<'_> {
    fn begin(&self, name: &str, total: u64) {
        if total > 0 {
            self.progress.phase(name, total);
        }
    }

    /// The maps of an input, with their side input.
    fn maps(&self, input: &Input, data: &BTreeMap<String, Data>) -> Result<Vec<Box<dyn Map>>, CurateError> {
        let side = read_all(side_files(input, data)?)?;
        input.maps.iter().map(|step| self.registry.build_map(step, &side)).collect()
    }

    fn map_only(&self, task: &MapTask, path: &Path) -> Result<(), CurateError> {
        if file::is_whole(path) {
            self.progress.advance(task.split.bytes());
            return Ok(());
        }
        let mut writer = Writer::create(path)?;
        writer.begin_segment()?;
        let broken = self.feed(task, &mut |key, value| writer.push(key, value))?;
        broken.into_iter().for_each(|what| writer.broken(what));
        writer.finish().map(|_| ())
    }

    fn map_and_sort(&self, task: &MapTask, path: &Path) -> Result<(), CurateError> {
        if file::is_whole(path) {
            self.progress.advance(task.split.bytes());
            return Ok(());
        }
        let partitions = self.local.partitions.max(1);
        let mut sorter = Sorter::new(path, partitions, self.local.budget() / 2)?;
        let broken =
            self.feed(task, &mut |key, value| sorter.push(partition_of(key, partitions), key, value))?;
        broken.into_iter().for_each(|what| sorter.broken(what));
        sorter.finish()
    }

    fn feed(&self, task: &MapTask, emit: &mut Emit) -> Result<Vec<BrokenPart>, CurateError> {
        feed(&task.split, task.maps, self.local.stop_at_broken, self.progress, emit)
    }

    fn reduce(
        &self,
        stage: &Stage,
        step: &Step,
        folder: &Path,
        runs: &[PathBuf],
    ) -> Result<Finished, CurateError> {
        let reduce = self.registry.build_reduce(step)?;
        let partitions = self.local.partitions.max(1) as usize;
        let footers = runs.iter().map(|path| file::read_footer(path)).collect::<Result<Vec<_>, _>>()?;
        let all = footers.iter().flat_map(|footer| &footer.segments);
        self.begin(&format!("{}: {}", stage.name, step.name), all.map(|segment| segment.length).sum());
        let parts: Vec<_> = (0..partitions).map(|at| part(folder, at)).collect();
        self.parallel(partitions, &|at| {
            let own = footers.iter().zip(runs).flat_map(|(footer, path)| {
                let own = footer.segments.iter().skip(at).step_by(partitions);
                own.map(|segment| (path.clone(), *segment))
            });
            let own: Vec<(PathBuf, Segment)> = own.collect();
            let mut left: u64 = own.iter().map(|(_, segment)| segment.length).sum();
            if file::is_whole(&parts[at]) {
                self.progress.advance(left);
                return Ok(());
            }
            let mut merge = Merge::open(own, self.local.budget() / 2, &parts[at])?;
            let mut writer = Writer::create(&parts[at])?;
            writer.begin_segment()?;
            reduce_all(&mut merge, &*reduce, &mut |key, value| writer.push(key, value), &mut |now| {
                self.progress.advance(left.saturating_sub(now));
                left = left.min(now);
            })?;
            self.progress.advance(left);
            writer.finish().map(|_| ())
        })?;
        Finished::gather(parts, &footers)
    }

    /// Does tasks `0..count`, some at a time. Of several errors, that of the first task is given.
    fn parallel(
        &self,
        count: usize,
        task: &(dyn Fn(usize) -> Result<(), CurateError> + Sync),
    ) -> Result<(), CurateError> {
        let (next, done, stop) = (AtomicUsize::new(0), AtomicU64::new(0), AtomicBool::new(false));
        let failure: Mutex<Option<(usize, CurateError)>> = Mutex::new(None);
        let worker = || {
            while !stop.load(Ordering::Relaxed) {
                let at = next.fetch_add(1, Ordering::Relaxed);
                if at >= count {
                    return;
                }
                match task(at) {
                    Ok(()) => {
                        self.progress.partition(done.fetch_add(1, Ordering::Relaxed) + 1, count as u64);
                    }
                    Err(error) => {
                        stop.store(true, Ordering::Relaxed);
                        let mut slot = failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                        if slot.as_ref().is_none_or(|(first, _)| at < *first) {
                            *slot = Some((at, error));
                        }
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..self.local.threads.min(count) {
                scope.spawn(worker);
            }
            worker();
        });
        match failure.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }
}

/// The partition of a key.
pub(crate) fn partition_of(key: &[u8], partitions: u32) -> u32 {
    (XxHash3_64::oneshot(key) % u64::from(partitions)) as u32
}

/// The file of a stage's part.
pub(crate) fn part(folder: &Path, at: usize) -> PathBuf {
    folder.join(format!("part-{at:05}.run"))
}

/// Sends a split through maps; gives what was broken in it.
pub(crate) fn feed(
    split: &Split,
    maps: &[Box<dyn Map>],
    stop_at_broken: bool,
    progress: &dyn Progress,
    emit: &mut Emit,
) -> Result<Vec<BrokenPart>, CurateError> {
    let mut found = BrokenParts::default();
    match split {
        Split::Source(source, at) => {
            let mut broken = |part: BrokenPart| {
                if stop_at_broken {
                    return Err(CurateError::BrokenInput(part));
                }
                found.add(part);
                Ok(())
            };
            let tick = |bytes| progress.advance(bytes);
            source.read(*at, &mut |key, value| apply(maps, key, value, emit), &mut broken, &tick)?;
        }
        Split::File(path) => {
            let mut told = 0;
            for segment in file::read_footer(path)?.segments {
                let mut reader = Reader::open(path, segment)?;
                while reader.advance()? {
                    apply(maps, reader.key(), reader.value(), emit)?;
                    let read = segment.offset + segment.length - reader.left();
                    if read > told {
                        progress.advance(read - told);
                        told = read;
                    }
                }
            }
            progress.advance(split.bytes().saturating_sub(told));
        }
    }
    Ok(found.into_inner())
}

/// Sends a record through maps, one after another.
fn apply(maps: &[Box<dyn Map>], key: &[u8], value: &[u8], emit: &mut Emit) -> Result<(), CurateError> {
    match maps.split_first() {
        None => emit(key, value),
        Some((map, rest)) => map.map(key, value, &mut |key, value| apply(rest, key, value, emit)),
    }
}

/// The files of an input's side input.
pub(crate) fn side_files<'a>(
    input: &Input,
    data: &'a BTreeMap<String, Data>,
) -> Result<&'a [PathBuf], CurateError> {
    match input.side.as_ref().map(|name| (name, &data[name])) {
        None => Ok(&[]),
        Some((_, Data::Files(finished))) => Ok(&finished.files),
        Some((name, Data::Source(_))) => {
            let problem = "is a source, which cannot be a side input".to_owned();
            Err(CurateError::Plan { name: name.clone(), problem })
        }
    }
}

/// All records of some files, sorted.
pub(crate) fn read_all(files: &[PathBuf]) -> Result<Vec<Record>, CurateError> {
    let mut records = Vec::new();
    for path in files {
        for segment in file::read_footer(path)?.segments {
            let mut reader = Reader::open(path, segment)?;
            while reader.advance()? {
                records.push(Record { key: reader.key().to_vec(), value: reader.value().to_vec() });
            }
        }
    }
    records.sort_unstable();
    Ok(records)
}
