//! Run folders: one folder per stage, begun, resumed and finished under a lock.

use crate::artifact::{State, hash_file, state};
use crate::{Artifact, ArtifactError, FileEntry, MANIFEST, Manifest, Provenance, Result, StageKey, fsutil};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The file or folder of a draft that holds work state, such as checkpoints; [`Draft::finish`] removes it.
pub const WORK_STATE: &str = "resume";
/// Says which artifact a draft is of.
pub(crate) const DRAFT_NOTE: &str = ".draft.json";
/// Says in words how far a draft is.
const PROGRESS: &str = ".progress";
const PARTIAL: &str = ".partial";
const LOCK: &str = ".lock";

/// A folder of stage folders.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    /// Held while this and every draft begun in it live; `None` when opened for reading.
    lock: Option<Arc<Lock>>,
}

/// The lock of a run folder. Where it was all there was, the folder goes with it.
#[derive(Debug)]
struct Lock {
    _file: File,
    folder: PathBuf,
    /// The folder was not there before, or had nothing but a lock in it.
    is_ours: bool,
}

impl Drop for Lock {
    fn drop(&mut self) {
        if self.is_ours && has_lock_alone(&self.folder) {
            // Still locked, so who comes now is refused or sees that the file is another. What cannot be removed harms nobody.
            drop(std::fs::remove_file(self.folder.join(LOCK)));
            drop(std::fs::remove_dir(&self.folder));
        }
    }
}

fn has_lock_alone(folder: &Path) -> bool {
    let Ok(mut entries) = std::fs::read_dir(folder) else { return false };
    entries.next().is_some_and(|entry| entry.is_ok_and(|entry| entry.file_name() == LOCK))
        && entries.next().is_none()
}

/// What [`RunDir::begin`] found.
#[derive(Debug)]
pub enum Begin {
    /// The artifact is already there.
    Done(Artifact),
    /// There is work to do, in this draft.
    Work(Draft),
}

/// Why there is work to do.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// The stage has never been finished here.
    New,
    /// A draft of the same artifact was left unfinished.
    Resumed,
    /// The stage was finished with another recipe or other inputs; the id it had.
    Changed(String),
    /// The stage was finished and is damaged since; what was found.
    Damaged(String),
}

/// A stage's folder while it is worked on. Dropping it leaves the folder for a later [`RunDir::begin`] to resume.
#[derive(Debug)]
pub struct Draft {
    path: PathBuf,
    done: PathBuf,
    stage: String,
    key: StageKey,
    reason: Reason,
    /// Keeps the run folder locked as long as somebody may write to it.
    _lock: Arc<Lock>,
}

/// What a stage reports about the artifact it finished.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// What it measured, any JSON.
    pub metrics: Value,
    /// Number of rows of a file, by the file's relative path.
    pub rows: BTreeMap<String, u64>,
    /// The seed it used.
    pub seed: Option<u64>,
    /// Wall time it took, in seconds.
    pub wall_seconds: f64,
}

#[derive(Serialize, Deserialize)]
struct DraftNote {
    id: String,
    kind: String,
}

impl RunDir {
    /// Creates the folder where it is missing, and locks it for this process until the value and its drafts are gone. A folder
    /// that was missing and in which nothing was made by then is removed.
    ///
    /// # Errors
    /// The folder cannot be created, or another process holds it.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let is_ours = !fsutil::exists(&path)? || has_lock_alone(&path);
        fsutil::create_dir_all(&path)?;
        let lock_path = path.join(LOCK);
        let lock = match File::options().create(true).truncate(false).write(true).open(&lock_path) {
            // The process that had it has just taken the folder away.
            Err(error) if error.kind() == ErrorKind::NotFound && !fsutil::exists(&path)? => {
                return Self::create(path);
            }
            opened => opened.map_err(|e| ArtifactError::io("open", &lock_path, e))?,
        };
        match lock.try_lock() {
            // The process that had it may have taken the folder away.
            Ok(())
                if !fsutil::is_at(&lock, &lock_path)
                    .map_err(|e| ArtifactError::io("read", &lock_path, e))? =>
            {
                return Self::create(path);
            }
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let pid = std::fs::read_to_string(&lock_path).unwrap_or_default();
                let holder = match pid.trim() {
                    "" => "another process".to_owned(),
                    pid => format!("process {pid}"),
                };
                return Err(ArtifactError::Locked { path, holder });
            }
            Err(TryLockError::Error(e)) => return Err(ArtifactError::io("lock", &lock_path, e)),
        }
        // Through the path, since a write through `lock` would leave the end of a longer number behind.
        std::fs::write(&lock_path, std::process::id().to_string())
            .map_err(|e| ArtifactError::io("write", &lock_path, e))?;
        let lock = Lock { _file: lock, folder: path.clone(), is_ours };
        Ok(Self { path, lock: Some(Arc::new(lock)) })
    }

    /// Opens an existing folder to read its artifacts; nothing can be begun in it.
    pub fn open_readonly(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        if path.is_dir() {
            Ok(Self { path, lock: None })
        } else {
            Err(ArtifactError::NotAnArtifact { path, found: "there is no such run folder".to_owned() })
        }
    }

    /// The run folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The finished artifact of a stage, which must be of this kind.
    pub fn artifact(&self, name: &str, kind: &str) -> Result<Artifact> {
        Artifact::open(self.path.join(name), Some(kind))
    }

    /// Begins a stage: finds its artifact done, resumes its draft, or starts a new one.
    ///
    /// Done means the same id, finished, every file there with its size. An artifact of another id, or a damaged one,
    /// stays in place until its replacement is complete. A draft of another id makes way, unless the stage is done.
    /// What an earlier kill left half published is put right first.
    ///
    /// # Errors
    /// I/O, a run folder opened for reading, a bad stage name, or something that is no artifact in the way.
    pub fn begin(&self, name: &str, key: &StageKey) -> Result<Begin> {
        self.begin_trusting(name, key, true)
    }

    /// Begins a stage whose artifact [`Artifact::verify`] found damaged: like [`Self::begin`], but an artifact of the
    /// same id counts as damaged too. It stays in place until its replacement is complete. A draft of the same id is
    /// resumed, or published when only that is missing and its files verify.
    ///
    /// # Errors
    /// Those of [`Self::begin`].
    pub fn begin_again(&self, name: &str, key: &StageKey) -> Result<Begin> {
        self.begin_trusting(name, key, false)
    }

    fn begin_trusting(&self, name: &str, key: &StageKey, trust: bool) -> Result<Begin> {
        check_name(name)?;
        let Some(lock) = &self.lock else {
            return Err(ArtifactError::ReadOnly { path: self.path.clone(), stage: name.to_owned() });
        };
        let done = self.path.join(name);
        let partial = fsutil::with_suffix(&done, PARTIAL);
        let id = key.id();

        fsutil::recover_dir(&done)?;
        let reason = match inspect(&done)? {
            State::Whole(artifact) if artifact.id() == id => match found_damaged(&artifact, &partial, trust)?
            {
                Some(found) => Reason::Damaged(found),
                None => return Ok(Begin::Done(*artifact)),
            },
            State::Whole(artifact) => Reason::Changed(artifact.id().to_owned()),
            State::Damaged(error) => Reason::Damaged(error.to_string()),
            State::Absent | State::NoManifest => Reason::New,
        };
        if let State::Whole(draft) = state(&partial)?
            && damage(&draft)?.is_none()
        {
            // Finished, and killed before the rename.
            let artifact = publish(&partial, &done)?;
            if draft.id() == id {
                return Ok(Begin::Done(artifact));
            }
            return self.begin(name, key);
        }
        let resumed = resumable(&partial, &id)?;
        if resumed {
            fsutil::sweep_temporaries(&partial)?;
        } else {
            fsutil::remove_dir(&partial)?;
            start(&partial, &id, &key.kind)?;
        }
        let reason = if resumed { Reason::Resumed } else { reason };
        let (stage, key, lock) = (name.to_owned(), key.clone(), Arc::clone(lock));
        Ok(Begin::Work(Draft { path: partial, done, stage, key, reason, _lock: lock }))
    }
}

impl Draft {
    /// The folder to write the artifact's files into. Work state goes to [`WORK_STATE`] in it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the folder holds what an earlier, interrupted attempt at the same artifact left.
    pub fn resumed(&self) -> bool {
        self.reason == Reason::Resumed
    }

    /// Why there is work to do.
    pub fn reason(&self) -> &Reason {
        &self.reason
    }

    /// The id that the artifact will have.
    pub fn id(&self) -> String {
        self.key.id()
    }

    /// Notes in a few words how far the work is, for whoever opens the artifact before it is finished.
    pub fn progress(&self, text: &str) -> Result<()> {
        fsutil::write_atomic(&self.path.join(PROGRESS), text.as_bytes())
    }

    /// Makes the files durable, hashes them, writes the manifest and puts the folder in its place.
    ///
    /// Work state is not part of the artifact. It goes only once the manifest is on disk, so a kill while hashing
    /// costs no work.
    ///
    /// # Errors
    /// I/O; no files; a link or other thing that is no plain file; a name that is not UTF-8 or is reserved; row
    /// counts for a file that is not there. The draft stays and can be resumed.
    pub fn finish(self, outcome: Outcome) -> Result<Artifact> {
        fsutil::sweep_temporaries(&self.path)?;
        let files = self.collect(&outcome.rows)?;
        let mut manifest = Manifest {
            id: self.key.id(),
            kind: self.key.kind,
            schema: self.key.schema,
            stage: self.stage,
            inputs: self.key.inputs,
            recipe: self.key.recipe,
            files,
            metrics: outcome.metrics,
            provenance: Provenance::here(outcome.seed, outcome.wall_seconds),
            digest: String::new(),
        };
        manifest.write(&self.path)?;
        publish(&self.path, &self.done)
    }

    /// Removes the draft and all in it.
    pub fn discard(self) {
        // What cannot be removed now is removed or resumed by the next `begin`.
        drop(fsutil::remove_dir(&self.path));
    }

    fn collect(&self, rows: &BTreeMap<String, u64>) -> Result<Vec<FileEntry>> {
        let bad = |path: &Path, found: String| Err(ArtifactError::BadDraft { path: path.to_owned(), found });
        let mut paths = Vec::new();
        for (path, is_dir) in fsutil::entries(&self.path)? {
            let name = path.file_name().unwrap_or_default();
            if name == MANIFEST {
                return bad(&path, "this name is reserved".to_owned());
            }
            if name != WORK_STATE && name != DRAFT_NOTE && name != PROGRESS {
                plain_files(&path, is_dir, &mut paths)?;
            }
        }
        let mut files = Vec::new();
        for path in paths {
            files.push(file_entry(&self.path, &path, rows)?);
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        fsutil::sync_dir(&self.path)?;
        if files.is_empty() {
            return bad(&self.path, "the stage wrote no files".to_owned());
        }
        match rows.keys().find(|name| files.iter().all(|f| f.path != **name)) {
            Some(name) => {
                bad(&self.path, format!("rows are given for `{name}`, which is not among its files"))
            }
            None => Ok(files),
        }
    }
}

/// Adds a file, or the files under a folder, making every folder on the way durable.
fn plain_files(path: &Path, is_dir: bool, into: &mut Vec<PathBuf>) -> Result<()> {
    if is_dir {
        for (child, is_dir) in fsutil::entries(path)? {
            plain_files(&child, is_dir, into)?;
        }
        return fsutil::sync_dir(path);
    }
    let meta = std::fs::symlink_metadata(path).map_err(|e| ArtifactError::io("look at", path, e))?;
    if !meta.is_file() {
        return Err(ArtifactError::BadDraft {
            path: path.to_owned(),
            found: "it is not a plain file".to_owned(),
        });
    }
    into.push(path.to_owned());
    Ok(())
}

fn file_entry(root: &Path, path: &Path, rows: &BTreeMap<String, u64>) -> Result<FileEntry> {
    let parts: Option<Vec<&str>> =
        path.strip_prefix(root).unwrap_or(path).components().map(|c| c.as_os_str().to_str()).collect();
    let Some(parts) = parts else {
        return Err(ArtifactError::BadDraft {
            path: path.to_owned(),
            found: "its name is not UTF-8".to_owned(),
        });
    };
    let name = parts.join("/");
    fsutil::sync_file(path)?;
    let bytes = std::fs::metadata(path).map_err(|e| ArtifactError::io("look at", path, e))?.len();
    Ok(FileEntry { bytes, blake3: hash_file(path)?, rows: rows.get(&name).copied(), path: name })
}

/// Removes a finished draft's work state and moves it into place.
fn publish(partial: &Path, done: &Path) -> Result<Artifact> {
    let resume = partial.join(WORK_STATE);
    if fsutil::exists(&resume)? {
        fsutil::remove_tree(&resume)?;
    }
    fsutil::remove_file(&partial.join(PROGRESS))?;
    fsutil::remove_file(&partial.join(DRAFT_NOTE))?;
    fsutil::sync_dir(partial)?;
    fsutil::publish_dir(partial, done)?;
    Artifact::read(done)
}

/// How an artifact of the wanted id is damaged, `None` where it is whole.
///
/// A draft of the same id beside it says that it was found damaged once, and then it is hashed: it was rebuilt when the
/// work was interrupted, or it is whole again and the draft goes.
fn found_damaged(artifact: &Artifact, partial: &Path, trust: bool) -> Result<Option<String>> {
    if !trust {
        return Ok(Some(format!("`{}` has a file that is not what was written", artifact.path().display())));
    }
    let same = match state(partial)? {
        State::Whole(draft) => draft.id() == artifact.id(),
        _ => draft_id(partial).as_deref() == Some(artifact.id()),
    };
    if !same {
        return Ok(None);
    }
    let found = damage(artifact)?;
    if found.is_none() {
        fsutil::remove_dir(partial)?;
    }
    Ok(found)
}

/// What [`Artifact::verify`] finds damaged; other failures are errors.
fn damage(artifact: &Artifact) -> Result<Option<String>> {
    match artifact.verify() {
        Ok(()) => Ok(None),
        Err(error) if error.is_damage() => Ok(Some(error.to_string())),
        Err(error) => Err(error),
    }
}

/// The state of a stage's own folder; what is not ours there is an error and is never replaced.
fn inspect(done: &Path) -> Result<State> {
    let in_the_way =
        |found: &str| Err(ArtifactError::InTheWay { path: done.to_owned(), found: found.to_owned() });
    if fsutil::exists(done)? && !done.is_dir() {
        return in_the_way("it is a file, and the stage's folder goes there");
    }
    match state(done)? {
        State::NoManifest => in_the_way("it holds files but no manifest.json, so llamero did not make it"),
        other => Ok(other),
    }
}

fn start(partial: &Path, id: &str, kind: &str) -> Result<()> {
    fsutil::create_dir_all(partial)?;
    let note = serde_json::json!({ "id": id, "kind": kind }).to_string();
    fsutil::write_atomic(&partial.join(DRAFT_NOTE), note.as_bytes())
}

/// Whether a draft of this id can be taken up. One with a manifest was finished and then damaged: it cannot.
fn resumable(partial: &Path, id: &str) -> Result<bool> {
    Ok(!fsutil::exists(&partial.join(MANIFEST))? && draft_id(partial).as_deref() == Some(id))
}

fn draft_id(partial: &Path) -> Option<String> {
    let text = std::fs::read(partial.join(DRAFT_NOTE)).ok()?;
    serde_json::from_slice::<DraftNote>(&text).ok().map(|note| note.id)
}

fn check_name(name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || !name.chars().all(plain) {
        return Err(ArtifactError::BadStageName { name: name.to_owned() });
    }
    Ok(())
}

/// The error that tells why a path holds no finished artifact, if that is so.
pub(crate) fn unfinished(path: &Path) -> Result<Option<ArtifactError>> {
    let is_draft = path.as_os_str().to_string_lossy().trim_end_matches('/').ends_with(PARTIAL);
    if !is_draft && fsutil::exists(&path.join(MANIFEST)).unwrap_or(false) {
        return Ok(None);
    }
    let path = path.to_owned();
    let partial = if is_draft { path.clone() } else { fsutil::with_suffix(&path, PARTIAL) };
    Ok(Some(if partial.is_dir() {
        ArtifactError::Unfinished { found: how_far(&partial)?, path }
    } else if path.is_dir() {
        ArtifactError::NoManifest { files: fsutil::entries(&path)?.len(), path }
    } else if fsutil::exists(&path)? {
        ArtifactError::NotAnArtifact { path, found: "it is a file, not a folder".to_owned() }
    } else {
        ArtifactError::NotAnArtifact { path, found: "there is no such file or folder".to_owned() }
    }))
}

fn how_far(partial: &Path) -> Result<String> {
    if fsutil::exists(&partial.join(MANIFEST))? {
        return Ok("all its files are written, only the last rename is missing".to_owned());
    }
    let (files, bytes) = tree_size(partial)?;
    let progress = std::fs::read_to_string(partial.join(PROGRESS)).unwrap_or_default();
    let progress = if progress.is_empty() { String::new() } else { format!(", {}", progress.trim()) };
    Ok(format!("its draft `{}` holds {files} files, {bytes} bytes so far{progress}", partial.display()))
}

fn tree_size(dir: &Path) -> Result<(u64, u64)> {
    let mut sum = (0, 0);
    for (path, is_dir) in fsutil::entries(dir)? {
        if is_dir {
            let inner = tree_size(&path)?;
            sum = (sum.0 + inner.0, sum.1 + inner.1);
        } else if path.file_name().is_some_and(|n| n != DRAFT_NOTE && n != PROGRESS) {
            sum = (sum.0 + 1, sum.1 + std::fs::symlink_metadata(&path).map_or(0, |m| m.len()));
        }
    }
    Ok(sum)
}
