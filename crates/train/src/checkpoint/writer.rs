//! From values to a published folder: every rank writes its file and a list of what is in it, and the first rank publishes the
//! folder when all lists are there. What one rank has to know of another is on the disk, so nothing here needs the groups of
//! ranks, which belong to the steps; and a checkpoint whose files are whole is published even if a rank dies meanwhile.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::failpoint::{self, step};
use super::format::{self, Piece, STATE, STATE_HASH, Shards, State};
use super::{fail, snapshot};
use crate::{Orders, TrainError, Trainer};

/// Once nobody can tell the first rank any more how the others do, it waits for their lists at least so long, or as long as
/// its own file took.
const GRACE: Duration = Duration::from_secs(10);

/// How far a rank's part of a checkpoint is.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Stage {
    /// It is being written or read back.
    Writing,
    /// The file and its list are there. On the first rank: the others' may be missing.
    Whole,
    /// All is done; on the first rank only.
    Published,
    /// Why not.
    Failed(String),
}

/// What the thread that writes and the one that trains tell each other.
pub(super) struct Shared {
    /// And since when.
    stage: Mutex<(Stage, Instant)>,
    changed: Condvar,
    /// What was copied is known to be right.
    approved: AtomicBool,
    /// There will be nothing to publish: another rank has failed, or what was copied is wrong.
    abandoned: AtomicBool,
    /// Nobody would notice if another rank failed.
    orphaned: AtomicBool,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            stage: Mutex::new((Stage::Writing, Instant::now())),
            changed: Condvar::new(),
            approved: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            orphaned: AtomicBool::new(false),
        }
    }
}

impl Shared {
    pub(super) fn stage(&self) -> Stage {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// When it came to this stage.
    pub(super) fn since(&self) -> Instant {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner).1
    }

    fn set(&self, stage: Stage) {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner) = (stage, Instant::now());
        self.changed.notify_all();
    }

    /// Waits until the stage is another than `seen`, for at most `most`.
    pub(super) fn wait(&self, seen: &Stage, most: Duration) {
        let stage = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |stage: &mut (Stage, Instant)| stage.0 == *seen;
        drop(self.changed.wait_timeout_while(stage, most, same));
    }

    pub(super) fn is_approved(&self) -> bool {
        self.approved.load(Ordering::Relaxed)
    }

    /// Lets the checkpoint be published.
    pub(super) fn approve(&self) {
        self.approved.store(true, Ordering::Relaxed);
    }

    /// An error when there is no use in writing any more.
    fn go_on(&self) -> std::io::Result<()> {
        let abandoned = self.abandoned.load(Ordering::Relaxed);
        if abandoned { Err(std::io::Error::other("it was given up")) } else { Ok(()) }
    }

    pub(super) fn abandon(&self) {
        self.abandoned.store(true, Ordering::Relaxed);
    }

    pub(super) fn orphan(&self) {
        self.orphaned.store(true, Ordering::Relaxed);
    }
}

/// What is published.
pub(super) struct Publication {
    /// Of the run.
    pub(super) dir: PathBuf,
    /// Everything but the files.
    pub(super) state: State,
    pub(super) ranks: usize,
    pub(super) keep: usize,
    /// A checkpoint that must stay, for somebody reads it.
    pub(super) pinned: Arc<Mutex<Option<u64>>>,
}

/// Where and what a rank writes.
pub(super) struct Task {
    /// The folder that will be renamed.
    pub(super) temporary: PathBuf,
    pub(super) rank: usize,
    /// On the first rank.
    pub(super) publication: Option<Publication>,
    /// Faults to be injected.
    pub(super) orders: Option<Orders>,
}

impl Task {
    /// Copies what this rank writes and lets a thread do the rest. Returns when the copy is made.
    pub(super) fn in_background(
        self,
        trainer: &Trainer<'_>,
        shared: &Arc<Shared>,
    ) -> Result<JoinHandle<()>, TrainError> {
        let mut copied: Vec<(Piece, Bytes)> = Vec::new();
        snapshot::pieces(trainer, true, &mut |piece, bytes| {
            copied.push((piece, bytes));
            Ok(())
        })?;
        self.spawn(shared, move |task, shared| {
            // Each copy goes when it is written.
            let path = task.temporary.clone();
            task.write(|file| {
                copied.into_iter().try_for_each(|(piece, bytes)| {
                    shared.go_on().map_err(fail(&path))?;
                    file.add(piece, &bytes)
                })
            })?;
            task.publish(shared)
        })
    }

    /// Writes this rank's file without a copy of all that is in it; a thread sees to the rest.
    pub(super) fn at_once(
        self,
        trainer: &Trainer<'_>,
        shared: &Arc<Shared>,
    ) -> Result<JoinHandle<()>, TrainError> {
        let written =
            self.write(|file| snapshot::pieces(trainer, false, &mut |piece, bytes| file.add(piece, &bytes)));
        self.spawn(shared, move |task, shared| {
            written?;
            task.publish(shared)
        })
    }

    fn spawn(
        self,
        shared: &Arc<Shared>,
        work: impl FnOnce(Self, &Shared) -> Result<Stage, TrainError> + Send + 'static,
    ) -> Result<JoinHandle<()>, TrainError> {
        let (armed, shared, path) = (failpoint::armed(), Arc::clone(shared), self.temporary.clone());
        let thread = move || {
            armed.here();
            // Should the work panic, nobody must wait for it.
            let mut end =
                End { shared: &shared, stage: Stage::Failed("the thread that writes has panicked".into()) };
            end.stage = work(self, &shared).unwrap_or_else(|error| Stage::Failed(error.to_string()));
        };
        std::thread::Builder::new().name("checkpoint".into()).spawn(thread).map_err(fail(&path))
    }

    /// Writes this rank's file, reads it back, and leaves a list of what is in it.
    fn write(&self, fill: impl FnOnce(&mut ShardFile) -> Result<(), TrainError>) -> Result<(), TrainError> {
        let dir = &self.temporary;
        step().and_then(|()| std::fs::create_dir_all(dir)).map_err(fail(dir))?;
        let mut file = ShardFile::create(dir, format::data_file(self.rank))?;
        if let Some(orders) = &self.orders {
            orders.check_disk(self.rank).map_err(fail(&file.path))?;
        }
        fill(&mut file)?;
        let shards = file.finish(dir)?;
        let path = dir.join(format::list_file(self.rank));
        let list = serde_json::to_vec(&shards).map_err(|e| fail(&path)(e.into()))?;
        let unfinished = path.with_extension("unfinished");
        format::write_synced(&unfinished, &list).map_err(fail(&unfinished))?;
        step().and_then(|()| std::fs::rename(&unfinished, &path)).map_err(fail(&path))
    }

    /// What is left to do once this rank's file is whole.
    fn publish(self, shared: &Shared) -> Result<Stage, TrainError> {
        let Self { temporary, publication, .. } = self;
        let Some(publication) = publication else { return Ok(Stage::Whole) };
        shared.set(Stage::Whole);
        let files = publication.lists(&temporary, shared)?;
        publication.publish(&temporary, files)?;
        Ok(Stage::Published)
    }
}

/// Tells how a thread ended, however it does.
struct End<'a> {
    shared: &'a Shared,
    stage: Stage,
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.shared.set(self.stage.clone());
    }
}

impl Publication {
    /// Waits for the lists of all ranks, and until what was copied is known to be right.
    fn lists(&self, temporary: &Path, shared: &Shared) -> Result<Vec<Shards>, TrainError> {
        let (begun, mut pause, mut orphaned) = (Instant::now(), Duration::from_millis(1), None);
        let mut files = Vec::with_capacity(self.ranks);
        while files.len() < self.ranks || !shared.approved.load(Ordering::Relaxed) {
            if files.len() < self.ranks {
                let path = temporary.join(format::list_file(files.len()));
                match std::fs::read(&path) {
                    Ok(list) => {
                        files.push(serde_json::from_slice(&list).map_err(|e| fail(&path)(e.into()))?);
                        continue;
                    }
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(fail(&path)(error));
                    }
                    // Storage was lost: no list will ever be there.
                    Err(_) if !temporary.is_dir() => {
                        return Err(fail(temporary)(std::io::Error::other("the folder is gone")));
                    }
                    Err(_) => {}
                }
            }
            if shared.orphaned.load(Ordering::Relaxed) && orphaned.is_none() {
                orphaned = Some((Instant::now(), begun.elapsed().max(GRACE)));
            }
            let given_up = orphaned.is_some_and(|(since, grace)| since.elapsed() > grace);
            if given_up && files.len() < self.ranks {
                let path = temporary.join(format::list_file(files.len()));
                return Err(fail(&path)(std::io::Error::other("this rank has not written its file")));
            }
            // Nobody is left who could say that what was copied is right, or somebody knows that it is not.
            let never = orphaned.is_some() && !shared.approved.load(Ordering::Relaxed);
            if never || shared.abandoned.load(Ordering::Relaxed) {
                return Err(fail(temporary)(std::io::Error::other("it was given up")));
            }
            std::thread::sleep(pause);
            pause = (2 * pause).min(Duration::from_millis(50));
        }
        Ok(files)
    }

    /// Writes `state.json`, gives the folder its name, and removes what is too old.
    fn publish(&self, temporary: &Path, files: Vec<Shards>) -> Result<(), TrainError> {
        let state = State { files, ..self.state.clone() };
        let path = temporary.join(STATE);
        let text = serde_json::to_vec(&state).map_err(|e| fail(&path)(e.into()))?;
        format::write_synced(&path, &text).map_err(fail(&path))?;
        let path = temporary.join(STATE_HASH);
        format::write_synced(&path, blake3::hash(&text).to_hex().as_bytes()).map_err(fail(&path))?;
        for rank in 0..self.ranks {
            let list = temporary.join(format::list_file(rank));
            step().and_then(|()| std::fs::remove_file(&list)).map_err(fail(&list))?;
        }
        let published = self.dir.join(format::folder(state.progress.step));
        format::publish(temporary, &published).map_err(fail(&published))?;
        self.remove_old();
        Ok(())
    }

    /// Keeps the newest ones up to this. What is newer was passed over when the run began: this one takes its place. Only room
    /// is lost where it fails.
    fn remove_old(&self) {
        let pinned = *self.pinned.lock().unwrap_or_else(PoisonError::into_inner);
        let published = format::published(&self.dir);
        let newer = published.iter().filter(|(step, _)| *step > self.state.progress.step);
        let older = published.iter().filter(|(step, _)| *step <= self.state.progress.step);
        for (step, path) in older.rev().skip(self.keep).chain(newer) {
            if pinned != Some(*step) {
                format::unpublish(path).ok();
            }
        }
    }
}

/// A rank's file while it is written.
struct ShardFile {
    path: PathBuf,
    out: BufWriter<File>,
    shards: Shards,
}

impl ShardFile {
    fn create(dir: &Path, name: String) -> Result<Self, TrainError> {
        let path = dir.join(&name);
        let file = step().and_then(|()| File::create(&path)).map_err(fail(&path))?;
        Ok(Self { path, out: BufWriter::new(file), shards: Shards { file: name, pieces: Vec::new() } })
    }

    fn add(&mut self, piece: Piece, values: &Bytes) -> Result<(), TrainError> {
        let bytes = little_endian(values);
        let blake3 = blake3::hash(&bytes).to_hex().to_string();
        step().and_then(|()| self.out.write_all(&bytes)).map_err(fail(&self.path))?;
        self.shards.pieces.push(Piece { blake3, ..piece });
        Ok(())
    }

    /// Makes the file durable, reads it back and compares.
    fn finish(self, dir: &Path) -> Result<Shards, TrainError> {
        let Self { path, out, shards } = self;
        let file = out.into_inner().map_err(|e| fail(&path)(e.into_error()))?;
        step().and_then(|()| file.sync_all()).map_err(fail(&path))?;
        // What is read back should come from the disk, where the system can be asked for that.
        #[cfg(target_os = "linux")]
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).ok();
        format::check_pieces(dir, &shards, |_| true)
            .map_err(|reason| fail(&path)(std::io::Error::other(reason)))?;
        Ok(shards)
    }
}

/// Values as they are in a file.
fn little_endian(values: &Bytes) -> Bytes {
    if cfg!(target_endian = "little") {
        return values.clone();
    }
    values.as_chunks::<4>().0.iter().flat_map(|[a, b, c, d]| [*d, *c, *b, *a]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fit::Progress;

    /// Rank 0 waited for the lists of the others for ever, and they for it.
    #[test]
    fn a_checkpoint_whose_folder_is_lost_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let model = llamero_model::Config::preset("300k").unwrap();
        let state =
            State { updates: 1, mean_loss: None, progress: Progress::default(), model, files: Vec::new() };
        let dir = dir.path().to_owned();
        let publication = Publication { dir: dir.clone(), state, ranks: 2, keep: 1, pinned: Arc::default() };
        let shared = Shared::default();
        shared.approve();
        let error = publication.lists(&dir.join("step-1.partial"), &shared).err().unwrap().to_string();
        assert!(error.contains("step-1.partial") && error.contains("the folder is gone"), "{error}");
    }
}
