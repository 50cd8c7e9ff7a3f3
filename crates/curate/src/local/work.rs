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

/// Written when a plan begins, and compared when one is taken up again. The plan is there to be read by people.
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
    run: PathBuf,
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
        let lock = path.join(LOCK);
        let lock = File::options().write(true).create(true).truncate(false).open(lock).map_err(failed)?;
        if lock.metadata().map_err(failed)?.len() > 0 {
            let problem = format!("has a `{LOCK}` that is not of curation");
            return Err(refused(&path, problem, "give an empty folder or a new one"));
        }
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
                if let Some(name) = stranger(&path).map_err(failed)? {
                    let problem = format!("has `{name}` in it, which curation did not put there");
                    return Err(refused(&path, problem, "take it out, or give another folder"));
                }
                if !same {
                    // In this order: what is left where this is cut short is of nobody, and goes with the next.
                    write_owner(&owner, &fingerprint, plan)?;
                    clear(&path).map_err(failed)?;
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                if let Some(name) = others(&path, &OWN_FILES).map_err(failed)?.into_iter().min() {
                    let problem = format!("has `{name}` in it and no plan");
                    return Err(refused(&path, problem, "give an empty folder or a new one"));
                }
                write_owner(&owner, &fingerprint, plan)?;
            }
            Err(error) => return Err(failed(error)),
        }
        let run = run_folder(&path, &fingerprint);
        std::fs::create_dir_all(&run).map_err(failed)?;
        Ok(Self { path, fingerprint, run, _lock: lock })
    }

    #[cfg(feature = "ballista")]
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The folder of what this plan makes of this input on the way to its result.
    pub(crate) fn run(&self) -> &Path {
        &self.run
    }

    /// What tells the work in it from other work.
    #[cfg(feature = "ballista")]
    pub(crate) fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Removes what curation put into it, and the folder unless something else is in it.
    pub(crate) fn remove(self) -> Result<(), CurateError> {
        remove(&self.path).map_err(|error| CurateError::write(&self.path, error))
    }
}

/// Removes the work folder that a failed run left. One that another process is in, or that is not of curation, stays.
pub(crate) fn discard(path: &Path) {
    let Ok(lock) = File::open(path.join(LOCK)) else { return };
    let Ok(found) = std::fs::read(path.join(OWNER)) else { return };
    if lock.try_lock().is_ok() && serde_json::from_slice::<Owner>(&found).is_ok() {
        // The error that is known says more than one of tidying up.
        let _ = remove(path);
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

/// Files of a work folder.
const OWN_FILES: [&str; 3] = [LOCK, OWNER, "plan.json.partial"];

/// The folder in which the result is written.
pub(crate) const RESULT: &str = "result";

/// How the name of the folder of a run begins.
const RUN: &str = "run-";

/// Digits of the fingerprint in it.
const DIGITS: usize = 16;

/// The folder of a run in a work folder. Tasks of another run, which processes of a cluster may still be busy with, have no way
/// into it.
pub(crate) fn run_folder(work: &Path, fingerprint: &str) -> PathBuf {
    work.join(format!("{RUN}{}", &fingerprint[..fingerprint.len().min(DIGITS)]))
}

/// The entries of a folder but for those with these names.
fn others(path: &Path, names: &[&str]) -> std::io::Result<Vec<String>> {
    let all = std::fs::read_dir(path)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    all.filter(|name| name.as_ref().map_or(true, |name| !names.contains(&name.as_str()))).collect()
}

fn is_ours(name: &str) -> bool {
    let digits = name.strip_prefix(RUN).unwrap_or_default().as_bytes();
    name == RESULT || digits.len() == DIGITS && digits.iter().all(u8::is_ascii_hexdigit)
}

/// The first entry that curation did not put there.
fn stranger(path: &Path) -> std::io::Result<Option<String>> {
    Ok(others(path, &OWN_FILES)?.into_iter().filter(|name| !is_ours(name)).min())
}

/// Removes what runs wrote, but for the lock and the plan.
fn clear(path: &Path) -> std::io::Result<()> {
    let ours = others(path, &OWN_FILES)?.into_iter().filter(|name| is_ours(name));
    ours.map(|name| path.join(name)).try_for_each(std::fs::remove_dir_all)
}

/// Removes what runs wrote, and the folder if that was all. The caller holds the lock.
fn remove(path: &Path) -> std::io::Result<()> {
    clear(path)?;
    if stranger(path)?.is_some() {
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
