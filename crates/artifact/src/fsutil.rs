//! File operations that a kill or a power cut cannot leave half done.

use crate::failpoint::step;
use crate::{ArtifactError, Result};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// Writes a file so that its path holds either the old bytes or all the new ones: a temporary beside it, fsync,
/// rename, fsync of the folder.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let temp = temporary(path)?;
    step("create", &temp)?;
    let file = File::create(&temp).map_err(|e| ArtifactError::io("create", &temp, e))?;
    write_synced(file, &temp, bytes)?;
    rename(&temp, path)?;
    sync_dir(parent(path))
}

/// Like [`write_atomic`] for a file that is too large for memory: `fill` writes it piece by piece. Where it fails, nothing
/// is left behind.
pub fn write_atomic_with<E: From<ArtifactError>>(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> Result<(), E>,
) -> Result<(), E> {
    let temp = temporary(path)?;
    step("create", &temp)?;
    let file = own(&temp).map_err(|e| ArtifactError::io("create", &temp, e))?;
    // Held until the file has its name, so that no other process writes into it.
    let lock = file.try_clone().map_err(|e| ArtifactError::io("create", &temp, e))?;
    let written = fill_synced(file, &temp, fill).and_then(|()| Ok(rename(&temp, path)?));
    if written.is_err() {
        // The first error is the one to tell.
        fs::remove_file(&temp).ok();
    }
    drop(lock);
    written?;
    Ok(sync_dir(parent(path))?)
}

/// An empty file at `temp` that is locked; an error where another process has it. Where files cannot be locked, it is not.
fn own(temp: &Path) -> std::io::Result<File> {
    loop {
        let file = File::options().write(true).create(true).truncate(false).open(temp)?;
        match file.try_lock() {
            Err(fs::TryLockError::WouldBlock) => {
                return Err(std::io::Error::other("another process is writing this file"));
            }
            Ok(()) if !is_at(&file, temp)? => continue,
            _ => {}
        }
        // What is empty may be a pipe, which has no length to set.
        if file.metadata()?.len() > 0 {
            file.set_len(0)?;
        }
        return Ok(file);
    }
}

/// Whether `path` still names the file: who had the lock before may have renamed it.
#[cfg(unix)]
pub(crate) fn is_at(file: &File, path: &Path) -> std::io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let identity = |meta: fs::Metadata| (meta.dev(), meta.ino());
    match fs::metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        other => Ok(identity(other?) == identity(file.metadata()?)),
    }
}

#[cfg(not(unix))]
pub(crate) fn is_at(_: &File, _: &Path) -> std::io::Result<bool> {
    Ok(true)
}

fn fill_synced<E: From<ArtifactError>>(
    file: File,
    temp: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> Result<(), E>,
) -> Result<(), E> {
    let mut out = BufWriter::with_capacity(1 << 20, file);
    fill(&mut out)?;
    let synced = out.into_inner().map_err(std::io::IntoInnerError::into_error).and_then(|f| f.sync_all());
    Ok(synced.map_err(|e| ArtifactError::io("write", temp, e))?)
}

/// Writes the bytes to an open file and makes them durable; the path is for the error.
pub(crate) fn write_synced(mut file: File, path: &Path, bytes: &[u8]) -> Result<()> {
    let wrap = |e| ArtifactError::io("write", path, e);
    // Two halves, so that the tests can stop in the middle of a file.
    let (head, tail) = bytes.split_at(bytes.len() / 2);
    file.write_all(head).map_err(wrap)?;
    step("write", path)?;
    file.write_all(tail).map_err(wrap)?;
    file.sync_all().map_err(wrap)
}

/// Makes every file and folder under `dir`, and `dir` itself, durable.
pub fn sync_tree(dir: &Path) -> Result<()> {
    for (path, is_dir) in entries(dir)? {
        if is_dir { sync_tree(&path)? } else { sync_file(&path)? }
    }
    sync_dir(dir)
}

/// Makes a folder take the place of another, or of nothing, as one step.
///
/// `from` must be complete and durable, and lie on the same disk. A kill leaves `to` whole, or `to` absent with the
/// older folder at `to.old`; [`recover_dir`] puts that right.
pub fn publish_dir(from: &Path, to: &Path) -> Result<()> {
    let old = old_path(to);
    if exists(to)? {
        remove_dir(&old)?;
        rename(to, &old)?;
    }
    rename(from, to)?;
    sync_dir(parent(to))?;
    remove_dir(&old)
}

/// Finishes what a killed [`publish_dir`] left: the older folder goes back if nothing took its place, else it goes.
pub fn recover_dir(to: &Path) -> Result<()> {
    let old = old_path(to);
    if exists(to)? {
        remove_dir(&old)
    } else if exists(&old)? {
        rename(&old, to)?;
        sync_dir(parent(to))
    } else {
        Ok(())
    }
}

/// Removes a folder and all in it; nothing to do is no error.
///
/// The files that make a folder count as finished or as resumable go first, so that a kill on the way leaves rubbish
/// and not a folder with holes.
pub fn remove_dir(dir: &Path) -> Result<()> {
    if !exists(dir)? {
        return Ok(());
    }
    for marker in [crate::MANIFEST, crate::run::DRAFT_NOTE] {
        remove_file(&dir.join(marker))?;
    }
    sync_dir(dir)?;
    remove_tree(dir)
}

/// Removes a folder or a file in no particular order.
pub(crate) fn remove_tree(path: &Path) -> Result<()> {
    let meta = fs::symlink_metadata(path).map_err(|e| ArtifactError::io("look at", path, e))?;
    if !meta.is_dir() {
        return remove_file(path);
    }
    for (child, _) in entries(path)? {
        remove_tree(&child)?;
    }
    step("remove", path)?;
    fs::remove_dir(path).map_err(|e| ArtifactError::io("remove", path, e))
}

/// Removes a file; nothing to do is no error.
pub(crate) fn remove_file(path: &Path) -> Result<()> {
    step("remove", path)?;
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(ArtifactError::io("remove", path, e)),
        _ => Ok(()),
    }
}

/// Removes what killed calls of [`write_atomic`] left anywhere under a folder.
pub(crate) fn sweep_temporaries(dir: &Path) -> Result<()> {
    for (path, is_dir) in entries(dir)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if is_dir {
            sweep_temporaries(&path)?;
        } else if name.starts_with('.') && name.ends_with(TEMP_SUFFIX) {
            remove_file(&path)?;
        }
    }
    Ok(())
}

/// The children of a folder sorted by name, each with whether it is a folder (a link is not).
pub(crate) fn entries(dir: &Path) -> Result<Vec<(PathBuf, bool)>> {
    let wrap = |e| ArtifactError::io("list", dir, e);
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(wrap)? {
        let entry = entry.map_err(wrap)?;
        found.push((entry.path(), entry.file_type().map_err(wrap)?.is_dir()));
    }
    found.sort();
    Ok(found)
}

pub(crate) fn create_dir_all(dir: &Path) -> Result<()> {
    step("create", dir)?;
    fs::create_dir_all(dir).map_err(|e| ArtifactError::io("create", dir, e))
}

pub(crate) fn exists(path: &Path) -> Result<bool> {
    path.try_exists().map_err(|e| ArtifactError::io("look at", path, e))
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|e| ArtifactError::io("read", path, e))
}

pub(crate) fn sync_file(path: &Path) -> Result<()> {
    File::open(path).and_then(|f| f.sync_all()).map_err(|e| ArtifactError::io("sync", path, e))
}

/// Makes the names in a folder durable. Only Unix opens folders; elsewhere the file system is trusted.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    if cfg!(unix) { sync_file(dir) } else { Ok(()) }
}

/// A path with a suffix on its last part: `a/b` and `.old` give `a/b.old`.
pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    step("rename", from)?;
    fs::rename(from, to).map_err(|e| ArtifactError::io("rename", from, e))
}

const TEMP_SUFFIX: &str = ".tmp";

/// Where [`write_atomic`] and [`write_atomic_with`] write before they rename. What a kill leaves there is written over by the
/// next call, and never taken for the file.
pub fn temporary(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| {
        ArtifactError::io("write", path, std::io::Error::other("the path does not end in a file name"))
    })?;
    let mut temp = std::ffi::OsString::from(".");
    temp.push(name);
    temp.push(TEMP_SUFFIX);
    Ok(path.with_file_name(temp))
}

fn old_path(path: &Path) -> PathBuf {
    with_suffix(path, ".old")
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}
