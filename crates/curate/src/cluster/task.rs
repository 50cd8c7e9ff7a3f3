//! Tasks: what an executor does for one split, part or partition.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use arrow_array::RecordBatch;

use super::functions::{Functions, Opened, Origin};
use super::shuffle::{Arrivals, Batches};
use crate::CurateError;
use crate::local::file::{self, Writer, is_whole};
use crate::local::sort::{Merge, Sorter, reduce_all};
use crate::local::stage::{Split, feed, part, partition_of};
use crate::plan::{BrokenPart, Emit};

/// Asked now and then; its error ends a task that nobody waits for any more.
pub(super) type Alive<'a> = dyn Fn() -> Result<(), CurateError> + 'a;

/// Does map task `at` of a stage without a reduce: writes its part.
pub(super) fn map_only(
    functions: &Functions,
    stage: &Opened,
    at: usize,
    alive: &Alive,
) -> Result<(), CurateError> {
    let path = part(Path::new(&stage.place.folder), at);
    if is_whole(&path) {
        return Ok(());
    }
    let draft = Draft::new(path, &functions.name);
    let mut writer = Writer::create(&draft.own)?;
    writer.begin_segment()?;
    let broken = map(functions, stage, at, &mut |key, value| {
        alive()?;
        writer.push(key, value)
    })?;
    broken.into_iter().for_each(|what| writer.broken(what));
    writer.finish()?;
    draft.keep()
}

/// Does map task `at` of a stage with a reduce: sends its records away.
pub(super) fn map_and_send(
    functions: &Functions,
    stage: &Opened,
    slots: &[u64],
    at: usize,
    send: &mut dyn FnMut(RecordBatch) -> Result<(), CurateError>,
) -> Result<(), CurateError> {
    let partitions = slots.len() as u32;
    let mut batches = Batches::new(send);
    if at == 0 {
        for (partition, slot) in (0..).zip(slots) {
            batches.partition(*slot, partition)?;
        }
    }
    let broken = map(functions, stage, at, &mut |key, value| {
        batches.record(slots[partition_of(key, partitions) as usize], key, value)
    })?;
    for what in broken {
        batches.broken(slots[0], what)?;
    }
    batches.flush()
}

/// Sends what task `at` reads through its maps; gives what was broken in it.
fn map(
    functions: &Functions,
    stage: &Opened,
    at: usize,
    emit: &mut Emit,
) -> Result<Vec<BrokenPart>, CurateError> {
    let no_task =
        || CurateError::Plan { name: stage.place.folder.clone(), problem: format!("has no task {at}") };
    let task = stage.file.tasks.get(at).ok_or_else(no_task)?;
    let maps = functions.maps(stage, task.input)?;
    let stop = stage.file.stop_at_broken;
    match &task.from {
        Origin::Split { source, split } => {
            let source = functions.source(stage, source)?;
            feed(&Split::Source(&*source, *split), &maps, stop, &(), emit)
        }
        Origin::Part(path) => feed(&Split::File(path), &maps, stop, &(), emit),
    }
}

/// A reduce task: sorts the rows that it gets, as the local runner sorts records, and writes the part of its partition.
pub(super) struct Reducing<'a> {
    functions: &'a Functions,
    stage: &'a Opened,
    scratch: Draft,
    arrivals: Arrivals,
    sorter: Sorter,
}

impl<'a> Reducing<'a> {
    pub(super) fn new(functions: &'a Functions, stage: &'a Opened) -> Result<Self, CurateError> {
        std::fs::create_dir_all(&functions.scratch)
            .map_err(|error| CurateError::write(&functions.scratch, error))?;
        let scratch = Draft::new(functions.scratch.join("sort.run"), &functions.name);
        let sorter = Sorter::new(&scratch.own, 1, functions.budget)?;
        Ok(Reducing { functions, stage, scratch, arrivals: Arrivals::default(), sorter })
    }

    pub(super) fn take(&mut self, batch: &RecordBatch) -> Result<(), CurateError> {
        self.arrivals.read(batch, &mut |key, value| self.sorter.push(0, key, value))
    }

    /// Reduces, once all rows are here.
    pub(super) fn finish(self, alive: &Alive) -> Result<(), CurateError> {
        let Reducing { functions, stage, scratch, arrivals, sorter } = self;
        let Some(reduce) = &stage.file.reduce else {
            let problem = "has no reduce".to_owned();
            return Err(CurateError::Plan { name: stage.place.folder.clone(), problem });
        };
        let partition = arrivals.partition(&reduce.slots)?;
        sorter.finish()?;
        let function = functions.reduce(&reduce.step)?;
        let sorted = file::read_footer(&scratch.own)?.segments;
        let sorted = sorted.into_iter().map(|segment| (scratch.own.clone(), segment)).collect();
        let mut merge = Merge::open(sorted, functions.budget, &scratch.own)?;
        let draft = Draft::new(part(Path::new(&stage.place.folder), partition as usize), &functions.name);
        let mut writer = Writer::create(&draft.own)?;
        writer.begin_segment()?;
        let mut emit = |key: &[u8], value: &[u8]| {
            alive()?;
            writer.push(key, value)
        };
        reduce_all(&mut merge, &*function, &mut emit, &mut |_| {})?;
        let mut broken = arrivals.broken;
        broken.sort();
        broken.into_iter().for_each(|what| writer.broken(what));
        writer.finish()?;
        draft.keep()
    }
}

/// A file under a name that no other task has, on any machine. It is removed unless it is kept.
struct Draft {
    own: PathBuf,
    to: PathBuf,
}

impl Draft {
    fn new(to: PathBuf, process: &str) -> Draft {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let stem = to.file_stem().unwrap_or_default().to_string_lossy();
        let own = to.with_file_name(format!("{stem}-{process}-{number}.run"));
        Draft { own, to }
    }

    /// Gives the file its name. Who had it first has written the same.
    fn keep(mut self) -> Result<(), CurateError> {
        std::fs::rename(&self.own, &self.to).map_err(|error| CurateError::write(&self.to, error))?;
        // Nothing is left of it.
        self.own = PathBuf::new();
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Beside the file there may be its beginning, and what a merge that was given up has left.
        let Some((folder, stem)) = self.own.parent().zip(self.own.file_stem()) else { return };
        let own = |name: &std::ffi::OsStr| {
            let rest = name.as_encoded_bytes().strip_prefix(stem.as_encoded_bytes());
            rest.is_some_and(|rest| rest.starts_with(b"."))
        };
        for entry in std::fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok) {
            if own(&entry.file_name()) {
                // What stays goes with the folder.
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}
