//! The work folder: whose it is, and who is in it.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
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
                let same =
                    serde_json::from_slice::<Owner>(&found).is_ok_and(|o| o.fingerprint == fingerprint);
                if !same && !local.restart {
                    let problem = "holds the work of another plan or another input".to_owned();
                    return Err(refused(&path, problem, "give another folder, or remove this one"));
                }
                if !same {
                    clear(&path).map_err(failed)?;
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
        Ok(Self { path, fingerprint, _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What tells the work in it from other work.
    #[cfg(feature = "ballista")]
    pub(crate) fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    pub(crate) fn remove(self) -> Result<(), CurateError> {
        std::fs::remove_dir_all(&self.path).map_err(|error| CurateError::write(&self.path, error))
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
        std::fs::write(&partial, serde_json::to_vec_pretty(value)?)?;
        std::fs::rename(&partial, path)
    };
    write().map_err(|error| CurateError::write(path, error))
}

/// Removes everything but the lock.
fn clear(path: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        } else if entry.file_name() != LOCK {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
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
