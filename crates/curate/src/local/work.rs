//! The work folder: whose it is, and who is in it.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Local;
use crate::CurateError;
use crate::plan::{Plan, Source};

const OWNER: &str = "plan.json";
const LOCK: &str = "lock";

/// Written when a plan begins, and compared when one is taken up again.
#[derive(Serialize, Deserialize)]
struct Owner {
    fingerprint: String,
    plan: Plan,
}

/// A work folder that this process holds.
#[derive(Debug)]
pub(crate) struct WorkFolder {
    path: PathBuf,
    #[cfg_attr(not(feature = "ballista"), expect(dead_code, reason = "processes of a cluster look for it"))]
    fingerprint: String,
    plan: Plan,
    _lock: File,
}

impl WorkFolder {
    pub(crate) fn open(
        local: &Local,
        runner: &str,
        plan: &Plan,
        sources: &BTreeMap<&str, &dyn Source>,
    ) -> Result<Self, CurateError> {
        let path = local.work.clone();
        let failed = |error: std::io::Error| CurateError::write(&path, error);
        std::fs::create_dir_all(&path).map_err(failed)?;
        let lock = File::create(path.join(LOCK)).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let problem = "is in use by another process".to_owned();
                return Err(refused(&path, problem, "wait for it, or give another folder"));
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        let fingerprint = fingerprint(local, runner, plan, sources)?;
        let owner = path.join(OWNER);
        match std::fs::read(&owner) {
            Ok(found) => {
                let Ok(before) = serde_json::from_slice::<Owner>(&found) else {
                    let problem = format!("has a `{OWNER}` that is not of curation");
                    return Err(refused(&path, problem, "give an empty folder or a new one"));
                };
                let same = before.fingerprint == fingerprint;
                if !same && !local.restart {
                    let problem = "holds the work of another plan or another input".to_owned();
                    return Err(refused(&path, problem, "give another folder, or remove this one"));
                }
                if let Some(name) = stranger(&path, &before.plan).map_err(failed)? {
                    let problem = format!("has `{name}` in it, which curation did not put there");
                    return Err(refused(&path, problem, "take it out, or give another folder"));
                }
                if !same {
                    clear(&path, &before.plan).map_err(failed)?;
                    write_owner(&owner, &fingerprint, plan)?;
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let stranger = std::fs::read_dir(&path)
                    .map_err(failed)?
                    .filter_map(Result::ok)
                    .find(|entry| !entry.file_name().to_string_lossy().starts_with(LOCK));
                let partial = |name: &str| name == "plan.json.partial";
                if let Some(entry) = stranger.filter(|entry| !partial(&entry.file_name().to_string_lossy())) {
                    let problem = format!("has `{}` in it and no plan", entry.file_name().to_string_lossy());
                    return Err(refused(&path, problem, "give an empty folder or a new one"));
                }
                write_owner(&owner, &fingerprint, plan)?;
            }
            Err(error) => return Err(failed(error)),
        }
        Ok(Self { path, fingerprint, plan: plan.clone(), _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What tells the work in it from other work.
    #[cfg(feature = "ballista")]
    pub(crate) fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Removes what curation put into it, and the folder unless something else is in it.
    pub(crate) fn remove(self) -> Result<(), CurateError> {
        remove(&self.path, &self.plan).map_err(|error| CurateError::write(&self.path, error))
    }
}

/// Removes the work folder that a failed run left. One that another process is in, or that is not of curation, stays.
pub(crate) fn discard(path: &Path) {
    let Ok(lock) = File::open(path.join(LOCK)) else { return };
    let Ok(found) = std::fs::read(path.join(OWNER)) else { return };
    if lock.try_lock().is_ok()
        && let Ok(owner) = serde_json::from_slice::<Owner>(&found)
    {
        // The error that is known says more than one of tidying up.
        let _ = remove(path, &owner.plan);
    }
}

/// The fingerprint of the work in a folder.
#[cfg(feature = "ballista")]
pub(crate) fn owner(path: &Path) -> Option<String> {
    let found = std::fs::read(path.join(OWNER)).ok()?;
    serde_json::from_slice::<Owner>(&found).ok().map(|owner| owner.fingerprint)
}

fn refused(path: &Path, problem: String, hint: &str) -> CurateError {
    CurateError::Work { path: path.to_path_buf(), problem, hint: hint.to_owned() }
}

fn write_owner(path: &Path, fingerprint: &str, plan: &Plan) -> Result<(), CurateError> {
    write_whole(path, &Owner { fingerprint: fingerprint.to_owned(), plan: plan.clone() })
}

/// Writes JSON so that the file is whole or absent.
pub(crate) fn write_whole(path: &Path, value: &impl Serialize) -> Result<(), CurateError> {
    let partial = path.with_extension("json.partial");
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&partial)?;
        file.write_all(&serde_json::to_vec_pretty(value)?)?;
        file.sync_data()?;
        std::fs::rename(&partial, path)
    };
    write().map_err(|error| CurateError::write(path, error))
}

/// Files of a work folder besides the folders of the plan's tasks and of the result.
const OWN_FILES: [&str; 3] = [LOCK, OWNER, "plan.json.partial"];

/// The folder in which the result is written.
pub(crate) const RESULT: &str = "result";

/// How the names of files begin into which the last task's partitions are merged.
const MERGES: &str = "output.merge-";

/// How the names of files begin that tell the processes of a cluster what a source is.
pub(crate) const SOURCES: &str = "source-";

/// The first entry that is none of a run of `plan`.
fn stranger(path: &Path, plan: &Plan) -> std::io::Result<Option<String>> {
    let mut strangers = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let own = OWN_FILES.contains(&name.as_str())
            || name == RESULT
            || [MERGES, SOURCES].iter().any(|begin| name.starts_with(begin))
            || plan.tasks.iter().any(|task| task.name() == name);
        if !own {
            strangers.push(name);
        }
    }
    Ok(strangers.into_iter().min())
}

/// Removes what a run of `plan` wrote, but for the lock and the plan.
fn clear(path: &Path, plan: &Plan) -> std::io::Result<()> {
    let folders = plan.tasks.iter().map(crate::plan::Task::name).chain([RESULT]);
    for folder in folders.map(|name| path.join(name)).filter(|folder| folder.exists()) {
        std::fs::remove_dir_all(folder)?;
    }
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name();
        if [MERGES, SOURCES].iter().any(|begin| name.to_string_lossy().starts_with(begin)) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Removes what a run of `plan` wrote, and the folder if that was all. The caller holds the lock.
fn remove(path: &Path, plan: &Plan) -> std::io::Result<()> {
    clear(path, plan)?;
    if stranger(path, plan)?.is_some() {
        // The folder is not ours alone. Without its plan it is no work folder any more.
        return std::fs::remove_file(path.join(OWNER));
    }
    std::fs::remove_dir_all(path)
}

/// Everything that the files of a work folder depend on. Runners part records differently.
fn fingerprint(
    local: &Local,
    runner: &str,
    plan: &Plan,
    sources: &BTreeMap<&str, &dyn Source>,
) -> Result<String, CurateError> {
    let inputs: BTreeMap<_, _> =
        sources.iter().map(|(name, source)| (name, (source.fingerprint(), source.splits()))).collect();
    let all = (env!("CARGO_PKG_VERSION"), runner, local.partitions.max(1), plan, inputs);
    let text = serde_json::to_vec(&all).map_err(|error| CurateError::write(&local.work, error))?;
    Ok(blake3::hash(&text).to_hex().to_string())
}
